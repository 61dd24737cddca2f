package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

// authoritySecret is a Secret with ca.crt and ca.crl.
func authoritySecret(name string, ca, crl []byte) *model.Certificate {
	return &model.Certificate{Key: key(name), CA: ca, CRL: crl}
}

// withClientAuth makes a route ask clients of its hosts for certificates by Secret "ca".
func withClientAuth(r *model.Route, change ...func(*model.ClientAuth)) *model.Route {
	r.ClientAuth = &model.ClientAuth{Field: "metadata.annotations[nginx.ingress.kubernetes.io/auth-tls-secret]", Secret: key("ca"), Depth: 1}
	for _, c := range change {
		c(r.ClientAuth)
	}
	for i := range r.Rules {
		if !r.Rules[i].Default || len(r.Rules) == 1 {
			r.ClientAuthHosts = append(r.ClientAuthHosts, r.Rules[i].Host)
		}
	}
	return r
}

// shower is a client of the gateway's HTTPS port that shows a certificate.
type shower struct {
	t    *testing.T
	addr string
	cert *tls.Certificate
	// sni is asked for, whatever the host; empty asks for the host.
	sni string
	// protocol is "h1", "h2" or "h3".
	protocol string
	sessions tls.ClientSessionCache
}

func (s shower) client() *http.Client {
	config := &tls.Config{InsecureSkipVerify: true, ServerName: s.sni, ClientSessionCache: s.sessions,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if s.cert == nil {
				return &tls.Certificate{}, nil
			}
			return s.cert, nil
		}}
	c := &http.Client{CheckRedirect: plainClient.CheckRedirect, Timeout: 20 * time.Second}
	if s.protocol == "h3" {
		tr := &http3.Transport{TLSClientConfig: config, Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
			return quic.DialAddrEarly(ctx, s.addr, tlsConfig, config)
		}}
		s.t.Cleanup(func() { _ = tr.Close() })
		c.Transport = tr
		return c
	}
	tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: s.protocol == "h2", DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", s.addr)
	}}
	s.t.Cleanup(tr.CloseIdleConnections)
	c.Transport = tr
	return c
}

// get asks for a URL's host and path; header are pairs.
func (s shower) get(host, path string, header ...string) (*http.Response, reply) {
	s.t.Helper()
	resp, r, err := tryGet(s.client(), host, path, header...)
	if err != nil {
		s.t.Fatalf("%s %s%s by SNI %q: %v", s.protocol, host, path, s.sni, err)
	}
	return resp, r
}

