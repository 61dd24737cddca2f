package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

var quiet = slog.New(slog.DiscardHandler)

func TestOneFailureEndsTheRole(t *testing.T) {
	broken := errors.New("broken")
	var ended atomic.Bool
	err := runAll(t.Context(), quiet, []part{
		{"good", func(ctx context.Context) error { <-ctx.Done(); ended.Store(true); return nil }},
		{"cancelled", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
		{"short", func(context.Context) error { return nil }},
		{"bad", func(context.Context) error { return broken }},
	})
	if !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "bad: ") {
		t.Errorf("error %v, want that of the part, with its name", err)
	}
	if !ended.Load() {
		t.Error("the other parts go on")
	}
}

func TestCancelIsNoError(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := runAll(ctx, quiet, []part{{"x", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}}); err != nil {
		t.Errorf("error %v", err)
	}
}

func TestReadyFileComesWhenEveryGateIsOpen(t *testing.T) {
	var second atomic.Bool
	g := gates{{"first", func() bool { return true }}, {"second", second.Load}}
	path := filepath.Join(t.TempDir(), "ready")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- g.announce(ctx, quiet, path, nil) }()
	time.Sleep(60 * time.Millisecond)
	if _, err := os.Stat(path); err == nil {
		t.Error("ready before the second gate has opened")
	}
	second.Store(true)
	// It is written anew when it is gone, and its time is kept new.
	for range 2 {
		eventually(t, "the file is there", func() bool { _, err := os.Stat(path); return err == nil })
		old := time.Unix(1, 0)
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the file has a new time", func() bool {
			info, err := os.Stat(path)
			return err == nil && info.ModTime().After(old)
		})
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// What is wrong stands in the ready file, a line for each, while it is so.
func TestReadyFileTells(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ready")
	var now atomic.Pointer[[]string]
	now.Store(&[]string{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- gates{}.announce(ctx, quiet, path, func() []string { return *now.Load() }) }()
	for _, want := range []string{"ready\n", "ready\nthis is\nbroken in two\n", "ready\n"} {
		lines := strings.Split(strings.TrimSuffix(want, "\n"), "\n")[1:]
		if len(lines) > 1 {
			lines[1] = "broken\nin two"
		}
		now.Store(&lines)
		eventually(t, fmt.Sprintf("the file has %q", want), func() bool {
			text, err := os.ReadFile(path)
			return err == nil && string(text) == want
		})
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// What is wrong with DNS is said with the server, since when, and the cure.
func TestTroublesOfDNS(t *testing.T) {
	n := &node{NodeOptions: NodeOptions{Common: Common{Logger: quiet}}, store: state.New(), corefilesRefused: newCorefilesRefused()}
	if list := n.troubles(); len(list) != 0 {
		t.Errorf("of nothing: %q", list)
	}
	n.refuse("line 1: no")
	n.silent = func() []forward.Silence {
		return []forward.Silence{{Server: "192.0.2.1:53", Since: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)}, {Server: "192.0.2.2:53"}}
	}
	got := n.troubles()
	for i, parts := range [][]string{
		{"the Corefile cannot be read, and Fairway's defaults stay in use: line 1: no"},
		{"upstream name server 192.0.2.1:53 has not answered since 2026-05-04 03:02:01 UTC", "--dns-upstream"},
		{"upstream name server 192.0.2.2:53 leads back to this node's DNS", "--dns-upstream"},
	} {
		for _, part := range parts {
			if len(got) != 3 || !strings.Contains(got[i], part) {
				t.Errorf("%q without %q", got, part)
			}
		}
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func TestReadyFileThatCannotBeWritten(t *testing.T) {
	if err := (gates{}).announce(t.Context(), quiet, filepath.Join(t.TempDir(), "no", "such", "directory"), nil); err == nil {
		t.Error("no error")
	}
}

// TestReadyFileOnAFullDisk checks that a role goes on where there is no room for
// another file, and that what it has to say finds its place in the one there is.
func TestReadyFileOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ready")
	full := filepath.Join(dir, ".ready", "in the way")
	if err := os.MkdirAll(full, 0o755); err != nil { // nothing can be written beside it
		t.Fatal(err)
	}
	var now atomic.Pointer[[]string]
	now.Store(&[]string{"the disk is full"})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	var log testenv.Log
	go func() {
		done <- gates{}.announce(ctx, slog.New(slog.NewTextHandler(&log, nil)), path, func() []string { return *now.Load() })
	}()
	has := func(want string) {
		t.Helper()
		eventually(t, fmt.Sprintf("the file has %q", want), func() bool {
			text, err := os.ReadFile(path)
			return err == nil && string(text) == want
		})
	}
	eventually(t, "a warning", func() bool { return strings.Contains(log.String(), "it does, and it is tried again") })
	if err := os.WriteFile(path, []byte("ready\nof before, and longer than what comes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	has("ready\nthe disk is full\n")
	now.Store(&[]string{})
	has("ready\n")
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestMetricsServer(t *testing.T) {
	var ready atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	const addr = "127.0.0.1:39217"
	go func() {
		done <- serveMetrics(ctx, quiet, addr, newRegistry(), gates{{"the moon", ready.Load}}, (&node{mode: "nftables"}).serveMode)
	}()
	get := func(path string) (int, string) {
		for range 100 {
			resp, err := http.Get("http://" + addr + path)
			if err != nil {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(body)
		}
		return 0, "no answer"
	}
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "the moon") {
		t.Errorf("not ready: %d %s", code, body)
	}
	ready.Store(true)
	for path, want := range map[string]string{"/readyz": "ok", "/healthz": "ok", "/metrics": "go_goroutines", "/debug/pprof/": "goroutine", "/proxyMode": "nftables"} {
		if code, body := get(path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d", path, code)
		}
	}
	// A page elsewhere has a browser here ask.
	req, _ := http.NewRequest("GET", "http://"+addr+"/debug/pprof/", nil)
	req.Host = "evil.example.com"
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("profiles for another host: %v, %v", resp, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := serveMetrics(t.Context(), quiet, "", nil, nil); err != nil {
		t.Errorf("no address: %v", err)
	}
}

// TestLocalDebug: what is below /debug/ is for this machine, the rest for all.
func TestLocalDebug(t *testing.T) {
	h := localDebug(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for _, tt := range []struct {
		from, host, path string
		want             int
	}{
		{"127.0.0.1:5000", "127.0.0.1:10254", "/debug/state", 200},
		{"[::1]:5000", "[::1]:10254", "/debug/state", 200},
		{"[::ffff:127.0.0.1]:5000", "localhost:10254", "/debug/state", 200},
		{"127.0.0.1:5000", "localhost", "/debug/pprof/heap", 200},
		{"127.0.0.1:5000", "evil.example.com", "/debug/state", 403},
		{"127.0.0.1:5000", "localhost.example.com:80", "/debug/state", 403},
		{"10.0.0.7:5000", "127.0.0.1:10254", "/debug/state", 403},
		{"10.0.0.7:5000", "10.0.0.1:10254", "/debug/pprof/heap", 403},
		{"10.0.0.7:5000", "10.0.0.1:10254", "/metrics", 200},
		{"", "", "/debug/state", 403},
	} {
		r := httptest.NewRequest("GET", tt.path, nil)
		r.RemoteAddr, r.Host = tt.from, tt.host
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != tt.want {
			t.Errorf("%+v: %d", tt, w.Code)
		}
	}
}

func TestConfigErrorsNameTheCure(t *testing.T) {
	if err := RunNode(t.Context(), NodeOptions{Dataplane: "sideways"}); err == nil || !strings.Contains(err.Error(), "sideways") {
		t.Errorf("error %v", err)
	}
	if _, err := (Common{}).restConfig("node"); err == nil || !strings.Contains(err.Error(), "--kubeconfig") {
		t.Errorf("error %v", err)
	}
	if _, err := (Common{Kubeconfig: "/no/such/file"}).restConfig("node"); err == nil || !strings.Contains(err.Error(), "/no/such/file") {
		t.Errorf("error %v", err)
	}
	if _, err := parseUpstreams([]string{"192.0.2.1", "[2001:db8::1]:5353", "nonsense"}); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("error %v", err)
	}
	if got, err := parseUpstreams([]string{"192.0.2.1", "[2001:db8::1]:5353"}); err != nil || len(got) != 2 || got[0].Addr.Port() != 53 || got[1].Addr.Port() != 5353 {
		t.Errorf("%v, %v", got, err)
	}
}

// TestReplicasOnOneNodeHaveIdentitiesOfTheirOwn: in containers, their PIDs are the same.
func TestReplicasOnOneNodeHaveIdentitiesOfTheirOwn(t *testing.T) {
	a, b := identity("node-a"), identity("node-a")
	if a == b {
		t.Errorf("two replicas on one node are both %q", a)
	}
	if !strings.HasPrefix(a, "node-a_") {
		t.Errorf("%q does not say where it runs", a)
	}
}
