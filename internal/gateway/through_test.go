package gateway

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// passed is an Ingress whose TLS for a host passes through to a Service.
func passed(name, host, service string) (*model.Route, model.StreamRoute) {
	s := stream(name, model.TCP, 0, service, host)
	r := ingress(name, rule(host, "/", service, func(r *model.RouteRule) {
		r.Backends = nil
		r.Filters = model.Filters{PassedThrough: true, HTTPSRedirect: &model.HTTPSRedirect{Force: true}}
	}))
	s.Ref = r.Ref
	return r, s
}

// TestThrough has TLS pass through at the HTTPS port, beside hosts whose TLS is the
// gateway's.
func TestThrough(t *testing.T) {
	backendServer(t, "10.99.46.1:80", nil)
	tlsEcho(t, "10.99.46.2:443", "vault")
	w := newWorld(t, func(o *Options) { o.HTTP3 = true })
	w.service("web", "", "10.99.46.1:80")
	w.service("vault", "", "10.99.46.2:443")
	route, through := passed("vault", "vault.test", "vault")
	wild, throughWild := passed("wild", "*.wild.test", "vault")
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(secret(t, "pair", "*.test"))
		tx.PutRoute(withTLS(ingress("web", rule("web.test", "/", "web")), "pair", "web.test"))
		tx.PutRoute(route)
		tx.PutRoute(wild)
	})
	w.streams(through, throughWild)
	for name, want := range map[string]string{
		"vault.test": "vault", "VAULT.test.": "vault", "a.wild.test": "vault", "web.test": "pair",
		"b.a.wild.test": DefaultCertificateName, "": DefaultCertificateName,
	} {
		if got := w.presented(name); got != want {
			t.Errorf("%q is shown the certificate %q, want %q", name, got, want)
		}
	}

	// Bytes go both ways, a ClientHello in many pieces is found out about as well.
	raw := dial(t, w.g.HTTPSAddr().String())
	c := tls.Client(pieces{raw}, &tls.Config{ServerName: "vault.test", InsecureSkipVerify: true, NextProtos: []string{strings.Repeat("x", 200)}})
	fmt.Fprintln(c, "through")
	if got := readLine(t, bufio.NewReader(c)); got != "through" {
		t.Errorf("echo %q", got)
	}
	if l := w.g.streams.State(); len(l) != 1 || l[0].Connections["TCP"] != 1 || len(l[0].Routes) != 2 {
		t.Errorf("listeners: %+v", l)
	}

	// Its requests are nobody's here: plain ones are sent to https, and those by a
	// connection for another host are to come by one of their own.
	for proto, http2 := range map[string]bool{"HTTP/2.0": true, "HTTP/1.1": false} {
		client := w.tlsClient(t, secret(t, "any", "any.test"), "web.test")
		transport := client.Transport.(*http.Transport)
		transport.TLSClientConfig.InsecureSkipVerify, transport.ForceAttemptHTTP2 = true, http2
		request, _ := http.NewRequest("GET", "https://web.test/", nil)
		request.Host = "vault.test"
		answer, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusMisdirectedRequest || answer.Proto != proto {
			t.Errorf("by the connection for another host, %s: %s, %s", proto, answer.Status, answer.Proto)
		}
	}
	answer, _ := w.do("GET", "vault.test", "/x", nil)
	if answer.StatusCode != http.StatusPermanentRedirect || !strings.HasPrefix(answer.Header.Get("Location"), "https://vault.test") {
		t.Errorf("plain: %s %s", answer.Status, answer.Header.Get("Location"))
	}

	// The host goes back to the gateway, and what was carried goes on.
	w.update(func(tx *state.Tx) {
		tx.DeleteRoute(route.Ref)
		tx.PutRoute(withTLS(ingress("web", rule("vault.test", "/", "web")), "pair", "vault.test"))
	})
	w.streams()
	if got := w.presented("vault.test"); got != "pair" {
		t.Errorf("after it went: %q", got)
	}
	fmt.Fprintln(c, "still")
	if got := readLine(t, bufio.NewReader(c)); got != "still" {
		t.Errorf("echo %q", got)
	}
}