func tryGet(c *http.Client, host, path string, header ...string) (*http.Response, reply, error) {
	req, err := http.NewRequest(http.MethodGet, "https://"+host+path, nil)
	if err != nil {
		return nil, reply{}, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header[header[i]] = append(req.Header[header[i]], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, reply{}, err
	}
	var r reply
	if json.Unmarshal(body, &r) != nil {
		r.Body = string(body)
	}
	return resp, r, nil
}

var showerProtocols = []string{"h1", "h2", "h3"}

// clientAuthWorld is a gateway with Secret "ca" of an authority, at an address of
// its own, whose backend "a" tells what it gets.
func clientAuthWorld(t *testing.T, backend, addr string) (*world, *testenv.Authority) {
	t.Helper()
	backendServer(t, backend, nil)
	w := newWorld(t, func(o *Options) { o.HTTPSAddrs, o.HTTP3 = []string{addr}, true })
	w.service("a", "", backend)
	root := testenv.NewAuthority(t, "root")
	w.update(func(tx *state.Tx) { tx.PutCertificate(authoritySecret("ca", root.PEM(), nil)) })
	return w, root
}

// TestClientAuth: what clients get that show a good certificate, a bad one or
// none, by each mode and protocol.
func TestClientAuth(t *testing.T) {
	w, root := clientAuthWorld(t, "10.99.90.1:80", "10.99.90.101:443")
	mode := func(v model.ClientVerify) func(*model.ClientAuth) {
		return func(a *model.ClientAuth) { a.Verify = v }
	}
	w.update(func(tx *state.Tx) {
		tx.PutRoute(ingress("public", rule("public.test", "/", "a")))
		tx.PutRoute(withClientAuth(ingress("on", rule("on.test", "/", "a"))))
		tx.PutRoute(withClientAuth(ingress("pass", rule("pass.test", "/", "a")), func(a *model.ClientAuth) { a.Pass = true }))
		tx.PutRoute(withClientAuth(ingress("optional", rule("optional.test", "/", "a")), mode(model.ClientVerifyOptional)))
		tx.PutRoute(withClientAuth(ingress("noca", rule("noca.test", "/", "a")), mode(model.ClientVerifyOptionalNoCA), func(a *model.ClientAuth) { a.Pass = true }))
		tx.PutRoute(withClientAuth(ingress("off", rule("off.test", "/", "a")), mode(model.ClientVerifyOff)))
		tx.PutRoute(withClientAuth(ingress("page", rule("page.test", "/", "a")), func(a *model.ClientAuth) { a.ErrorPage = "https://help.test/?why=cert" }))
		tx.PutRoute(withClientAuth(ingress("named", rule("named.test", "/", "a")), func(a *model.ClientAuth) { a.CommonName = "good|better" }))
		tx.PutRoute(withClientAuth(ingress("named-noca", rule("named-noca.test", "/", "a")), mode(model.ClientVerifyOptionalNoCA), func(a *model.ClientAuth) { a.CommonName = "good" }))
		tx.PutRoute(withClientAuth(ingress("absent", rule("absent.test", "/", "a")), func(a *model.ClientAuth) { a.Secret = key("absent") }))
		tx.PutRoute(withClientAuth(ingress("refused", rule("refused.test", "/", "a")), func(a *model.ClientAuth) { a.Refused = "the annotation is wrong" }))
	})
	good, goods := root.Client(t, "good"), root.Client(t, "goods")
	bad := testenv.NewAuthority(t, "stranger").Client(t, "good")
	expired := root.Client(t, "good", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	shown := map[string]*tls.Certificate{"": nil, "good": &good, "goods": &goods, "bad": &bad, "expired": &expired}
	const missing, wrong = "No required SSL certificate was sent", "The SSL certificate error"
	for _, tt := range []struct {
		host, cert string
		status     int
		text       string // of the answer, or ssl-client-verify
	}{
		{"public.test", "", 200, ""}, {"public.test", "bad", 200, ""},
		{"on.test", "", 400, missing}, {"on.test", "good", 200, "SUCCESS"}, {"on.test", "bad", 400, wrong}, {"on.test", "expired", 400, wrong},
		{"optional.test", "", 200, "NONE"}, {"optional.test", "good", 200, "SUCCESS"}, {"optional.test", "bad", 400, wrong},
		{"noca.test", "", 200, "NONE"}, {"noca.test", "good", 200, "SUCCESS"}, {"noca.test", "bad", 200, "FAILED:none of the authorities has signed it"}, {"noca.test", "expired", 400, wrong},
		{"off.test", "", 200, "NONE"}, {"off.test", "good", 200, "NONE"},
		{"page.test", "", 302, ""}, {"page.test", "bad", 302, ""}, {"page.test", "good", 200, "SUCCESS"},
		{"named.test", "", 400, missing}, {"named.test", "good", 200, "SUCCESS"}, {"named.test", "goods", 403, "client certificate unauthorized"},
		{"named-noca.test", "", 403, ""}, {"named-noca.test", "bad", 403, ""}, {"named-noca.test", "good", 200, "SUCCESS"},
		{"absent.test", "good", 503, "cannot be judged"}, {"refused.test", "good", 503, "cannot be judged"},
	} {
		for _, protocol := range showerProtocols {
			s := shower{t: t, addr: "10.99.90.101:443", cert: shown[tt.cert], protocol: protocol}
			resp, got := s.get(tt.host, "/x", "Ssl-Client-Verify", "SUCCESS", "ssl_client_verify", "SUCCESS", "ssl-client_subject-dn", "CN=forged", "Ssl-Client-Subject-Dn", "CN=forged", "Ssl-Client-Cert", "forged", "Ssl-Client-Issuer-Dn", "forged")
			text := got.Body
			if resp.StatusCode == 200 {
				text = got.Header.Get("Ssl-Client-Verify")
			}
			if tt.host == "public.test" {
				if resp.StatusCode != 200 {
					t.Errorf("%s %s: got %d", protocol, tt.host, resp.StatusCode)
				}
				continue
			}
			if resp.StatusCode != tt.status || !strings.Contains(text, tt.text) || resp.StatusCode == 200 && text != tt.text {
				t.Errorf("%s %s with %q: got %d %q, want %d %q", protocol, tt.host, tt.cert, resp.StatusCode, text, tt.status, tt.text)
			}
			if tt.status == 302 && resp.Header.Get("Location") != "https://help.test/?why=cert" {
				t.Errorf("%s: redirected to %q", protocol, resp.Header.Get("Location"))
			}
			for name := range got.Header {
				if strings.Contains(name, "_") || strings.HasPrefix(strings.ToLower(name), "ssl") && strings.Contains(fmt.Sprint(got.Header[name]), "forged") {
					t.Errorf("%s %s with %q: the backend got %s: %q", protocol, tt.host, tt.cert, name, got.Header[name])
				}
			}
			if (tt.text == "NONE" || tt.cert == "") && got.Header.Get("Ssl-Client-Subject-Dn")+got.Header.Get("Ssl-Client-Issuer-Dn")+got.Header.Get("Ssl-Client-Cert") != "" {
				t.Errorf("%s %s without: the backend got %v", protocol, tt.host, got.Header)
			}
		}
	}
	for _, protocol := range showerProtocols {
		_, got := shower{t: t, addr: "10.99.90.101:443", cert: &good, protocol: protocol}.get("pass.test", "/")
		text, err := url.PathUnescape(got.Header.Get("Ssl-Client-Cert"))
		if want := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good.Certificate[0]})); err != nil || text != want {
			t.Errorf("%s: the backend got the certificate %q, %v", protocol, text, err)
		}
		if dn := got.Header.Get("Ssl-Client-Subject-Dn") + " " + got.Header.Get("Ssl-Client-Issuer-Dn"); dn != "CN=good CN=root" {
			t.Errorf("%s: the backend got the names %q", protocol, dn)
		}
		if _, got = (shower{t: t, addr: "10.99.90.101:443", cert: &good, protocol: protocol}).get("on.test", "/"); got.Header.Get("Ssl-Client-Cert") != "" {
			t.Errorf("%s: the backend got the certificate unasked", protocol)
		}
	}
	// Plain HTTP is never served where a certificate is needed.
	for host, want := range map[string]int{"on.test": 400, "optional.test": 200, "off.test": 200, "named.test": 400, "absent.test": 503, "public.test": 200} {
		if got, _ := w.get(host, "/", "Ssl-Client-Verify", "SUCCESS", "X-Forwarded-Proto", "https"); got != want {
			t.Errorf("%s by plain HTTP: got %d, want %d", host, got, want)
		}
	}
	for _, want := range []string{"SecretNotFound: Secret default/absent does not exist"} {
		if !strings.Contains(w.problemText(), want) {
			t.Errorf("problems do not say %q:\n%s", want, w.problemText())
		}
	}
}

