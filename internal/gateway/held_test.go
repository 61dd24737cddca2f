package gateway

import (
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"fairway.dev/fairway/internal/gateway/shed"
	"fairway.dev/fairway/internal/testenv"
)

// TestBodiesThatNobodyTakes: an upload to a backend that does not read, and an
// answer for a client that does not, end when too much waits; the log says why,
// and nobody holds it against the endpoint.
func TestBodiesThatNobodyTakes(t *testing.T) {
	release := make(chan struct{})
	// A backend whose windows hold little, so that the rest waits at the gateway.
	server := &http.Server{Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 16 << 10},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/upload":
				<-release
			case "/answer":
				_, _ = w.Write(make([]byte, 1<<20))
			}
		})}
	server.Protocols.SetUnencryptedHTTP2(true)
	serve(t, "10.99.72.1:80", server.Serve)
	t.Cleanup(func() { close(release); _ = server.Close() })
	held := shed.NewHeld(16*24<<10, func() bool { return false })
	log := &testenv.Log{}
	w := newWorld(t, func(o *Options) { o.Held, o.AccessLog = held, log })
	w.service("a", "kubernetes.io/h2c", "10.99.72.1:80")
	w.route(ingress("main", rule("", "/", "a")))

	plainly := func(method, path string) []string {
		return []string{":method", method, ":scheme", "http", ":path", path, ":authority", "a.test"}
	}
	c := w.rawHTTP2(t, false)
	_ = c.request(1, false, plainly("POST", "/upload")...)
	for range 14 {
		_ = c.WriteData(1, false, make([]byte, 16<<10))
	}
	if got := c.outcome(1); got != "reset "+http2.ErrCodeEnhanceYourCalm.String() {
		t.Errorf("the upload ends with %s", got)
	}
	w.eventually("the log tells of the upload", func() bool {
		return strings.Contains(log.String(), `"path":"/upload","protocol":"HTTP/2.0","status":503`) && strings.Contains(log.String(), shed.ErrFull.Error())
	})
	w.eventually("nothing of the upload waits", func() bool { return held.Bytes() == 0 })

	shut := w.rawHTTP2(t, false)
	_ = shut.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	_ = shut.request(1, true, plainly("GET", "/answer")...)
	w.eventually("the answer is cut off", func() bool { return held.Cut() >= 2 })
	if got := w.g.State("services").Services[0].Endpoints[0].State; got != "in use" {
		t.Errorf("the endpoint is %s", got)
	}
	_ = shut.Close()
	w.eventually("nothing of the answer waits", func() bool { return held.Bytes() == 0 })
	if resp, _ := w.do("GET", "a.test", "/", nil); resp.StatusCode != 200 {
		t.Errorf("the next request gets %s", resp.Status)
	}
}
