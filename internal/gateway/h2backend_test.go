package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/model"
)

// frames has a backend that speaks HTTP/2 frame by frame; it is told of each
// request once that is complete.
func frames(t *testing.T, addr string, request func(conn int, f *http2.Framer, id uint32)) *atomic.Int64 {
	t.Helper()
	conns := &atomic.Int64{}
	serve(t, addr, func(l net.Listener) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			n := int(conns.Add(1))
			go func() {
				defer c.Close()
				if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
					return
				}
				f := http2.NewFramer(c, c)
				f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
				_ = f.WriteSettings()
				for {
					frame, err := f.ReadFrame()
					if err != nil {
						return
					}
					h := frame.Header()
					if (h.Type == http2.FrameHeaders || h.Type == http2.FrameData) && h.Flags.Has(http2.FlagDataEndStream) {
						request(n, f, h.StreamID)
					}
				}
			}()
		}
	})
	return conns
}

func answer200(f *http2.Framer, id uint32) {
	var block bytes.Buffer
	_ = hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: true, EndHeaders: true, BlockFragment: block.Bytes()})
}

// TestUnprocessedIsRepeated: a request that the backend says it has not
// processed is sent again, whatever it is, also if its body has been sent.
func TestUnprocessedIsRepeated(t *testing.T) {
	for i, tt := range []struct {
		name   string
		refuse func(f *http2.Framer, id uint32)
		conns  int64
	}{
		{"GOAWAY", func(f *http2.Framer, _ uint32) { _ = f.WriteGoAway(0, http2.ErrCodeNo, nil) }, 2},
		{"REFUSED_STREAM", func(f *http2.Framer, id uint32) { _ = f.WriteRSTStream(id, http2.ErrCodeRefusedStream) }, 1},
	} {
		for j, body := range []string{"", "a body", strings.Repeat("x", 30<<10)} {
			t.Run(fmt.Sprintf("%s, %d bytes", tt.name, len(body)), func(t *testing.T) {
				addr := fmt.Sprintf("10.99.70.%d:80", 10*i+j+1)
				var asked atomic.Int64
				conns := frames(t, addr, func(_ int, f *http2.Framer, id uint32) {
					if asked.Add(1) == 1 {
						tt.refuse(f, id)
					} else {
						answer200(f, id)
					}
				})
				w := newWorld(t, nil)
				w.service("a", "kubernetes.io/h2c", addr)
				w.route(ingress("main", rule("", "/", "a")))
				want := http.StatusOK
				if len(body) > 16<<10 {
					want = http.StatusBadGateway // which is more than is kept
				}
				resp, _ := w.do("POST", "a", "/", strings.NewReader(body))
				if resp.StatusCode != want {
					t.Errorf("got %d, want %d, after %d requests", resp.StatusCode, want, asked.Load())
				}
				if n := conns.Load(); want == http.StatusOK && n != tt.conns {
					t.Errorf("%d connections, want %d", n, tt.conns)
				}
			})
		}
	}
}

// TestProcessedIsNotRepeated: a POST whose stream breaks is not sent twice.
func TestProcessedIsNotRepeated(t *testing.T) {
	var asked atomic.Int64
	frames(t, "10.99.70.30:80", func(_ int, f *http2.Framer, id uint32) {
		asked.Add(1)
		_ = f.WriteRSTStream(id, http2.ErrCodeInternal)
	})
	w := newWorld(t, nil)
	w.service("a", "kubernetes.io/h2c", "10.99.70.30:80")
	w.route(ingress("main", rule("", "/", "a")))
	if resp, _ := w.do("POST", "a", "/", strings.NewReader("x")); resp.StatusCode != http.StatusBadGateway || asked.Load() != 1 {
		t.Errorf("got %d after %d requests", resp.StatusCode, asked.Load())
	}
}