// TestClientAuthBySNI: a host that asks for certificates is reached by no
// connection that was opened for another one, or for none.
func TestClientAuthBySNI(t *testing.T) {
	w, root := clientAuthWorld(t, "10.99.91.1:80", "10.99.91.101:443")
	other := testenv.NewAuthority(t, "other")
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(authoritySecret("other", other.PEM(), nil))
		tx.PutRoute(ingress("public", rule("public.test", "/", "a"), rule("public.wild.test", "/open", "a"), rule("", "/", "a")))
		tx.PutRoute(withClientAuth(ingress("secure", rule("secure.test", "/", "a"), rule("twin.test", "/", "a"), rule("*.wild.test", "/", "a"))))
		tx.PutRoute(withClientAuth(ingress("other", rule("other.test", "/", "a")), func(a *model.ClientAuth) { a.Secret = key("other") }))
		tx.PutRoute(withClientAuth(ingress("optional", rule("optional.test", "/", "a")), func(a *model.ClientAuth) { a.Verify = model.ClientVerifyOptional }))
	})
	good := root.Client(t, "good")
	for _, tt := range []struct {
		sni, host string
		cert      bool
		status    int
	}{
		{"secure.test", "secure.test", true, 200},
		{"SECURE.test", "secure.test", true, 200},
		{"secure.test", "Secure.Test.", true, 200},
		{"secure.test", "secure.test:443", true, 200},
		{"secure.test", "secure.test", false, 400},
		{"SECURE.test", "secure.test", false, 400},
		{"secure.test", "twin.test", true, 200}, // of the very same policy
		{"public.test", "secure.test", true, 421},
		{"public.test", "Secure.test.", true, 421},
		{"unknown.test", "secure.test", true, 421},
		{"other.test", "secure.test", true, 421},
		{"optional.test", "secure.test", true, 421},
		{"optional.test", "secure.test", false, 421},
		{"secure.test", "optional.test", true, 421},
		{"secure.test", "public.test", true, 200},
		{"secure.test", "public.test", false, 200},
		{"10.99.91.101", "secure.test", true, 421}, // clients send no address as SNI
		{"a.wild.test", "a.wild.test", true, 200},
		{"a.wild.test", "b.wild.test", true, 200},
		{"a.wild.test", "b.wild.test", false, 400},
		{"a.b.wild.test", "a.wild.test", true, 421},
		{"public.wild.test", "a.wild.test", true, 421},
		{"public.test", "a.wild.test", true, 421},
		// What the exact host does not have the wildcard's rule takes, with what it asks for.
		{"public.wild.test", "public.wild.test", true, 400},
		{"a.wild.test", "public.wild.test", true, 200},
		{"a.wild.test", "public.wild.test", false, 400},
	} {
		for _, protocol := range showerProtocols {
			s := shower{t: t, addr: "10.99.91.101:443", sni: tt.sni, protocol: protocol}
			if tt.cert {
				s.cert = &good
			}
			resp, _ := s.get(tt.host, "/")
			if resp.StatusCode != tt.status {
				t.Errorf("%s: SNI %q, host %q, certificate %v: got %d, want %d", protocol, tt.sni, tt.host, tt.cert, resp.StatusCode, tt.status)
			}
		}
	}
	if resp, _ := (shower{t: t, addr: "10.99.91.101:443", sni: "public.wild.test", protocol: "h2"}).get("public.wild.test", "/open"); resp.StatusCode != 200 {
		t.Errorf("an exact host beside a wildcard that asks: got %d", resp.StatusCode)
	}
}

