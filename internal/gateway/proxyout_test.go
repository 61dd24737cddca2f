package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// proxiedConn is a connection of a backend that began with a PROXY header.
type proxiedConn struct {
	net.Conn
	r      *bufio.Reader
	header string // in words
	closed func()
}

func (c *proxiedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

func (c *proxiedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// readHeader reads a PROXY header and tells it in words: "v1 CLIENT LOCAL".
func readHeader(r *bufio.Reader) (string, error) {
	first, err := r.Peek(1)
	if err != nil {
		return "", err
	}
	if first[0] == 'P' {
		line, err := r.ReadString('\n')
		f := strings.Fields(line)
		if err != nil || len(f) != 6 {
			return "", fmt.Errorf("%q, %v", line, err)
		}
		return "v1 " + net.JoinHostPort(f[2], f[4]) + " " + net.JoinHostPort(f[3], f[5]), nil
	}
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil || string(head[:12]) != "\r\n\r\n\x00\r\nQUIT\n" {
		return "", fmt.Errorf("%q, %v", head, err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(r, body); err != nil {
		return "", err
	}
	return headerWords(head[12], head[13], body), nil
}

func headerWords(command, family byte, body []byte) string {
	if command == 0x20 {
		return "v2 own"
	}
	if family>>4 != 1 || len(body) != 12 {
		return fmt.Sprintf("v2 %x %x", family, body)
	}
	at := func(a, p int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[a:])), binary.BigEndian.Uint16(body[p:]))
	}
	return fmt.Sprintf("v2 %s %s", at(0, 8), at(4, 10))
}

// proxiedListener takes connections that begin with a header.
type proxiedListener struct {
	net.Listener
	t     *testing.T
	own   atomic.Int32 // connections such as health checks make
	taken atomic.Int32 // all others
	open  atomic.Int32
}

func (l *proxiedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(c)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	header, err := readHeader(r)
	if err != nil {
		l.t.Errorf("a connection without header: %v", err)
	}
	_ = c.SetReadDeadline(time.Time{})
	if header == "v2 own" {
		l.own.Add(1)
	} else {
		l.taken.Add(1)
	}
	l.open.Add(1)
	return &proxiedConn{Conn: c, r: r, header: header, closed: sync.OnceFunc(func() { l.open.Add(-1) })}, nil
}

type headerKey struct{}

// proxiedBackend is an HTTP server whose connections begin with a header, which
// it answers with.
func proxiedBackend(t *testing.T, addr string, secure bool) *proxiedListener {
	t.Helper()
	inner, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	l := &proxiedListener{Listener: inner, t: t}
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.Context().Value(headerKey{}).(string)+" "+r.Proto)
		}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if secured, ok := c.(*tls.Conn); ok {
				c = secured.NetConn()
			}
			return context.WithValue(ctx, headerKey{}, c.(*proxiedConn).header)
		},
		Protocols: new(http.Protocols),
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(func() { _ = s.Close() })
	if secure {
		pair := secret(t, "backend", "backend.test")
		cert, err := tls.X509KeyPair(pair.Chain, pair.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
		go func() { _ = s.ServeTLS(l, "", "") }()
	} else {
		go func() { _ = s.Serve(l) }()
	}
	return l
}

