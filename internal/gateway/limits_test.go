package gateway

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

// dialFrom connects from an address. A connection that is reset at once is nil.
func dialFrom(t *testing.T, from, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
	c, err := d.Dial("tcp", to)
	if errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

const plainRequest = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"

// served reports whether a connection that begins with what is sent gets a line.
func served(c net.Conn, send string) bool {
	if c == nil {
		return false
	}
	_, _ = io.WriteString(c, send) // it may be closed already
	line, _ := bufio.NewReader(c).ReadString('\n')
	return line != ""
}

// value sums a metric up over its series.
func value(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// TestConnectionsPerClient opens as many connections as a client may, each by
// another protocol, and one more; and again when one of them has ended.
func TestConnectionsPerClient(t *testing.T) {
	greeter(t, "10.99.70.1:81", "hi")
	backendServer(t, "10.99.70.1:80", nil)
	registry := prometheus.NewRegistry()
	w, pair := http3World(t, "127.0.0.1:15443", "", "10.99.70.1:80", func(o *Options) {
		o.MaxConnectionsPerClient, o.Registerer = 5, registry
		o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.99.70.9/32")}
	})
	w.service("tcp", "", "10.99.70.1:81")
	w.streams(stream("tcp", model.TCP, 15201, "tcp"))
	addr := w.g.HTTPAddr().String()
	open := map[string]func() io.Closer{
		"HTTP/1.1": func() io.Closer {
			c := dialFrom(t, "127.0.0.1", addr)
			if !served(c, plainRequest) {
				t.Error("HTTP/1.1: not served")
			}
			return c
		},
		"HTTPS": func() io.Closer {
			c := tls.Client(dialFrom(t, "127.0.0.1", w.g.HTTPSAddr().String()), &tls.Config{InsecureSkipVerify: true})
			if !served(c, plainRequest) {
				t.Error("HTTPS: not served")
			}
			return c
		},
		"HTTP/2": func() io.Closer {
			c := w.rawHTTP2(t, true)
			_ = c.request(1, true, ":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a.test")
			if got := c.outcome(1); got != "200" {
				t.Errorf("HTTP/2: %s", got)
			}
			return c.Conn
		},
		"h2c": func() io.Closer {
			c := w.rawHTTP2(t, false)
			_ = c.request(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "other.test")
			if got := c.outcome(1); got != "404" {
				t.Errorf("h2c: %s", got)
			}
			return c.Conn
		},
		"TCP": func() io.Closer {
			c := dialFrom(t, "127.0.0.1", "127.0.0.1:15201")
			if !served(c, "") {
				t.Error("TCP: not served")
			}
			return c
		},
	}
	all := map[string]io.Closer{}
	for name, f := range open {
		all[name] = f()
	}
	full := func() bool { return !served(dialFrom(t, "127.0.0.1", addr), plainRequest) }
	if !full() || !strings.Contains(w.log.String(), "client=127.0.0.1 limit=5") {
		t.Fatal("one connection more was served, or nobody was told")
	}
	if served(dialFrom(t, "127.0.0.1", "127.0.0.1:15201"), "") {
		t.Error("TCP: one connection more was served")
	}
	if resp, err := http3Client(t, "127.0.0.1:15443", pair).Get("https://a.test/"); err == nil {
		_ = resp.Body.Close()
		t.Error("HTTP/3: one connection more was served")
	}
	if n := value(t, registry, "fairway_gateway_connections_refused_total"); n < 3 {
		t.Errorf("%v counted as refused", n)
	}
	if !served(dialFrom(t, "127.0.0.2", addr), plainRequest) {
		t.Error("another client is not served")
	}
	for range 7 {
		if !served(dialFrom(t, "10.99.70.9", addr), plainRequest) {
			t.Error("a trusted proxy is not served")
		}
	}
	for _, c := range all {
		_ = c.Close()
	}
	w.eventually("each has been counted out", func() bool {
		n := 0
		for range all {
			c := dialFrom(t, "127.0.0.1", addr)
			if served(c, plainRequest) {
				defer c.Close()
				n++
			}
		}
		return n == len(all)
	})
}

// TestHTTP3ConnectionsPerClient: a connection by QUIC counts from its handshake
// to its end.
func TestHTTP3ConnectionsPerClient(t *testing.T) {
	backendServer(t, "10.99.70.2:80", nil)
	w, pair := http3World(t, "127.0.0.1:15444", "", "10.99.70.2:80", func(o *Options) { o.MaxConnectionsPerClient = 1 })
	addr := w.g.HTTPAddr().String()
	first := http3Client(t, "127.0.0.1:15444", pair)
	if resp, _ := ask(t, first, "GET", "https://a.test/", nil); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	room := func() bool {
		c := dialFrom(t, "127.0.0.1", addr)
		if c == nil {
			return false
		}
		defer c.Close() // it counts itself
		return served(c, plainRequest)
	}
	w.eventually("the connection counts", func() bool { return !room() })
	if resp, err := http3Client(t, "127.0.0.1:15444", pair).Get("https://a.test/"); err == nil {
		_ = resp.Body.Close()
		t.Error("a second connection was served")
	}
	_ = first.Transport.(io.Closer).Close()
	w.eventually("its end counts", room)
}

// TestConnectionsPerClientBehindProxy: clients are told by their PROXY header.
func TestConnectionsPerClientBehindProxy(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.MaxConnectionsPerClient, o.ProxyProtocol = 2, true })
	open := func(from string) bool {
		c := dialFrom(t, "127.0.0.1", w.g.HTTPAddr().String())
		return served(c, fmt.Sprintf("PROXY TCP%s 1000 80\r\n", from)+plainRequest)
	}
	for i, tt := range []struct {
		from string
		want bool
	}{
		{"4 192.0.2.1 192.0.2.9", true},
		{"4 192.0.2.1 192.0.2.9", true},
		{"4 192.0.2.1 192.0.2.9", false},
		{"4 192.0.2.2 192.0.2.9", true},
		{"6 2001:db8:0:1::1 2001:db8::9", true},
		{"6 2001:db8:0:1:ffff::1 2001:db8::9", true},
		{"6 2001:db8:0:1::2 2001:db8::9", false},
		{"6 2001:db8:0:2::1 2001:db8::9", true},
	} {
		if got := open(tt.from); got != tt.want {
			t.Errorf("connection %d, %s: served %v, want %v", i, tt.from, got, tt.want)
		}
	}
}