// TestClientAuthDefaultBackend: default backends take requests for any host, and
// rules without host all that nobody names.
func TestClientAuthDefaultBackend(t *testing.T) {
	w, root := clientAuthWorld(t, "10.99.92.1:80", "10.99.92.101:443")
	fallback := func(r *model.RouteRule) { r.Default = true }
	w.update(func(tx *state.Tx) {
		tx.PutRoute(withClientAuth(ingress("secure", rule("secure.test", "/x", "a"), rule("", "/", "a", fallback))))
		tx.PutRoute(ingress("public", rule("public.test", "/x", "a")))
	})
	good := root.Client(t, "good")
	check := func(sni, host string, cert *tls.Certificate, want int) {
		t.Helper()
		for _, protocol := range showerProtocols {
			resp, _ := shower{t: t, addr: "10.99.92.101:443", sni: sni, cert: cert, protocol: protocol}.get(host, "/default")
			if resp.StatusCode != want {
				t.Errorf("%s: SNI %q, host %q: got %d, want %d", protocol, sni, host, resp.StatusCode, want)
			}
		}
	}
	check("secure.test", "secure.test", &good, 200)
	check("secure.test", "secure.test", nil, 400)
	check("public.test", "public.test", nil, 400) // its paths go to the default backend of who asks
	check("public.test", "public.test", &good, 400)
	check("nobody.test", "nobody.test", nil, 400)
	// A rule without host takes what a host that asks has no path for, and asks as well.
	w.route(ingress("every", rule("", "/default", "a")))
	check("secure.test", "secure.test", nil, 400)
	check("secure.test", "secure.test", &good, 200)
	check("nobody.test", "secure.test", &good, 421)
	check("nobody.test", "nobody.test", nil, 200)
	w.update(func(tx *state.Tx) { tx.DeleteRoute(ingress("every").Ref) })
	// One with nothing but a default backend asks all who ask for no other host.
	w.update(func(tx *state.Tx) {
		tx.DeleteRoute(ingress("secure").Ref)
		tx.PutRoute(withClientAuth(ingress("all", rule("", "/", "a", fallback))))
	})
	check("nobody.test", "nobody.test", nil, 400)
	check("nobody.test", "nobody.test", &good, 200)
	check("nobody.test", "somebody.test", &good, 200)
	check("public.test", "nobody.test", &good, 421)
	check("public.test", "public.test", nil, 400)
}

