package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"sync"
	"syscall"
	"testing"
)

// TestNoFileForABackend: a request that comes when the process has as many files
// open as it may is told to come again, and its endpoints are not to blame.
func TestNoFileForABackend(t *testing.T) {
	endpoints := []string{"10.99.47.1:80", "10.99.47.2:80"}
	for _, e := range endpoints {
		backendServer(t, e, nil)
	}
	w := newWorld(t, nil)
	w.service("a", "", endpoints...)
	w.route(ingress("main", rule("a.test", "/", "a")))
	client := dial(t, w.g.HTTPAddr().String())
	r := bufio.NewReader(client)
	ask := func(method, host string) *http.Response {
		t.Helper()
		if _, err := fmt.Fprintf(client, "%s / HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n", method, host); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return resp
	}
	if resp := ask("GET", "other.test"); resp.StatusCode != http.StatusNotFound {
		t.Fatalf("got %s", resp.Status)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	restore := sync.OnceFunc(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	})
	defer restore()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"GET", "POST"} {
		if resp := ask(method, "a.test"); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "1" {
			t.Errorf("%s: %s %v", method, resp.Status, resp.Header)
		}
	}
	restore()
	if out := w.g.pools.Out(); len(out) != 0 {
		t.Errorf("endpoints are left out: %v", out)
	}
	if resp := ask("POST", "a.test"); resp.StatusCode != http.StatusOK {
		t.Errorf("with files again: %s", resp.Status)
	}
}
