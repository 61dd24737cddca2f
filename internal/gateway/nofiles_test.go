package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
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

// TestUDPLeavesFiles: a flood of UDP sessions takes no file that requests need.
func TestUDPLeavesFiles(t *testing.T) {
	udpEcho(t, "10.99.47.3:53", "dns")
	backendServer(t, "10.99.47.3:80", nil)
	w := newWorld(t, nil)
	w.service("a", "", "10.99.47.3:80")
	w.route(ingress("main", rule("a.test", "/", "a")))
	w.update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: key("dns"), Ports: []model.ServicePort{{Name: "udp", Protocol: model.UDP, Port: 80}}})
		putEndpoints(tx, "dns", "udp", model.UDP, []string{"10.99.47.3:53"})
	})
	w.streams(stream("udp", model.UDP, 15056, "dns"))
	client := dial(t, w.g.HTTPAddr().String())
	r := bufio.NewReader(client)
	if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: other.test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answerOf(t, r, "GET") // its connection is there now
	next, err := syscall.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	_ = syscall.Close(next)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}()
	few := syscall.Rlimit{Cur: 2 * uint64(next+20), Max: limit.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	for range few.Cur {
		c, err := net.Dial("udp", "127.0.0.1:15056")
		if err != nil {
			t.Fatalf("UDP has taken all files: %v", err)
		}
		_, _ = io.WriteString(c, "x")
		_ = c.Close()
	}
	w.eventually("the log says that sessions cannot begin", func() bool {
		return strings.Contains(w.log.String(), "UDP sessions cannot begin")
	})
	if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if resp, body := answerOf(t, r, "GET"); resp.StatusCode != http.StatusOK {
		t.Errorf("a request beside the flood: %s %q", resp.Status, body)
	}
}