// TestFullConnections: what a backend's connection has no room for goes by
// another one, and the connections are used again.
func TestFullConnections(t *testing.T) {
	const most, requests = 3, 10
	var conns, under, highest atomic.Int64
	var all sync.WaitGroup
	all.Add(requests)
	server := &http.Server{Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: most}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		highest.Store(max(highest.Load(), under.Add(1)))
		defer under.Add(-1)
		if r.URL.Path == "/meet" { // until all are there
			all.Done()
			all.Wait()
		}
	}), ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}}
	server.Protocols.SetUnencryptedHTTP2(true)
	serve(t, "10.99.70.40:80", server.Serve)
	t.Cleanup(func() { _ = server.Close() })
	w := newWorld(t, nil)
	w.service("a", "kubernetes.io/h2c", "10.99.70.40:80")
	w.route(ingress("main", rule("", "/", "a")))
	w.do("GET", "a", "/", nil) // so that the settings are known
	var clients sync.WaitGroup
	for range requests {
		clients.Go(func() {
			resp, err := http.Get(w.url("/meet"))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("got %d", resp.StatusCode)
			}
		})
	}
	clients.Wait()
	if n := highest.Load(); n != requests {
		t.Errorf("%d requests were under way at once, want %d", n, requests)
	}
	n := conns.Load()
	if n < 4 {
		t.Errorf("%d connections carried %d streams", n, requests)
	}
	for range 20 {
		w.do("GET", "a", "/", nil)
	}
	if conns.Load() != n {
		t.Errorf("%d connections were opened for requests one by one", conns.Load()-n)
	}
}

// TestClientLeavesHTTP2Backend: the backend is told when its client does not
// wait, while it thinks, while it answers and while the client sends.
func TestClientLeavesHTTP2Backend(t *testing.T) {
	started, ended := make(chan struct{}, 10), make(chan error, 10)
	backendServer(t, "10.99.70.50:80", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/answering" {
			_, _ = io.WriteString(w, "some")
			_ = http.NewResponseController(w).Flush()
		}
		started <- struct{}{}
		if r.URL.Path == "/sending" {
			_, err := io.Copy(io.Discard, r.Body)
			ended <- err
			return
		}
		<-r.Context().Done()
		ended <- r.Context().Err()
	})
	w := newWorld(t, nil)
	w.service("a", "kubernetes.io/h2c", "10.99.70.50:80")
	w.route(ingress("main", rule("", "/", "a")))
	for _, http2Client := range []bool{false, true} {
		for _, path := range []string{"/thinking", "/answering", "/sending"} {
			t.Run(fmt.Sprintf("%s, http2=%v", path, http2Client), func(t *testing.T) {
				transport := &http.Transport{Protocols: new(http.Protocols)}
				transport.Protocols.SetHTTP1(!http2Client)
				transport.Protocols.SetUnencryptedHTTP2(http2Client)
				defer transport.CloseIdleConnections()
				ctx, leave := context.WithCancel(t.Context())
				body, more := io.Pipe()
				defer more.Close()
				var send io.Reader
				method := http.MethodGet
				if path == "/sending" {
					send, method = body, http.MethodPost
					go func() { _, _ = more.Write([]byte("some")) }()
				}
				req, _ := http.NewRequestWithContext(ctx, method, w.url(path), send)
				go func() {
					<-started
					leave()
					_ = more.CloseWithError(context.Canceled) // net/http's client waits for that
				}()
				resp, err := transport.RoundTrip(req)
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				select {
				case err := <-ended:
					if err == nil {
						t.Error("the request looks complete")
					}
				case <-time.After(20 * time.Second):
					t.Error("the backend is not told")
				}
			})
		}
	}
}

// TestNoHTTP2ByALPN: a backend that is to speak HTTP/2 by TLS and does not is
// spoken to by HTTP/1.1.
func TestNoHTTP2ByALPN(t *testing.T) {
	cert, err := certs.SelfSigned("backend", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for i, protocols := range [][]string{nil, {"http/1.1"}, {"h2", "http/1.1"}} {
		addr := fmt.Sprintf("10.99.70.%d:443", 60+i)
		server := &http.Server{Handler: echo("x")}
		if len(protocols) < 2 {
			server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
		}
		l, err := tls.Listen("tcp", addr, &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: protocols})
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = server.Serve(l) }()
		t.Cleanup(func() { _ = server.Close() })
		w := newWorld(t, nil)
		w.service("a", "", addr)
		w.route(ingress("main", rule("", "/", "a", func(r *model.RouteRule) { r.Backends[0].Protocol = model.BackendGRPCS })))
		want := "HTTP/1.1"
		if len(protocols) == 2 {
			want = "HTTP/2.0"
		}
		for range 3 {
			if status, r := w.get("a", "/"); status != 200 || r.Proto != want {
				t.Errorf("ALPN %v: got %d by %s, want %s", protocols, status, r.Proto, want)
			}
		}
	}
}

