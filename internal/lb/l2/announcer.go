package l2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/state"
)

const (
	// scanEvery is how often the node's interfaces are looked at.
	scanEvery = 3 * time.Second
	// repeatEvery is how often every address is announced again, for switches
	// and neighbours that forgot or were away.
	repeatEvery = time.Minute
	// burst is how often an address that was taken over is announced at once,
	// with burstGap between: a single frame may be lost.
	burst    = 4
	burstGap = time.Second
)

// DefaultExclude are the interfaces of Fairway's own, which lead to no network.
var DefaultExclude = []string{"fairway"}

// Options configure an [Announcer].
type Options struct {
	// Store is where Services and nodes are read from. Required.
	Store *state.Store
	// NodeName is this node. Required.
	NodeName string
	// Logger is required.
	Logger *slog.Logger
	// Exclude are prefixes of names of interfaces that are left out; default
	// [DefaultExclude].
	Exclude []string
	// OnNetworks is told of the networks that this node is on, at the start and
	// whenever they have changed. It must not block. Optional.
	OnNetworks func([]netip.Prefix)
}

// Announcer answers for the addresses that fall to this node.
type Announcer struct {
	Options

	mu    sync.Mutex
	addrs map[netip.Addr]bool // that fall to this node, local or not
	links map[string]*link
	told  []netip.Prefix
	saw   bool
}

// New returns an announcer; nothing is announced before Run.
func New(o Options) (*Announcer, error) {
	if o.Store == nil || o.NodeName == "" || o.Logger == nil {
		return nil, errors.New("l2: Store, NodeName and Logger are required")
	}
	if o.Exclude == nil {
		o.Exclude = DefaultExclude
	}
	return &Announcer{Options: o, addrs: map[netip.Addr]bool{}, links: map[string]*link{}}, nil
}

// Announced returns the addresses that this node answers for, by interface.
func (a *Announcer) Announced() map[string][]netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string][]netip.Addr{}
	for name, l := range a.links {
		if addrs := l.announced(); len(addrs) > 0 {
			out[name] = addrs
		}
	}
	return out
}

// Run answers until ctx ends; it then returns nil. Interfaces may come and go.
func (a *Announcer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer a.closeLinks()
	a.mu.Lock()
	err := a.apply()
	a.mu.Unlock()
	if err != nil {
		return err
	}
	wg.Go(func() { a.rescan(ctx) })
	options := reconcile.WatchOptions{Store: a.Store, Logger: a.Logger}
	return reconcile.Watch(ctx, options, func(_ context.Context, _, next *state.Snapshot) error {
		if !next.Synced {
			return nil
		}
		mine := map[netip.Addr]bool{}
		for addr, node := range Elect(next) {
			if node == a.NodeName {
				mine[addr] = true
			}
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if maps.Equal(mine, a.addrs) {
			return nil
		}
		a.addrs = mine
		return a.apply()
	})
}

// rescan follows the node's interfaces.
func (a *Announcer) rescan(ctx context.Context) {
	tick := time.NewTicker(scanEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.mu.Lock()
			if err := a.apply(); err != nil && ctx.Err() == nil {
				a.Logger.Warn("cannot announce load balancer addresses", "error", err, "retryIn", scanEvery)
			}
			a.mu.Unlock()
		}
	}
}

// apply gives every interface the addresses that lie in its networks, opening
// and closing interfaces as they come and go. The caller holds mu.
func (a *Announcer) apply() error {
	present, err := a.scan()
	if err != nil {
		return err
	}
	a.tell(present)
	for name, l := range a.links {
		if now, ok := present[name]; !ok || !l.same(now) {
			l.close()
			delete(a.links, name)
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(present)) {
		n := present[name]
		var local []netip.Addr
		for addr := range a.addrs {
			if n.contains(addr) {
				local = append(local, addr)
			}
		}
		l := a.links[name]
		if l == nil && len(local) > 0 {
			if l, err = openLink(n.ifi, a.Logger); err != nil {
				errs = append(errs, fmt.Errorf("interface %s: %w", name, err))
				continue
			}
			a.links[name] = l
		}
		if l != nil {
			slices.SortFunc(local, netip.Addr.Compare)
			errs = append(errs, l.set(local))
		}
	}
	return errors.Join(errs...)
}

// tell passes on the networks, ordered, each once, if they have changed.
func (a *Announcer) tell(present map[string]network) {
	if a.OnNetworks == nil {
		return
	}
	var all []netip.Prefix
	for _, n := range present {
		for _, p := range n.prefixes {
			all = append(all, p.Masked())
		}
	}
	slices.SortFunc(all, func(x, y netip.Prefix) int {
		return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Bits(), y.Bits()))
	})
	all = slices.Compact(all)
	if a.saw && slices.Equal(all, a.told) {
		return
	}
	a.told, a.saw = all, true
	a.OnNetworks(all)
}

func (a *Announcer) closeLinks() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, l := range a.links {
		l.close()
		delete(a.links, name)
	}
}

// network is an interface with the networks that it is on.
type network struct {
	ifi      *net.Interface
	prefixes []netip.Prefix
}

// contains reports whether addr lies in a network of the interface, and is not
// the interface's own.
func (n network) contains(addr netip.Addr) bool {
	return slices.ContainsFunc(n.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) && p.Addr() != addr })
}

// scan returns the interfaces on which there can be neighbours.
func (a *Announcer) scan() (map[string]network, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	out := map[string]network{}
	for _, ifi := range interfaces {
		const need = net.FlagUp | net.FlagBroadcast
		excluded := slices.ContainsFunc(a.Exclude, func(p string) bool { return strings.HasPrefix(ifi.Name, p) })
		if ifi.Flags&need != need || ifi.Flags&net.FlagLoopback != 0 || len(ifi.HardwareAddr) != 6 || excluded {
			continue
		}
		addrs, err := ifi.Addrs()
		if err != nil {
			continue // it has gone meanwhile
		}
		n := network{ifi: &ifi}
		for _, addr := range addrs {
			if p, err := netip.ParsePrefix(addr.String()); err == nil && !p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() {
				n.prefixes = append(n.prefixes, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()))
			}
		}
		if len(n.prefixes) > 0 {
			out[ifi.Name] = n
		}
	}
	return out, nil
}
