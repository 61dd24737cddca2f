package explain

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// passedTo is the server that TLS passes through to.
const passedTo = "10.99.0.21:8443"

// backendTLS is backend by TLS.
func backendTLS(t *testing.T, addr string) {
	t.Helper()
	c := gatewaytest.Secret(t, "through", "through.test")
	pair, err := tls.X509KeyPair(c.Chain, c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", addr, &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(received{addr, r.Method, r.RequestURI, r.Host, r.Header})
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
}

// clientOf makes a client's certificate, signed by a Secret's.
func clientOf(t *testing.T, secret *model.Certificate) *tls.Certificate {
	t.Helper()
	ca, err := tls.X509KeyPair(secret.Chain, secret.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "alice"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// randomSite is a cluster with routes of all sorts, by chance.
func randomSite(r *mathrand.Rand, secrets ...*model.Certificate) *state.Snapshot {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	host := func() string {
		return pick("a.test", "a.test", "b.test", "*.test", "*.test", "x.a.test", "*.a.test", "")
	}
	store := state.New()
	store.Update(func(tx *state.Tx) {
		for i := range 4 {
			gatewaytest.PutService(tx, fmt.Sprint("s", i), "", fmt.Sprintf("10.99.0.%d:8080", 11+i))
		}
		gatewaytest.PutService(tx, "s4", "")
		gatewaytest.PutService(tx, "through", "", passedTo)
		for _, c := range secrets {
			tx.PutCertificate(c)
		}
		var plain []model.RouteRule
		for i := range 3 + r.IntN(10) {
			route := gatewaytest.Ingress(fmt.Sprint("in", i))
			route.Created = gatewaytest.Created.Add(time.Duration(r.IntN(4)) * time.Hour)
			if r.IntN(4) == 0 {
				route.Namespace = "other"
			}
			if r.IntN(12) == 0 { // TLS passes through
				name := pick("a.test", "b.test", "*.test", "x.a.test", "*.a.test")
				rule := gatewaytest.Rule(name, "/", "through")
				rule.Backends, rule.Filters = nil, model.Filters{PassedThrough: true, HTTPSRedirect: &model.HTTPSRedirect{Status: 308, Force: true}}
				route.Rules = append(route.Rules, rule)
				tx.PutStreams(route.Ref, []model.StreamRoute{{Ref: route.Ref, Created: route.Created, Field: rule.Field, Protocol: model.TCP, Hosts: []string{name},
					Backend: model.Backend{Service: gatewaytest.Key("through"), Port: model.PortRef{Number: 80}}}})
				tx.PutRoute(route)
				continue
			}
			seen := map[string]bool{}
			for j := range 1 + r.IntN(3) {
				rule := gatewaytest.Rule(host(), "", fmt.Sprint("s", r.IntN(6)))
				rule.Field = fmt.Sprintf("spec.rules[%d].http.paths[0]", j)
				switch rule.Path.Type = model.PathType(r.IntN(4)); rule.Path.Type {
				case model.PathPrefix:
					rule.Path.Value = pick("/", "/api", "/api/v1", "/x")
				case model.PathExact:
					rule.Path.Value = pick("/", "/api", "/x", "/x/")
				case model.PathGlob:
					rule.Path.Value = pick("/api/*", "/x/*/z", "/*", "/a*")
				case model.PathRegex:
					rule.Path.Value = pick("/api/[0-9]+", "/x", "/(a|x).*", "/api/(.*)$")
				}
				if r.IntN(8) == 0 {
					rule.Methods = []string{"POST"}
				}
				if r.IntN(8) == 0 {
					rule.Headers = []model.ValueMatch{{Name: "X-Who", Value: pick("me", "m.*"), Regex: r.IntN(2) == 0}}
				}
				if r.IntN(8) == 0 {
					rule.Query = []model.ValueMatch{{Name: "q", Value: "1"}}
				}
				if r.IntN(5) == 0 {
					rule.Filters.HTTPSRedirect = &model.HTTPSRedirect{Status: 308, Force: r.IntN(2) == 0}
				}
				if r.IntN(8) == 0 {
					rule.Filters.Redirect = &model.Redirect{Location: pick("https://other.test/there", "/here", "$scheme://y.test$request_uri"), Status: 302}
				}
				if r.IntN(5) == 0 {
					rule.Filters.Rewrite = &model.Rewrite{Target: pick("/new", "/$1", "/"), Prefix: r.IntN(2) == 0}
				}
				if r.IntN(8) == 0 {
					rule.Filters.AllowFrom = []netip.Prefix{netip.MustParsePrefix(pick("127.0.0.0/8", "198.51.100.0/24"))}
				}
				if r.IntN(8) == 0 {
					rule.Filters.Session = &model.Session{Cookie: "at"}
				}
				if r.IntN(10) == 0 {
					rule.Default, rule.Host, rule.Path, rule.Field = true, "", model.PathMatch{Value: "/"}, "spec.defaultBackend"
				}
				if r.IntN(10) == 0 {
					rule.Backends = nil
				}
				if r.IntN(6) == 0 {
					rule.Backends = append(rule.Backends, model.WeightedBackend{Weight: uint32(r.IntN(3)), Backend: model.Backend{Service: gatewaytest.Key("s1"), Port: model.PortRef{Number: 80}}})
				}
				if len(plain) > 0 && r.IntN(4) == 0 {
					of := plain[r.IntN(len(plain))]
					rule.Host, rule.Path, rule.Default = of.Host, of.Path, of.Default
					rule.Methods, rule.Headers, rule.Query = of.Methods, of.Headers, of.Query
					rule.Canary = &model.Canary{Header: pick("", "X-Canary"), HeaderValue: pick("", "yes"), Cookie: pick("", "canary"), Weight: uint32(pick("\x00", "\x32", "\x64")[0])}
				}
				if !rule.Default && !seen[rule.Host] && rule.Canary == nil {
					seen[rule.Host] = true
					if len(secrets) > 0 && rule.Host != "" && r.IntN(2) == 0 {
						route.TLS = append(route.TLS, model.RouteTLS{Secret: secrets[r.IntN(len(secrets))].Key, Hosts: []string{rule.Host}})
					}
				}
				if rule.Canary == nil {
					plain = append(plain, rule)
				}
				route.Rules = append(route.Rules, rule)
			}
			if r.IntN(3) == 0 {
				a := &model.ClientAuth{Field: "metadata.annotations[auth-tls-secret]", Secret: gatewaytest.Key(pick("ca", "ca", "ca", "nope")), Verify: model.ClientVerify(r.IntN(4)), Depth: 1,
					ErrorPage: pick("", "", "https://sorry.test/"), Pass: r.IntN(2) == 0, CommonName: pick("", "", "", "alice", "al.*")}
				if r.IntN(8) == 0 {
					a.Refused = "it cannot be read"
				}
				route.ClientAuth = a
				for h := range seen {
					route.ClientAuthHosts = append(route.ClientAuthHosts, h)
				}
			}
			tx.PutRoute(route)
		}
		tx.SetSynced()
	})
	return store.Snapshot()
}

// TestRandomRequestsAreServedAsExplained is [TestRequestsAreServedAsExplained] with
// routes and requests by chance, and a client that shows a certificate if asked.
func TestRandomRequestsAreServedAsExplained(t *testing.T) {
	for i := range 4 {
		backend(t, fmt.Sprintf("10.99.0.%d:8080", 11+i))
	}
	backendTLS(t, passedTo)
	ca := gatewaytest.Secret(t, "ca")
	alice := clientOf(t, ca)
	secrets := []*model.Certificate{gatewaytest.Secret(t, "wide", "*.test", "*.a.test", "a.test"), gatewaytest.Secret(t, "narrow", "a.test")}
	ca.CA = ca.Chain
	reached := map[string]int{}
	for seed := range uint64(24) {
		r := mathrand.New(mathrand.NewPCG(seed, 1))
		snap := randomSite(r, append(secrets, ca)...)
		g := serving(t, snap)
		pick := func(list ...string) string { return list[r.IntN(len(list))] }
		for range 40 {
			o := RequestOptions{Snapshot: snap, Method: pick("GET", "GET", "GET", "POST", "DELETE"), Client: netip.MustParseAddr("127.0.0.1"), HTTPSPort: uint16(g.HTTPSAddr().(*net.TCPAddr).Port)}
			o.URL = pick("http", "https") + "://" + pick("a.test", "a.test", "b.test", "c.test", "x.a.test", "y.a.test", "y.x.a.test", "A.TEST.", "a.test:8443", "192.0.2.1") +
				pick("/", "/api", "/api/", "/api/v1/x", "/api/77", "/x", "/x/", "/x/y/z", "/X", "/apix", "/b/../api", "//x", "/%61pi", "/x%2fy") + pick("", "", "?q=1", "?q=2&q=1")
			for _, line := range []string{"X-Canary: always", "X-Canary: yes", "X-Canary: never", "Cookie: canary=always", "X-Who: me", "Host: b.test", "Host: x.a.test", "X-Forwarded-Proto: https", "Ssl-Client-Verify: SUCCESS"} {
				if r.IntN(9) == 0 && !(strings.HasPrefix(line, "Host") && len(o.Header) > 0 && strings.HasPrefix(o.Header[len(o.Header)-1], "Host")) {
					o.Header = append(o.Header, line)
				}
			}
			compareAs(t, g, o, alice, reached)
			if t.Failed() {
				for _, route := range snap.Routes.All() { // what it was served by
					t.Logf("%d: %s/%s %v auth %+v for %q", seed, route.Namespace, route.Name, route.Created.Hour(), route.ClientAuth, route.ClientAuthHosts)
					for _, rule := range route.Rules {
						t.Logf("   %q %v default %v %+v canary %+v", rule.Host, rule.Path, rule.Default, rule.Filters, rule.Canary)
					}
				}
				t.FailNow()
			}
		}
	}
	for _, what := range []string{"10.99.0.11:8080", "10.99.0.14:8080", passedTo, "302", "308", "400", "403", "404", "421", "503"} {
		if reached[what] == 0 {
			t.Errorf("no request came to %s: %v", what, reached)
		}
	}
}