// muxClient is a client that speaks HTTP/2 in plain.
func muxClient(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// TestWholeRequests sends short requests by HTTP/2, which go straight from
// stream to stream.
func TestWholeRequests(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	backendServer(t, "10.99.70.70:80", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang":
			<-release
		case "/break":
			w.Header().Set("Content-Type", "application/grpc")
			_, _ = io.WriteString(w, "some")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "/hints":
			w.Header().Set("Link", "</x>")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusNoContent)
		default:
			w.Header().Set("Trailer", "X-Sum")
			echo("x")(w, r)
			w.Header().Set("X-Sum", "7")
		}
	})
	w := newWorld(t, nil)
	w.service("a", "kubernetes.io/h2c", "10.99.70.70:80")
	w.route(ingress("main", rule("", "/", "a", filters(model.Filters{ReadTimeout: time.Second, MaxBodyBytes: 10}))))
	client := muxClient(t)
	ask := func(method, path, body string, header ...string) (*http.Response, reply, error) {
		req, _ := http.NewRequest(method, w.url(path), strings.NewReader(body))
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		var r reply
		_ = json.Unmarshal(data, &r)
		return resp, r, err
	}
	resp, r, err := ask("POST", "/x%2Fy?z=1", "body", "X-Real-Ip", "evil", "X-Own", "1", "Te", "trailers", "Cookie", "a=b")
	if err != nil || resp.StatusCode != 200 || resp.Trailer.Get("X-Sum") != "7" {
		t.Errorf("%v, %v, trailers %v", resp, err, resp.Trailer)
	}
	if r.Proto != "HTTP/2.0" || r.Method != "POST" || r.URI != "/x%2Fy?z=1" || r.Body != "body" || r.Header.Get("X-Real-Ip") != "127.0.0.1" ||
		r.Header.Get("X-Own") != "1" || r.Header.Get("Te") != "trailers" || r.Header.Get("Cookie") != "a=b" || r.Header.Get("X-Request-Id") == "" || r.Header.Get("Content-Length") != "4" {
		t.Errorf("the backend got %+v", r)
	}
	for _, tt := range []struct {
		method, path, body string
		want               int
	}{{"POST", "/hang", "x", 504}, {"POST", "/", strings.Repeat("x", 11), 413}, {"GET", "/hints", "", 204}, {"HEAD", "/", "", 200}, {"DELETE", "/", "", 200}} {
		if resp, _, err := ask(tt.method, tt.path, tt.body); err != nil || resp.StatusCode != tt.want {
			t.Errorf("%s %s: got %v, %v, want %d", tt.method, tt.path, resp.StatusCode, err, tt.want)
		}
	}
	// What breaks off before it was passed on can still be an error of its own.
	if resp, _, err := ask("POST", "/break", "x", "Content-Type", "application/grpc"); err != nil || resp.Trailer.Get("Grpc-Status")+resp.Header.Get("Grpc-Status") != "14" {
		t.Errorf("a call that breaks off: %v, trailers %v", err, resp.Trailer)
	}
	if resp, _, err := ask("POST", "/break", "x"); err == nil && resp.StatusCode != http.StatusBadGateway {
		t.Error("an answer that breaks off looks whole")
	}
}

// TestWholeRequestsByHTTP1 is the same for a backend that was thought to speak HTTP/2.
func TestWholeRequestsByHTTP1(t *testing.T) {
	cert, err := certs.SelfSigned("backend", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "10.99.70.71:443", &tls.Config{Certificates: []tls.Certificate{*cert}})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: echo("x")}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	w := newWorld(t, nil)
	w.service("a", "grpcs", "10.99.70.71:443")
	w.route(ingress("main", rule("", "/", "a")))
	client := muxClient(t)
	for range 3 {
		for _, body := range []string{"", "body"} {
			resp, err := client.Post(w.url("/"), "x/y", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			var r reply
			err = json.NewDecoder(resp.Body).Decode(&r)
			resp.Body.Close()
			if err != nil || r.Proto != "HTTP/1.1" || r.Body != body {
				t.Errorf("got %+v, %v", r, err)
			}
		}
	}
}
