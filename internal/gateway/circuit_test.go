package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// TestCircuitLimits: what is too much for a Service gets 503 at once, or waits
// for a connection, by every protocol; what is under way goes on.
func TestCircuitLimits(t *testing.T) {
	started, release := make(chan struct{}, 100), make(chan struct{})
	backendServer(t, "10.99.71.1:80", slow(started, release))
	registry := prometheus.NewRegistry()
	w, pair := http3World(t, "10.99.72.1:443", "", "10.99.71.1:80", func(o *Options) { o.Registerer = registry })
	w.route(ingress("plain", rule("plain.test", "/", "a", filters(model.Filters{ConnectTimeout: 20 * time.Second}))))
	h3 := http3Client(t, w.g.HTTPSAddr().String(), pair)
	h2 := &http.Client{Transport: &http.Transport{DialContext: w.dialHTTPS, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 20 * time.Second}
	t.Cleanup(h2.CloseIdleConnections)
	bodies := make(chan string, 100)
	background := func(c *http.Client, url string) {
		req, _ := http.NewRequest("GET", url, nil)
		if c == plainClient {
			req.Host = "plain.test"
		}
		go func() {
			resp, err := c.Do(req)
			if err != nil {
				bodies <- err.Error()
				return
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			bodies <- string(body)
		}()
	}
	refused := func(limit string) {
		t.Helper()
		for _, c := range []*http.Client{plainClient, h2, h3} {
			url := "https://a.test/"
			if c == plainClient {
				url = w.url("/")
			}
			req, _ := http.NewRequest("GET", url, nil)
			if c == plainClient {
				req.Host = "plain.test"
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("X-Fairway-Limit") != limit || resp.Header.Get("Retry-After") == "" {
				t.Errorf("%s: status %d, header %v, want limit %s", resp.Proto, resp.StatusCode, resp.Header, limit)
			}
		}
	}
	w.upstream("a", &model.ServiceUpstream{Limits: &model.UpstreamLimits{Requests: 3}})
	background(plainClient, w.url("/"))
	background(h2, "https://a.test/")
	background(h3, "https://a.test/")
	for range 3 {
		<-started
	}
	refused("max-requests")

	// With the other limit these three have the connections, and one more waits.
	for range 3 {
		release <- struct{}{}
	}
	for range 3 {
		if body := <-bodies; body != "done" {
			t.Errorf("a request under way: %q", body)
		}
	}
	w.upstream("a", &model.ServiceUpstream{Limits: &model.UpstreamLimits{Connections: 1, Pending: 1}})
	background(h2, "https://a.test/")
	<-started
	background(plainClient, w.url("/")) // waits
	w.eventually("a request waits", func() bool { return w.g.pools.Waiting() == 1 })
	refused("max-pending-requests")
	for range 2 {
		release <- struct{}{} // the second gets its connection from the first
		if body := <-bodies; body != "done" {
			t.Errorf("a request that had to wait: %q", body)
		}
	}
	got := metric(t, registry, "fairway_gateway_upstream_limited_total")
	if got["limit=max-requests,service=a"] != 3 || got["limit=max-pending-requests,service=a"] != 3 {
		t.Errorf("metrics: %v", got)
	}
}

// TestCircuitLimitsOfHTTP2: a backend that lets a connection carry few requests
// gets as many connections as its Service may have; the next request waits for
// one of their streams, and the one after that gets 503. One connection each
// endpoint may have, or it could serve nobody.
func TestCircuitLimitsOfHTTP2(t *testing.T) {
	const under = 2
	started, release := make(chan struct{}, 100), make(chan struct{})
	var conns atomic.Int64
	for i := range 2 {
		server := &http.Server{Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: under}, ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				conns.Add(1)
			}
		}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				slow(started, release)(w, r)
			}
		})}
		server.Protocols.SetUnencryptedHTTP2(true)
		serve(t, fmt.Sprintf("10.99.71.%d:80", 30+i), server.Serve)
		t.Cleanup(func() { _ = server.Close() })
	}
	w := newWorld(t, nil)
	w.service("a", "kubernetes.io/h2c", "10.99.71.30:80")
	w.route(ingress("main", rule("", "/", "a", filters(model.Filters{ConnectTimeout: 20 * time.Second}))))
	w.upstream("a", &model.ServiceUpstream{Limits: &model.UpstreamLimits{Connections: 2, Pending: 1}})
	w.do("GET", "a", "/", nil) // so that the settings are known
	clients := []*http.Client{plainClient, http2Plain(t)}
	answers := make(chan int, 100)
	background := func(c *http.Client) {
		go func() {
			resp, err := c.Get(w.url("/slow"))
			if err != nil {
				answers <- 0
				return
			}
			resp.Body.Close()
			answers <- resp.StatusCode
		}()
	}
	for i := range 2 * under {
		background(clients[i%2])
		<-started
	}
	background(clients[1])
	w.eventually("a request waits", func() bool { return w.g.pools.Waiting() == 1 })
	for _, c := range clients {
		resp, err := c.Get(w.url("/slow"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("X-Fairway-Limit") != "max-pending-requests" {
			t.Errorf("%s: status %d, header %v", resp.Proto, resp.StatusCode, resp.Header)
		}
	}
	if s := w.g.State("services").Services[0]; conns.Load() != 2 || s.Limited.Connections != 2 || s.Endpoints[0].State != "in use" {
		t.Errorf("%d connections; state %+v, %+v", conns.Load(), s.Limited, s.Endpoints[0])
	}
	w.endpoints("a", "10.99.71.30:80", "10.99.71.31:80")
	w.eventually("the other endpoint gets its connection", func() bool {
		resp, err := plainClient.Get(w.url("/"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return conns.Load() == 3
	})
	close(release)
	for range 2*under + 1 {
		if status := <-answers; status != 200 {
			t.Errorf("a request under way: %d", status)
		}
	}
}

// TestCircuitLimitsOfUpgrades: a WebSocket has a connection of its own, also where
// the backend's requests share one by HTTP/2.
func TestCircuitLimitsOfUpgrades(t *testing.T) {
	serveConns(t, "10.99.71.40:80", func(c net.Conn) {
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_, _ = io.Copy(io.Discard, r)
		}
	})
	w := newWorld(t, nil)
	w.route(ingress("main", rule("a.test", "/", "a")))
	for _, appProtocol := range []string{"", "kubernetes.io/h2c"} {
		w.service("a", appProtocol, "10.99.71.40:80")
		w.update(func(tx *state.Tx) {
			tx.PutService(&model.Service{Key: key("a"), Upstream: &model.ServiceUpstream{Limits: &model.UpstreamLimits{Connections: 1}},
				Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80, AppProtocol: appProtocol}}})
		})
		const request = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
		var open net.Conn
		w.eventually("a WebSocket opens", func() bool { // once the one before has ended
			conn, r := w.raw(request)
			if open = conn; strings.Contains(readLine(t, r), " 101 ") {
				return true
			}
			_ = conn.Close()
			return false
		})
		_, r := w.raw(request)
		if resp, _ := answerOf(t, r, "GET"); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("X-Fairway-Limit") != "max-connections" {
			t.Errorf("backend %q: the second WebSocket: %v", appProtocol, resp)
		}
		_ = open.Close()
	}
}

