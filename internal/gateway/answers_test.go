package gateway

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestAnswersByEveryProtocol: what a backend says arrives alike by HTTP/1.1,
// HTTP/2 and HTTP/3: nothing is guessed that it does not say, a length that is
// given twice is said once, and its Alt-Svc, which tells of ports that are not
// the gateway's, gives way to the gateway's. What it forgets to date is dated
// (RFC 9110, 6.6.1).
func TestAnswersByEveryProtocol(t *testing.T) {
	const plain, h2c = "10.99.75.1:80", "10.99.75.2:80"
	const dated = "Sun, 06 Nov 1994 08:49:37 GMT"
	answers := map[string]string{
		"/untyped": "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
		"/twice":   "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Length: 6\r\n\r\n<html>",
		"/alt-svc": "HTTP/1.1 200 OK\r\nAlt-Svc: h3=\":9999\"\r\nContent-Length: 6\r\n\r\n<html>",
		"/dated":   "HTTP/1.1 200 OK\r\nDate: " + dated + "\r\nContent-Length: 6\r\n\r\n<html>",
		"/304":     "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\nEtag: \"a\"\r\n\r\n",
	}
	serveConns(t, plain, func(c net.Conn) {
		for in := bufio.NewReader(c); ; {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, answers[r.URL.Path])
		}
	})
	backendServer(t, h2c, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Content-Type"], h["Date"] = nil, nil
		switch r.URL.Path {
		case "/h2c/alt-svc":
			h.Set("Alt-Svc", `h3=":9999"`)
		case "/h2c/304":
			h.Set("Etag", `"a"`)
			h.Set("Content-Length", "6")
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = io.WriteString(w, "<html>")
	})
	w, pair := http3World(t, "10.99.75.101:443", "", plain)
	w.service("h2c", "kubernetes.io/h2c", h2c)
	w.route(withTLS(ingress("main", rule("a.test", "/", "a"), rule("a.test", "/h2c", "h2c")), "pair", "a.test"))
	tlsConfig := &tls.Config{InsecureSkipVerify: true, ServerName: "a.test"}
	h1 := &http.Transport{TLSClientConfig: tlsConfig, DialContext: w.dialHTTPS}
	h2 := &http.Transport{TLSClientConfig: tlsConfig.Clone(), DialContext: w.dialHTTPS, ForceAttemptHTTP2: true}
	t.Cleanup(h1.CloseIdleConnections)
	t.Cleanup(h2.CloseIdleConnections)
	for protocol, c := range map[string]*http.Client{
		"HTTP/1.1": {Transport: h1, Timeout: 20 * time.Second}, "HTTP/2.0": {Transport: h2, Timeout: 20 * time.Second}, "HTTP/3.0": http3Client(t, w.g.HTTPSAddr().String(), pair),
	} {
		for _, path := range []string{"/untyped", "/twice", "/alt-svc", "/dated", "/304", "/h2c/untyped", "/h2c/alt-svc", "/h2c/304"} {
			resp, body := ask(t, c, "GET", "https://a.test"+path, nil) // fails if the body is not as long as it says
			want, etag, alt := "<html>", "", 1
			if resp.StatusCode == http.StatusNotModified {
				want, etag = "", `"a"`
			}
			if protocol == "HTTP/3.0" {
				alt = 0 // the client is there already
			}
			if resp.Proto != protocol || body != want || resp.Header.Get("Etag") != etag {
				t.Errorf("%s %s: %s %s %q, %v", protocol, path, resp.Proto, resp.Status, body, resp.Header)
			}
			if got, ok := resp.Header["Content-Type"]; ok {
				t.Errorf("%s %s: the type is guessed as %q", protocol, path, got)
			}
			if got := resp.Header["Date"]; len(got) != 1 || (got[0] == dated) != (path == "/dated") {
				t.Errorf("%s %s: Date %q", protocol, path, got)
			}
			if n := len(resp.Header["Content-Length"]); n > 1 {
				t.Errorf("%s %s: Content-Length is given %d times", protocol, path, n)
			}
			if got := resp.Header["Alt-Svc"]; len(got) != alt || alt == 1 && got[0] != `h3=":443"; ma=86400` {
				t.Errorf("%s %s: Alt-Svc %q", protocol, path, got)
			}
		}
	}
}
