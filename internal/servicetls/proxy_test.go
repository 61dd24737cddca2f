package servicetls

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// hello answers each connection with its name and what the client says.
func hello(name string) func(net.Conn) {
	return func(c net.Conn) {
		fmt.Fprintf(c, "%s\n", name)
		_, _ = io.Copy(c, c)
	}
}

func firstLine(t *testing.T, c net.Conn) string {
	t.Helper()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func TestEveryAddressOfTheService(t *testing.T) {
	l := newLab(t, nil)
	l.put(l.web())
	l.endpoints(backend(t, pods[0], nil, hello("pod 4")), backend(t, pods[2], nil, hello("pod 6")))
	for _, tt := range []struct {
		addr netip.AddrPort
		want string
	}{
		{netip.AddrPortFrom(vip4, 443), "pod 4"},
		{netip.AddrPortFrom(vip6, 443), "pod 6"},
		{netip.AddrPortFrom(node4, nodePort), "pod 4"},
		{netip.AddrPortFrom(node6, nodePort), "pod 6"},
	} {
		c, err := l.dial(tt.addr, nil)
		if err != nil {
			t.Errorf("%s: %v", tt.addr, err)
			continue
		}
		if got := firstLine(t, c); got != tt.want {
			t.Errorf("%s: %q", tt.addr, got)
		}
	}
	for _, addr := range []netip.AddrPort{
		netip.AddrPortFrom(vip4, 444), netip.AddrPortFrom(netip.MustParseAddr("10.96.0.99"), 443), netip.AddrPortFrom(node4, proxyPort),
	} {
		if _, err := l.dial(addr, nil); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestServerNames(t *testing.T) {
	l := newLab(t, nil)
	l.service.TLS = &model.ServiceTLS{Certificates: []model.Key{secretKey("first"), secretKey("second"), secretKey("bad")}}
	secrets := []*model.Certificate{
		l.ca.secret(t, "first", "a.example.com"), l.ca.secret(t, "second", "b.example.com", "*.wild.example.com"),
		{Key: secretKey("bad"), Chain: []byte("rubbish"), Problem: "rubbish"},
	}
	l.endpoints(backend(t, pods[0], nil, hello("pod")))
	ask := func(name string, version uint16) string {
		config := &tls.Config{ServerName: name, InsecureSkipVerify: true, MaxVersion: version}
		c, err := tls.Dial("tcp", netip.AddrPortFrom(vip4, 443).String(), config)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		if got := firstLine(t, c); got != "pod" {
			t.Errorf("%q: %q", name, got)
		}
		return commonName(c)
	}
	const refused = "remote error: tls: unrecognized name"
	for _, tt := range []struct {
		name  string
		hosts []string
		want  map[string]string
	}{
		{"without hosts any name will do", nil, map[string]string{
			"a.example.com": "a.example.com", "b.example.com": "b.example.com", "B.Example.com": "b.example.com",
			"x.wild.example.com": "b.example.com", "other.org": "a.example.com", "": "a.example.com",
		}},
		{"only hosts", []string{"b.example.com", "*.wild.example.com"}, map[string]string{
			"b.example.com": "b.example.com", "B.EXAMPLE.com": "b.example.com", "x.wild.example.com": "b.example.com", "": "a.example.com",
			"a.example.com": refused, "x.y.wild.example.com": refused, "wild.example.com": refused, "other.org": refused,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l.service.TLS = &model.ServiceTLS{Certificates: l.service.TLS.Certificates, Hosts: tt.hosts}
			l.put(secrets...)
			for name, want := range tt.want {
				for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
					if got := ask(name, version); got != want {
						t.Errorf("%q by %s: %q, want %q", name, tls.VersionName(version), got, want)
					}
				}
			}
		})
	}
}

// A session from a name that is allowed must not open another one.
func TestResumptionKeepsToHosts(t *testing.T) {
	l := newLab(t, nil)
	l.service.TLS.Hosts = []string{"web.example.com"}
	l.put(l.web())
	l.endpoints(backend(t, pods[0], nil, hello("pod")))
	cache := &oneSession{}
	for i, name := range []string{"web.example.com", "web.example.com", "other.example.com"} {
		c, err := l.dial(netip.AddrPortFrom(vip4, 443), &tls.Config{ServerName: name, InsecureSkipVerify: true, ClientSessionCache: cache})
		if name == "other.example.com" {
			if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
				t.Errorf("got %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		firstLine(t, c) // the ticket comes before it
		if resumed := c.ConnectionState().DidResume; resumed != (i > 0) {
			t.Errorf("connection %d: resumed %v", i, resumed)
		}
	}
}

// oneSession gives out the last session, whatever it is for.
type oneSession struct {
	mu      sync.Mutex
	session *tls.ClientSessionState
}

func (o *oneSession) Get(string) (*tls.ClientSessionState, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.session, o.session != nil
}

func (o *oneSession) Put(_ string, s *tls.ClientSessionState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.session = s
}

func TestRotation(t *testing.T) {
	l := newLab(t, nil)
	l.put(l.ca.secret(t, "tls", "old", "web.example.com"))
	l.endpoints(backend(t, pods[0], nil, hello("pod")))
	old := l.mustDial(nil)
	l.put(l.ca.secret(t, "tls", "new", "web.example.com"))
	if got := commonName(l.mustDial(nil)); got != "new" {
		t.Errorf("new connection with certificate %q", got)
	}
	r := bufio.NewReader(old)
	if _, err := io.WriteString(old, "still there\n"); err != nil {
		t.Fatal(err)
	}
	_, _ = r.ReadString('\n')
	if line, err := r.ReadString('\n'); line != "still there\n" {
		t.Errorf("open connection: %q, %v", line, err)
	}
}

func TestMissingSecretHeals(t *testing.T) {
	l := newLab(t, nil)
	l.put()
	l.endpoints(backend(t, pods[0], nil, hello("pod")))
	addr := netip.AddrPortFrom(vip4, 443)
	if _, err := l.dial(addr, nil); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("no Secret: %v", err)
	}
	l.put(&model.Certificate{Key: secretKey("tls"), Chain: []byte("rubbish"), Problem: "tls.crt is not PEM"})
	if _, err := l.dial(addr, nil); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("wrong Secret: %v", err)
	}
	l.put(l.web())
	if got := firstLine(t, l.mustDial(nil)); got != "pod" {
		t.Errorf("healed: %q", got)
	}
	l.store.Update(func(tx *state.Tx) { tx.DeleteCertificate(secretKey("tls")) })
	l.settle()
	if _, err := l.dial(addr, nil); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Secret gone: %v", err)
	}
	l.put(l.web())
	l.service.TLS = nil
	l.put()
	if _, err := l.dial(addr, nil); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("annotation gone: %v", err)
	}
}

