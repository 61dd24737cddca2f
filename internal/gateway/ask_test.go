package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/testenv"
)

// http2Plain is a client that speaks HTTP/2 without TLS.
func http2Plain(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: plainClient.CheckRedirect, Timeout: 20 * time.Second}
}

// TestHTTP2ToHTTP1 asks by HTTP/2 for what a backend has by HTTP/1.1, without
// a body: the way of most requests.
func TestHTTP2ToHTTP1(t *testing.T) {
	const size = 8 << 20
	more := make(chan struct{})
	backendServer(t, "10.99.39.1:80", func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		switch r.URL.Path {
		case "/big":
			_, _ = io.CopyN(w, zeros{}, size)
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum, Content-Type")
			_, _ = io.WriteString(w, "body")
			w.Header().Set("X-Sum", "42")
			w.Header().Set(http.TrailerPrefix+"X-Late", "43")
		case "/early":
			w.Header().Set("Link", "</a>")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			w.Header().Set("Keep-Alive", "timeout=5")
			_, _ = io.WriteString(w, "late")
		case "/stream":
			_, _ = io.WriteString(w, "first")
			_ = control.Flush()
			<-more
			_, _ = io.WriteString(w, "second")
		case "/slow-head":
			_ = control.Flush()
			<-more
		case "/304":
			w.Header().Set("Content-Length", "77")
			w.Header().Set("Etag", "x")
			w.WriteHeader(http.StatusNotModified)
		case "/204":
			w.WriteHeader(http.StatusNoContent)
		case "/head":
			w.Header().Set("Content-Length", "12345")
		case "/cut":
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "half")
			_ = control.Flush()
			panic(http.ErrAbortHandler)
		case "/close":
			conn, out, err := control.Hijack()
			if err != nil {
				return
			}
			_, _ = out.WriteString("HTTP/1.0 200 OK\r\nX-A : b\r\nConnection: x-b\r\nX-B: c\r\n\r\nto the end")
			_ = out.Flush()
			_ = conn.Close()
		default:
			echo("a")(w, r)
		}
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.39.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	c := http2Plain(t)
	resp, text := ask(t, c, "GET", w.url("/x?y=1"), nil, func(r *http.Request) {
		r.Host = "a.test"
		r.Header = http.Header{"X-A": {"1", "2"}, "Cookie": {"a=b; c=d"}, "Te": {"trailers"}, "X_forwarded_for": {"evil"}, "X-Real-Ip": {"evil"}, "X-Request-Id": {"rid"}}
	})
	for _, want := range []string{`"Proto":"HTTP/1.1"`, `"Host":"a.test"`, `"URI":"/x?y=1"`, `"X-A":["1","2"]`, `"Cookie":["a=b; c=d"]`, `"Te":["trailers"]`, `"X-Request-Id":["rid"]`, `"X-Real-Ip":["127.0.0.1"]`} {
		if !strings.Contains(text, want) {
			t.Errorf("the backend did not get %s: %s", want, text)
		}
	}
	if resp.Proto != "HTTP/2.0" || strings.Contains(text, "evil") || strings.Contains(text, "Content-Length") {
		t.Errorf("%s, the backend got %s", resp.Proto, text)
	}
	for method, want := range map[string]bool{"POST": true, "PUT": true, "DELETE": false} {
		if _, text = ask(t, c, method, w.url("/"), nil); strings.Contains(text, `"Content-Length":["0"]`) != want || !strings.Contains(text, `"Method":"`+method) {
			t.Errorf("%s without a body: the backend got %s", method, text)
		}
	}
	if _, text = ask(t, c, "GET", w.url("/big"), nil); len(text) != size {
		t.Errorf("%d bytes of a large answer", len(text))
	}
	if resp, text = ask(t, c, "GET", w.url("/trailers"), nil); text != "body" || resp.Trailer.Get("X-Sum") != "42" || resp.Trailer.Get("X-Late") != "43" {
		t.Errorf("trailers: %q, %v", text, resp.Trailer)
	}
	hints := ""
	resp, text = ask(t, c, "GET", w.url("/early"), nil, func(r *http.Request) {
		*r = *r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hints += fmt.Sprint(code, h.Get("Link"))
			return nil
		}}))
	})
	if hints != "103</a>" || text != "late" || resp.Header.Get("Link") != "" || resp.Header.Get("Keep-Alive") != "" {
		t.Errorf("interim answer %q, then %q with %v", hints, text, resp.Header)
	}
	for _, tt := range []struct {
		method, path, length string
		status               int
	}{
		{"HEAD", "/head", "12345", 200}, {"GET", "/304", "", 304}, {"GET", "/204", "", 204}, {"HEAD", "/trailers", "", 200},
	} {
		resp, text = ask(t, c, tt.method, w.url(tt.path), nil)
		if got := resp.Header.Get("Content-Length"); resp.StatusCode != tt.status || text != "" || tt.length != "" && got != tt.length {
			t.Errorf("%s %s: %d, length %q, %q", tt.method, tt.path, resp.StatusCode, got, text)
		}
	}
	if resp, text = ask(t, c, "GET", w.url("/close"), nil); text != "to the end" || resp.Header.Get("X-A") != "b" || resp.Header.Get("X-B") != "" {
		t.Errorf("an answer that ends with the connection: %q, %v", text, resp.Header)
	}
	resp, err := c.Get(w.url("/cut"))
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("an answer that breaks off looks whole")
	}
	// Nothing waits for more: the head, and the first piece.
	for path, want := range map[string]string{"/slow-head": "", "/stream": "first"} {
		resp, err := c.Get(w.url(path))
		if err != nil {
			t.Fatal(err)
		}
		first := make([]byte, len(want))
		if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != want {
			t.Errorf("%s: %q, %v", path, first, err)
		}
		more <- struct{}{}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// TestHTTP2ToHTTP1Failures has backends that do not answer, or badly.
func TestHTTP2ToHTTP1Failures(t *testing.T) {
	t.Run("client leaves", func(t *testing.T) {
		started, ended := make(chan struct{}), make(chan struct{})
		backendServer(t, "10.99.39.2:80", func(_ http.ResponseWriter, r *http.Request) {
			close(started)
			<-r.Context().Done()
			close(ended)
		})
		log := &testenv.Log{}
		w := newWorld(t, func(o *Options) { o.AccessLog = log })
		w.service("a", "", "10.99.39.2:80")
		w.route(ingress("main", rule("", "/", "a")))
		ctx, cancel := context.WithCancel(context.Background())
		req, _ := http.NewRequestWithContext(ctx, "GET", w.url("/"), nil)
		go func() {
			<-started
			cancel()
		}()
		if _, err := http2Plain(t).Do(req); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("the backend was not told")
		}
		w.eventually("it is logged", func() bool { return strings.Contains(log.String(), `"status":499`) })
	})
	t.Run("answers", func(t *testing.T) {
		var hits atomic.Int64
		answer := make(chan string, 16)
		serveConns(t, "10.99.39.3:80", func(conn net.Conn) {
			in := bufio.NewReader(conn)
			for {
				if _, err := http.ReadRequest(in); err != nil {
					return
				}
				hits.Add(1)
				text := <-answer
				_, _ = io.WriteString(conn, text)
				if !strings.Contains(text, "kept") {
					return
				}
			}
		})
		w := newWorld(t, nil)
		w.service("a", "", "10.99.39.3:80")
		w.route(ingress("main", rule("", "/", "a"), rule("", "/soon", "a", filters(model.Filters{ReadTimeout: 100 * time.Millisecond}))))
		c := http2Plain(t)
		const kept = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nkept"
		for _, tt := range []struct {
			what, method string
			answers      []string
			status       int
			hits         int64
		}{
			{"a good one", "GET", []string{kept}, 200, 1},
			{"a kept connection that ends", "GET", []string{"", kept}, 200, 2},
			{"the same for what may have its effect", "POST", []string{""}, 502, 1},
			{"garbage", "POST", []string{"garbage\r\n\r\n"}, 502, 1},
			{"both lengths", "POST", []string{"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}, 502, 1},
			{"a switch", "POST", []string{"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"}, 502, 1},
		} {
			hits.Store(0)
			for _, a := range tt.answers {
				answer <- a
			}
			resp, text := ask(t, c, tt.method, w.url("/"), nil)
			if resp.StatusCode != tt.status || hits.Load() != tt.hits {
				t.Errorf("%s: %d after %d requests, want %d after %d: %s", tt.what, resp.StatusCode, hits.Load(), tt.status, tt.hits, text)
			}
		}
		if resp, _ := ask(t, c, "GET", w.url("/soon"), nil); resp.StatusCode != 504 {
			t.Errorf("no answer: %d, want 504", resp.StatusCode)
		}
		answer <- "" // for the one that waits
	})
}