// TestClientAuthForeign: what is asked of a host is for the namespace to say that
// has the oldest route there. Another one can neither shut its clients out nor let
// anybody in, and what it asks for itself it gets for its own rules.
func TestClientAuthForeign(t *testing.T) {
	w, root := clientAuthWorld(t, "10.99.95.1:80", "10.99.95.101:443")
	good, stranger := root.Client(t, "good"), testenv.NewAuthority(t, "other").Client(t, "stranger")
	later := func(r *model.Route, namespace string, hours int) *model.Route {
		r.Namespace, r.Created = namespace, gatewaytest.Created.Add(time.Duration(hours)*time.Hour)
		return r
	}
	off := func(a *model.ClientAuth) { a.Verify = model.ClientVerifyOff }
	theirs := func(a *model.ClientAuth) { a.Secret = model.Key{Namespace: "other", Name: "ca"} }
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(&model.Certificate{Key: model.Key{Namespace: "other", Name: "ca"}, CA: root.PEM()})
		tx.PutRoute(ingress("shop", rule("shop.test", "/", "a")))
		tx.PutRoute(later(withClientAuth(ingress("shut", rule("shop.test", "/theirs", "a")), theirs), "other", 1))
		tx.PutRoute(ingress("first", rule("pay.test", "/", "a")))
		tx.PutRoute(later(withClientAuth(ingress("open", rule("pay.test", "/theirs", "a")), off), "other", 1))
		tx.PutRoute(later(withClientAuth(ingress("asks", rule("pay.test", "/ours", "a"))), "default", 2))
		tx.PutRoute(withClientAuth(ingress("both", rule("both.test", "/", "a"))))
		tx.PutRoute(later(withClientAuth(ingress("copy", rule("both.test", "/theirs", "a")), theirs, func(a *model.ClientAuth) { a.CommonName = "good" }), "other", 1))
	})
	other := root.Client(t, "somebody else")
	for _, protocol := range showerProtocols {
		for _, tt := range []struct {
			host, path string
			cert       *tls.Certificate
			want       int
		}{
			{"shop.test", "/", nil, 200},
			{"shop.test", "/theirs", nil, 400},
			{"pay.test", "/", nil, 400},
			{"pay.test", "/theirs", nil, 400},
			{"pay.test", "/", &good, 200},
			{"both.test", "/", &other, 200},
			{"both.test", "/theirs", &other, 403},
			{"both.test", "/theirs", &good, 200},
			{"both.test", "/theirs", &stranger, 400},
			{"both.test", "/theirs", nil, 400},
		} {
			if resp, r := (shower{t: t, addr: "10.99.95.101:443", cert: tt.cert, protocol: protocol}).get(tt.host, tt.path); resp.StatusCode != tt.want {
				t.Errorf("%s %s%s, certificate %v: %d %s, want %d", protocol, tt.host, tt.path, tt.cert != nil, resp.StatusCode, r.Body, tt.want)
			}
		}
	}
	for _, want := range []string{"Ingress other/shut metadata.annotations[nginx.ingress.kubernetes.io/auth-tls-secret] ClientAuthConflict: Ingress default/shop of another namespace is older",
		"Ingress other/open metadata.annotations[nginx.ingress.kubernetes.io/auth-tls-secret] ClientAuthConflict"} {
		if !strings.Contains(w.problemText(), want) {
			t.Errorf("problems do not say %q:\n%s", want, w.problemText())
		}
	}
}