func TestPortWithoutTLSIsRefused(t *testing.T) {
	l := newLab(t, nil)
	l.service.Ports = append(l.service.Ports, model.ServicePort{Name: "http", Protocol: model.TCP, Port: 80})
	l.service.TLS.Ports = []model.PortRef{{Name: "https"}}
	l.put(l.web())
	l.endpoints(backend(t, pods[0], nil, hello("pod")))
	l.mustDial(nil)
	if _, err := l.dial(netip.AddrPortFrom(vip4, 80), nil); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v", err)
	}
}

func TestHalfClose(t *testing.T) {
	l := newLab(t, nil)
	l.put(l.web())
	l.endpoints(backend(t, pods[0], nil, func(c net.Conn) {
		all, err := io.ReadAll(c) // needs the client's end to go on
		fmt.Fprintf(c, "%d bytes, %v", len(all), err)
	}))
	c := l.mustDial(nil)
	body := bytes.Repeat([]byte("x"), 3<<20)
	if _, err := c.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); string(got) != "3145728 bytes, <nil>" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestEndpointEndsFirst(t *testing.T) {
	l := newLab(t, nil)
	l.put(l.web())
	got := make(chan string, 1)
	l.endpoints(backend(t, pods[0], nil, func(c net.Conn) {
		_, _ = io.WriteString(c, "bye")
		_ = c.(*net.TCPConn).CloseWrite()
		all, err := io.ReadAll(c)
		got <- fmt.Sprintf("%s, %v", all, err)
	}))
	c := l.mustDial(nil)
	if all, err := io.ReadAll(c); string(all) != "bye" || err != nil {
		t.Errorf("client got %q, %v", all, err)
	}
	_, _ = io.WriteString(c, "and thanks")
	c.Close()
	if g := <-got; g != "and thanks, <nil>" {
		t.Errorf("endpoint got %q", g)
	}
}

// Many clients just close the TCP connection.
func TestClientCloseWithoutNotice(t *testing.T) {
	l := newLab(t, nil)
	l.put(l.web())
	got := make(chan string, 1)
	l.endpoints(backend(t, pods[0], nil, func(c net.Conn) {
		all, err := io.ReadAll(c)
		got <- fmt.Sprintf("%s, %v", all, err)
	}))
	c := l.mustDial(nil)
	_, _ = io.WriteString(c, "last words")
	c.NetConn().Close()
	if g := <-got; g != "last words, <nil>" {
		t.Errorf("endpoint got %q", g)
	}
}

