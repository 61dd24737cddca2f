package gateway

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

// TestBackendDiesDuringUpload ends a backend that speaks HTTP/2 while the
// client has more to send and does not: it gets 502, or the end of what has
// begun, and is not kept waiting until it goes on.
func TestBackendDiesDuringUpload(t *testing.T) {
	for _, http2Client := range []bool{false, true} {
		for _, begun := range []bool{false, true} {
			t.Run(fmt.Sprintf("http2=%v,answer begun=%v", http2Client, begun), func(t *testing.T) {
				got := make(chan struct{})
				hold := make(chan struct{})
				defer close(hold)
				server := backendServer(t, "10.99.38.1:80", func(w http.ResponseWriter, r *http.Request) {
					if begun {
						_, _ = io.WriteString(w, "begun")
						_ = http.NewResponseController(w).Flush()
					}
					_, _ = io.ReadFull(r.Body, make([]byte, 4))
					close(got)
					<-hold
				})
				w := newWorld(t, nil)
				w.service("a", "kubernetes.io/h2c", "10.99.38.1:80")
				w.route(ingress("main", rule("", "/", "a")))
				transport := &http.Transport{Protocols: new(http.Protocols)}
				transport.Protocols.SetHTTP1(!http2Client)
				transport.Protocols.SetUnencryptedHTTP2(http2Client)
				defer transport.CloseIdleConnections()
				client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
				body, more := io.Pipe()
				defer more.Close()
				seen := make(chan struct{})
				go func() {
					_, _ = more.Write([]byte("some"))
					<-got
					if begun {
						<-seen
					}
					_ = server.Close()
				}()
				resp, err := client.Post(w.url("/"), "x/y", body)
				close(seen)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				start := time.Now()
				text, err := io.ReadAll(resp.Body)
				switch {
				case !begun && resp.StatusCode != http.StatusBadGateway:
					t.Errorf("got %d, want 502", resp.StatusCode)
				case begun && (resp.StatusCode != http.StatusOK || err == nil || time.Since(start) > 15*time.Second):
					t.Errorf("got %d, %q, %v after %s; want an answer that breaks off", resp.StatusCode, text, err, time.Since(start))
				}
			})
		}
	}
}
