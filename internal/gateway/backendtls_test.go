package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

// trust makes a Secret of what is shown, which may be nil, and who is trusted.
func trust(t testing.TB, name string, ca []byte, shown *tls.Certificate) *model.Certificate {
	t.Helper()
	c := &model.Certificate{Key: key(name), CA: ca}
	if shown != nil {
		for _, der := range shown.Certificate {
			c.Chain = append(c.Chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		der, err := x509.MarshalPKCS8PrivateKey(shown.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		c.PrivateKey = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	return c
}

func (w *world) secret(c *model.Certificate) {
	w.t.Helper()
	w.update(func(tx *state.Tx) { tx.PutCertificate(c) })
}

// verified asks for a certificate that ca.crt of a Secret verifies.
func verified(secret, name string) *model.BackendTLS {
	return &model.BackendTLS{Verify: true, CA: []model.Key{key(secret)}, Certificate: key(secret), Depth: 1, Name: name}
}

func toTLS(protocol model.BackendProtocol, t *model.BackendTLS) func(*model.RouteRule) {
	return func(r *model.RouteRule) { r.Backends[0].Protocol, r.Backends[0].TLS = protocol, t }
}

// tlsServer speaks HTTP over TLS, and answers with the number of the connection,
// the name that it was asked for, and who the client shows that it is.
type tlsServer struct {
	config atomic.Pointer[tls.Config]
	begun  atomic.Int64 // connections
}

func newTLSServer(t testing.TB, addr string, config *tls.Config) *tlsServer {
	t.Helper()
	s := &tlsServer{}
	s.config.Store(config)
	type number struct{}
	h := &http.Server{
		Protocols: new(http.Protocols), ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, number{}, s.begun.Add(1))
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			who := "nobody"
			if len(r.TLS.PeerCertificates) > 0 {
				who = r.TLS.PeerCertificates[0].Subject.CommonName
			}
			_, _ = io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%d %s sni=%s client=%s", r.Context().Value(number{}), r.Proto, r.TLS.ServerName, who)
		}),
		TLSConfig: &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.config.Load(), nil }},
	}
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetHTTP2(slices.Contains(config.NextProtos, "h2"))
	h.TLSConfig.NextProtos = config.NextProtos
	serve(t, addr, func(l net.Listener) error { return h.ServeTLS(l, "", "") })
	t.Cleanup(func() { _ = h.Close() })
	return s
}

// body returns status and body of an answer.
func (w *world) body(host string, header ...string) string {
	w.t.Helper()
	resp, body := w.do(http.MethodGet, host, "/", nil, header...)
	return fmt.Sprintf("%d %s", resp.StatusCode, body)
}

func expect(t testing.TB, what, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("%s: %s\nwant %q", what, got, want)
	}
}