// TestProxyOut: backends that expect a PROXY header get that of the very client
// with each request, whatever it and they speak.
func TestProxyOut(t *testing.T) {
	plain, secured := proxiedBackend(t, "10.99.76.1:80", false), proxiedBackend(t, "10.99.76.2:443", true)
	w, pair := http3World(t, "10.99.77.1:443", "", "10.99.76.1:80", func(o *Options) {
		o.HTTPAddrs, o.TrustedProxies = []string{"10.99.77.1:80"}, []netip.Prefix{netip.MustParsePrefix("10.99.78.9/32")}
	})
	for name, app := range map[string]string{"b": "https", "c": "kubernetes.io/h2c", "d": "grpcs"} {
		addr := "10.99.76.2:443"
		if name == "c" {
			addr = "10.99.76.1:80"
		}
		w.service(name, app, addr)
	}
	rules := []model.RouteRule{rule("a.test", "/", "a"), rule("a.test", "/b", "b"), rule("a.test", "/c", "c"), rule("a.test", "/d", "d")}
	w.route(withTLS(ingress("main", rules...), "pair", "a.test"))
	w.route(ingress("plain", func() []model.RouteRule {
		var list []model.RouteRule
		for _, r := range rules {
			r.Host = "plain.test"
			list = append(list, r)
		}
		return list
	}()...))
	check := &model.HealthCheck{Kind: model.CheckHTTP, Path: "/", Status: []model.StatusRange{{Low: 200, High: 200}},
		Interval: 10 * time.Millisecond, Timeout: 10 * time.Second, HealthyAfter: 1, UnhealthyAfter: 1}
	for _, name := range []string{"a", "b", "c", "d"} {
		version := uint8(2)
		if name == "b" {
			version = 1
		}
		u := &model.ServiceUpstream{Proxy: version}
		if version == 2 {
			u.Health = check
		}
		w.upstream(name, u)
	}
	from := func(addr string) *http.Client {
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
		c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", "10.99.77.1:80")
		}}, Timeout: 20 * time.Second}
		t.Cleanup(c.CloseIdleConnections)
		return c
	}
	h2 := &http.Client{Transport: &http.Transport{DialContext: w.dialHTTPS, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 20 * time.Second}
	t.Cleanup(h2.CloseIdleConnections)
	h3 := http3Client(t, "10.99.77.1:443", pair)
	ask := func(c *http.Client, method, url, body string, change ...func(*http.Request)) string {
		t.Helper()
		req, _ := http.NewRequest(method, url, strings.NewReader(body))
		for _, f := range change {
			f(req)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %q %v", url, resp.StatusCode, got, err)
		}
		return string(got)
	}
	for path, want := range map[string][2]string{"/": {"v2", "HTTP/1.1"}, "/b": {"v1", "HTTP/1.1"}, "/c": {"v2", "HTTP/2.0"}, "/d": {"v2", "HTTP/2.0"}} {
		for _, method := range []string{"GET", "POST"} {
			body := strings.Repeat("x", len(method)-3)
			for client, c := range map[string]*http.Client{"10.99.78.1": from("10.99.78.1"), "10.99.78.2": from("10.99.78.2"), "h2": h2, "h3": h3} {
				url, local := "http://plain.test"+path, "10.99.77.1:80"
				if strings.HasPrefix(client, "h") {
					url, local = "https://a.test"+path, "10.99.77.1:443"
				}
				var port string
				for range 3 {
					f := strings.Fields(ask(c, method, url, body))
					if len(f) != 4 || f[0] != want[0] || f[2] != local || f[3] != want[1] {
						t.Fatalf("%s %s from %s: the backend was told %q", method, path, client, f)
					}
					host, p, _ := net.SplitHostPort(f[1])
					if !strings.HasPrefix(client, "h") && host != client || p == "0" || port != "" && p != port {
						t.Errorf("%s %s from %s: the backend was told of %s, before of port %s", method, path, client, f[1], port)
					}
					port = p
				}
			}
		}
	}
	// Behind a trusted proxy, the client's address is known and its port is not.
	got := ask(from("10.99.78.9"), "GET", "http://plain.test/", "", func(r *http.Request) { r.Header.Set("X-Forwarded-For", "192.0.2.7") })
	if !strings.HasPrefix(got, "v2 192.0.2.7:0 10.99.77.1:80 ") {
		t.Errorf("behind a proxy: %q", got)
	}
	w.eventually("health checks have their own header", func() bool { return plain.own.Load() > 0 && secured.own.Load() > 0 })
	w.eventually("nothing counts as under way", func() bool {
		for _, s := range w.g.State("services").Services {
			for _, e := range s.Endpoints {
				if e.State != "in use" || e.InFlight != 0 {
					return false
				}
			}
		}
		return true
	})
	// Without it nothing of it is left.
	backendServer(t, "10.99.76.3:80", nil)
	w.endpoints("a", "10.99.76.3:80")
	w.upstream("a", nil)
	if got := ask(from("10.99.78.1"), "GET", "http://plain.test/", ""); !strings.Contains(got, "10.99.76.3:80") {
		t.Errorf("without PROXY: %q", got)
	}
}

func dialHTTP(w *world) func(ctx context.Context, network, _ string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, w.g.HTTPAddr().String())
	}
}

