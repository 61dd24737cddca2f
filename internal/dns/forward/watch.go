package forward

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// reloadInterval is how often resolv.conf is read again.
	reloadInterval = 5 * time.Second
	// probeInterval is how often servers that are down are asked for a sign of
	// life, if nothing else is said; probeTick bounds how often that may be.
	probeInterval = time.Second
	probeTick     = 250 * time.Millisecond
	// loopDomain is where the questions that find loops lie. It must be a name
	// that every resolver passes on, hence none of RFC 6761.
	loopDomain = ".fairway-loop-probe."
)

// Run follows resolv.conf, finds loops and sees servers come back, until ctx ends.
func (f *Forwarder) Run(ctx context.Context) error {
	reload, probe := time.NewTicker(reloadInterval), time.NewTicker(probeTick)
	defer reload.Stop()
	defer probe.Stop()
	f.changing.Lock()
	f.running.Store(&ctx)
	f.changing.Unlock()
	defer func() {
		f.running.Store(nil)
		for _, u := range f.all() {
			u.close()
		}
	}()
	f.findLoops(ctx, f.all())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-reload.C:
			if added := f.reload(); len(added) > 0 {
				f.findLoops(ctx, added)
			}
		case <-probe.C:
			for _, u := range f.all() {
				if u.how.every > 0 && u.down() && !u.looped.Load() && time.Since(u.probed) >= u.how.every {
					u.probed = time.Now()
					go f.revive(ctx, u)
				}
			}
		}
	}
}

// reload takes the servers from the options or from resolv.conf and returns
// those that were not known before.
func (f *Forwarder) reload() []*upstream {
	if f.opts.ResolvConf != "" {
		if search, err := readSearch(f.opts.ResolvConf); err == nil {
			f.search.Store(&search)
		}
	}
	list := f.opts.Upstreams
	if len(list) == 0 && f.opts.ResolvConf != "" {
		read, err := readResolvConf(f.opts.ResolvConf, systemdResolvConf)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) || len(*f.servers.Load()) > 0 {
				f.log.Warn("cannot read upstream name servers; keeping the last known", "err", err)
			}
			return nil
		}
		list = Plain(read...)
	}
	return f.setServers(list)
}

// all returns the servers of every domain.
func (f *Forwarder) all() []*upstream {
	list := slices.Clone(*f.servers.Load())
	for _, u := range f.routes.Load().servers() {
		if !slices.Contains(list, u) {
			list = append(list, u)
		}
	}
	return list
}

func (f *Forwarder) setServers(list []Server) (added []*upstream) {
	old := *f.servers.Load()
	servers := make([]*upstream, 0, len(list))
	for _, a := range list {
		if slices.Contains(f.opts.Self, a.Addr) {
			continue
		}
		if i := slices.IndexFunc(old, func(u *upstream) bool { return u.server == a }); i >= 0 {
			servers = append(servers, old[i])
			continue
		}
		u := newUpstream(a, usually, f.opts.TLSRoots, f.metrics)
		servers, added = append(servers, u), append(added, u)
	}
	for _, u := range old {
		if !slices.Contains(servers, u) {
			f.retire(u)
		}
	}
	if !slices.Equal(old, servers) {
		f.servers.Store(&servers)
		f.log.Info("upstream name servers", "servers", f.Servers())
	}
	return added
}

// Silence is a server that is of no use.
type Silence struct {
	// Server is written as for [ParseServer].
	Server string
	// Since is when it first gave no answer; zero for one that leads back here.
	Since time.Time
}

// Silent returns the servers that count as down, and those that lead back here.
func (f *Forwarder) Silent() []Silence {
	var list []Silence
	for _, u := range f.all() {
		switch {
		case u.looped.Load():
			list = append(list, Silence{Server: u.server.String()})
		case u.down():
			list = append(list, Silence{Server: u.server.String(), Since: time.Unix(0, u.silent.Load())})
		}
	}
	return list
}

// revive asks a server that is down for name servers, by default the root's.
func (f *Forwarder) revive(ctx context.Context, u *upstream) {
	ctx, cancel := context.WithTimeout(ctx, probeInterval)
	defer cancel()
	if _, err := u.exchange(ctx, Query{Name: u.how.domain, Type: dns.TypeNS}); err != nil {
		return
	}
	u.answered()
	f.log.Info("upstream name server answers again", "server", u.server.String())
}

// findLoops asks each server for a name that nobody has: if the question comes
// back to us ([Forwarder.Looped]), asking that server is a loop.
func (f *Forwarder) findLoops(ctx context.Context, servers []*upstream) {
	for _, u := range servers {
		name := strconv.FormatUint(rand.Uint64(), 36) + loopDomain
		f.probesMu.Lock()
		f.probes[name] = u
		f.probesMu.Unlock()
		go func() {
			ctx, cancel := context.WithTimeout(ctx, f.opts.Timeout)
			defer cancel()
			_, _ = u.exchange(ctx, Query{Name: name, Type: dns.TypeHINFO}) // what counts is whether it comes back
			time.AfterFunc(f.opts.Timeout, func() {
				f.probesMu.Lock()
				defer f.probesMu.Unlock()
				delete(f.probes, name)
			})
		}()
	}
}

// Looped reports whether a question that a client asks is one of ours come
// back. The server that it was sent to is not asked again.
func (f *Forwarder) Looped(name string) bool {
	if len(name) < len(loopDomain) || !strings.EqualFold(name[len(name)-len(loopDomain):], loopDomain) {
		return false
	}
	f.probesMu.Lock()
	u := f.probes[strings.ToLower(name)]
	f.probesMu.Unlock()
	if u == nil {
		return false
	}
	if !u.looped.Swap(true) {
		f.metrics.loops.Inc()
		f.log.Error("upstream name server leads back to this one and is not asked any more; give others with the upstream option or in the node's resolv.conf",
			"server", u.server.String())
	}
	return true
}
