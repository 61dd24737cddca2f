package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	http2gw "fairway.dev/fairway/internal/gateway/http2"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/testenv"
)

// rawHTTP2 is a client that sends frames.
type rawHTTP2 struct {
	*http2.Framer
	net.Conn
	t       *testing.T
	encoder *hpack.Encoder
	block   bytes.Buffer
}

func (w *world) rawHTTP2(t *testing.T, secure bool) *rawHTTP2 {
	t.Helper()
	addr := w.g.HTTPAddr().String()
	var conn net.Conn
	var err error
	if secure {
		conn, err = tls.Dial("tcp", w.g.HTTPSAddr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	} else {
		conn, err = net.Dial("tcp", addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	c := &rawHTTP2{Framer: http2.NewFramer(conn, conn), Conn: conn, t: t}
	c.AllowIllegalWrites = true
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.encoder = hpack.NewEncoder(&c.block)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *rawHTTP2) fields(pairs ...string) []byte {
	c.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		_ = c.encoder.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1], Sensitive: true})
	}
	return c.block.Bytes()
}

func (c *rawHTTP2) request(id uint32, end bool, pairs ...string) error {
	return c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: end, EndHeaders: true, BlockFragment: c.fields(pairs...)})
}

// outcome reads what became of a stream: its status, or how it or the
// connection ended.
func (c *rawHTTP2) outcome(id uint32) string {
	status := ""
	for {
		frame, err := c.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == id && status == "" {
				status = f.PseudoValue("status")
			}
			if f.StreamID == id && f.StreamEnded() {
				return status
			}
		case *http2.DataFrame:
			if f.StreamID == id && f.StreamEnded() {
				return status
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return "reset " + f.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			return "goaway " + f.ErrCode.String()
		}
	}
}

// TestHTTP2Floods has clients do what costs them little. Each is shut out
// before it costs the gateway or a backend much, and others are served.
func TestHTTP2Floods(t *testing.T) {
	var served atomic.Int64
	backendServer(t, "10.99.34.1:80", func(w http.ResponseWriter, _ *http.Request) {
		served.Add(1)
		_, _ = io.WriteString(w, "ok")
	})
	registry, counted := prometheus.NewRegistry(), 0.
	w := newWorld(t, func(o *Options) { o.Registerer = registry })
	w.service("a", "", "10.99.34.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	get := []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"}
	block := func(c *rawHTTP2) []byte { return bytes.Clone(c.fields(get...)) }
	floods := map[string]func(c *rawHTTP2, id uint32) error{
		"rapid reset": func(c *rawHTTP2, id uint32) error {
			return errors.Join(c.request(id, true, get...), c.WriteRSTStream(id, http2.ErrCodeCancel))
		},
		"pings":    func(c *rawHTTP2, _ uint32) error { return c.WritePing(false, [8]byte{}) },
		"settings": func(c *rawHTTP2, _ uint32) error { return c.WriteSettings() },
		"continuation": func(c *rawHTTP2, id uint32) error {
			if id == 1 {
				return c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, BlockFragment: block(c)})
			}
			return c.WriteContinuation(1, false, nil)
		},
		"big continuation": func(c *rawHTTP2, id uint32) error {
			if id == 1 {
				return c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, BlockFragment: block(c)})
			}
			return c.WriteContinuation(1, false, c.fields("x", strings.Repeat("y", 10000)))
		},
		"priority":     func(c *rawHTTP2, id uint32) error { return c.WritePriority(id, http2.PriorityParam{Weight: 1}) },
		"windows":      func(c *rawHTTP2, _ uint32) error { return c.WriteWindowUpdate(0, 1) },
		"empty frames": func(c *rawHTTP2, id uint32) error { return c.WriteRawFrame(0xfe, 0, id, nil) },
	}
	for name, flood := range floods {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/tls=%v", name, secure), func(t *testing.T) {
				served.Store(0)
				c := w.rawHTTP2(t, secure)
				ended := make(chan struct{})
				var last string
				go func() { // a client that reads, to be given all chances
					defer close(ended)
					for {
						f, err := c.ReadFrame()
						if err != nil {
							return
						}
						last = f.Header().Type.String()
						if goAway, ok := f.(*http2.GoAwayFrame); ok {
							last += " " + goAway.ErrCode.String()
						}
					}
				}()
				sent := 0
				var err error
				for ; err == nil && sent < 100_000; sent++ {
					err = flood(c, uint32(2*sent+1))
				}
				// Buffers may hold all of it before the gateway looks.
				select {
				case <-ended:
				case <-time.After(10 * time.Second):
					t.Fatalf("%d rounds went through", sent)
				}
				if counted++; last != "GOAWAY ENHANCE_YOUR_CALM" {
					t.Errorf("the last that was heard is %s", last)
				}
				if got := value(t, registry, "fairway_gateway_connections_ended_total"); got != counted {
					t.Errorf("%v connections counted, want %v", got, counted)
				}
				if n := served.Load(); n > 3000 {
					t.Errorf("the backend got %d requests", n)
				}
				t.Logf("ended after %d rounds, %d requests at the backend", sent, served.Load())
				other := w.rawHTTP2(t, secure)
				_ = other.request(1, true, get...)
				if got := other.outcome(1); got != "200" {
					t.Errorf("another client: %s", got)
				}
			})
		}
	}
}