// TestAccessLogSample: a share of what went well is logged, and all that did not.
func TestAccessLogSample(t *testing.T) {
	backendServer(t, "10.99.70.3:80", nil)
	for skip, want := range map[float64]func(int) bool{
		0:   func(n int) bool { return n == 400 },
		50:  func(n int) bool { return n > 100 && n < 300 }, // ten times the standard deviation
		100: func(n int) bool { return n == 0 },
	} {
		var log testenv.Log
		w := newWorld(t, func(o *Options) { o.AccessLog, o.AccessLogFormat, o.AccessLogSkip = &log, "combined", skip })
		w.service("a", "", "10.99.70.3:80")
		w.route(ingress("main", rule("a.test", "/", "a")))
		conn, r := w.raw("")
		for range 400 {
			_, _ = io.WriteString(conn, plainRequest)
			if resp, _ := answerOf(t, r, "GET"); resp.StatusCode != 200 {
				t.Fatal(resp.Status)
			}
		}
		for range 20 {
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: b.test\r\n\r\n")
			if resp, _ := answerOf(t, r, "GET"); resp.StatusCode != 404 {
				t.Fatal(resp.Status)
			}
		}
		w.eventually("the failed requests are logged", func() bool { return strings.Count(log.String(), `" 404 `) == 20 })
		if n := strings.Count(log.String(), `" 200 `); !want(n) {
			t.Errorf("of 400 requests, with %v%% left out, %d are logged", skip, n)
		}
	}
	for _, skip := range []float64{-1, 100.5, math.NaN()} {
		if _, err := newAccessLog(io.Discard, "json", skip); err == nil {
			t.Errorf("%v was taken", skip)
		}
	}
}

// TestUDPSessionsPerClient: a client has so many sessions at UDP ports, which
// take nothing from its connections, nor from other clients.
func TestUDPSessionsPerClient(t *testing.T) {
	udpEcho(t, "10.99.83.1:53", "dns")
	backendServer(t, "10.99.83.1:80", nil)
	registry := prometheus.NewRegistry()
	w := newWorld(t, func(o *Options) {
		o.MaxConnectionsPerClient, o.Registerer, o.StreamHost, o.UDPIdle = 2, registry, "10.99.0.1", time.Minute
		o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.99.83.9/32")}
	})
	w.service("a", "", "10.99.83.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	w.update(func(tx *state.Tx) {
		for _, name := range []string{"one", "two"} {
			tx.PutService(&model.Service{Key: key(name), Ports: []model.ServicePort{{Name: "dns", Protocol: model.UDP, Port: 80}}})
			putEndpoints(tx, name, "dns", model.UDP, []string{"10.99.83.1:53"})
		}
	})
	w.streams(stream("one", model.UDP, 15301, "one"), stream("two", model.UDP, 15302, "two"))
	// talk begins a session, and reports whether it gets an answer. One that
	// should not is over once it is counted.
	refused := func() float64 {
		return metric(t, registry, "fairway_gateway_connections_refused_total")["reason=udp_client_limit"]
	}
	talk := func(from string, port int) bool {
		t.Helper()
		c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.ParseIP("10.99.0.1"), Port: port})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		before := refused()
		_, _ = io.WriteString(c, "x")
		for end := time.Now().Add(20 * time.Second); ; {
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if _, err := c.Read(make([]byte, 100)); err == nil {
				return true
			}
			if refused() > before {
				return false
			}
			if time.Now().After(end) {
				t.Fatalf("a datagram from %s is neither answered nor counted", from)
			}
		}
	}
	for i, want := range []bool{true, true, false, false} {
		if got := talk("10.99.83.2", 15301+i%2); got != want {
			t.Errorf("session %d of a client: %v", i+1, got)
		}
	}
	if !talk("10.99.83.3", 15301) {
		t.Error("another client's session is refused")
	}
	for range 4 {
		if !talk("10.99.83.9", 15301) {
			t.Error("a trusted proxy's session is refused")
		}
	}
	// What UDP has taken is not missing for TCP.
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("10.99.83.2")}}
	for range 2 {
		c, err := d.Dial("tcp", w.g.HTTPAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if !served(c, plainRequest) {
			t.Error("a connection is refused")
		}
	}
	if !strings.Contains(w.log.String(), "as many UDP sessions as it may") {
		t.Error("the log says nothing")
	}
	// Sessions that end make room.
	w.streams(stream("two", model.UDP, 15302, "two"))
	w.eventually("there is room again", func() bool { return talk("10.99.83.2", 15302) })
}
