package ebpf

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/dataplane/nft"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

// TestSwitch goes from nftables to eBPF and back, as restarts with another
// --dataplane do, while clients here and outside connect: not one fails.
func TestSwitch(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	o := m.options(t, n)
	o.Ingress = true
	t.Cleanup(func() {
		if err := Cleanup(o); err != nil {
			t.Error(err)
		}
	})
	web := planOf("web", model.TCP, vip, "10.244.0.3:8080")
	packets := func() *nft.Dataplane {
		d, err := nft.New(nft.Options{Logger: logger(t), NetNS: o.NetNS})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	become := func(d dataplane.Dataplane) {
		t.Helper()
		if err := d.SetNode(t.Context(), n.Settings); err != nil {
			t.Fatal(err)
		}
		if failed := d.Apply(t.Context(), changes(web)); len(failed) > 0 {
			t.Fatal(failed)
		}
		if err := d.Prune(t.Context(), func(yield func(model.Key, plan.Service) bool) { yield(web.Key, web) }); err != nil {
			t.Fatal(err)
		}
	}
	onlyPackets := func() {
		p := packets()
		become(&dataplane.Successor{Dataplane: p, Remove: func() error { return Cleanup(o) }})
		_ = p.Close()
	}
	onlyPackets()
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var done atomic.Int64
	for _, from := range []string{"pod-a", "node-1", "outside"} {
		clients.Go(func() {
			for ctx.Err() == nil {
				if a, err := n.Hosts[from].Ask("tcp", netip.AddrPort{}, vip, 10*time.Second); err != nil || a.Name != "pod-b" {
					t.Errorf("%s: %v, %v", from, a, err)
					return
				}
				done.Add(1)
			}
		})
	}
	wait := func() {
		for before := done.Load(); done.Load() < before+30 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
	for range 3 {
		wait()
		d, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		p := packets()
		become(dataplane.Stack{d, dataplane.Part{Dataplane: p, Takes: Remainder}})
		wait()
		d.abandon(t)
		_ = p.Close()
		wait()
		onlyPackets()
	}
	wait()
	stop()
	clients.Wait()
	t.Logf("%d connections", done.Load())
}
