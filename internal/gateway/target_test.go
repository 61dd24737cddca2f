package gateway

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"fairway.dev/fairway/internal/gateway/http1"
)

// TestLongTarget: by every protocol the longest target passes, and one byte more
// gets 414.
func TestLongTarget(t *testing.T) {
	backendServer(t, "10.99.49.1:80", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	w, pair := http3World(t, "127.0.0.1:0", "", "10.99.49.1:80")
	w.service("b", "", "10.99.49.1:80")
	w.route(ingress("plain", rule("", "/", "b")))
	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	defer h2.CloseIdleConnections()
	for _, by := range []struct {
		name   string
		client *http.Client
		url    string
	}{
		{"HTTP/1.1", plainClient, w.url("/")},
		{"HTTP/2", &http.Client{Transport: h2}, w.url("/")},
		{"HTTP/3", http3Client(t, w.g.HTTPSAddr().String(), pair), "https://a.test/"},
	} {
		for length, want := range map[int]int{http1.MaxTarget: http.StatusNoContent, http1.MaxTarget + 1: http.StatusRequestURITooLong} {
			resp, err := by.client.Get(by.url + strings.Repeat("x", length-1))
			if err != nil {
				t.Errorf("%s, %d: %v", by.name, length, err)
				continue
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s, %d: %s, want %d", by.name, length, resp.Status, want)
			}
		}
	}
}