// TestBackendVerified: certificates of backends are taken or refused for what
// they are, and the answer, the log, the metrics and a problem say so.
func TestBackendVerified(t *testing.T) {
	root, stranger := testenv.NewAuthority(t, "root"), testenv.NewAuthority(t, "stranger")
	between := root.Authority(t, "between")
	deep := between.Authority(t, "deep")
	commonName := root.Issue(t, func(c *x509.Certificate) { c.Subject.CommonName = "app.test" })
	for i, tt := range []struct {
		name   string
		cert   tls.Certificate
		change func(*model.BackendTLS)
		config func(*tls.Config)
		want   string // of the access log; empty for an answer
		cure   string // of the problem
	}{
		{"a name", root.Issue(t, nil, "app.test"), nil, nil, "", ""},
		{"a wildcard", root.Issue(t, nil, "*.test"), nil, nil, "", ""},
		{"a wrong name", root.Issue(t, nil, "other.test", "10.0.0.1"), nil, nil, "its certificate is for other.test, 10.0.0.1, and not for app.test", "proxy-ssl-name"},
		{"a common name", commonName, nil, nil, "its certificate has no subject alternative names, and is to be for app.test; a common name (app.test) is not looked at", "subject alternative name"},
		{"an address", root.Issue(t, nil, "192.0.2.7"), func(b *model.BackendTLS) { b.Name = "192.0.2.7" }, nil, "", ""},
		{"another address", root.Issue(t, nil, "192.0.2.8"), func(b *model.BackendTLS) { b.Name = "192.0.2.7" }, nil, "its certificate is for 192.0.2.8, and not for 192.0.2.7", "proxy-ssl-name"},
		{"the Service's name", root.Issue(t, nil, "web.default.svc"), func(b *model.BackendTLS) { b.Name = "" }, nil, "", ""},
		{"the Service's name with domain", root.Issue(t, nil, "web.default.svc.cluster.local"), func(b *model.BackendTLS) { b.Name = "" }, nil, "", ""},
		{"another Service's name", root.Issue(t, nil, "web.other.svc"), func(b *model.BackendTLS) { b.Name = "" }, nil, "its certificate is for web.other.svc, and not for web.default.svc.cluster.local or web.default.svc", "proxy-ssl-name"},
		{"a strange authority", stranger.Issue(t, nil, "app.test"), nil, nil, "signed by CN=stranger, which is not trusted", "ca.crt of Secret default/trust"},
		{"expired", root.Issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "app.test"), nil, nil, "its certificate expired on", "Renew it"},
		{"not yet valid", root.Issue(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, "app.test"), nil, nil, "its certificate is valid from", "Renew it"},
		{"for clients", root.Issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, "app.test"), nil, nil, "incompatible key usage", "Issue it anew"},
		{"one in between", between.Issue(t, nil, "app.test"), nil, nil, "", ""},
		{"two in between", deep.Issue(t, nil, "app.test"), nil, nil, "between its certificate and a trusted one stand 2 others, and 1 may", "proxy-ssl-verify-depth"},
		{"two in between, allowed", deep.Issue(t, nil, "app.test"), func(b *model.BackendTLS) { b.Depth = 2 }, nil, "", ""},
		{"any in between", deep.Issue(t, nil, "app.test"), func(b *model.BackendTLS) { b.Depth = -1 }, nil, "", ""},
		{"a chain that is not sent", tls.Certificate{Certificate: between.Issue(t, nil, "app.test").Certificate[:1]}, nil, nil, "signed by CN=between, which is not trusted", "into the endpoint's chain"},
		{"the system's authorities", root.Issue(t, nil, "app.test"), func(b *model.BackendTLS) { b.CA = nil }, nil, "signed by CN=root, which is not trusted", "proxy-ssl-secret"},
		{"not verified", stranger.Issue(t, nil), func(b *model.BackendTLS) { b.Verify = false }, nil, "", ""},
		{"an old version", root.Issue(t, nil, "app.test"), nil, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }, "protocol version", "log"},
		{"no version in common", root.Issue(t, nil, "app.test"), func(b *model.BackendTLS) { b.MinVersion = tls.VersionTLS13 }, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "protocol version", "log"},
		{"a certificate asked for by 1.3", root.Issue(t, nil, "app.test"), nil, func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }, "it asks for a certificate, and there is none to show", "tls.crt and tls.key"},
		{"a certificate asked for by 1.2", root.Issue(t, nil, "app.test"), nil, func(c *tls.Config) { c.ClientAuth, c.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12 }, "it asks for a certificate, and there is none to show", "tls.crt and tls.key"},
		{"a certificate asked for, not needed", root.Issue(t, nil, "app.test"), nil, func(c *tls.Config) { c.ClientAuth = tls.RequestClientCert }, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.cert.PrivateKey == nil { // the chain was cut; it needs the key of the same leaf
				whole := between.Issue(t, nil, "app.test")
				tt.cert = tls.Certificate{Certificate: whole.Certificate[:1], PrivateKey: whole.PrivateKey}
			}
			for _, h2 := range []bool{false, true} {
				registry, access := prometheus.NewRegistry(), &testenv.Log{}
				w := newWorld(t, func(o *Options) { o.Registerer, o.AccessLog = registry, access })
				addr := fmt.Sprintf("10.99.%d.1:8443", 120+i)
				config := &tls.Config{Certificates: []tls.Certificate{tt.cert}}
				if h2 {
					addr = fmt.Sprintf("10.99.%d.2:8443", 120+i)
					config.NextProtos = []string{"h2"}
				}
				if tt.config != nil {
					tt.config(config)
				}
				newTLSServer(t, addr, config)
				spec := verified("trust", "app.test")
				if tt.change != nil {
					tt.change(spec)
				}
				protocol, kind := model.BackendHTTPS, "HTTP/1.1"
				if h2 {
					protocol, kind = model.BackendGRPCS, "HTTP/2.0"
				}
				w.secret(trust(t, "trust", root.PEM(), nil))
				w.service("web", "", addr)
				w.route(ingress("in", rule("app.test", "/", "web", toTLS(protocol, spec))))
				got := w.body("app.test")
				if tt.want == "" {
					expect(t, "answer", got, "200 ")
					expect(t, "answer", got, kind)
					if p := w.problemText(); p != "" {
						t.Errorf("problems: %s", p)
					}
					continue
				}
				expect(t, "answer", got, "502 Bad Gateway: no trusted connection to the backend")
				w.eventually("the problem is told", func() bool { return strings.Contains(w.problemText(), tt.want) })
				expect(t, "problem", w.problemText(), "Ingress default/in spec.rules[0].http.paths[0] BackendTLSFailed: TLS with an endpoint of Service default/web came to nothing: ")
				expect(t, "problem", w.problemText(), tt.cure)
				w.eventually("the access log says why", func() bool { return strings.Contains(access.String(), tt.want) })
				// It does not count against the endpoint, whoever else goes there.
				for range 8 {
					expect(t, "further answer", w.body("app.test"), "502 ")
				}
				if out := w.g.pools.Out(); len(out) != 0 {
					t.Errorf("endpoints are out: %v", out)
				}
				if strings.Count(w.problemText(), "\n") != 1 {
					t.Errorf("problems: %s", w.problemText())
				}
				if n := countedBy(t, registry, "fairway_gateway_upstream_failures_total", "reason", "tls"); n == 0 {
					t.Error("it is not counted")
				}
				expect(t, "gRPC", w.grpcStatus("app.test"), "14 no trusted connection to the backend")
			}
		})
	}
}

