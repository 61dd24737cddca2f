package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

// http3World is a gateway with HTTP/3 at an address of its own, and a route to
// a.test with a certificate.
func http3World(t *testing.T, addr, appProtocol, backend string, change ...func(*Options)) (*world, *model.Certificate) {
	t.Helper()
	w := newWorld(t, func(o *Options) {
		o.HTTPSAddrs, o.HTTP3 = []string{addr}, true
		for _, c := range change {
			c(o)
		}
	})
	w.service("a", appProtocol, backend)
	pair := secret(t, "pair", "a.test")
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(pair)
		tx.PutRoute(withTLS(ingress("main", rule("a.test", "/", "a")), "pair", "a.test"))
	})
	return w, pair
}

// http3Client is quic-go's client, which finds every host at addr.
func http3Client(t *testing.T, addr string, pair *model.Certificate) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pair.Chain)
	transport := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: roots},
		Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
			return quic.DialAddrEarly(ctx, addr, tlsConfig, config)
		}}
	t.Cleanup(func() { _ = transport.Close() })
	return &http.Client{Transport: transport, CheckRedirect: plainClient.CheckRedirect, Timeout: 20 * time.Second}
}

func ask(t *testing.T, c *http.Client, method, url string, body io.Reader, change ...func(*http.Request)) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

// TestHTTP3 asks by quic-go's client, in front of both kinds of backend.
func TestHTTP3(t *testing.T) {
	const size = 8 << 20
	handler := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.Copy(w, r.Body)
			w.Header().Set("X-Sum", "got "+r.Trailer.Get("X-Check"))
		case "/big":
			n, _ := io.Copy(io.Discard, r.Body)
			w.Header().Set("X-Got", fmt.Sprint(n))
			_, _ = io.CopyN(w, zeros{}, size)
		case "/head":
			w.Header().Set("Content-Length", "12345")
		case "/head-unknown":
			_ = http.NewResponseController(w).Flush()
		case "/nothing":
			w.WriteHeader(http.StatusNoContent)
		default:
			echo("a")(w, r)
		}
	}
	for _, tt := range []struct{ appProtocol, backend, addr string }{
		{"", "10.99.40.1:80", "10.99.40.101:443"}, {"kubernetes.io/h2c", "10.99.40.2:80", "10.99.40.102:443"},
	} {
		t.Run("backend "+tt.appProtocol, func(t *testing.T) {
			backendServer(t, tt.backend, handler)
			log := &testenv.Log{}
			registry := prometheus.NewRegistry()
			w, pair := http3World(t, tt.addr, tt.appProtocol, tt.backend, func(o *Options) {
				o.AccessLog, o.Registerer, o.MaxBodyBytes = log, registry, size
			})
			c := http3Client(t, tt.addr, pair)
			resp, text := ask(t, c, "GET", "https://a.test/x?y=1", nil, func(r *http.Request) { r.Header.Set("X-Request-Id", "rid") })
			if resp.Proto != "HTTP/3.0" || resp.StatusCode != 200 || resp.Header.Get("Alt-Svc") != "" {
				t.Errorf("GET: %s %d, Alt-Svc %q", resp.Proto, resp.StatusCode, resp.Header.Get("Alt-Svc"))
			}
			for _, want := range []string{`"URI":"/x?y=1"`, `"Host":"a.test"`, `"X-Forwarded-Proto":["https"]`, `"X-Forwarded-Port":["443"]`, `"X-Real-Ip":["10.99.`} {
				if !strings.Contains(text, want) {
					t.Errorf("the backend did not get %s: %s", want, text)
				}
			}
			for _, body := range []io.Reader{strings.NewReader("hello"), io.MultiReader(strings.NewReader("hello"))} {
				if _, text := ask(t, c, "POST", "https://a.test/", body); !strings.Contains(text, `"Body":"hello"`) {
					t.Errorf("POST: %s", text)
				}
			}
			resp, text = ask(t, c, "POST", "https://a.test/trailers", io.MultiReader(strings.NewReader("body")), func(r *http.Request) {
				r.Trailer = http.Header{"X-Check": {"42"}}
			})
			if text != "body" || resp.Trailer.Get("X-Sum") != "got 42" {
				t.Errorf("trailers: %q, %v", text, resp.Trailer)
			}
			resp, text = ask(t, c, "POST", "https://a.test/big", io.LimitReader(zeros{}, size))
			if resp.Header.Get("X-Got") != fmt.Sprint(size) || len(text) != size {
				t.Errorf("big bodies: %s bytes arrived, %d came back", resp.Header.Get("X-Got"), len(text))
			}
			for path, want := range map[string]string{"/head": "12345", "/head-unknown": ""} {
				resp, text = ask(t, c, "HEAD", "https://a.test"+path, nil)
				if got := resp.Header.Get("Content-Length"); text != "" || got != want {
					t.Errorf("HEAD %s: %d, length %q and %d bytes", path, resp.StatusCode, got, len(text))
				}
			}
			if resp, _ = ask(t, c, "GET", "https://a.test/nothing", nil); resp.StatusCode != 204 {
				t.Errorf("got %d, want 204", resp.StatusCode)
			}
			if resp, text = ask(t, c, "GET", "https://other.test/", nil, func(r *http.Request) { r.URL.Host, r.Host = "a.test", "other.test" }); resp.StatusCode != 404 || !strings.Contains(text, "request id") {
				t.Errorf("no route: %d %q", resp.StatusCode, text)
			}
			if resp, _ = ask(t, c, "POST", "https://a.test/", bytes.NewReader(make([]byte, size+1))); resp.StatusCode != 413 {
				t.Errorf("a body above the limit: %d", resp.StatusCode)
			}
			w.eventually("the access log tells the protocol", func() bool {
				return strings.Contains(log.String(), `"requestId":"rid"`) && strings.Contains(log.String(), `"protocol":"HTTP/3.0"`)
			})
			w.eventually("requests are counted", func() bool {
				return samples(t, registry)["fairway_gateway_requests_total{code=200,method=GET,namespace=default,route=main}"] == 1
			})
		})
	}
}