// TestHPACKBomb sends a small header that decodes to a large one.
func TestHPACKBomb(t *testing.T) {
	backendServer(t, "10.99.34.2:80", nil)
	w := newWorld(t, nil)
	w.service("a", "", "10.99.34.2:80")
	w.route(ingress("main", rule("", "/", "a")))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	c := w.rawHTTP2(t, false)
	// The table's first entry, 4000 bytes long, 16000 times: 64 MB.
	block := bytes.Clone(c.fields(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"))
	c.block.Reset()
	_ = c.encoder.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 4000)})
	block = append(block, c.block.Bytes()...)
	block = append(block, bytes.Repeat([]byte{0x80 | 62}, 16000-len(block))...)
	_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: block})
	got := c.outcome(1)
	if got != "431" && got != "goaway PROTOCOL_ERROR" && got != "closed" {
		t.Errorf("got %s", got)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 8<<20 {
		t.Errorf("it took %d bytes", grown)
	}
	other := w.rawHTTP2(t, false)
	_ = other.request(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a")
	if got := other.outcome(1); got != "200" {
		t.Errorf("another client: %s", got)
	}
}

// forget makes requests begin anew.
func (l *lenient) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = nil
}

// TestHTTP2Desync sends by HTTP/2 what would be read in another way where it
// is written out as HTTP/1.1 (H2.CL, H2.TE, header injection, request
// splitting). No backend may see a request that the client did not plainly send.
func TestHTTP2Desync(t *testing.T) {
	const evil = "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, lenientBackend := range []bool{true, false} {
		l := &lenient{}
		var served sync.Map
		addr := "10.99.34.3:80"
		if lenientBackend {
			serve(t, addr, l.serve)
		} else {
			addr = "10.99.34.4:80"
			backendServer(t, addr, func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				served.Store(r.Method+" "+r.RequestURI, true)
			})
		}
		w := newWorld(t, nil)
		w.service("a", "", addr)
		w.route(ingress("main", rule("", "/", "a")))
		for _, secure := range []bool{false, true} {
			for what, tt := range muxedDesync {
				t.Run(fmt.Sprintf("lenient=%v/tls=%v/%s", lenientBackend, secure, what), func(t *testing.T) {
					l.forget()
					c := w.rawHTTP2(t, secure)
					_ = c.request(1, tt.body == "", tt.header...)
					if tt.body != "" {
						_ = c.WriteData(1, true, []byte(strings.ReplaceAll(tt.body, "EVIL", evil)))
					}
					got := c.outcome(1)
					if tt.refused && (strings.HasPrefix(got, "2") || got == "404") {
						t.Errorf("got %s, want a refusal", got)
					}
					if strings.Contains(l.requests(), "/evil") {
						t.Errorf("%s; the lenient backend saw\n%s", got, l.requests())
					}
					if _, ok := served.LoadAndDelete("GET /evil"); ok {
						t.Errorf("%s; the strict backend served it", got)
					}
				})
			}
		}
	}
}

// muxedCase is a request by a protocol with frames.
type muxedCase struct {
	header  []string // pairs
	body    string   // EVIL stands for a request
	refused bool
}

func muxed(refused bool, body string, pairs ...string) muxedCase {
	return muxedCase{append([]string{":method", "POST", ":scheme", "http", ":path", "/x", ":authority", "a"}, pairs...), body, refused}
}

func pseudo(method, scheme, path, authority string) muxedCase {
	return muxedCase{[]string{":method", method, ":scheme", scheme, ":path", path, ":authority", authority}, "", true}
}

