package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/h2client"
	"fairway.dev/fairway/internal/gateway/http1"
)

// bare returns a pool that says nothing of connections.
func bare() *Pool {
	p := &Pool{}
	p.members.Store(&members{})
	return p
}

// TestExchangeDoesNotOutwait: who waits for a connection to a backend that does
// not finish its handshake is let go when the client leaves, or its time is up.
func TestExchangeDoesNotOutwait(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	called := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			called <- c
		}
	}()
	for _, leaves := range []bool{true, false} {
		e := newEndpoint(l.Addr().String(), (&net.Dialer{}).DialContext, mark{})
		x := &Exchange{Request: h2client.Request{Method: "GET", Authority: "a", Path: "/", Header: func(func(string, string) bool) {}}}
		x.Begin(&http1.Clock{})
		call, want := Call{}, http1.ErrGone
		if !leaves {
			call.Deadline, want = time.Now().Add(200*time.Millisecond), ErrTimeout
		}
		ended := make(chan error, 1)
		go func() { ended <- x.ask(bare(), e, h2, &call) }()
		c := <-called
		defer c.Close()
		if leaves {
			x.Abandon()
		}
		if err := <-ended; !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		m := &e.shared[h2-h2c]
		m.mu.Lock()
		if len(m.dials) != 1 {
			t.Errorf("it waited until the connection failed")
		}
		m.mu.Unlock()
	}
}

// TestServerNames: a backend that is known by its name is asked for it,
// whatever protocol it speaks; one by address is not.
func TestServerNames(t *testing.T) {
	pair, err := certs.SelfSigned("backend", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	names := make(chan string, 10)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{NextProtos: []string{"h2", "http/1.1"}, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		names <- h.ServerName
		return pair, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c) }()
		}
	}()
	for addr, want := range map[string]string{"backend.test:443": "backend.test", "10.0.0.1:443": "", "[2001:db8::1]:443": ""} {
		e := newEndpoint(addr, func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, l.Addr().String())
		}, mark{})
		b, err := e.open(t.Context(), https1, Call{})
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		if got := <-names; got != want {
			t.Errorf("%s is asked for %q by HTTP/1.1", addr, got)
		}
		c, err := e.dialHTTP2(h2, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if got := <-names; got != want {
			t.Errorf("%s is asked for %q by HTTP/2", addr, got)
		}
	}
}

// TestConnectionsCloseMeanwhile: an endpoint may leave, and its connections be
// closed, between the look for one and the request that was to go there.
func TestConnectionsCloseMeanwhile(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c) }()
		}
	}()
	e := newEndpoint(l.Addr().String(), (&net.Dialer{}).DialContext, mark{})
	t.Cleanup(e.closeIdle)
	m := &e.shared[0]
	r := &h2client.Request{Method: "GET", Authority: "a", Path: "/", End: true, Header: func(func(string, string) bool) {}}
	if _, err := m.open(t.Context(), bare(), e, h2c, r, &Call{}); err != nil {
		t.Fatal(err)
	}
	r.Header = func(func(string, string) bool) { m.close() }
	if s, _, err := m.have(r); s != nil || err != nil {
		t.Errorf("got %v, %v", s, err)
	}
}

// TestSlowClientIsNotSilence: an answer that goes on is no silent one, also if
// its client is so slow that it never has to be waited for.
func TestSlowClientIsNotSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	more := make(chan struct{})
	server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "some")
		_ = http.NewResponseController(w).Flush()
		<-more
	})}
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	e := newEndpoint(l.Addr().String(), (&net.Dialer{}).DialContext, mark{})
	t.Cleanup(e.closeIdle)
	x := &Exchange{Request: h2client.Request{Method: "GET", Authority: "a", Path: "/", Header: func(func(string, string) bool) {}}}
	clock := &http1.Clock{}
	x.Begin(clock)
	x.silence = time.Minute
	if err := x.ask(bare(), e, h2c, &Call{}); err != nil {
		t.Fatal(err)
	}
	clock.Store(int64(2 * time.Minute)) // that is how long the client has taken to read what came before
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		data, err := x.NextReady()
		if string(data) == "some" {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%q, %v", data, err)
		}
	}
	x.Sweep(clock.Load())
	close(more)
	if data, err := x.Next(); err != io.EOF {
		t.Errorf("%q, %v", data, err)
	}
	x.stop()
}

// TestLimitsAreNotEarly: a limit is as long as it says, although the clock that
// it is measured by is that of the last tick.
func TestLimitsAreNotEarly(t *testing.T) {
	var x Exchange
	clock := &http1.Clock{}
	clock.Store(int64(time.Hour))
	x.Begin(clock)
	x.by(&x.readBy, time.Second)
	if left := time.Duration(x.readBy.Load() - clock.Load()); left < time.Second+lag {
		t.Errorf("a second may be %s", left)
	}
}