// TestProxyOutKept: the requests of a client's connection share one to the
// backend, those of another have their own; with the endpoint all of them go.
func TestProxyOutKept(t *testing.T) {
	l := proxiedBackend(t, "10.99.76.10:80", false)
	w := newWorld(t, nil)
	for name, app := range map[string]string{"a": "", "c": "kubernetes.io/h2c"} {
		w.service(name, app, "10.99.76.10:80")
		w.upstream(name, &model.ServiceUpstream{Proxy: 2})
	}
	w.route(ingress("main", rule("a.test", "/", "a"), rule("a.test", "/c", "c")))
	for _, http2 := range []bool{false, true} {
		for _, path := range []string{"/", "/c"} {
			for range 2 {
				tr := &http.Transport{MaxConnsPerHost: 1, Protocols: new(http.Protocols), DialContext: dialHTTP(w)}
				tr.Protocols.SetHTTP1(!http2)
				tr.Protocols.SetUnencryptedHTTP2(http2)
				c := &http.Client{Transport: tr, Timeout: 20 * time.Second}
				before, told := l.taken.Load(), ""
				for i := range 20 {
					w.eventually("the one before is over", func() bool { // HTTP/2 tells its client a moment sooner
						for _, s := range w.g.State("services").Services {
							for _, e := range s.Endpoints {
								if e.InFlight != 0 {
									return false
								}
							}
						}
						return true
					})
					var content io.Reader
					if !http2 && i%2 == 1 { // the backend may answer before a frame of it has come, after which it gets no other request
						content = strings.NewReader("x")
					}
					resp, err := c.Post("http://a.test"+path, "text/plain", content)
					if err != nil {
						t.Fatal(err)
					}
					body, err := io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					if got := strings.Fields(string(body)); err != nil || len(got) < 2 || told != "" && got[1] != told {
						t.Fatalf("the backend was told %q, before of %s; %v", body, told, err)
					} else {
						told = got[1]
					}
				}
				if n := l.taken.Load() - before; n != 1 {
					t.Errorf("%s, HTTP/2 %v: 20 requests of a connection took %d to the backend", path, http2, n)
				}
				tr.CloseIdleConnections()
			}
		}
	}
	w.endpoints("a")
	w.endpoints("c")
	w.eventually("an endpoint that leaves keeps no connection", func() bool { return l.open.Load() == 0 })
}

// TestProxyOutRetries: an endpoint that cannot be connected to is left out, for
// all clients.
func TestProxyOutRetries(t *testing.T) {
	proxiedBackend(t, "10.99.76.4:80", false)
	w := newWorld(t, nil)
	w.service("a", "", "10.99.76.5:80", "10.99.76.4:80")
	w.upstream("a", &model.ServiceUpstream{Proxy: 1})
	w.route(ingress("main", rule("", "/", "a")))
	for range 10 {
		resp, body := w.do("GET", "a.test", "/", nil)
		if resp.StatusCode != http.StatusOK || !strings.HasPrefix(string(body), "v1 127.0.0.1:") {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	states := map[string]string{}
	for _, e := range w.g.State("services").Services[0].Endpoints {
		states[e.Address] = e.State
	}
	if states["10.99.76.5:80"] != "ejected" || states["10.99.76.4:80"] != "in use" {
		t.Errorf("%v", states)
	}
}

// TestProxyOutOfStreams: TCP connections and UDP datagrams tell of the client too.
func TestProxyOutOfStreams(t *testing.T) {
	for i, addr := range []string{"10.99.76.6:80", "10.99.76.7:80"} {
		inner, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = inner.Close() })
		l := &proxiedListener{Listener: inner, t: t}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintln(c, i+1, c.(*proxiedConn).header)
				_ = c.Close()
			}
		}()
	}
	u, err := net.ListenPacket("udp", "10.99.76.8:80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	go func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			if n < 28 {
				continue
			}
			_, _ = u.WriteTo(append([]byte(headerWords(buf[12], buf[13]&^1, buf[16:28])+" "), buf[28:n]...), from)
		}
	}()
	w := newWorld(t, nil)
	w.service("one", "", "10.99.76.6:80")
	w.service("two", "", "10.99.76.7:80")
	w.update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: key("u"), Ports: []model.ServicePort{{Name: "dns", Protocol: model.UDP, Port: 80}}, Upstream: &model.ServiceUpstream{Proxy: 2}})
		gatewaytest.PutEndpoints(tx, "u", "dns", model.UDP, []string{"10.99.76.8:80"})
	})
	w.upstream("one", &model.ServiceUpstream{Proxy: 2})
	old := stream("old", model.TCP, 14202, "two")
	old.ProxyOut = true
	w.streams(stream("tcp", model.TCP, 14201, "one"), old, stream("udp", model.UDP, 14203, "u"))
	for port, version := range map[string]string{"14201": "1 v2", "14202": "2 v1"} {
		c := dial(t, "127.0.0.1:"+port)
		if got, want := readLine(t, bufio.NewReader(c)), fmt.Sprintf("%s %s 127.0.0.1:%s", version, c.LocalAddr(), port); got != want {
			t.Errorf("port %s: the backend was told %q, want %q", port, got, want)
		}
	}
	c, err := net.Dial("udp", "127.0.0.1:14203")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	for _, text := range []string{"first", "second"} {
		_, _ = io.WriteString(c, text)
		buf := make([]byte, 1000)
		n, err := c.Read(buf)
		if want := fmt.Sprintf("v2 %s 127.0.0.1:14203 %s", c.LocalAddr(), text); err != nil || string(buf[:n]) != want {
			t.Errorf("UDP: the backend was told %q, %v, want %q", buf[:n], err, want)
		}
	}
}