// TestHTTP3Cancel has a client give a request up: the backend is told.
func TestHTTP3Cancel(t *testing.T) {
	started, ended := make(chan struct{}), make(chan struct{})
	backendServer(t, "10.99.40.3:80", func(_ http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
		close(ended)
	})
	w, pair := http3World(t, "10.99.40.103:443", "", "10.99.40.3:80")
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "GET", "https://a.test/", nil)
	go func() {
		<-started
		cancel()
	}()
	if resp, err := http3Client(t, w.g.HTTPSAddr().String(), pair).Do(req); err == nil {
		t.Errorf("got %d", resp.StatusCode)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the backend was not told")
	}
}

// TestHTTP3BackendBreaksOff shows the client that an answer is not whole.
func TestHTTP3BackendBreaksOff(t *testing.T) {
	backendServer(t, "10.99.40.4:80", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", 10000))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	w, pair := http3World(t, "10.99.40.104:443", "", "10.99.40.4:80")
	resp, err := http3Client(t, w.g.HTTPSAddr().String(), pair).Get("https://a.test/")
	if err == nil {
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Error("the answer looks whole")
	}
}

// TestHTTP3Certificates changes a certificate: open connections go on, new ones
// see the new one.
func TestHTTP3Certificates(t *testing.T) {
	backendServer(t, "10.99.40.5:80", nil)
	w, first := http3World(t, "10.99.40.105:443", "", "10.99.40.5:80")
	old := http3Client(t, w.g.HTTPSAddr().String(), first)
	ask(t, old, "GET", "https://a.test/", nil)
	second := secret(t, "pair", "a.test")
	w.update(func(tx *state.Tx) { tx.PutCertificate(second) })
	ask(t, old, "GET", "https://a.test/", nil)
	ask(t, http3Client(t, w.g.HTTPSAddr().String(), second), "GET", "https://a.test/", nil)
	if _, err := http3Client(t, w.g.HTTPSAddr().String(), first).Get("https://a.test/"); err == nil {
		t.Error("a new connection sees the old certificate")
	}
}

// TestAltSvc tells clients by TLS, at the port that they asked for, and nobody else.
func TestAltSvc(t *testing.T) {
	backendServer(t, "10.99.40.6:80", nil)
	w, pair := http3World(t, "10.99.40.106:443", "", "10.99.40.6:80", func(o *Options) { o.HTTPAddrs = []string{"10.99.40.106:80"} })
	w.service("h2c", "kubernetes.io/h2c", "10.99.40.6:80")
	w.route(withTLS(ingress("main", rule("a.test", "/", "a"), rule("a.test", "/h2c", "h2c")), "pair", "a.test"))
	for _, h2 := range []bool{false, true} {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pair.Chain)
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "a.test"}, ForceAttemptHTTP2: h2, DialContext: w.dialHTTPS}
		defer tr.CloseIdleConnections()
		c := &http.Client{Transport: tr, Timeout: 20 * time.Second}
		for url, want := range map[string]string{
			"https://a.test/": `h3=":443"; ma=86400`, "https://a.test:8443/": `h3=":8443"; ma=86400`, "https://a.test/h2c": `h3=":443"; ma=86400`,
			"https://other.test/": `h3=":443"; ma=86400`,
		} {
			resp, _ := ask(t, c, "GET", url, nil)
			if got := resp.Header["Alt-Svc"]; len(got) != 1 || got[0] != want {
				t.Errorf("%s by %s: Alt-Svc %q, want %q", url, resp.Proto, got, want)
			}
		}
	}
	if resp, _ := w.do("GET", "a.test", "/", nil); resp.Header.Get("Alt-Svc") != "" {
		t.Error("plain HTTP is told of HTTP/3")
	}
}

