package kube

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv/kubeapi"
)

// TestStreamedLists reads lists that the API server streams, which arrive
// translated, and takes back what is gone when there is a new list.
func TestStreamedLists(t *testing.T) {
	api := kubeapi.New()
	api.Put(service("stays", "10.96.0.1"), service("goes", "10.96.0.2"), slice("stays-1", "stays", "10.0.0.1"))
	listener, err := api.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Stop() })
	store := state.New()
	source, err := New(Options{
		Config: &rest.Config{Host: "http://" + listener.Addr}, Store: store, Kinds: Services | EndpointSlices, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	eventually := func(what string, services ...string) {
		t.Helper()
		there := func() bool {
			s := store.Snapshot()
			for _, name := range services {
				if _, ok := s.Services.Get(key(name)); !ok {
					return false
				}
			}
			return s.Synced && s.Services.Len() == len(services) && s.Endpoints.Len() == 1
		}
		for deadline := time.Now().Add(20 * time.Second); !there(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not reached: %s", what)
			}
		}
	}
	eventually("the first lists", "stays", "goes")
	listener.Stop()
	api.Delete(service("goes", ""))
	api.Put(service("new", "10.96.0.3"))
	if err := listener.Start(); err != nil {
		t.Fatal(err)
	}
	eventually("the lists after an outage", "stays", "new")
}

// TestTransformer has nothing but translations gathered.
func TestTransformer(t *testing.T) {
	f := newFixture(t, Options{Kinds: Services})
	w := f.source.watchers[0]
	object, err := w.Transformer()(service("web", "10.96.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := object.(translated); !ok {
		t.Errorf("a %T is gathered", object)
	}
	if err := w.Replace([]any{object, service("raw", "10.96.0.2")}, ""); err != nil {
		t.Fatal(err)
	}
	f.source.flush()
	if n := f.store.Snapshot().Services.Len(); n != 2 {
		t.Errorf("%d Services, want 2", n)
	}
}
