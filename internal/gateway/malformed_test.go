package gateway

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"fairway.dev/fairway/internal/testenv"
)

// http2Request sends one request with just these pseudo header fields, by prior
// knowledge, and returns the fields and body of the answer.
func (w *world) http2Request(method, authority, path string) (map[string]string, string) {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.g.HTTPAddr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: method}, {Name: ":scheme", Value: "http"},
		{Name: ":authority", Value: authority}, {Name: ":path", Value: path}, {Name: "x-request-id", Value: "my-id"}} {
		if err := enc.WriteField(f); err != nil {
			w.t.Fatal(err)
		}
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		w.t.Fatal(err)
	}
	if err := framer.WriteSettings(); err != nil {
		w.t.Fatal(err)
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		w.t.Fatal(err)
	}
	header, body := map[string]string{}, ""
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			w.t.Fatal(err)
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			for _, h := range f.Fields {
				header[h.Name] = h.Value
			}
		case *http2.DataFrame:
			body += string(f.Data())
		case *http2.RSTStreamFrame:
			w.t.Fatalf("the stream was reset: %v", f.ErrCode)
		}
		if f.Header().StreamID == 1 && f.Header().Flags.Has(http2.FlagDataEndStream) {
			return header, body
		}
	}
}

// What cannot be passed on as it was matched is the client's mistake, and not
// the backend's.
func TestMalformedRequests(t *testing.T) {
	backendServer(t, "10.99.13.1:80", nil)
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(o *Options) { o.Registerer = reg })
	w.service("a", "", "10.99.13.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	tests := []struct {
		name, method, path string
		reason             string // none: it is served
	}{
		{"good", "GET", "/", ""},
		{"unusual method", "M-SEARCH", "/", ""},
		{"request line as the method", "GET /x HTTP/1.1", "/", `method "GET /x HTTP/1.1" is not a token`},
		{"delimiter in the method", "GET(", "/", `method "GET(" is not a token`},
		{"scheme", "GET", "ftp://a.test/", "the path does not begin with a slash"},
		{"absolute form", "GET", "http://b.test/", "the path does not begin with a slash"},
	}
	refused := 0.
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			header, body := w.http2Request(tt.method, "a.test", tt.path)
			if tt.reason == "" {
				if header[":status"] != "200" {
					t.Errorf("got %v %q", header, body)
				}
				return
			}
			refused++
			want := fmt.Sprintf("400 Bad Request: %s\nrequest id my-id\n", tt.reason)
			if header[":status"] != "400" || header["x-request-id"] != "my-id" || body != want {
				t.Errorf("got %v %q, want %q", header, body, want)
			}
		})
	}
	t.Run("scheme by HTTP/1", func(t *testing.T) {
		conn, err := net.Dial("tcp", w.g.HTTPAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		reader := bufio.NewReader(conn)
		for target, want := range map[string]int{"ftp://a.test/": 400, "https+x://a.test/": 400, "HTTP://a.test/": 200, "https://a.test/": 200} {
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: a.test\r\n\r\n", target)
			resp, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != want || want == 400 && !strings.Contains(string(body), "\nrequest id "+resp.Header.Get("X-Request-Id")) {
				t.Errorf("%s: %d %q %v, want %d", target, resp.StatusCode, body, err, want)
			}
			if want == 400 {
				refused++
			}
		}
	})
	w.eventually("what was refused is counted, for no route", func() bool {
		n := 0.
		for name, v := range samples(t, reg) {
			if strings.Contains(name, "upstream_failures") {
				t.Fatalf("the backend is blamed: %s", name)
			}
			if strings.HasPrefix(name, "fairway_gateway_requests_total{code=400,") && strings.HasSuffix(name, "namespace=,route=}") {
				n += v
			}
		}
		return n == refused
	})
}

// TestNoRequest: what cannot begin a request is refused at its first byte, such as
// TLS, whose client waits for an answer to what it has sent; the log says so.
func TestNoRequest(t *testing.T) {
	log := &testenv.Log{}
	w := newWorld(t, func(o *Options) { o.AccessLog, o.AccessLogFormat = log, "combined" })
	var header tls.RecordHeaderError
	if _, err := tls.Dial("tcp", w.g.HTTPAddr().String(), &tls.Config{}); !errors.As(err, &header) || string(header.RecordHeader[:]) != "HTTP/" {
		t.Errorf("TLS at the HTTP port: %v", err)
	}
	for sent, want := range map[string]string{
		"\x16": "the client speaks TLS to the HTTP port", "\x00": "the request line is malformed", " GET / HTTP/1.1": "the request line is malformed",
		"\rG": "the request line is malformed", "\r\n\x16": "the client speaks TLS to the HTTP port",
	} {
		_, r := w.raw(sent)
		resp, body := answerOf(t, r, "GET")
		if resp.StatusCode != http.StatusBadRequest || !resp.Close || !strings.Contains(body, want) {
			t.Errorf("%q: %d %q", sent, resp.StatusCode, body)
		}
	}
	for _, begun := range []string{"G", "\r", "\r\n"} { // there is more to come
		conn, r := w.raw(begun)
		time.Sleep(10 * time.Millisecond) // most likely it has been read then
		_, _ = io.WriteString(conn, strings.TrimPrefix(map[bool]string{true: "GET", false: "\r\nGET"}[begun == "G"]+" / HTTP/1.1\r\nHost: a\r\n\r\n", begun))
		if resp, _ := answerOf(t, r, "GET"); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%q: %d", begun, resp.StatusCode)
		}
	}
	w.eventually("they are logged", func() bool { return strings.Count(log.String(), "\n") == 9 })
	if n := strings.Count(log.String(), `] "-" 400 `); n != 6 {
		t.Errorf("%d lines of what is no request: %s", n, log)
	}
}