// TestHTTP3PortTaken goes on without HTTP/3, and does not tell of it.
func TestHTTP3PortTaken(t *testing.T) {
	backendServer(t, "10.99.40.7:80", nil)
	taken, err := net.ListenPacket("udp", "10.99.40.107:443")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	w, pair := http3World(t, "10.99.40.107:443", "", "10.99.40.7:80")
	resp, _ := ask(t, w.tlsClient(t, pair, "a.test"), "GET", "https://a.test/", nil)
	if resp.StatusCode != 200 || resp.Header.Get("Alt-Svc") != "" {
		t.Errorf("%d, Alt-Svc %q", resp.StatusCode, resp.Header.Get("Alt-Svc"))
	}
	if text := w.log.String(); !strings.Contains(text, "HTTP/3 is not served") || !strings.Contains(text, "another process uses the port") {
		t.Errorf("the log does not say so:\n%s", text)
	}
}

// TestHTTP3ReservesItsPort keeps UDP routes from the port.
func TestHTTP3ReservesItsPort(t *testing.T) {
	w, _ := http3World(t, "10.99.40.108:443", "", "10.99.40.8:80")
	w.streams(stream("udp", model.UDP, 443, "a"))
	if text := w.problemText(); !strings.Contains(text, "the gateway itself uses it for HTTP/3") {
		t.Errorf("problems: %s", text)
	}
}

// TestHTTP3Drain ends the gateway while requests are under way: they finish,
// and their connections take no more.
func TestHTTP3Drain(t *testing.T) {
	started, release := make(chan struct{}, 1), make(chan struct{})
	backendServer(t, "10.99.40.9:80", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			slow(started, release)(w, r)
		}
	})
	w, pair := http3World(t, "10.99.40.109:443", "", "10.99.40.9:80")
	addr := w.g.HTTPSAddr().String()
	c := http3Client(t, addr, pair)
	ask(t, http3Client(t, addr, pair), "GET", "https://a.test/", nil) // a client that stays, idle
	result := make(chan string, 1)
	go func() {
		resp, err := c.Get("https://a.test/slow")
		if err != nil {
			result <- err.Error()
			return
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		result <- fmt.Sprint(string(text), err)
	}()
	<-started
	w.stop()
	w.eventually("new clients are refused", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		conn, err := quic.DialAddr(ctx, addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}}, nil)
		if err == nil {
			_ = conn.CloseWithError(0, "")
		}
		return err != nil
	})
	close(release)
	if got := <-result; got != "done<nil>" {
		t.Errorf("the request under way: %s", got)
	}
}

// TestHTTP3HandOver starts a gateway beside one at the same port: connections
// of the old one go on there, new ones come to the new one, and the old one
// ends without a request lost. An address may be one, or all of the machine's.
func TestHTTP3HandOver(t *testing.T) {
	for listen, addr := range map[string]string{"10.99.40.110:443": "10.99.40.110:443", "[fd00:99::2]:443": "[fd00:99::2]:443", ":18443": "10.99.40.110:18443", ":18444": "[fd00:99::1]:18444"} {
		t.Run(listen, func(t *testing.T) { handOverHTTP3(t, listen, addr) })
	}
}