// countedBy returns the sum of a metric's series with a label.
func countedBy(t testing.TB, r *prometheus.Registry, name, label, value string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && l.GetName() == label && l.GetValue() == value {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

// grpcStatus calls the gateway as a client of gRPC's.
func (w *world) grpcStatus(host string) string {
	w.t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodPost, w.url("/pkg.Service/Method"), strings.NewReader("\x00\x00\x00\x00\x00"))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Host = host
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.Header.Get("Grpc-Status") + " " + resp.Header.Get("Grpc-Message")
}

// TestBackendConnectionsApart: connections are kept with what they were made by,
// and serve no request that is to have other settings, by whatever protocol.
func TestBackendConnectionsApart(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	server := func(addr string, protocols ...string) *tlsServer {
		return newTLSServer(t, addr, &tls.Config{Certificates: []tls.Certificate{root.Issue(t, nil, "app.test")}, ClientAuth: tls.RequestClientCert, NextProtos: protocols})
	}
	server("10.99.190.1:8443")
	server("10.99.190.2:8443", "h2")
	client := func(name string) *tls.Certificate {
		c := root.Issue(t, func(c *x509.Certificate) { c.Subject.CommonName = name })
		return &c
	}
	w := newWorld(t, nil)
	w.secret(trust(t, "alice", root.PEM(), client("alice")))
	w.secret(trust(t, "bob", root.PEM(), client("bob")))
	w.service("web", "", "10.99.190.1:8443")
	w.service("rpc", "", "10.99.190.2:8443")
	named := verified("bob", "app.test")
	named.ServerName = model.ServerNameOn
	for i, to := range []struct {
		service  string
		protocol model.BackendProtocol
	}{{"web", model.BackendHTTPS}, {"rpc", model.BackendGRPCS}} {
		for name, spec := range map[string]*model.BackendTLS{
			"plain": nil, "alice": verified("alice", "app.test"), "also-alice": verified("alice", "app.test"), "bob": verified("bob", "app.test"), "named": named,
			"wrong": verified("alice", "other.test"),
		} {
			w.route(ingress(fmt.Sprint(name, i), rule(name+"."+to.service, "/", to.service, toTLS(to.protocol, spec))))
		}
	}
	for _, service := range []string{"web", "rpc"} {
		conns := map[string]string{}
		for range 5 {
			for _, host := range []string{"plain", "alice", "also-alice", "bob", "named"} {
				want := map[string]string{"plain": "sni= client=nobody", "alice": "sni= client=alice", "also-alice": "sni= client=alice", "bob": "sni= client=bob", "named": "sni=app.test client=bob"}[host]
				got := w.body(host + "." + service)
				expect(t, host+"."+service, got, want)
				conn := strings.Fields(got + " ? ?")[1]
				if conns[host] == "" {
					conns[host] = conn
				}
				if conns[host] != conn {
					t.Errorf("%s.%s: connection %s, and %s before", host, service, conn, conns[host])
				}
			}
			expect(t, "wrong", w.body("wrong."+service), "502 ")
		}
		if conns["alice"] != conns["also-alice"] {
			t.Error("what is the same is not shared")
		}
		seen := map[string]string{}
		for _, host := range []string{"plain", "alice", "bob", "named"} {
			if other := seen[conns[host]]; other != "" {
				t.Errorf("%s and %s share a connection to %s", host, other, service)
			}
			seen[conns[host]] = host
		}
	}
	// A WebSocket, and a body by HTTP/2 to a backend of HTTP/1.1, go other ways.
	expect(t, "upgrade", w.body("bob.web", "Connection", "Upgrade", "Upgrade", "websocket"), "client=bob")
	expect(t, "upgrade", w.body("bob.rpc", "Connection", "Upgrade", "Upgrade", "websocket"), "HTTP/1.1 sni= client=bob")
	for host, want := range map[string]string{"alice": "client=alice", "plain": "client=nobody"} {
		expect(t, "by HTTP/2", w.post2(host+".web"), want)
	}
	expect(t, "by HTTP/2", w.post2("wrong.web"), "502 ")
}

// post2 sends a body of unknown length by HTTP/2.
func (w *world) post2(host string) string {
	w.t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	r, pipe := io.Pipe()
	go func() {
		for range 3 {
			_, _ = pipe.Write(make([]byte, 40<<10))
		}
		_ = pipe.Close()
	}()
	req, err := http.NewRequest(http.MethodPost, w.url("/"), r)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Host = host
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, body)
}

