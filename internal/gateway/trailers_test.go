package gateway

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestTrailersMakeNoClaims: what a client may not say in a header it may not
// say in a trailer, by any protocol; and what ends a target there is refused.
func TestTrailersMakeNoClaims(t *testing.T) {
	tell := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = json.NewEncoder(w).Encode(map[string]any{"trailer": r.Trailer, "target": r.RequestURI})
	}
	backendServer(t, "10.99.34.21:80", tell)
	backend2 := &http.Server{Handler: http.HandlerFunc(tell), Protocols: new(http.Protocols)}
	backend2.Protocols.SetUnencryptedHTTP2(true)
	serve(t, "10.99.34.22:80", backend2.Serve)
	t.Cleanup(func() { _ = backend2.Close() })
	w, pair := http3World(t, "10.99.34.23:443", "", "10.99.34.21:80")
	w.service("b", "kubernetes.io/h2c", "10.99.34.22:80")
	w.route(ingress("more", rule("", "/", "a"), rule("", "/b", "b"), rule("a.test", "/b", "b")))
	h2 := &http.Client{Transport: &http.Transport{DialContext: w.dialHTTPS, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 20 * time.Second}
	t.Cleanup(h2.CloseIdleConnections)
	clients := map[string]*http.Client{"HTTP/1.1": plainClient, "HTTP/2": h2, "HTTP/3": http3Client(t, w.g.HTTPSAddr().String(), pair)}
	for name, c := range clients {
		for _, path := range []string{"/a", "/b"} {
			url := "https://a.test"
			if c == plainClient {
				url = strings.TrimSuffix(w.url("/"), "/")
			}
			req, err := http.NewRequest("POST", url+path+"?x=\xff", io.MultiReader(strings.NewReader("body")))
			if err != nil {
				t.Fatal(err)
			}
			req.Trailer = http.Header{"X-Sum": {"1"}}
			for _, evil := range []string{"X-Forwarded-For", "X_forwarded_for", "X-Real_ip", "Forwarded", "X-Request-Id", "X_request-Id", "X-Scheme", "Proxy", "Content_length", "Transfer_encoding"} {
				req.Trailer[evil] = []string{"6.6.6.6"}
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Trailer http.Header
				Target  string
			}
			if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			for name, values := range got.Trailer {
				if values == nil {
					delete(got.Trailer, name) // announced, and has not come
				}
			}
			if d := cmp.Diff(http.Header{"X-Sum": {"1"}}, got.Trailer); d != "" {
				t.Errorf("%s to %s: trailers (-want +got):\n%s", name, path, d)
			}
			if got.Target != path+"?x=%FF" {
				t.Errorf("%s to %s: target %q", name, path, got.Target)
			}
		}
	}
	raw := w.rawHTTP2(t, false)
	if err := raw.request(1, true, ":method", "GET", ":scheme", "http", ":path", "/a?x=1#y", ":authority", "a"); err != nil {
		t.Fatal(err)
	}
	if got := raw.outcome(1); got != "400" {
		t.Errorf("a fragment: %s", got)
	}
}