// muxedDesync are cases for HTTP/2 and HTTP/3.
var muxedDesync = map[string]muxedCase{
	// The header alone is a whole request, which may be answered before the body comes.
	"CL of 0 with a body":        muxed(false, "EVIL", "content-length", "0"),
	"CL too small":               muxed(true, "xxxxEVIL", "content-length", "4"),
	"CL too large":               muxed(true, "xxxx", "content-length", "400"),
	"CL by sign":                 muxed(true, "xEVIL", "content-length", "+1"),
	"CL by hex":                  muxed(true, "xEVIL", "content-length", "0x1"),
	"CL list":                    muxed(true, "xEVIL", "content-length", "1, 1"),
	"CL twice":                   muxed(true, "xEVIL", "content-length", "1", "content-length", "36"),
	"CL negative":                muxed(true, "EVIL", "content-length", "-1"),
	"TE chunked":                 muxed(true, "0\r\n\r\nEVIL", "transfer-encoding", "chunked"),
	"TE and CL":                  muxed(true, "0\r\n\r\nEVIL", "transfer-encoding", "chunked", "content-length", "5"),
	"TE in capitals":             muxed(true, "0\r\n\r\nEVIL", "Transfer-Encoding", "chunked"),
	"TE with a space":            muxed(true, "0\r\n\r\nEVIL", "transfer-encoding ", "chunked"),
	"connection":                 muxed(true, "", "connection", "transfer-encoding"),
	"upgrade":                    muxed(true, "", "upgrade", "h2c"),
	"CRLF in a value":            muxed(true, "", "x", "y\r\ntransfer-encoding: chunked"),
	"LF in a value":              muxed(true, "0\r\n\r\nEVIL", "x", "y\ntransfer-encoding: chunked"),
	"CR in a value":              muxed(true, "0\r\n\r\nEVIL", "x", "y\rtransfer-encoding: chunked"),
	"NUL in a value":             muxed(true, "", "x", "y\x00z"),
	"request in a value":         muxed(true, "", "x", "y\r\n\r\n"+"GET /evil HTTP/1.1\r\nhost: a"),
	"CRLF in a name":             muxed(true, "", "x: y\r\ntransfer-encoding", "chunked"),
	"colon in a name":            muxed(true, "", "transfer-encoding:chunked\r\nx", "y"),
	"space in a name":            muxed(true, "", "x y", "z"),
	"name of nothing":            muxed(true, "", "", "z"),
	"unlike hosts":               muxed(true, "", "host", "evil"),
	"two hosts":                  muxed(true, "", "host", "a", "host", "evil"),
	"unknown pseudo field":       muxed(true, "", ":evil", "x"),
	"late pseudo field":          muxed(true, "", "x", "y", ":path", "/evil"),
	"two paths":                  muxed(true, "", ":path", "/evil"),
	"splitting by method":        pseudo("GET /evil HTTP/1.1\r\nHost: a\r\n\r\nGET", "http", "/x", "a"),
	"method with a space":        pseudo("GET /evil", "http", "/x", "a"),
	"empty method":               pseudo("", "http", "/x", "a"),
	"splitting by path":          pseudo("GET", "http", "/x HTTP/1.1\r\nHost: a\r\n\r\nGET /evil", "a"),
	"path with a space":          pseudo("GET", "http", "/evil HTTP/1.1", "a"),
	"path without slash":         pseudo("GET", "http", "evil", "a"),
	"empty path":                 pseudo("GET", "http", "", "a"),
	"path of another host":       pseudo("GET", "http", "@evil/", "a"),
	"splitting by query":         pseudo("GET", "http", "/x?a HTTP/1.1\r\nHost: a\r\n\r\nGET /evil", "a"),
	"query with a space":         pseudo("GET", "http", "/x?a HTTP/1.1", "a"),
	"splitting by authority":     pseudo("GET", "http", "/x", "a\r\n\r\nGET /evil HTTP/1.1\r\nHost: a"),
	"authority with a path":      pseudo("GET", "http", "/x", "a/evil"),
	"authority with a user":      pseudo("GET", "http", "/x", "evil@a"),
	"splitting by scheme":        pseudo("GET", "http://a/evil HTTP/1.1\r\nHost: a\r\n\r\nGET /evil", "/x", "a"),
	"upwards in the path":        pseudo("GET", "http", "/x/%2e%2e%2fevil", "a"),
	"CONNECT":                    {[]string{":method", "CONNECT", ":authority", "evil:80"}, "", true},
	"CONNECT for a WebSocket":    {[]string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/evil", ":authority", "a"}, "", true},
	"no authority and no host":   {[]string{":method", "POST", ":scheme", "http", ":path", "/x"}, "", false},
	"a body that looks like one": muxed(false, "EVIL"),
	"GET with a body":            {[]string{":method", "GET", ":scheme", "http", ":path", "/x", ":authority", "a"}, "EVIL", false},
}

// TestHTTP2FlowControl has a backend that does not read: the client can send
// the stream's window and no more, other streams go on, and then all arrives.
func TestHTTP2FlowControl(t *testing.T) {
	for _, protocol := range []string{"", "kubernetes.io/h2c"} {
		t.Run("backend "+protocol, func(t *testing.T) {
			release := make(chan struct{})
			var got atomic.Int64
			addr := map[string]string{"": "10.99.34.5:80", "kubernetes.io/h2c": "10.99.34.6:80"}[protocol]
			// A backend whose streams may not fill the window of their connection.
			server := &http.Server{Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 256 << 10},
				Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/slow" {
						<-release
					}
					n, _ := io.Copy(io.Discard, r.Body)
					got.Add(n)
				})}
			server.Protocols.SetHTTP1(true)
			server.Protocols.SetUnencryptedHTTP2(true)
			serve(t, addr, server.Serve)
			t.Cleanup(func() { _ = server.Close() })
			w := newWorld(t, nil)
			w.service("a", protocol, addr)
			w.route(ingress("main", rule("", "/", "a")))
			transport := &http.Transport{Protocols: new(http.Protocols)}
			transport.Protocols.SetUnencryptedHTTP2(true)
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
			const size = 64 << 20
			body := &heldBody{left: size}
			done := make(chan error, 1)
			go func() {
				resp, err := client.Post(w.url("/slow"), "x/y", body)
				if err == nil {
					err = resp.Body.Close()
				}
				done <- err
			}()
			// It stands still once all that may wait does.
			last, since := int64(-1), time.Now()
			for time.Since(since) < 500*time.Millisecond {
				if n := body.read.Load(); n != last {
					last, since = n, time.Now()
				}
				time.Sleep(5 * time.Millisecond)
			}
			if last > size/4 {
				t.Errorf("the client could send %d bytes to a backend that reads none", last)
			}
			for range 5 {
				resp, err := client.Post(w.url("/fast"), "x/y", io.LimitReader(zeros{}, 100<<10))
				if err != nil {
					t.Fatalf("another stream: %v", err)
				}
				_ = resp.Body.Close()
			}
			close(release)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if got.Load() != size+5*100<<10 {
				t.Errorf("%d bytes arrived", got.Load())
			}
			t.Logf("the client was held at %d bytes", last)
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// heldBody is a body that tells how much of it was read.
type heldBody struct {
	left int64
	read atomic.Int64
}

func (c *heldBody) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), c.left))
	c.left -= int64(n)
	c.read.Add(int64(n))
	return n, nil
}

