package agent

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/corefile"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/source/kube"
	"fairway.dev/fairway/internal/source/translate"
	"fairway.dev/fairway/internal/state"
)

// corefileEvery is how often the file of --dns-corefile is read again. It is not
// watched: a ConfigMap that is mounted changes by a link to another directory.
const corefileEvery = 500 * time.Millisecond

// maxCorefile bounds what is read of one file, as the API bounds a ConfigMap.
const maxCorefile = 1 << 20

// newCorefilesRefused is the counter that CoreDNS has of its plugin reload.
func newCorefilesRefused() prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{
		Name: "coredns_reload_failed_total", Help: "Corefiles that could not be read, while the last one stayed in use.",
	})
}

// readCorefile reads the file of --dns-corefile into the store, where it has
// changed since the last time. One that cannot be read leaves what was there.
func (n *node) readCorefile() {
	text, err := readSmall(n.DNSCorefile)
	if err != nil {
		if n.corefile != err.Error() {
			n.refuse("cannot read --dns-corefile: " + err.Error())
			n.startWithLast(n.corefile == "")
			n.corefile = err.Error()
			n.Logger.Error("cannot read --dns-corefile; "+n.corefileStays(), "error", err)
		}
		return
	}
	all := text
	files := func(name string) map[string]string {
		found := map[string]string{}
		matching := func(folder string) {
			entries, err := os.ReadDir(filepath.Join(filepath.Dir(n.DNSCorefile), folder))
			if err != nil {
				return
			}
			for _, e := range entries {
				if ok, err := path.Match(path.Base(name), e.Name()); err != nil || !ok {
					continue
				}
				file := path.Join(folder, e.Name())
				if text, err := readSmall(filepath.Join(filepath.Dir(n.DNSCorefile), file)); err == nil {
					found[file] = text
					all += "\x00" + file + "\x00" + text
				}
			}
		}
		if corefile.InCustom(name) {
			matching(corefile.Custom)
		}
		if len(found) == 0 {
			matching("")
		}
		return found
	}
	c, notes, err := corefile.Parse(corefile.Options{
		Name: n.DNSCorefile, Text: text, Files: files, Env: os.LookupEnv, Domain: n.ClusterDomain, Self: n.DNSAddresses,
		Own: kube.OwnDNS(n.store.Snapshot(), uint16(n.DNSPort)),
	})
	if all == n.corefile {
		return
	}
	first := n.corefile == ""
	n.corefile = all
	if err != nil {
		n.refuse(err.Error())
		n.startWithLast(first)
		n.Logger.Error("nothing of this Corefile is used, and "+n.corefileStays(), "error", err)
		return
	}
	for _, note := range notes {
		n.Logger.Warn("a part of the Corefile is left out", "file", note.File, "line", note.Line, "what", note.What, "why", note.Why)
	}
	n.refused.Store(nil)
	n.store.Update(func(tx *state.Tx) { tx.SetDNS(c) })
}

// refuse counts a Corefile that cannot be read, and keeps why.
func (n *node) refuse(why string) {
	n.corefilesRefused.Inc()
	n.refused.Store(&why)
}

// startWithLast has the last Corefile of an earlier run in use, where the first one
// of this run cannot be read.
func (n *node) startWithLast(first bool) {
	if !first {
		return
	}
	if last := n.lastCorefile(); last != nil {
		n.store.Update(func(tx *state.Tx) { tx.SetDNS(last) })
	}
}

// lastCorefile is what the Corefile said that an earlier run could read last; nil
// where that is not known, or where there was none.
func (n *node) lastCorefile() *model.DNSConfig {
	if n.StateDir == "" {
		return nil
	}
	last, err := n.lastKnown()
	if err != nil || last.Snapshot.DNS == nil {
		return nil // why it cannot be used is logged by who else wants it
	}
	n.Logger.Warn("the Corefile cannot be read; the last one that could be, of an earlier run, is in use", "directory", n.StateDir, "trueAt", last.At)
	return last.Snapshot.DNS
}

// registerCorefile adds the metrics of Corefiles that cannot be read.
func (n *node) registerCorefile(registry prometheus.Registerer) {
	registry.MustRegister(n.corefilesRefused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "fairway_dns_corefile_refused", Help: "1 while the Corefile cannot be read, so that the last one that could be, or the defaults, are in use.",
	}, func() float64 {
		if n.refused.Load() == nil {
			return 0
		}
		return 1
	}))
}

// corefileStays says what is in use where a Corefile cannot be read.
func (n *node) corefileStays() string {
	if n.store.Snapshot().DNS == nil {
		return "Fairway's defaults stay in use"
	}
	return "the last one stays in use"
}

func readSmall(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxCorefile {
		return "", &os.PathError{Op: "read", Path: path, Err: os.ErrInvalid}
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

// followCorefile reads the file again as it changes. Of a ConfigMap, which the
// source follows, it logs what is wrong with it: Events about that come from the
// controller, if there is one.
func (n *node) followCorefile(ctx context.Context) error {
	sub := n.store.Subscribe()
	defer sub.Close()
	tick := time.NewTicker(corefileEvery)
	defer tick.Stop()
	ref := model.Ref{Kind: "ConfigMap", Key: n.DNSCorefileConfigMap}
	custom := ref
	custom.Key.Name += translate.CustomSuffix
	said := map[model.Problem]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if n.DNSCorefile != "" {
				n.readCorefile()
			}
			continue
		case <-sub.C():
		}
		if n.DNSCorefile != "" {
			continue
		}
		snap := n.store.Snapshot()
		problems, _ := snap.Problems.Get(ref)
		added, _ := snap.Problems.Get(custom)
		now := map[model.Problem]bool{}
		var refused *string
		for _, p := range slices.Concat(problems, added) {
			if p.Reason == translate.ReasonInvalid {
				why := fmt.Sprintf("%s, %s: %s", p.Object, p.Field, p.Message)
				refused = &why
			}
			if now[p] = true; !said[p] {
				if p.Reason == translate.ReasonInvalid {
					n.corefilesRefused.Inc()
				}
				n.Logger.Warn("the Corefile", "object", p.Object.String(), "place", p.Field, "problem", p.Message)
			}
		}
		n.refused.Store(refused)
		said = now
	}
}
