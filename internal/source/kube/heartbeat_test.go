package kube

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv/kubeapi"
)

// TestHangingAPI: an API that hangs, or that says it is not well, counts as away;
// one that refuses to say does not.
func TestHangingAPI(t *testing.T) {
	const hangs = 0
	var code, asked atomic.Int64
	code.Store(http.StatusOK)
	end := make(chan struct{})
	objects := kubeapi.New() // these it always gives
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/livez" {
			objects.ServeHTTP(w, r)
			return
		}
		asked.Add(1)
		if c := int(code.Load()); c != hangs {
			w.WriteHeader(c)
			return
		}
		select {
		case <-r.Context().Done():
		case <-end:
		}
	}))
	defer api.Close()
	defer close(end)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: api.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Client: client, Store: state.New(), Kinds: Services, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	if longest := s.heartbeat.every*11/10 + s.heartbeat.timeout; longest > 15*time.Second {
		t.Errorf("that an API hangs is told after up to %v; the documentation says 15 s", longest)
	}
	s.heartbeat.every, s.heartbeat.timeout = 10*time.Millisecond, 50*time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	becomes := func(what string, c int, away bool) {
		t.Helper()
		code.Store(int64(c))
		for from, deadline := asked.Load(), time.Now().Add(20*time.Second); asked.Load() < from+3 || s.Outage().IsZero() == away; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: outage since %v, want one: %v", what, s.Outage(), away)
			}
		}
	}
	becomes("at first", http.StatusOK, false)
	becomes("an API that hangs", hangs, true)
	becomes("that answers again", http.StatusOK, false)
	becomes("without etcd", http.StatusInternalServerError, true)
	becomes("that does not let us ask", http.StatusForbidden, false)
	becomes("that does not know of it", http.StatusNotFound, false)
}
