package listener

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
)

// handle is a handler of HTTP/1 requests.
type handle func(c *http1.Conn)

func (h handle) ServeHTTP1(c *http1.Conn) { h(c) }

func startHTTP(t *testing.T, o HTTPOptions) string {
	t.Helper()
	o.Addrs, o.Logger = []string{"127.0.0.1:0"}, slog.New(slog.DiscardHandler)
	o.HTTP2 = http.NotFoundHandler()
	h, err := NewHTTP(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return h.Addrs()[0].String()
}

func dialHTTP(t *testing.T, addr, send string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestSlowClients: connections that do nothing useful are given up.
func TestSlowClients(t *testing.T) {
	addr := startHTTP(t, HTTPOptions{HeaderTimeout: 100 * time.Millisecond, IdleTimeout: 100 * time.Millisecond,
		HTTP1: handle(func(c *http1.Conn) { c.Answer(http.StatusNoContent, nil, "") })})
	for name, send := range map[string]string{
		"nothing":       "",
		"half a header": "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ",
		"idle":          "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		c := dialHTTP(t, addr, send)
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("%s: the connection was not closed: %v", name, err)
		}
	}
}

// TestClientThatTakesNothing: an answer that nobody takes is given up.
func TestClientThatTakesNothing(t *testing.T) {
	failed := make(chan struct{})
	addr := startHTTP(t, HTTPOptions{WriteTimeout: 200 * time.Millisecond, HTTP1: handle(func(c *http1.Conn) {
		c.Answer(http.StatusOK, nil, strings.Repeat("x", 64<<20))
		close(failed)
	})})
	dialHTTP(t, addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	select {
	case <-failed:
	case <-time.After(10 * time.Second):
		t.Error("the server still waits")
	}
}

// TestDrainHasALimit: a request that does not end does not keep Run from ending.
func TestDrainHasALimit(t *testing.T) {
	started := make(chan struct{})
	h, err := NewHTTP(t.Context(), HTTPOptions{Addrs: []string{"127.0.0.1:0"}, Logger: slog.New(slog.DiscardHandler), DrainTimeout: 100 * time.Millisecond,
		HTTP2: http.NotFoundHandler(),
		HTTP1: handle(func(c *http1.Conn) {
			a := c.Adapt()
			defer a.Close(false)
			close(started)
			<-a.Request.Context().Done()
		})})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	dialHTTP(t, h.Addrs()[0].String(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-started
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Run did not end")
	}
}