// A broken connection must not look like a complete answer.
func TestResetIsPassedOn(t *testing.T) {
	l := newLab(t, nil)
	l.put(l.web())
	l.endpoints(backend(t, pods[0], nil, func(c net.Conn) {
		_, _ = io.WriteString(c, "half of")
		_, _ = c.Read(make([]byte, 1))
		_ = c.(*net.TCPConn).SetLinger(0)
	}))
	c := l.mustDial(nil)
	buf := make([]byte, 7)
	if _, err := io.ReadFull(c, buf); err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("x"))
	if _, err := c.Read(buf); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}

func TestNextEndpointIfOneIsDead(t *testing.T) {
	l := newLab(t, nil)
	l.put(l.web())
	live := backend(t, pods[0], nil, hello("live"))
	l.endpoints(live, netip.AddrPortFrom(pods[1], 1), netip.AddrPortFrom(pods[1], 2))
	for range 20 {
		if got := firstLine(t, l.mustDial(nil)); got != "live" {
			t.Fatalf("got %q", got)
		}
	}
	l.endpoints(netip.AddrPortFrom(pods[1], 1))
	c := l.mustDial(nil)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("no endpoint: %v", err)
	}
	l.endpoints()
	if _, err := l.dial(netip.AddrPortFrom(vip4, 443), nil); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("no endpoints: %v", err)
	}
}

func TestEndpointsShareAndAffinityHolds(t *testing.T) {
	l := newLab(t, nil)
	l.put(l.web())
	one, two := backend(t, pods[0], nil, hello("one")), backend(t, pods[1], nil, hello("two"))
	l.endpoints(one, two)
	seen := func(n int) map[string]int {
		m := map[string]int{}
		for range n {
			m[firstLine(t, l.mustDial(nil))]++
		}
		return m
	}
	if m := seen(60); len(m) != 2 {
		t.Errorf("without affinity: %v", m)
	}
	l.service.AffinityTimeout = time.Hour
	l.put()
	m := seen(30)
	if len(m) != 1 {
		t.Errorf("with affinity: %v", m)
	}
	other, name := one, "one"
	if m["one"] > 0 {
		other, name = two, "two"
	}
	l.endpoints(other)
	if got := firstLine(t, l.mustDial(nil)); got != name {
		t.Errorf("endpoint is gone: %q", got)
	}
}

func TestReencrypt(t *testing.T) {
	l := newLab(t, nil)
	stranger := newAuthority(t)
	names := make(chan string, 10)
	serve := func(config *tls.Config) netip.AddrPort {
		config.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			names <- h.ServerName
			return nil, nil
		}
		return backend(t, pods[0], config, hello("secure"))
	}
	ca := &model.Certificate{Key: secretKey("ca"), CA: l.ca.pem()}
	for _, tt := range []struct {
		name   string
		server *tls.Config
		edit   func(*model.ServiceTLS)
		sni    string
		ok     bool
	}{
		{"full DNS name", l.ca.server(t, "web.default.svc.cluster.local"), func(s *model.ServiceTLS) { s.CA = ca.Key }, "web.default.svc.cluster.local", true},
		{"short DNS name", l.ca.server(t, "web.default.svc"), func(s *model.ServiceTLS) { s.CA = ca.Key }, "web.default.svc.cluster.local", true},
		{"name from the annotation", l.ca.server(t, "inner.example.com"), func(s *model.ServiceTLS) { s.CA, s.ServerName = ca.Key, "inner.example.com" }, "inner.example.com", true},
		{"the annotation's name and no other", l.ca.server(t, "web.default.svc"), func(s *model.ServiceTLS) { s.CA, s.ServerName = ca.Key, "inner.example.com" }, "inner.example.com", false},
		{"another name", l.ca.server(t, "other.default.svc"), func(s *model.ServiceTLS) { s.CA = ca.Key }, "web.default.svc.cluster.local", false},
		{"another authority", stranger.server(t, "web.default.svc"), func(s *model.ServiceTLS) { s.CA = ca.Key }, "web.default.svc.cluster.local", false},
		{"not verified without a CA", stranger.server(t, "whatever"), func(*model.ServiceTLS) {}, "web.default.svc.cluster.local", true},
		{"CA Secret is missing", l.ca.server(t, "web.default.svc"), func(s *model.ServiceTLS) { s.CA = secretKey("gone") }, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l.service.TLS = &model.ServiceTLS{Certificates: []model.Key{secretKey("tls")}, Mode: model.TLSReencrypt}
			tt.edit(l.service.TLS)
			l.put(l.web(), ca)
			l.endpoints(serve(tt.server))
			c, err := l.dial(netip.AddrPortFrom(vip4, 443), nil)
			line := ""
			if err == nil {
				line, err = bufio.NewReader(c).ReadString('\n')
			}
			if ok := line == "secure\n"; ok != tt.ok {
				t.Errorf("got %q, %v", line, err)
			}
			if tt.sni != "" {
				if got := <-names; got != tt.sni {
					t.Errorf("SNI %q", got)
				}
			}
		})
	}
}

