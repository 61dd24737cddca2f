package explain

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway"
	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// TestMain runs the tests in a network namespace of their own, for the gateway
// that explanations are compared with.
func TestMain(m *testing.M) { gatewaytest.Main(m) }

// received is what a backend tells of a request.
type received struct {
	Backend, Method, Target, Host string
	Header                        http.Header
}

// backend starts a server that tells what it got, in HTTP/1.1 and HTTP/2.
func backend(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(received{addr, r.Method, r.RequestURI, r.Host, r.Header})
	})}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
}

// serving starts a gateway over a snapshot's objects.
func serving(t *testing.T, snap *state.Snapshot) *gateway.Gateway {
	t.Helper()
	store := state.New()
	store.Update(func(tx *state.Tx) {
		for _, s := range snap.Services.All() {
			tx.PutService(s)
		}
		for key, set := range snap.Endpoints.All() {
			tx.PutSlice(&model.EndpointSlice{Key: key, Service: key, Endpoints: set.Endpoints})
		}
		for _, r := range snap.Routes.All() {
			tx.PutRoute(r)
		}
		for _, c := range snap.Certificates.All() {
			tx.PutCertificate(c)
		}
		for ref, list := range snap.Streams.All() {
			tx.PutStreams(ref, list)
		}
		tx.SetSynced()
	})
	g, err := gateway.New(gateway.Options{
		Store: store, Logger: slog.New(slog.DiscardHandler), HTTPAddrs: []string{"127.0.0.1:0"}, HTTPSAddrs: []string{"127.0.0.1:0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); !g.Ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the gateway does not get ready")
		}
	}
	return g
}

// send sends a request as it is written, and returns the answer and the name of
// the certificate. Where it is asked for one, it shows shown, if that is not nil.
func send(t *testing.T, g *gateway.Gateway, o RequestOptions, shown *tls.Certificate) (answer *http.Response, body []byte, certificate string) {
	t.Helper()
	attempt, err := o.attempt()
	if err != nil {
		t.Fatal(err)
	}
	at := g.HTTPAddr()
	if attempt.TLS {
		at = g.HTTPSAddr()
	}
	conn, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if attempt.TLS {
		config := &tls.Config{ServerName: attempt.ServerName, InsecureSkipVerify: true}
		if shown != nil {
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return shown, nil }
		}
		secure := tls.Client(conn, config)
		if err := secure.Handshake(); err != nil {
			t.Fatal(err)
		}
		certificate, conn = secure.ConnectionState().PeerCertificates[0].Subject.CommonName, secure
	}
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\n", attempt.Method, attempt.Target, attempt.Authority)
	for _, line := range o.Header {
		if !strings.HasPrefix(line, "Host:") {
			fmt.Fprintf(conn, "%s\r\n", line)
		}
	}
	fmt.Fprint(conn, "Connection: close\r\n\r\n")
	if answer, err = http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: attempt.Method}); err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err = io.ReadAll(answer.Body); err != nil {
		t.Fatal(err)
	}
	return answer, body, certificate
}

// TestRequestsAreServedAsExplained sends many requests to a gateway that
// serves: what becomes of them is what was said.
func TestRequestsAreServedAsExplained(t *testing.T) {
	for i := range 4 {
		backend(t, fmt.Sprintf("10.99.0.%d:8080", 11+i))
	}
	reached := map[string]int{}
	for _, snap := range []*state.Snapshot{site(t), site(t, func(tx *state.Tx) {
		tx.DeleteRoute(model.Ref{Kind: "Ingress", Key: gatewaytest.Key("any")}) // which takes what nothing else does
	})} {
		g := serving(t, snap)
		port := uint16(g.HTTPSAddr().(*net.TCPAddr).Port)
		headers := [][]string{nil, {"X-Canary: always"}, {"X-Canary: never", "X-Forwarded-For: 10.1.1.1", "Forwarded: for=x", "Proxy: y", "X-Request-ID: 7"}, {"Host: shop.test:81"}}
		for _, scheme := range []string{"http", "https"} {
			for h, host := range []string{"shop.test", "SHOP.test.:8080", "b.test", "c.b.test", "none.test", "192.0.2.9", "-", "sh%op"} {
				for j, target := range []string{"/", "/api", "/api/", "/apix", "/x/../api/v?q=1", "/%61pi/b%2Fc", "/a%2f..%2fb", "/empty/x", "/gone", "/h2/x?q", "/wild", "/wild//x", "?q"} {
					for i, method := range []string{"GET", "POST", "DELETE", "GET"} {
						if (h+i+j)%2 > 0 {
							continue // half of all combinations say as much
						}
						compare(t, g, RequestOptions{Snapshot: snap, URL: scheme + "://" + host + target, Method: method, Header: headers[i], Client: netip.MustParseAddr("127.0.0.1"), HTTPSPort: port}, reached)
					}
				}
			}
		}
	}
	for _, what := range []string{"10.99.0.11:8080", "10.99.0.12:8080", "10.99.0.13:8080", "10.99.0.14:8080", "308", "400", "403", "404", "503"} {
		if reached[what] == 0 {
			t.Errorf("no request came to %s: %v", what, reached)
		}
	}
}