// TestBackendTLSChanges: a Secret that changes is in use with the next request,
// on a connection of its own. One that goes bad leaves what was good, and one that
// is gone, or never was any good, lets no request through.
func TestBackendTLSChanges(t *testing.T) {
	root, other := testenv.NewAuthority(t, "root"), testenv.NewAuthority(t, "other")
	for i, protocol := range []model.BackendProtocol{model.BackendHTTPS, model.BackendGRPCS} {
		w := newWorld(t, nil)
		addr := fmt.Sprintf("10.99.191.%d:8443", 1+i)
		config := &tls.Config{Certificates: []tls.Certificate{root.Issue(t, nil, "app.test")}, ClientAuth: tls.RequestClientCert}
		if protocol == model.BackendGRPCS {
			config.NextProtos = []string{"h2"}
		}
		server := newTLSServer(t, addr, config)
		w.service("web", "", addr)
		w.route(ingress("in", rule("app.test", "/", "web", toTLS(protocol, verified("trust", "app.test")))))
		expect(t, "without the Secret", w.body("app.test"), "502 ")
		alice := root.Issue(t, func(c *x509.Certificate) { c.Subject.CommonName = "alice" })
		bob := root.Issue(t, func(c *x509.Certificate) { c.Subject.CommonName = "bob" })
		w.secret(&model.Certificate{Key: key("trust"), Chain: []byte("x"), PrivateKey: []byte("x"), CA: root.PEM()})
		expect(t, "with a Secret that is bad", w.body("app.test"), "502 ")
		w.secret(&model.Certificate{Key: key("trust"), CA: []byte("x")})
		expect(t, "with an authority that is bad", w.body("app.test"), "502 ")
		w.secret(trust(t, "trust", nil, &alice))
		expect(t, "with a Secret without authority", w.body("app.test"), "502 ")
		if n := server.begun.Load(); n != 0 {
			t.Errorf("%d connections were made all the same", n)
		}

		w.secret(trust(t, "trust", root.PEM(), &alice))
		expect(t, "with the Secret", w.body("app.test"), "200 1 ")
		expect(t, "again", w.body("app.test"), "200 1 ")
		w.secret(trust(t, "trust", root.PEM(), &bob))
		expect(t, "with another certificate to show", w.body("app.test"), "client=bob")
		expect(t, "again", w.body("app.test"), "200 2 ")
		w.eventually("the old connection ends", func() bool { return w.kept("web") <= 1 })
		w.secret(trust(t, "trust", other.PEM(), &bob))
		expect(t, "with another authority", w.body("app.test"), "502 ")
		w.secret(trust(t, "trust", root.PEM(), &bob))
		expect(t, "with the first one again", w.body("app.test"), "200 4 ")
		w.secret(&model.Certificate{Key: key("trust"), Chain: []byte("x"), PrivateKey: []byte("x"), CA: []byte("x")})
		expect(t, "with a Secret that has gone bad", w.body("app.test"), "200 4 ")
		w.update(func(tx *state.Tx) { tx.DeleteCertificate(key("trust")) })
		expect(t, "without the Secret", w.body("app.test"), "502 ")
		w.secret(trust(t, "trust", root.PEM(), &bob))
		expect(t, "with it again", w.body("app.test"), "200 5 ")

		// A change of what has nothing to do with it leaves connections alone.
		w.secret(trust(t, "another", other.PEM(), nil))
		w.secret(trust(t, "trust", root.PEM(), &bob))
		w.route(ingress("more", rule("more.test", "/", "web")))
		expect(t, "after changes elsewhere", w.body("app.test"), "200 5 ")

		// The backend's own certificate is cured.
		config = config.Clone()
		config.Certificates = []tls.Certificate{root.Issue(t, nil, "wrong.test")}
		server.config.Store(config)
		w.secret(trust(t, "trust", root.PEM(), &alice))
		expect(t, "with a wrong name", w.body("app.test"), "502 ")
		w.eventually("the problem is told", func() bool { return strings.Contains(w.problemText(), ReasonBackendTLS) })
		config = config.Clone()
		config.Certificates = []tls.Certificate{root.Issue(t, nil, "app.test")}
		server.config.Store(config)
		w.eventually("the endpoint is asked again", func() bool { return strings.HasPrefix(w.body("app.test"), "200 ") })

		w.route(ingress("in", rule("app.test", "/", "web", toTLS(protocol, nil))))
		expect(t, "with nothing asked for", w.body("app.test"), "client=nobody")
		if n := len(w.g.backendTLS.entries) + len(w.g.backendTLS.secrets); n != 0 {
			t.Errorf("%d rows are left", n)
		}
		w.eventually("the problem is forgotten", func() bool {
			return !strings.Contains(w.problemText(), ReasonBackendTLS)
		})
	}
}