// TestClientAuthChanges: what changes counts at once, for connections that there
// are as well; what goes bad does not, and what is not there lets nobody in.
func TestClientAuthChanges(t *testing.T) {
	w, root := clientAuthWorld(t, "10.99.93.1:80", "10.99.93.101:443")
	second := testenv.NewAuthority(t, "second")
	route := func() *model.Route { return ingress("main", rule("secure.test", "/", "a")) }
	w.route(route())
	first, next := root.Client(t, "first"), second.Client(t, "second")
	for _, protocol := range showerProtocols {
		t.Run(protocol, func(t *testing.T) {
			w.update(func(tx *state.Tx) {
				tx.PutCertificate(authoritySecret("ca", root.PEM(), nil))
				tx.PutRoute(route())
			})
			sessions := tls.NewLRUClientSessionCache(10)
			open := func(cert *tls.Certificate) *http.Client {
				return shower{t: t, addr: "10.99.93.101:443", cert: cert, protocol: protocol, sessions: sessions}.client()
			}
			status := func(c *http.Client) int {
				t.Helper()
				resp, _, err := tryGet(c, "secure.test", "/")
				if err != nil {
					t.Fatal(err)
				}
				return resp.StatusCode
			}
			expect := func(what string, c *http.Client, want int) {
				t.Helper()
				if got := status(c); got != want {
					t.Errorf("%s: got %d, want %d", what, got, want)
				}
			}
			before := open(&first)
			expect("nobody asks", before, 200)
			w.route(withClientAuth(route()))
			expect("a connection from before", before, 421)
			for end := time.Now().Add(30 * time.Second); protocol == "h3" && status(before) == 421 && time.Now().Before(end); {
				time.Sleep(1500 * time.Millisecond) // one by QUIC ends once it carries nothing for a second
			}
			expect("who was told to come anew, and did", before, 200)
			expect("a new one with a ticket from before, without certificate", open(nil), 400)
			expect("a new one with a ticket from before", open(&first), 200)
			kept, nextKept := open(&first), open(&next)
			expect("kept", kept, 200)
			expect("of another authority", nextKept, 400)
			w.update(func(tx *state.Tx) { tx.PutCertificate(authoritySecret("ca", second.PEM(), nil)) })
			expect("the authority is another now", kept, 400)
			expect("with a ticket from before", open(&first), 400)
			expect("the other authority's", open(&next), 200)
			w.update(func(tx *state.Tx) { tx.PutCertificate(authoritySecret("ca", []byte("broken"), nil)) })
			expect("the Secret is broken: the last good one counts", open(&next), 200)
			expect("the Secret is broken: the last good one counts", open(&first), 400)
			if text := w.problemText(); !strings.Contains(text, "its last good authorities still count") {
				t.Errorf("problems:\n%s", text)
			}
			w.update(func(tx *state.Tx) {
				tx.PutCertificate(authoritySecret("ca", second.PEM(), second.Revoked(t, time.Now().Add(time.Hour))))
			})
			kept = open(&next)
			expect("a list that has nothing", kept, 200)
			w.update(func(tx *state.Tx) {
				tx.PutCertificate(authoritySecret("ca", second.PEM(), second.Revoked(t, time.Now().Add(time.Hour), next.Leaf)))
			})
			expect("revoked since, kept", kept, 400)
			expect("revoked since", open(&next), 400)
			w.update(func(tx *state.Tx) {
				tx.PutCertificate(authoritySecret("ca", second.PEM(), second.Revoked(t, time.Now().Add(-time.Minute))))
			})
			expect("the list has expired", open(&next), 400)
			if text := w.problemText(); !strings.Contains(text, "the revocation list of CN=second in ca.crl expired on") {
				t.Errorf("problems:\n%s", text)
			}
			w.update(func(tx *state.Tx) { tx.DeleteCertificate(key("ca")) })
			expect("the Secret is gone", open(&next), 503)
			w.update(func(tx *state.Tx) { tx.PutCertificate(authoritySecret("ca", []byte("broken"), nil)) })
			expect("a Secret that was never good", open(&next), 503)
			w.update(func(tx *state.Tx) { tx.PutCertificate(authoritySecret("ca", second.PEM(), nil)) })
			expect("healed", open(&next), 200)
			w.route(route())
			expect("nobody asks any more", open(nil), 200)
		})
	}
}

// TestClientAuthOldestDecides between routes that share a host, for all of it.
func TestClientAuthOldestDecides(t *testing.T) {
	w, root := clientAuthWorld(t, "10.99.94.1:80", "10.99.94.101:443")
	young := withClientAuth(ingress("young", rule("shared.test", "/young", "a")), func(a *model.ClientAuth) { a.Verify = model.ClientVerifyOff })
	young.Created = young.Created.Add(time.Hour)
	w.update(func(tx *state.Tx) {
		tx.PutRoute(young)
		tx.PutRoute(withClientAuth(ingress("old", rule("shared.test", "/old", "a"))))
		tx.PutRoute(ingress("none", rule("shared.test", "/none", "a")))
	})
	good := root.Client(t, "good")
	for _, path := range []string{"/young", "/old", "/none"} {
		for cert, want := range map[*tls.Certificate]int{nil: 400, &good: 200} {
			if resp, _ := (shower{t: t, addr: "10.99.94.101:443", cert: cert, protocol: "h2"}).get("shared.test", path); resp.StatusCode != want {
				t.Errorf("%s: got %d, want %d", path, resp.StatusCode, want)
			}
		}
	}
	list := w.g.State("clientAuth").ClientAuth
	if len(list) != 1 || list[0].Host != "shared.test" || list[0].Secret != "default/ca" || fmt.Sprint(list[0].Authorities) != "[CN=root]" || !strings.Contains(list[0].What, "asks clients for a certificate") {
		t.Errorf("state: %+v", list)
	}
	if text := w.problemText(); !strings.Contains(text, `Ingress default/young metadata.annotations[nginx.ingress.kubernetes.io/auth-tls-secret] ClientAuthConflict: the older Ingress default/old asks something else of the clients of host "shared.test"`) {
		t.Errorf("problems:\n%s", text)
	}
}
