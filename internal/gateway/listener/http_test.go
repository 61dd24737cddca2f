package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/http2"
)

// handle is a handler of HTTP/1 requests.
type handle func(c *http1.Conn)

func (h handle) ServeHTTP1(c *http1.Conn) { h(c) }

// streams is a handler of HTTP/2 requests.
type streams func(s *http2.Stream)

func (h streams) ServeHTTP2(s *http2.Stream) { h(s) }

// none resets all streams.
var none = streams(func(*http2.Stream) {})

func startHTTP(t *testing.T, o HTTPOptions) string {
	t.Helper()
	o.Addrs, o.Logger = []string{"127.0.0.1:0"}, slog.New(slog.DiscardHandler)
	o.HTTP2 = none
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

// TestShortOfMemory: then clients do not get the idle time to think.
func TestShortOfMemory(t *testing.T) {
	t.Parallel() // it waits for some seconds
	addr := startHTTP(t, HTTPOptions{HeaderTimeout: time.Hour, IdleTimeout: time.Hour, Short: func() bool { return true },
		HTTP1: handle(func(c *http1.Conn) { c.Answer(http.StatusNoContent, nil, "") })})
	c := dialHTTP(t, addr, "")
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the connection was not closed: %v", err)
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

// TestClientThatSendsNothing: a body that does not come is given up, by every
// protocol, but not that of an RPC.
func TestClientThatSendsNothing(t *testing.T) {
	const timeout = 100 * time.Millisecond
	failed := make(chan error, 1)
	read := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if timed, ok := r.Body.(interface{ Timed() }); ok && r.URL.Path == "/timed" {
			timed.Timed()
		}
		_, err := io.Copy(io.Discard, r.Body)
		failed <- err
	})
	fallback, err := certs.SelfSigned("a", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h, err := NewHTTP(t.Context(), HTTPOptions{Addrs: []string{"127.0.0.1:0"}, TLS: certs.NewResolver(certs.NewIndex(fallback)).ServerConfig("h2", "http/1.1"), HTTP3: true,
		Logger: slog.New(slog.DiscardHandler), BodyTimeout: timeout, LameDuck: time.Millisecond, DrainTimeout: time.Second, Requests: read,
		HTTP2: streams(func(s *http2.Stream) {
			a := s.Adapt()
			defer a.Close(false)
			read(nil, a.Request)
		}),
		HTTP1: handle(func(c *http1.Conn) {
			a := c.Adapt()
			defer a.Close(false)
			read(nil, a.Request)
		})})
	if err != nil {
		t.Fatal(err)
	}
	if !h.HTTP3() {
		t.Skip("the UDP port is taken")
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	insecure := &tls.Config{InsecureSkipVerify: true}
	quicTransport := &http3.Transport{TLSClientConfig: insecure}
	defer quicTransport.Close()
	for protocol, transport := range map[string]http.RoundTripper{
		"HTTP/1.1": &http.Transport{TLSClientConfig: insecure.Clone()}, "HTTP/2": &http.Transport{TLSClientConfig: insecure.Clone(), ForceAttemptHTTP2: true}, "HTTP/3": quicTransport,
	} {
		for kind, silent := range map[string]bool{"x/y": false, "application/grpc": true, "application/connect+proto": true, "application/grpc /timed": false} {
			contentType, path, _ := strings.Cut(kind, " ")
			if silent && protocol == "HTTP/1.1" || path != "" && protocol != "HTTP/3" {
				continue
			}
			body, more := io.Pipe()
			go func() {
				_, _ = more.Write([]byte("some"))
				if silent {
					time.Sleep(3 * timeout)
					_ = more.Close()
				}
			}()
			ctx, stop := context.WithCancel(context.Background())
			req, err := http.NewRequestWithContext(ctx, "POST", "https://"+h.Addrs()[0].String()+path, body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", contentType)
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				if resp, err := transport.RoundTrip(req); err == nil {
					_ = resp.Body.Close()
				}
			}()
			select {
			case err := <-failed:
				if (err == nil) != silent || !silent && !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s, %s: %v", protocol, contentType, err)
				}
			case <-time.After(20 * time.Second):
				t.Errorf("%s, %s: the server still waits", protocol, contentType)
			}
			stop()
			_ = more.Close()
			<-answered
		}
		if tr, ok := transport.(*http.Transport); ok {
			tr.CloseIdleConnections()
		}
	}
}

// TestDrainHasALimit: a request that does not end does not keep Run from ending.
func TestDrainHasALimit(t *testing.T) {
	started := make(chan struct{})
	h, err := NewHTTP(t.Context(), HTTPOptions{Addrs: []string{"127.0.0.1:0"}, Logger: slog.New(slog.DiscardHandler), DrainTimeout: 100 * time.Millisecond,
		HTTP2: none,
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
