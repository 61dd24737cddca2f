package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go/http3"
)

const (
	httpPort  = 80
	httpsPort = 443
)

// client asks over and over in one way.
type client struct {
	name   string
	method string
	// repeatable is true where a proxy may ask again by the rules of HTTP, even
	// after the request was sent.
	repeatable bool
	https      bool
	transport  func(dial func(context.Context, string, string) (net.Conn, error)) http.RoundTripper

	sent, failed atomic.Int64
	mu           sync.Mutex
	first        string
	longest      time.Duration
}

// insecure trusts every certificate: they change, and sign themselves.
func insecure() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: host}
}

// clients are the ways to ask. Go's own client repeats a GET on another
// connection only when a kept one was closed before any answer came, as browsers do.
func clients() []*client {
	type dial = func(context.Context, string, string) (net.Conn, error)
	tcp := func(change func(*http.Transport)) func(dial) http.RoundTripper {
		return func(d dial) http.RoundTripper {
			t := &http.Transport{DialContext: d, TLSClientConfig: insecure()}
			change(t)
			return t
		}
	}
	kept := func(*http.Transport) {}
	each := func(t *http.Transport) { t.DisableKeepAlives = true }
	h2 := func(t *http.Transport) {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP2(true)
	}
	h3 := func(dial) http.RoundTripper { return &http3.Transport{TLSClientConfig: insecure()} }
	return []*client{
		{name: "HTTP/1.1 kept, GET", method: "GET", repeatable: true, transport: tcp(kept)},
		{name: "HTTP/1.1 kept, POST", method: "POST", transport: tcp(kept)},
		{name: "HTTP/1.1 new connections, GET", method: "GET", repeatable: true, transport: tcp(each)},
		{name: "TLS new connections, POST", method: "POST", https: true, transport: tcp(each)},
		{name: "HTTP/2, GET", method: "GET", repeatable: true, https: true, transport: tcp(h2)},
		{name: "HTTP/2, POST", method: "POST", https: true, transport: tcp(h2)},
		{name: "HTTP/3, GET", method: "GET", repeatable: true, https: true, transport: h3},
	}
}

// run asks until ctx ends, with a pause so that the machine has time for changes.
func (c *client) run(ctx context.Context) {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		var d net.Dialer
		return d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	}
	hc := &http.Client{Transport: c.transport(dial), Timeout: 20 * time.Second}
	defer hc.CloseIdleConnections()
	for ctx.Err() == nil {
		c.ask(hc)
		time.Sleep(2 * time.Millisecond)
	}
}

func (c *client) ask(hc *http.Client) {
	url := fmt.Sprintf("http://127.0.0.1:%d/app/x", httpPort)
	if c.https {
		url = fmt.Sprintf("https://127.0.0.1:%d/app/x", httpsPort)
	}
	var body io.Reader
	if c.method == "POST" {
		body = strings.NewReader("payload")
	}
	began := time.Now()
	err := func() error {
		req, err := http.NewRequest(c.method, url, body)
		if err != nil {
			return err
		}
		req.Host = host
		resp, err := hc.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if want := fmt.Sprintf(" %s %d\n", c.method, req.ContentLength); resp.StatusCode != 200 || !strings.HasSuffix(string(text), want) {
			return fmt.Errorf("%s: %.120q", resp.Status, text)
		}
		return nil
	}()
	c.sent.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.longest = max(c.longest, time.Since(began))
	if err != nil {
		if c.failed.Add(1) == 1 {
			c.first = err.Error()
		}
	}
}

// outcome is what was counted since the last time.
type outcome struct {
	sent, failed int64
	first        string
	longest      time.Duration
}

func (c *client) take() outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := outcome{c.sent.Swap(0), c.failed.Swap(0), c.first, c.longest}
	c.first, c.longest = "", 0
	return o
}
