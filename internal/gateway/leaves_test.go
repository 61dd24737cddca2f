package gateway

import (
	"context"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"
)

// hangs takes an address whose connections are never established: nobody
// accepts them, and those that may wait for it are there already.
func hangs(t *testing.T, addr string) {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: a.Port, Addr: [4]byte(a.IP.To4())}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		c, err := net.DialTimeout("tcp", addr, 300*time.Millisecond)
		if err != nil {
			return
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("connections are established without end")
}

// TestClientLeavesConnecting: nobody connects to a backend for a client that
// is gone, and that says nothing of the backend.
func TestClientLeavesConnecting(t *testing.T) {
	hangs(t, "10.99.71.20:80")
	w := newWorld(t, func(o *Options) { o.ConnectTimeout = time.Minute })
	w.service("a", "", "10.99.71.20:80")
	w.route(ingress("main", rule("", "/", "a")))
	for name, http2Client := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			transport := &http.Transport{Protocols: new(http.Protocols)}
			transport.Protocols.SetHTTP1(!http2Client)
			transport.Protocols.SetUnencryptedHTTP2(http2Client)
			defer transport.CloseIdleConnections()
			ctx, leave := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, "GET", w.url("/"), nil)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				if resp, err := transport.RoundTrip(req); err == nil {
					resp.Body.Close()
					t.Errorf("status %d", resp.StatusCode)
				}
			}()
			inFlight := func() int64 { return w.g.State("services").Services[0].Endpoints[0].InFlight }
			w.eventually("the backend is connected to", func() bool { return inFlight() == 1 })
			leave()
			<-ended
			w.eventually("nobody connects any more", func() bool { return inFlight() == 0 })
			if s := w.g.State("services").Services[0].Endpoints[0].State; s != "in use" {
				t.Errorf("the endpoint is %s", s)
			}
		})
	}
}