// kept counts connections by HTTP/1.1 that wait for a request.
func (w *world) kept(service string) (n int) {
	for _, p := range w.g.pools.State(time.Now()) {
		for _, e := range p.Endpoints {
			if strings.HasSuffix(p.Service, "/"+service) {
				n += e.Kept
			}
		}
	}
	return n
}

// TestBackendTLSOneOfSeveral: an endpoint whose certificate is refused keeps
// nobody from being served by the others, whatever they ask for, and is not asked
// for each request.
func TestBackendTLSOneOfSeveral(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	good := newTLSServer(t, "10.99.192.1:8443", &tls.Config{Certificates: []tls.Certificate{root.Issue(t, nil, "app.test")}})
	bad := newTLSServer(t, "10.99.192.2:8443", &tls.Config{Certificates: []tls.Certificate{root.Issue(t, nil, "wrong.test")}})
	w := newWorld(t, nil)
	w.secret(trust(t, "trust", root.PEM(), nil))
	w.service("web", "", "10.99.192.1:8443", "10.99.192.2:8443")
	w.route(ingress("in", rule("app.test", "/", "web", toTLS(model.BackendHTTPS, verified("trust", "app.test")))))
	w.route(ingress("plain", rule("plain.test", "/", "web", toTLS(model.BackendHTTPS, nil))))
	for range 100 {
		resp, body := w.do(http.MethodPost, "app.test", "/", strings.NewReader("body"))
		if resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	before := good.begun.Load()
	for range 20 {
		expect(t, "plain", w.body("plain.test"), "200 ")
	}
	if good.begun.Load() == before || bad.begun.Load() == 0 {
		t.Error("not both endpoints serve those who verify nothing")
	}
	w.service("web", "", "10.99.192.2:8443")
	begun := bad.begun.Load()
	start := time.Now()
	for range 200 {
		expect(t, "with no other", w.body("app.test"), "502 ")
	}
	if n, most := bad.begun.Load()-begun, int64(3+time.Since(start)/time.Second); n > most {
		t.Errorf("%d handshakes in %s for what came to nothing", n, time.Since(start))
	}
}

// TestBackendTLSExternalName: a Service that stands for a name is asked for it,
// and verified by it, unless another is given.
func TestBackendTLSExternalName(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	newTLSServer(t, "127.0.0.1:8493", &tls.Config{Certificates: []tls.Certificate{root.Issue(t, nil, "localhost", "app.test")}})
	w := newWorld(t, nil)
	w.secret(trust(t, "trust", root.PEM(), nil))
	w.update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: key("ext"), Type: model.ExternalName, ExternalName: "localhost"})
	})
	with := func(name string, sni model.ServerName) *model.BackendTLS {
		b := verified("trust", name)
		b.ServerName = sni
		return b
	}
	for host, spec := range map[string]*model.BackendTLS{
		"plain": nil, "auto": with("", model.ServerNameAuto), "off": with("", model.ServerNameOff), "named": with("app.test", model.ServerNameAuto), "wrong": with("no.test", model.ServerNameAuto),
	} {
		w.route(ingress(host, rule(host+".test", "/", "ext", toTLS(model.BackendHTTPS, spec), func(r *model.RouteRule) { r.Backends[0].Port = model.PortRef{Number: 8493} })))
	}
	for host, want := range map[string]string{"plain": "sni=localhost ", "auto": "sni=localhost ", "off": "sni= ", "named": "sni=app.test ", "wrong": "502 "} {
		expect(t, host, w.body(host+".test"), want)
	}
}