// TestCircuitLimitsOfStreams: TCP connections and UDP sessions count as well.
func TestCircuitLimitsOfStreams(t *testing.T) {
	greeter(t, "10.99.71.2:80", "hello")
	udpEcho(t, "10.99.71.3:80", "udp")
	registry := prometheus.NewRegistry()
	w := newWorld(t, func(o *Options) { o.Registerer = registry })
	w.service("a", "", "10.99.71.2:80")
	w.update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: key("u"), Ports: []model.ServicePort{{Name: "dns", Protocol: model.UDP, Port: 80}}})
		putEndpoints(tx, "u", "dns", model.UDP, []string{"10.99.71.3:80"})
	})
	one := &model.ServiceUpstream{Limits: &model.UpstreamLimits{Connections: 1}}
	w.upstream("a", one)
	w.upstream("u", one)
	w.streams(stream("tcp", model.TCP, 14001, "a"), stream("udp", model.UDP, 14002, "u"))
	first := dial(t, "127.0.0.1:14001")
	if got := readLine(t, bufio.NewReader(first)); got != "hello" {
		t.Fatalf("greeted by %q", got)
	}
	// connect reports whether a connection is served.
	connect := func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:14001")
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		n, _ := c.Read(make([]byte, 1))
		return n == 1
	}
	if connect() {
		t.Error("a second connection is served")
	}
	_ = first.Close()
	w.eventually("there is room again", connect)

	talk := func(wait time.Duration) (net.Conn, bool) {
		c, err := net.Dial("udp", "127.0.0.1:14002")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_, _ = io.WriteString(c, "x")
		_ = c.SetReadDeadline(time.Now().Add(wait))
		_, err = c.Read(make([]byte, 100))
		return c, err == nil
	}
	if _, ok := talk(10 * time.Second); !ok {
		t.Fatal("the first UDP session gets no answer")
	}
	if _, ok := talk(100 * time.Millisecond); ok {
		t.Error("a second UDP session is served")
	}
	got, ended := metric(t, registry, "fairway_gateway_upstream_limited_total"), metric(t, registry, "fairway_gateway_stream_connections_total")
	if got["limit=max-connections,service=a"] < 1 || got["limit=max-connections,service=u"] != 1 || ended["protocol=UDP,result=limited,route=udp"] != 1 {
		t.Errorf("metrics: %v, %v", got, ended)
	}
}

// TestWaitingClientLeaves: a request whose client has left gives up its place
// among those that wait for a connection.
func TestWaitingClientLeaves(t *testing.T) {
	started, release := make(chan struct{}, 10), make(chan struct{})
	defer close(release)
	backendServer(t, "10.99.71.9:80", slow(started, release))
	w := newWorld(t, nil)
	w.service("a", "", "10.99.71.9:80")
	w.route(ingress("main", rule("", "/", "a", filters(model.Filters{ConnectTimeout: time.Minute}))))
	w.upstream("a", &model.ServiceUpstream{Limits: &model.UpstreamLimits{Connections: 1, Pending: 1}})
	go w.get("a", "/")
	<-started
	for _, http2Client := range []bool{false, true} {
		transport := &http.Transport{Protocols: new(http.Protocols)}
		transport.Protocols.SetHTTP1(!http2Client)
		transport.Protocols.SetUnencryptedHTTP2(http2Client)
		ctx, leave := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", w.url("/"), nil)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if resp, err := transport.RoundTrip(req); err == nil {
				resp.Body.Close()
			}
		}()
		w.eventually("a request waits", func() bool { return w.g.pools.Waiting() == 1 })
		leave()
		<-ended
		w.eventually("it waits no more", func() bool { return w.g.pools.Waiting() == 0 })
		transport.CloseIdleConnections()
	}
}