// handOverHTTP3 has gateways listen at an address, and clients connect to addr.
func handOverHTTP3(t *testing.T, listen, addr string) {
	answers := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, name)
		}
	}
	backendServer(t, "10.99.40.10:80", answers("old"))
	backendServer(t, "10.99.40.11:80", answers("new"))
	old, pairOld := http3World(t, listen, "", "10.99.40.10:80")
	var kept []*http.Client
	for range 16 { // which the kernel would spread over both
		c := http3Client(t, addr, pairOld)
		kept = append(kept, c)
		ask(t, c, "GET", "https://a.test/", nil)
	}
	body, more := io.Pipe()
	result := make(chan string, 1)
	go func() {
		resp, err := kept[0].Post("https://a.test/", "x/y", body)
		if err != nil {
			result <- err.Error()
			return
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		result <- fmt.Sprint(string(text), err)
	}()
	_, _ = more.Write([]byte("some"))
	// One that does not serve yet gets nothing.
	waiting, err := New(Options{Store: state.New(), Logger: discardLogger(), HTTPSAddrs: []string{listen}, HTTP3: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 16 {
		ask(t, http3Client(t, addr, pairOld), "GET", "https://a.test/", nil)
	}
	if err := waiting.close(); err != nil {
		t.Fatal(err)
	}
	_, pairNew := http3World(t, listen, "", "10.99.40.11:80")
	for _, c := range kept {
		if _, text := ask(t, c, "GET", "https://a.test/", nil); text != "old" {
			t.Errorf("a kept connection came to the %s gateway", text)
		}
	}
	for range 16 {
		if _, text := ask(t, http3Client(t, addr, pairNew), "GET", "https://a.test/", nil); text != "new" {
			t.Errorf("a new connection came to the %s gateway", text)
		}
	}
	old.stop()
	for range 16 {
		ask(t, http3Client(t, addr, pairNew), "GET", "https://a.test/", nil)
	}
	_, _ = more.Write([]byte("more"))
	_ = more.Close()
	if got := <-result; got != "old<nil>" {
		t.Errorf("the request under way: %s", got)
	}
	if err := <-old.done; err != nil {
		t.Error(err)
	}
	old.done <- nil
	for range 16 {
		if _, text := ask(t, http3Client(t, addr, pairNew), "GET", "https://a.test/", nil); text != "new" {
			t.Errorf("got %s", text)
		}
	}
}

// rawHTTP3 is a client that sends frames.
type rawHTTP3 struct {
	*quic.Conn
	t *testing.T
}

func (w *world) rawHTTP3(t *testing.T) *rawHTTP3 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := quic.DialAddr(ctx, w.g.HTTPSAddr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}, ServerName: "a"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.CloseWithError(0, "") })
	control, err := conn.OpenUniStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := control.Write([]byte{0, 4, 0}); err != nil { // control stream, empty SETTINGS
		t.Fatal(err)
	}
	return &rawHTTP3{Conn: conn, t: t}
}

func h3Frame(kind uint64, payload []byte) []byte {
	return append(quicvarint.Append(quicvarint.Append(nil, kind), uint64(len(payload))), payload...)
}

