package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func TestLingering(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var farewells atomic.Int32
	late, done := lingering(ctx, func(limited context.Context) {
		if limited.Err() != nil {
			t.Error("no time for a farewell")
		}
		if _, ok := limited.Deadline(); !ok {
			t.Error("a farewell without end")
		}
		farewells.Add(1)
	})
	defer done()
	if late.Err() != nil {
		t.Fatal("over before it began")
	}
	cancel()
	select {
	case <-late.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it never ends")
	}
	if farewells.Load() != 1 {
		t.Errorf("%d farewells", farewells.Load())
	}

	late, done = lingering(t.Context(), func(context.Context) { t.Error("a farewell without having been told to end") })
	done()
	if late.Err() == nil {
		t.Error("it goes on though all parts have ended")
	}
}

// serverOf is the slice of one node's DNS server, which serves still.
func serverOf(node, addr string, ready bool) *model.EndpointSlice {
	return &model.EndpointSlice{
		Key: model.Key{Namespace: "kube-system", Name: "kube-dns-" + node}, Service: bootstrap.DNSService,
		Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr(addr), Node: node, Ready: ready, Serving: true, Terminating: !ready}},
	}
}

func TestHandOverDNS(t *testing.T) {
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}})
	endpoints, err := bootstrap.NewDNSEndpoints(bootstrap.DNSEndpointsOptions{
		Client: client, Logger: quiet, Node: &model.Node{Name: "node-1"}, Listen: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:10053")},
	})
	if err != nil {
		t.Fatal(err)
	}
	slice := func() *discoveryv1.EndpointSlice {
		s, err := client.DiscoveryV1().EndpointSlices("kube-system").Get(t.Context(), "kube-dns-node-1-ipv4", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if err := endpoints.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := &node{NodeOptions: NodeOptions{Common: Common{Logger: slog.New(slog.DiscardHandler)}, NodeName: "node-1"}, store: state.New()}
	n.store.Update(func(tx *state.Tx) { tx.PutSlice(serverOf("node-1", "10.0.0.1", true)) })
	n.handOverDNS(t.Context(), func() error { t.Error("it ends"); return nil }, endpoints, func() uint64 { t.Error("it waits"); return 0 })
	if !*slice().Endpoints[0].Conditions.Ready {
		t.Error("retired though there is no other node")
	}

	n.store.Update(func(tx *state.Tx) { tx.PutSlice(serverOf("node-2", "10.0.0.2", true)) })
	var applied atomic.Uint64
	var ended atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.handOverDNS(t.Context(), func() error { ended.Store(true); return nil }, endpoints, applied.Load)
	}()
	eventually(t, "the API says that it ends", func() bool { return *slice().Endpoints[0].Conditions.Terminating })
	if !ended.Load() {
		t.Error("clients wait for the API before they go elsewhere")
	}
	n.store.Update(func(tx *state.Tx) { tx.PutSlice(serverOf("node-1", "10.0.0.1", false)) })
	select {
	case <-done:
		t.Fatal("over before the data path leads elsewhere")
	case <-time.After(50 * time.Millisecond):
	}
	if !*slice().Endpoints[0].Conditions.Serving {
		t.Error("flows to it are ended before new ones go elsewhere")
	}
	applied.Store(n.store.Snapshot().Revision)
	eventually(t, "the API says that it serves no more", func() bool { return !*slice().Endpoints[0].Conditions.Serving })
	left := serverOf("node-1", "10.0.0.1", false)
	left.Endpoints[0].Serving = false
	n.store.Update(func(tx *state.Tx) { tx.PutSlice(left) })
	select {
	case <-done:
		t.Fatal("over while the kernel still has flows to it")
	case <-time.After(50 * time.Millisecond):
	}
	applied.Store(n.store.Snapshot().Revision)
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits though all is done")
	}
}

func TestRunWhenReady(t *testing.T) {
	var ready, ran atomic.Bool
	done := make(chan error, 1)
	go func() {
		done <- runWhenReady(ready.Load, func(context.Context) error { ran.Store(true); return nil })(t.Context())
	}()
	time.Sleep(50 * time.Millisecond)
	if ran.Load() {
		t.Error("run before it is ready")
	}
	ready.Store(true)
	if err := <-done; err != nil || !ran.Load() {
		t.Errorf("ran %v, %v", ran.Load(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := runWhenReady(func() bool { return false }, func(context.Context) error { return context.Canceled })(ctx); err != nil {
		t.Error(err)
	}
}