// TestRequestBodies carries request bodies of all sizes to a backend that speaks
// HTTP/1.1, however long they take, with their trailers, and gets an answer that
// comes before the end of one.
func TestRequestBodies(t *testing.T) {
	backendServer(t, "10.99.34.7:80", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/early" {
			w.Header().Set("Connection", "close") // or net/http reads the body first
			w.WriteHeader(http.StatusForbidden)
			return
		}
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d %d %q %v %v %s", r.ContentLength, len(body), r.TransferEncoding, err, r.Trailer, body[:min(len(body), 3)])
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.34.8:80", "10.99.34.7:80", "10.99.34.9:80") // nothing listens at the others
	w.route(ingress("main", rule("", "/", "a"), rule("", "/slow", "a", filters(model.Filters{ReadTimeout: 2 * time.Second}))))
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2"} {
		t.Run(protocol, func(t *testing.T) {
			transport := &http.Transport{Protocols: new(http.Protocols)}
			transport.Protocols.SetHTTP1(protocol == "HTTP/1.1")
			transport.Protocols.SetUnencryptedHTTP2(protocol == "HTTP/2")
			defer transport.CloseIdleConnections()
			testBodies(t, w, &http.Client{Transport: transport, Timeout: 30 * time.Second})
		})
	}
}