func h3Fields(pairs ...string) []byte {
	var b bytes.Buffer
	encoder := qpack.NewEncoder(&b)
	for i := 0; i < len(pairs); i += 2 {
		_ = encoder.WriteField(qpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return b.Bytes()
}

// exchange sends a request and reads what becomes of it: a status, or how the
// stream or the connection ended.
func (c *rawHTTP3) exchange(body string, pairs ...string) string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := c.OpenStreamSync(ctx)
	if err != nil {
		return describeQUIC(err)
	}
	_ = s.SetDeadline(time.Now().Add(20 * time.Second))
	out := h3Frame(1, h3Fields(pairs...))
	if body != "" {
		out = append(out, h3Frame(0, []byte(body))...)
	}
	_, _ = s.Write(out)
	_ = s.Close()
	in, err := io.ReadAll(s)
	if len(in) == 0 {
		return describeQUIC(err)
	}
	r := quicvarint.NewReader(bytes.NewReader(in))
	kind, _ := quicvarint.Read(r)
	length, _ := quicvarint.Read(r)
	block := make([]byte, length)
	if _, err := io.ReadFull(r, block); err != nil || kind != 1 {
		return "no header"
	}
	field, err := qpack.NewDecoder().Decode(block)()
	if err != nil || field.Name != ":status" {
		return "no status"
	}
	return field.Value
}

func describeQUIC(err error) string {
	var reset *quic.StreamError
	var closed *quic.ApplicationError
	switch {
	case errors.As(err, &reset):
		return fmt.Sprintf("reset %#x", uint64(reset.ErrorCode))
	case errors.As(err, &closed):
		return fmt.Sprintf("closed %#x", uint64(closed.ErrorCode))
	}
	return fmt.Sprint(err)
}

// TestHTTP3Desync is TestHTTP2Desync for HTTP/3.
func TestHTTP3Desync(t *testing.T) {
	const evil = "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n"
	for i, lenientBackend := range []bool{true, false} {
		l := &lenient{}
		var served sync.Map
		addr := fmt.Sprintf("10.99.40.%d:80", 12+i)
		if lenientBackend {
			serve(t, addr, l.serve)
		} else {
			backendServer(t, addr, func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				served.Store(r.Method+" "+r.RequestURI, true)
			})
		}
		w, _ := http3World(t, fmt.Sprintf("10.99.40.%d:443", 112+i), "", addr)
		w.route(ingress("main", rule("", "/", "a")))
		for what, tt := range muxedDesync {
			t.Run(fmt.Sprintf("lenient=%v/%s", lenientBackend, what), func(t *testing.T) {
				l.forget()
				got := w.rawHTTP3(t).exchange(strings.ReplaceAll(tt.body, "EVIL", evil), tt.header...)
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

// TestHTTP3Limits has clients ask for too much.
func TestHTTP3Limits(t *testing.T) {
	var running, most atomic.Int64
	release := make(chan struct{})
	backendServer(t, "10.99.40.14:80", func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			for n := running.Add(1); ; {
				if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
					break
				}
			}
			defer running.Add(-1)
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	})
	w, _ := http3World(t, "10.99.40.114:443", "", "10.99.40.14:80")
	w.route(ingress("main", rule("", "/", "a")))
	get := []string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a"}
	hold := []string{":method", "GET", ":scheme", "https", ":path", "/hold", ":authority", "a"}
	if got := w.rawHTTP3(t).exchange("", append(get, "x", strings.Repeat("y", 70<<10))...); got != "431" {
		t.Errorf("a large header: %s", got)
	}
	if got := w.rawHTTP3(t).exchange("", ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/", ":authority", "a"); got != "405" {
		t.Errorf("extended CONNECT: %s", got)
	}
	// A small block that decodes to a large header: Huffman, and the static table.
	block := h3Fields(get...)
	block = append(block, bytes.Repeat([]byte{0xc0 | 29}, 60<<10)...)
	c := w.rawHTTP3(t)
	s, err := c.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = s.Write(h3Frame(1, block))
	_ = s.Close()
	_ = s.SetReadDeadline(time.Now().Add(20 * time.Second))
	if answer, _ := io.ReadAll(s); !bytes.Contains(answer, h3Fields(":status", "431")[2:]) {
		t.Errorf("a header that decodes to a large one: %q", answer)
	}
	// More requests at a time than there may be.
	c = w.rawHTTP3(t)
	opened := 0
	for ; opened < 1000; opened++ {
		s, err := c.OpenStream()
		if err != nil {
			break
		}
		_, _ = s.Write(h3Frame(1, h3Fields(hold...)))
		_ = s.Close()
	}
	w.eventually("those that may be are under way", func() bool { return running.Load() == 128 })
	if opened != 128 {
		t.Errorf("a client opened %d streams", opened)
	}
	close(release)
	w.eventually("they are done", func() bool { return running.Load() == 0 })
	// A client that gives requests up as soon as it has asked.
	c = w.rawHTTP3(t)
	sent := 0
	for ; sent < 100_000 && c.Context().Err() == nil; sent++ {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		s, err := c.OpenStreamSync(ctx)
		cancel()
		if err != nil {
			break
		}
		_, _ = s.Write(h3Frame(1, h3Fields(hold...)))
		_ = s.Close()
		s.CancelRead(0x10c)
	}
	w.eventually("the connection ends", func() bool { return c.Context().Err() != nil })
	if got := describeQUIC(context.Cause(c.Context())); got != "closed 0x107" {
		t.Errorf("%d requests were given up, %s", sent, got)
	}
	t.Logf("ended after %d requests that were given up, at most %d at the backend", sent, most.Load())
	if got := w.rawHTTP3(t).exchange("", get...); got != "200" {
		t.Errorf("another client: %s", got)
	}
}