// TestBackendTLSInPlain: what is asked of TLS does nothing where a backend is
// spoken to without.
func TestBackendTLSInPlain(t *testing.T) {
	backendServer(t, "10.99.193.1:8080", nil)
	w := newWorld(t, nil)
	w.service("web", "", "10.99.193.1:8080")
	w.route(ingress("in", rule("app.test", "/", "web", toTLS(model.BackendAuto, verified("missing", "app.test")))))
	expect(t, "in plain", w.body("app.test"), "200 ")
}

// TestBackendTLSChecked: health checks show the certificate that requests do, and
// judge nobody by theirs.
func TestBackendTLSChecked(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	server := newTLSServer(t, "10.99.194.1:8443", &tls.Config{Certificates: []tls.Certificate{root.Issue(t, nil, "wrong.test")}, ClientAuth: tls.RequireAnyClientCert})
	alice := root.Issue(t, func(c *x509.Certificate) { c.Subject.CommonName = "alice" })
	w := newWorld(t, nil)
	w.secret(trust(t, "trust", root.PEM(), &alice))
	w.service("web", "https", "10.99.194.1:8443")
	w.route(ingress("in", rule("app.test", "/", "web", toTLS(model.BackendAuto, verified("trust", "app.test")))))
	w.update(func(tx *state.Tx) {
		svc, _ := w.store.Snapshot().Services.Get(key("web"))
		checked := *svc
		checked.Upstream = &model.ServiceUpstream{Health: &model.HealthCheck{Kind: model.CheckHTTP, Path: "/", Status: []model.StatusRange{{Low: 200, High: 299}},
			Interval: 20 * time.Millisecond, Timeout: 10 * time.Second, HealthyAfter: 1, UnhealthyAfter: 1}}
		tx.PutService(&checked)
	})
	check := func() (last string) {
		for _, p := range w.g.pools.State(time.Now()) {
			for _, e := range p.Endpoints {
				last = e.Check
			}
		}
		return last
	}
	w.eventually("checks go well", func() bool { return check() == "ok" && server.begun.Load() > 3 })
	expect(t, "a request", w.body("app.test"), "502 ")
}