func testBodies(t *testing.T, w *world, client *http.Client) {
	post := func(path string, body io.Reader, length int64, trailer http.Header) (int, string) {
		t.Helper()
		req, err := http.NewRequest("POST", w.url(path), body)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength, req.Trailer = length, trailer
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(got)
	}
	text := func(n int) io.Reader {
		return io.LimitReader(strings.NewReader(strings.Repeat("abc", n/3+1)), int64(n))
	}
	for range 20 {
		for _, n := range []int{1, 100, 16 << 10, 16<<10 + 1, 100_000, 3 << 20} {
			if status, got := post("/", text(n), int64(n), nil); status != 200 || !strings.HasPrefix(got, fmt.Sprintf("%d %d [] <nil> map[] a", n, n)) {
				t.Fatalf("%d bytes: %d %.100s", n, status, got)
			}
			if status, got := post("/", text(n), -1, nil); status != 200 || !strings.Contains(got, fmt.Sprintf(" %d [", n)) || !strings.Contains(got, "<nil> map[] a") {
				t.Fatalf("%d bytes of unknown length: %d %.100s", n, status, got)
			}
		}
	}
	if status, got := post("/", text(5), -1, http.Header{"T": {"u"}}); status != 200 || got != `-1 5 ["chunked"] <nil> map[T:[u]] abc` {
		t.Errorf("with trailers: %d %s", status, got)
	}
	slow, slowly := io.Pipe()
	go func() {
		for range 8 {
			_, _ = slowly.Write([]byte("abc"))
			time.Sleep(300 * time.Millisecond)
		}
		_ = slowly.Close()
	}()
	if status, got := post("/slow", slow, -1, nil); status != 200 || !strings.Contains(got, " 24 [") {
		t.Errorf("a slow one: %d %s", status, got)
	}
	open, opened := io.Pipe()
	go func() { _, _ = opened.Write([]byte("abc")) }()
	if status, _ := post("/early", open, -1, nil); status != 403 {
		t.Errorf("an early answer: %d", status)
	}
	_ = opened.Close()
}

// TestBodyThatIsLate is one stream's fate, not the connection's.
func TestBodyThatIsLate(t *testing.T) {
	backendServer(t, "10.99.37.1:80", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	w := newWorld(t, nil)
	w.service("a", "", "10.99.37.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	server, err := http2gw.NewServer(http2gw.Options{Handler: w.g, BodyTimeout: time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			server.ServeConn(conn, false)
		}
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = conn.Close()
		server.Drain(context.Background())
	}()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	c := &rawHTTP2{Framer: http2.NewFramer(conn, conn), Conn: conn, t: t}
	c.encoder = hpack.NewEncoder(&c.block)
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, _ = io.WriteString(conn, http2.ClientPreface)
	_ = c.WriteSettings()
	for id := uint32(1); id < 8; id += 4 {
		_ = c.request(id, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a", "content-length", "10")
		if got := c.outcome(id); got != "408" {
			t.Fatalf("got %s", got)
		}
		_ = c.request(id+2, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a")
		if got := c.outcome(id + 2); got != "200" {
			t.Fatalf("the next got %s", got)
		}
	}
}

// TestHTTP2EndInOnePacket: why a connection ends is told with its end, in one
// packet, also where it came through a proxy.
func TestHTTP2EndInOnePacket(t *testing.T) {
	for _, proxied := range []bool{false, true} {
		w := newWorld(t, func(o *Options) { o.ProxyProtocol = proxied })
		for _, secure := range []bool{false, true} {
			once := func() (together bool) {
				addr := w.g.HTTPAddr().String()
				if secure {
					addr = w.g.HTTPSAddr().String()
				}
				tcp, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer tcp.Close()
				_ = tcp.SetDeadline(time.Now().Add(20 * time.Second))
				if proxied {
					_, _ = io.WriteString(tcp, "PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n")
				}
				conn := tcp
				if secure {
					conn = tls.Client(tcp, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
				}
				f := http2.NewFramer(conn, conn)
				_, _ = io.WriteString(conn, http2.ClientPreface)
				_ = f.WriteSettings()
				for acked := false; !acked; {
					frame, err := f.ReadFrame()
					if err != nil {
						t.Fatal(err)
					}
					acked = frame.Header().Type == http2.FrameSettings && frame.Header().Flags.Has(http2.FlagSettingsAck)
				}
				before := testenv.TCPInfo(t, tcp)
				_ = f.WriteRawFrame(http2.FramePing, 0, 1, make([]byte, 8)) // which is an error
				if frame, err := f.ReadFrame(); err != nil || frame.Header().Type != http2.FrameGoAway {
					t.Fatal(frame, err)
				}
				if _, err := f.ReadFrame(); err != io.EOF {
					t.Fatal(err)
				}
				after := testenv.TCPInfo(t, tcp)
				// What was sent has been acknowledged before, or with the answer.
				return after.Segs_in-before.Segs_in <= 2 && after.Data_segs_in-before.Data_segs_in == 1
			}
			for tries := 1; !once(); tries++ {
				if tries == 10 {
					t.Errorf("proxied %v, TLS %v: the end came in a packet of its own, %d times", proxied, secure, tries)
					break
				}
			}
		}
	}
}
