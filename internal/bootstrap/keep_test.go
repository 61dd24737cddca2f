package bootstrap

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/model"
)

// TestNewsCountSoonButNotOften counts in time of its own.
func TestNewsCountSoonButNotOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		news := make(chan struct{}, 1)
		var calls atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go keep(ctx, slog.New(slog.DiscardHandler), "", news, func(context.Context) error { calls.Add(1); return nil })
		tell := func() {
			select {
			case news <- struct{}{}:
			default:
			}
		}
		want := func(what string, after time.Duration, want int32) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if n := calls.Swap(0); n != want {
				t.Errorf("%s: called %d times, want %d", what, n, want)
			}
		}
		want("at the start", 10*time.Second, 1)
		tell()
		want("news", 0, 1)
		tell()
		want("more of them at once", soonest/2, 0)
		want("a second after the last time", soonest/2, 1)
		time.Sleep(10 * time.Second)
		for range 50 {
			tell()
			time.Sleep(100 * time.Millisecond)
		}
		want("news for 5 s", soonest/2, 6)
		want("the tick", repeat+soonest, 1)
	})
}

// TestObjectsArePutBack deletes them, and tells of it.
func TestObjectsArePutBack(t *testing.T) {
	f := newFixture(t)
	gone, gone2 := make(chan struct{}, 1), make(chan struct{}, 1)
	e := f.ensurer(Options{ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Changed: gone})
	d, err := NewDNSEndpoints(DNSEndpointsOptions{
		Client: f.client, Logger: slog.New(slog.DiscardHandler), Node: &model.Node{Name: "node-1"}, Changed: gone2,
		Listen: []netip.AddrPort{netip.MustParseAddrPort("10.245.0.1:10053")},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- e.Run(ctx) }()
	go func() { done <- d.Run(ctx) }()
	services, slices := f.client.CoreV1().Services("kube-system"), f.client.DiscoveryV1().EndpointSlices("kube-system")
	until := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			_, err := services.Get(ctx, "kube-dns", metav1.GetOptions{})
			_, err2 := slices.Get(ctx, "kube-dns-node-1-ipv4", metav1.GetOptions{})
			if err == nil && err2 == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v, %v", what, err, err2)
			}
		}
	}
	until("not made")
	if err := services.Delete(ctx, "kube-dns", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := slices.Delete(ctx, "kube-dns-node-1-ipv4", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	gone <- struct{}{}
	gone2 <- struct{}{}
	until("not put back")
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
