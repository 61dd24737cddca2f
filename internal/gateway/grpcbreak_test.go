package gateway

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestGRPCBreaksOff: a gRPC client is told UNAVAILABLE when an answer breaks
// off whose backend speaks HTTP/1.1; an answer to others is cut off.
func TestGRPCBreaksOff(t *testing.T) {
	handler := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		_, _ = io.WriteString(w, "some")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	backendServer(t, "10.99.38.21:80", handler)
	w := newWorld(t, nil)
	w.service("one", "", "10.99.38.21:80")
	w.route(ingress("main", rule("", "/", "one")))
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	for _, kind := range []string{"application/grpc", "text/plain"} {
		resp, err := client.Post(w.url("/"), kind, strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		status := resp.Trailer.Get("Grpc-Status")
		if string(body) != "some" || (err == nil) != (kind == "application/grpc") || err == nil && status != "14" {
			t.Errorf("%s: %q, %v, status %q", kind, body, err, status)
		}
	}
}