func compare(t *testing.T, g *gateway.Gateway, o RequestOptions, reached map[string]int) {
	t.Helper()
	compareAs(t, g, o, nil, reached)
}

// compareAs is compare for a client with a certificate to show.
func compareAs(t *testing.T, g *gateway.Gateway, o RequestOptions, shown *tls.Certificate, reached map[string]int) {
	t.Helper()
	r := told(t, o)
	answer, body, certificate := send(t, g, o, shown)
	wrong := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s %s %q: %s; explained was:\n%s", o.Method, o.URL, o.Header, fmt.Sprintf(format, args...), r.Text())
	}
	if r.TLS != nil && certificate != "" {
		want := gateway.DefaultCertificateName
		if r.TLS.Secret != "" {
			_, want, _ = strings.Cut(r.TLS.Secret, "/") // the tests' are named after it
		}
		if certificate != want {
			wrong("the certificate is that of %s", certificate)
		}
	}
	var got received
	if answer.StatusCode != http.StatusOK {
		reached[fmt.Sprint(answer.StatusCode)]++
		failed := r.Answer
		for i := range r.Backends {
			if b := &r.Backends[i]; b.Answer != nil && b.Percent > 0 && (failed == nil || b.Answer.Status == answer.StatusCode && strings.Contains(string(body), b.Answer.Reason)) {
				failed = b.Answer
			}
		}
		switch {
		case failed == nil || failed.Status != answer.StatusCode:
			wrong("status %s", answer.Status)
		case failed.Location != answer.Header.Get("Location"):
			wrong("it leads to %s", answer.Header.Get("Location"))
		case failed.Reason != "" && !strings.Contains(string(body), failed.Reason):
			wrong("it says %s", body)
		}
		return
	}
	if err := json.Unmarshal(body, &got); err != nil {
		wrong("%v in %s", err, body)
		return
	}
	reached[got.Backend]++
	if r.Answer != nil || !slices.ContainsFunc(r.Backends, func(b RequestBackend) bool {
		return b.Percent > 0 && slices.ContainsFunc(b.Endpoints, func(e RequestEndpoint) bool { return e.In && e.Address == got.Backend })
	}) {
		wrong("%s has got it", got.Backend)
		return
	}
	if r.Sent == nil {
		return // TLS passes through, and so does all of the request
	}
	if s := r.Sent; s.Method != got.Method || s.Target != got.Target || s.Host != got.Host {
		wrong("the backend got %s %s for %s", got.Method, got.Target, got.Host)
	}
	for _, line := range r.Sent.Set {
		name, value, _ := strings.Cut(line, ": ")
		if name == "X-Forwarded-Port" || strings.HasPrefix(value, "(") || strings.HasPrefix(value, "%28") {
			value = got.Header.Get(name) // the test's gateway is at other ports
		}
		if list := got.Header.Values(name); len(list) != 1 || list[0] != value {
			wrong("%s is %q", name, list)
		}
	}
	for _, name := range r.Sent.Removed {
		if got.Header.Get(name) != "" {
			wrong("the backend got %s", name)
		}
	}
}