// TestBackendTLSRehearsed: who is verified by what is told before a request is sent.
func TestBackendTLSRehearsed(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	alice := root.Issue(t, nil)
	named := verified("trust", "")
	named.ServerName = model.ServerNameOn
	store := state.New()
	store.Update(func(tx *state.Tx) {
		tx.PutCertificate(trust(t, "trust", root.PEM(), &alice))
		gatewaytest.PutService(tx, "web", "https", "10.99.195.1:8443")
		gatewaytest.PutService(tx, "plain", "", "10.99.195.1:8080")
		for host, spec := range map[string]*model.BackendTLS{"named": named, "missing": verified("missing", "app.test"), "nothing": nil, "system": {Verify: true, Name: "app.test"}} {
			tx.PutRoute(ingress(host, rule(host+".test", "/", "web", toTLS(model.BackendAuto, spec)), rule(host+".test", "/plain", "plain", toTLS(model.BackendAuto, spec))))
		}
		tx.SetSynced()
	})
	r, err := NewRehearsal(RehearsalOptions{Snapshot: store.Snapshot()})
	if err != nil {
		t.Fatal(err)
	}
	try := func(host, path string) string {
		b := r.Try(Attempt{Method: http.MethodGet, Target: path, Authority: host, Header: http.Header{}}).Shares[0].Backends[0]
		return fmt.Sprintf("%s %d %s", b.TLS, b.Outcome.Status, b.Outcome.Reason)
	}
	const names = "web.default.svc.cluster.local or web.default.svc"
	for host, want := range map[string]string{
		"named":   "its certificate is verified by ca.crt of Secret default/trust, for " + names + "; it is asked for web.default.svc.cluster.local (SNI); it is shown the certificate of Secret default/trust 0 ",
		"missing": "its certificate is verified by ca.crt of Secret default/missing, for app.test 502 TLS: secret default/missing does not exist",
		"nothing": "its certificate is not verified 0 ",
		"system":  "its certificate is verified by the system's authorities, for app.test 0 ",
	} {
		if got := try(host+".test", "/"); got != want {
			t.Errorf("%s: %s\nwant %s", host, got, want)
		}
		if got := try(host+".test", "/plain"); got != " 0 " {
			t.Errorf("%s in plain: %s", host, got)
		}
	}
}