func TestCASecretHeals(t *testing.T) {
	l := newLab(t, nil)
	l.service.TLS = &model.ServiceTLS{Certificates: []model.Key{secretKey("tls")}, Mode: model.TLSReencrypt, CA: secretKey("ca")}
	l.put(l.web())
	l.endpoints(backend(t, pods[0], l.ca.server(t, "web.default.svc"), hello("secure")))
	if _, err := l.dial(netip.AddrPortFrom(vip4, 443), nil); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("without CA: %v", err)
	}
	l.store.Update(func(tx *state.Tx) { tx.PutCertificate(&model.Certificate{Key: secretKey("ca"), CA: l.ca.pem()}) })
	l.settle()
	if got := firstLine(t, l.mustDial(nil)); got != "secure" {
		t.Errorf("got %q", got)
	}
}

func TestApplicationProtocols(t *testing.T) {
	l := newLab(t, nil)
	l.endpoints(backend(t, pods[0], nil, hello("pod")))
	for app, want := range map[string]string{"": "", "http": "http/1.1", "kubernetes.io/h2c": "h2", "grpc": "h2", "mysql": ""} {
		l.service.Ports = []model.ServicePort{{Name: "https", Protocol: model.TCP, Port: 443, AppProtocol: app}}
		l.put(l.web())
		c := l.mustDial(&tls.Config{NextProtos: []string{"h2", "http/1.1"}})
		if got := c.ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("appProtocol %q: ALPN %q, want %q", app, got, want)
		}
	}
}

func TestSlowHandshakeIsCutOff(t *testing.T) {
	l := newLab(t, func(o *Options) { o.HandshakeTimeout = 100 * time.Millisecond })
	l.put(l.web())
	l.endpoints(backend(t, pods[0], nil, hello("pod")))
	c, err := net.Dial("tcp", netip.AddrPortFrom(vip4, 443).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = c.Write([]byte{22, 3, 1}) // the start of a ClientHello
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// metric returns the sum of a counter or gauge, over the series with label
// value, or over all.
func metric(t *testing.T, reg *prometheus.Registry, name, value string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == name && (value == "" || m.Label[0].GetValue() == value) {
				sum, found = sum+m.GetCounter().GetValue()+m.GetGauge().GetValue(), true
			}
		}
	}
	if !found {
		t.Fatalf("there is no metric %s %s", name, value)
	}
	return sum
}

func TestConnectionsAreBoundedAndCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	l := newLab(t, func(o *Options) { o.MaxConnections, o.Registerer = 1, reg })
	l.put(l.web())
	l.endpoints(backend(t, pods[0], nil, hello("pod")))
	first := l.mustDial(nil)
	firstLine(t, first)
	if _, err := l.dial(netip.AddrPortFrom(vip4, 443), nil); err == nil {
		t.Error("a second connection is served")
	}
	if n := metric(t, reg, "fairway_servicetls_connections_active", ""); n != 1 {
		t.Errorf("%v connections active", n)
	}
	first.Close()
	eventually(t, func() bool { return metric(t, reg, "fairway_servicetls_connections_active", "") == 0 })
	firstLine(t, l.mustDial(nil))
	if n := metric(t, reg, "fairway_servicetls_connections_total", resultRefused); n != 1 {
		t.Errorf("%v connections refused", n)
	}
}