// pieces sends bytes one by one.
type pieces struct{ net.Conn }

func (c pieces) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// TestThroughForeign: nobody takes over a host of another namespace that is older.
func TestThroughForeign(t *testing.T) {
	backendServer(t, "10.99.46.3:80", nil)
	tlsEcho(t, "10.99.46.4:443", "thief")
	w := newWorld(t, nil)
	w.service("web", "", "10.99.46.3:80")
	w.service("thief", "", "10.99.46.4:443")
	route := withTLS(ingress("web", rule("web.test", "/", "web")), "pair", "web.test")
	route.Namespace = "other"
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(secret(t, "pair", "web.test"))
		tx.PutRoute(route)
	})
	_, s := passed("thief", "web.test", "thief")
	s.Created = gatewaytest.Created.Add(time.Hour)
	w.streams(s)
	if got := w.presented("web.test"); got == "thief" {
		t.Error("the host was taken over")
	}
	if want := "Ingress default/thief data[0] StreamConflict: the host is served by Ingress other/web of another namespace, which is older"; !strings.Contains(w.problemText(), want) {
		t.Errorf("problems do not say %q:\n%s", want, w.problemText())
	}
	s.Created = gatewaytest.Created.Add(-time.Hour)
	w.streams(s)
	if got := w.presented("web.test"); got != "thief" {
		t.Errorf("the older one does not have its host: %q", got)
	}
}

// TestThroughExact: a wildcard that passes through leaves the exact hosts to those
// who have them, whoever is older; else it would take over hosts of others, and
// get clients past what is asked of them there.
func TestThroughExact(t *testing.T) {
	backendServer(t, "10.99.46.6:80", nil)
	tlsEcho(t, "10.99.46.7:443", "wild")
	tlsEcho(t, "10.99.46.8:443", "one")
	w := newWorld(t, nil)
	w.service("web", "", "10.99.46.6:80")
	w.service("wild", "", "10.99.46.7:443")
	w.service("one", "", "10.99.46.8:443")
	route := withTLS(ingress("web", rule("web.wild.test", "/", "web")), "pair", "cert.wild.test")
	route.Namespace, route.Created = "other", gatewaytest.Created.Add(time.Hour)
	wild, throughWild := passed("wild", "*.wild.test", "wild")
	one, throughOne := passed("one", "one.wild.test", "one")
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(secret(t, "pair", "*.wild.test"))
		tx.PutRoute(route)
		tx.PutRoute(wild)
		tx.PutRoute(one)
	})
	w.streams(throughWild, throughOne)
	for name, want := range map[string]string{
		"web.wild.test": DefaultCertificateName, "cert.wild.test": "pair", "one.wild.test": "one", "any.wild.test": "wild",
	} {
		if got := w.presented(name); got != want {
			t.Errorf("%q is shown the certificate %q, want %q", name, got, want)
		}
	}
	w.update(func(tx *state.Tx) { tx.DeleteRoute(route.Ref) })
	w.eventually("the wildcard has the host once nobody else does", func() bool { return w.presented("web.wild.test") == "wild" })
}

// TestThroughEnds has a gateway that ends carry on what passes through.
func TestThroughEnds(t *testing.T) {
	tlsEcho(t, "10.99.46.5:443", "vault")
	w := newWorld(t, nil)
	w.service("vault", "", "10.99.46.5:443")
	route, through := passed("vault", "vault.test", "vault")
	w.route(route)
	w.streams(through)
	c := tls.Client(dial(t, w.g.HTTPSAddr().String()), &tls.Config{ServerName: "vault.test", InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	addr := w.g.HTTPSAddr().String()
	w.stop()
	w.eventually("the port is closed", func() bool { return isClosed(addr) })
	fmt.Fprintln(c, "still")
	if got := readLine(t, bufio.NewReader(c)); got != "still" {
		t.Errorf("echo %q", got)
	}
	_ = c.CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}