// TestBackendIsOpenSSL: the same between the gateway and OpenSSL's server, which
// asks for a certificate and verifies it by its own rules.
func TestBackendIsOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	root, stranger := testenv.NewAuthority(t, "root"), testenv.NewAuthority(t, "stranger")
	between := root.Authority(t, "between")
	dir := t.TempDir()
	served := trust(t, "served", root.PEM(), new(between.Issue(t, nil, "app.test")))
	for name, data := range map[string][]byte{"chain.pem": served.Chain, "key.pem": served.PrivateKey, "ca.pem": root.PEM()} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, version := range []string{"-tls1_2", "-tls1_3"} {
		addr := fmt.Sprintf("10.99.196.%d:8443", 1+i)
		file := func(name string) string { return filepath.Join(dir, name) }
		server := exec.Command(openssl, "s_server", "-accept", addr, version, "-cert", file("chain.pem"), "-cert_chain", file("chain.pem"), "-key", file("key.pem"),
			"-CAfile", file("ca.pem"), "-Verify", "2", "-verify_return_error", "-www", "-quiet")
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = server.Process.Kill()
			_ = server.Wait()
		})
		w := newWorld(t, nil)
		w.eventually("OpenSSL listens", func() bool {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				_ = c.Close()
			}
			return err == nil
		})
		named := func(name string, by *testenv.Authority) *tls.Certificate {
			return new(by.Issue(t, func(c *x509.Certificate) { c.Subject.CommonName = name }))
		}
		w.secret(trust(t, "alice", root.PEM(), named("alice", root)))
		w.secret(trust(t, "chained", root.PEM(), named("chained", between)))
		w.secret(trust(t, "mallory", root.PEM(), named("mallory", stranger)))
		w.secret(trust(t, "alone", root.PEM(), nil))
		w.service("web", "https", addr)
		for host, spec := range map[string]*model.BackendTLS{
			"alice": verified("alice", "app.test"), "chained": verified("chained", "app.test"), "mallory": verified("mallory", "app.test"),
			"alone": verified("alone", "app.test"), "misnamed": verified("alice", "other.test"),
		} {
			w.route(ingress(host, rule(host, "/", "web", toTLS(model.BackendAuto, spec))))
		}
		for host, want := range map[string]string{"alice": "CN=alice", "chained": "CN=chained"} {
			expect(t, version+" "+host, strings.ReplaceAll(w.body(host), " = ", "="), want)
		}
		for host, want := range map[string]string{
			"mallory": "came to nothing: it ", "alone": "it asks for a certificate, and there is none to show", "misnamed": "its certificate is for app.test, and not for other.test",
		} {
			expect(t, version+" "+host, w.body(host), "502 ")
			w.eventually("the problem is told", func() bool {
				for line := range strings.Lines(w.problemText()) {
					if strings.HasPrefix(line, "Ingress default/"+host+" ") && strings.Contains(line, want) {
						return true
					}
				}
				return false
			})
		}
	}
}

// TestBackendSlowInHandshake: an endpoint that takes connections and is silent in
// the handshake costs a request no more than the connect timeout, of the route or
// the gateway's own, and then another endpoint has it.
func TestBackendSlowInHandshake(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	const patience = time.Second
	for i, protocol := range []model.BackendProtocol{model.BackendHTTPS, model.BackendGRPCS} {
		for j, ofRoute := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, by the route %v", protocol, ofRoute), func(t *testing.T) {
				t.Parallel()
				good, slow := fmt.Sprintf("10.99.199.%d:8443", 1+2*i+4*j), fmt.Sprintf("10.99.199.%d:8443", 2+2*i+4*j)
				config := &tls.Config{Certificates: []tls.Certificate{root.Issue(t, nil, "app.test")}}
				if protocol == model.BackendGRPCS {
					config.NextProtos = []string{"h2"}
				}
				newTLSServer(t, good, config)
				ended := make(chan time.Duration, 100)
				serveConns(t, slow, func(c net.Conn) {
					begun := time.Now()
					_, _ = io.Copy(io.Discard, c)
					ended <- time.Since(begun)
				})
				w := newWorld(t, func(o *Options) {
					if o.ConnectTimeout = patience; ofRoute {
						o.ConnectTimeout = time.Hour
					}
				})
				w.secret(trust(t, "trust", root.PEM(), nil))
				for name, spec := range map[string]*model.BackendTLS{"set.test": verified("trust", "app.test"), "unset.test": nil} {
					w.route(ingress(name, rule(name, "/", "web", toTLS(protocol, spec), func(r *model.RouteRule) {
						if ofRoute {
							r.Filters.ConnectTimeout = patience
						}
					})))
				}
				for _, host := range []string{"set.test", "unset.test"} {
					w.service("web", "", slow)
					expect(t, host+" with none but the slow one", w.body(host), "502 ")
					if took := <-ended; took > 8*patience { // none would be ten times as long
						t.Errorf("%s: the endpoint was waited for for %v", host, took)
					}
					w.service("web", "", slow, good)
					for range 4 {
						expect(t, host, w.body(host), "200 ")
					}
					w.service("web", "")
				}
			})
		}
	}
}