func TestDrain(t *testing.T) {
	l := newLab(t, func(o *Options) { o.DrainTimeout = time.Minute })
	l.put(l.web())
	l.endpoints(backend(t, pods[0], nil, hello("pod")))
	c := l.mustDial(nil)
	firstLine(t, c)
	done := make(chan error, 1)
	go func() { done <- l.stop() }()
	eventually(t, func() bool {
		n, err := net.Dial("tcp", netip.AddrPortFrom(node4, proxyPort).String())
		if err == nil {
			n.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	if _, err := io.WriteString(c, "still there\n"); err != nil {
		t.Fatal(err)
	}
	if got := firstLine(t, c); got != "still there" {
		t.Errorf("got %q", got)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDrainEnds(t *testing.T) {
	l := newLab(t, func(o *Options) { o.DrainTimeout = 50 * time.Millisecond })
	l.put(l.web())
	l.endpoints(backend(t, pods[0], nil, hello("pod")))
	c := l.mustDial(nil)
	firstLine(t, c)
	if err := l.stop(); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("connection is open after Run")
	}
}

func TestNewRefuses(t *testing.T) {
	good := Options{Store: state.New(), Node: "n", Logger: slog.New(slog.DiscardHandler), Listen: []netip.AddrPort{netip.AddrPortFrom(node4, 1)}}
	for name, edit := range map[string]func(*Options){
		"no store":      func(o *Options) { o.Store = nil },
		"no node":       func(o *Options) { o.Node = "" },
		"no address":    func(o *Options) { o.Listen = nil },
		"every address": func(o *Options) { o.Listen = []netip.AddrPort{netip.MustParseAddrPort("[::]:1")} },
	} {
		o := good
		edit(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// webServer is an HTTP endpoint.
func webServer(t *testing.T, pod netip.Addr) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(pod, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, io.MultiReader(strings.NewReader("hello "+r.Host+"\n"), r.Body))
	}))
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func command(t *testing.T, stdin string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return string(out)
}

func TestRealClients(t *testing.T) {
	l := newLab(t, nil)
	l.service.TLS.Hosts = []string{"web.example.com"}
	l.put(l.web())
	l.endpoints(webServer(t, pods[0]))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, l.ca.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	curl := func(args ...string) string {
		return command(t, "", "curl", append([]string{"-sS", "--max-time", "10", "--cacert", ca,
			"--resolve", "web.example.com:443:10.96.0.20", "--resolve", "other.example.com:443:10.96.0.20"}, args...)...)
	}
	large := strings.Repeat("x", 1<<20)
	file := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(file, []byte(large), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := curl("https://web.example.com/"); got != "hello web.example.com\n" {
		t.Errorf("curl: %q", got)
	}
	if got := curl("-H", "Expect:", "--data-binary", "@"+file, "https://web.example.com/"); got != "hello web.example.com\n"+large {
		t.Errorf("curl with a large body: %d bytes", len(got))
	}
	if got := curl("-k", "https://other.example.com/"); !strings.Contains(got, "unrecognized name") {
		t.Errorf("curl with another name: %q", got)
	}
	if got := curl("http://10.96.0.20:443/"); !strings.Contains(got, "This port speaks TLS") {
		t.Errorf("curl in plain: %q", got)
	}
	const request = "GET / HTTP/1.0\r\nHost: web\r\n\r\n"
	s := command(t, request, "openssl", "s_client", "-connect", "10.96.0.20:443", "-servername", "web.example.com", "-CAfile", ca, "-ign_eof")
	for _, want := range []string{"Verification: OK", "subject=CN = web.example.com", "hello web"} {
		if !strings.Contains(s, want) {
			t.Errorf("openssl: no %q in\n%s", want, s)
		}
	}
	s = command(t, "", "openssl", "s_client", "-connect", "10.96.0.20:443", "-servername", "other.example.com")
	if !strings.Contains(s, "unrecognized name") {
		t.Errorf("openssl with another name:\n%s", s)
	}
	s = command(t, request, "openssl", "s_client", "-connect", "10.96.0.20:443", "-noservername", "-tls1_2")
	if !strings.Contains(s, "subject=CN = web.example.com") {
		t.Errorf("openssl without a name:\n%s", s)
	}
	s = command(t, "", "openssl", "s_client", "-connect", "10.96.0.20:443", "-tls1_1")
	if strings.Contains(s, "BEGIN CERTIFICATE") {
		t.Errorf("openssl by TLS 1.1:\n%s", s)
	}
}

// TestPortInUse: while somebody else has the port the proxy waits, and does not end
// the role that it is a part of.
func TestPortInUse(t *testing.T) {
	squatter, err := net.Listen("tcp", netip.AddrPortFrom(node4, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close()
	at := squatter.Addr().(*net.TCPAddr).AddrPort()
	start := func(ctx context.Context) (*Proxy, chan error) {
		p, err := New(Options{Store: state.New(), Node: "n", Listen: []netip.AddrPort{at}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		return p, done
	}
	ended, cancel := context.WithCancel(t.Context())
	_, done := start(ended)
	time.Sleep(50 * time.Millisecond) // it has tried
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ended while it waits: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p, done := start(ctx)
	time.Sleep(50 * time.Millisecond)
	select {
	case err := <-done:
		t.Fatalf("Run has ended: %v", err)
	default:
	}
	squatter.Close()
	eventually(t, func() bool { return p.Addrs() != nil })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
