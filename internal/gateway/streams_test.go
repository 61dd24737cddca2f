package gateway

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/model"
)

// TestStreamToStream has clients and backends that both speak HTTP/2: bodies
// of all sizes, trailers and interim answers pass, limits hold, and endpoints
// that cannot be connected to, or speak HTTP/1.1 after all, cost no request.
func TestStreamToStream(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang", "/read":
			<-r.Context().Done()
			return
		case "/stall":
			_, _ = io.WriteString(w, "some")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		case "/small": // no more than that: net/http writes interim answers while the stream is reset
			_, _ = io.Copy(io.Discard, r.Body)
			return
		case "/early":
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Link", "</a>")
		w.WriteHeader(http.StatusEarlyHints)
		body, err := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "T")
		w.Header().Set("T", fmt.Sprint(len(body)))
		w.Header().Set("X-Got", fmt.Sprintf("%s %s %s %d %v %v %s %s", r.Proto, r.Host, r.RequestURI, len(body), err, r.Trailer, r.Header.Get("Cookie"), r.Header.Get("X-Forwarded-For")))
		_, _ = w.Write(body)
	})
	backendServer(t, "10.99.76.1:80", handler)
	pair, err := certs.SelfSigned("a", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	old := &http.Server{Handler: handler, TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}}
	t.Cleanup(func() { _ = old.Close() })
	serve(t, "10.99.76.4:443", func(l net.Listener) error {
		return old.Serve(tls.NewListener(l, &tls.Config{GetCertificate: certs.NewResolver(certs.NewIndex(pair)).ServerConfig().GetCertificate}))
	})
	w := newWorld(t, nil)
	w.service("a", "kubernetes.io/h2c", "10.99.76.2:80", "10.99.76.1:80", "10.99.76.3:80") // nothing listens at the others
	w.service("old", "grpcs", "10.99.76.4:443")
	w.route(ingress("main", rule("a", "/", "a"), rule("old", "/", "old"),
		rule("a", "/hang", "a", filters(model.Filters{RequestTimeout: 300 * time.Millisecond})),
		rule("a", "/read", "a", filters(model.Filters{ReadTimeout: 300 * time.Millisecond})),
		rule("a", "/stall", "a", filters(model.Filters{ReadTimeout: 300 * time.Millisecond})),
		rule("a", "/small", "a", filters(model.Filters{MaxBodyBytes: 1000}))))
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 60 * time.Second}
	post := func(host, path string, body io.Reader, length int64, header ...string) (*http.Response, string, error) {
		t.Helper()
		interim := 0
		req, err := http.NewRequest("POST", w.url(path), body)
		if err != nil {
			t.Fatal(err)
		}
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			if code == http.StatusEarlyHints && h.Get("Link") == "</a>" {
				interim++
			}
			return nil
		}}))
		req.Host, req.ContentLength = host, length
		for i := 0; i < len(header); i += 2 {
			req.Header.Add(header[i], header[i+1])
		}
		if len(header) > 0 {
			req.Trailer = http.Header{"U": {"v"}}
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if resp.StatusCode == http.StatusOK && path == "/" && interim != 1 {
			t.Errorf("%d interim answers", interim)
		}
		return resp, string(got), err
	}
	for range 3 {
		for _, n := range []int{0, 1, 16 << 10, 16<<10 + 1, 100_000, 3 << 20} {
			text := strings.Repeat("x", n)
			for _, host := range []string{"a", "old"} {
				for _, length := range []int64{int64(n), -1} {
					resp, got, err := post(host, "/", io.MultiReader(strings.NewReader(text)), length)
					if err != nil || resp.StatusCode != 200 || got != text || resp.Trailer.Get("T") != fmt.Sprint(n) {
						t.Fatalf("%d bytes to %s: %v %d bytes, %v", n, host, resp, len(got), err)
					}
					want := map[string]string{"a": "HTTP/2.0", "old": "HTTP/1.1"}[host] + fmt.Sprintf(" %s / %d <nil> map[]  127.0.0.1", host, n)
					if got := resp.Header.Get("X-Got"); got != want {
						t.Fatalf("the backend got %q, want %q", got, want)
					}
				}
			}
		}
	}
	resp, _, err := post("a", "/", strings.NewReader("abc"), -1, "Cookie", "a=b", "Cookie", "c=d", "X-Forwarded-For", "1.2.3.4")
	if err != nil || resp.Header.Get("X-Got") != "HTTP/2.0 a / 3 <nil> map[U:[v]] a=b; c=d 127.0.0.1" {
		t.Errorf("%v, %v", resp, err)
	}
	for path, want := range map[string]int{"/hang": 504, "/read": 504, "/early": 403} {
		open, opened := io.Pipe()
		go func() {
			_, _ = opened.Write([]byte("abc"))
			if path == "/read" {
				_ = opened.Close()
			}
		}()
		if resp, _, err := post("a", path, open, -1); err != nil || resp.StatusCode != want {
			t.Errorf("%s: %v, %v", path, resp, err)
		}
		_ = opened.Close()
	}
	if resp, got, err := post("a", "/stall", strings.NewReader("abc"), 3); err == nil || got != "some" {
		t.Errorf("a stalled answer: %v %q %v", resp, got, err)
	}
	resp, got, err := post("a", "/stall", strings.NewReader("abc"), 3, "Content-Type", "application/grpc")
	if err != nil || got != "some" || resp.Trailer.Get("Grpc-Status") != "4" {
		t.Errorf("a stalled answer of gRPC: %v %q %v", resp, got, err)
	}
	for _, n := range []int{1001, 100_000} {
		if resp, _, err := post("a", "/small", io.MultiReader(strings.NewReader(strings.Repeat("x", n))), -1); err != nil || resp.StatusCode != 413 {
			t.Errorf("%d bytes where there may be 1000: %v, %v", n, resp, err)
		}
	}
}
