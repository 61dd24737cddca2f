package gateway

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/filter"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/testenv"
)

// raw opens a connection to the gateway and sends bytes.
func (w *world) raw(send string) (net.Conn, *bufio.Reader) {
	w.t.Helper()
	c, err := net.Dial("tcp", w.g.HTTPAddr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, send); err != nil {
		w.t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

func answerOf(t *testing.T, r *bufio.Reader, method string) (*http.Response, string) {
	t.Helper()
	req, _ := http.NewRequest(method, "/", nil)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// scripted is a backend that answers each request with bytes.
func scripted(t *testing.T, addr string, answer func(r *http.Request, c net.Conn)) {
	serveConns(t, addr, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if req.URL.Path != "/early" {
				_, _ = io.Copy(io.Discard, req.Body)
			}
			answer(req, c)
		}
	})
}

// TestPipelining: requests that come in one piece are answered one after the
// other, in order, whatever bodies they have.
func TestPipelining(t *testing.T) {
	backendServer(t, "10.99.62.1:80", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.RequestURI, body)
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.62.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	_, r := w.raw("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" +
		"POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1;x\r\nf\r\n0\r\n\r\nGET /4 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	for _, want := range []string{"/1 ", "/2 abc", "/3 def", "/4 "} {
		resp, body := answerOf(t, r, "GET")
		if body != want || resp.Close != (want == "/4 ") {
			t.Errorf("got %q, want %q; last %v", body, want, resp.Close)
		}
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the connection goes on: %v", err)
	}
}

// TestOldClients: HTTP/1.0 gets bodies without chunks, and may keep its connection.
func TestOldClients(t *testing.T) {
	scripted(t, "10.99.62.2:80", func(r *http.Request, c net.Conn) {
		switch r.URL.Path {
		case "/chunked":
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\nX-Sum: 1\r\n\r\n")
		case "/known":
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
		case "/toclose":
			_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\nX: y\r\n\r\nuntil the end")
			_ = c.Close()
		}
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.62.2:80")
	w.route(ingress("main", rule("", "/", "a")))
	_, r := w.raw("GET /known HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
	if resp, body := answerOf(t, r, "GET"); body != "abc" || resp.Close || resp.Header.Get("Connection") != "keep-alive" {
		t.Errorf("kept: %q, %+v", body, resp)
	}
	_, r = w.raw("GET /chunked HTTP/1.0\r\n\r\n")
	if resp, body := answerOf(t, r, "GET"); body != "abcdef" || len(resp.TransferEncoding) > 0 || !resp.Close {
		t.Errorf("chunks: %q, %+v", body, resp)
	}
	for version, encoding := range map[string]int{"1.0": 0, "1.1": 1} {
		_, r = w.raw("GET /toclose HTTP/" + version + "\r\nHost: a\r\n\r\n")
		if resp, body := answerOf(t, r, "GET"); body != "until the end" || len(resp.TransferEncoding) != encoding {
			t.Errorf("a body that ends with its connection, to %s: %q, %+v", version, body, resp)
		}
	}
}

// TestAnswersWithoutBody: HEAD, 204 and 304 have none, whatever they say of one.
func TestAnswersWithoutBody(t *testing.T) {
	scripted(t, "10.99.62.3:80", func(r *http.Request, c net.Conn) {
		_, _ = io.WriteString(c, map[string]string{
			"/head":    "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
			"/chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
			"/204":     "HTTP/1.1 204 No Content\r\n\r\n",
			"/304":     "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nEtag: x\r\n\r\n",
		}[r.URL.Path])
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.62.3:80")
	w.route(ingress("main", rule("", "/", "a")))
	c, r := w.raw("")
	for _, ask := range []string{"HEAD /head", "HEAD /chunked", "GET /204", "GET /304", "HEAD /head"} {
		fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: a\r\n\r\n", ask)
		method, path, _ := strings.Cut(ask, " ")
		resp, body := answerOf(t, r, method)
		if body != "" || resp.Close || path == "/head" && resp.ContentLength != 1000 {
			t.Errorf("%s: %q, %+v", ask, body, resp)
		}
	}
}

// TestInterimAnswers: 1xx come to who can read them, and 100-continue is the
// backend's own.
func TestInterimAnswers(t *testing.T) {
	scripted(t, "10.99.62.4:80", func(r *http.Request, c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	var continued atomic.Int64
	backendServer(t, "10.99.62.5:80", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		continued.Add(1)
		n, _ := io.Copy(io.Discard, r.Body) // makes net/http send 100
		fmt.Fprint(w, n)
	})
	w := newWorld(t, nil)
	w.service("hints", "", "10.99.62.4:80")
	w.service("continue", "", "10.99.62.5:80")
	w.route(ingress("main", rule("", "/hints", "hints"), rule("", "/", "continue")))
	_, r := w.raw("GET /hints HTTP/1.1\r\nHost: a\r\n\r\n")
	var codes []int
	for len(codes) < 3 {
		resp, _ := answerOf(t, r, "GET")
		codes = append(codes, resp.StatusCode)
	}
	if fmt.Sprint(codes) != "[103 102 200]" {
		t.Errorf("got %v", codes)
	}
	_, r = w.raw("GET /hints HTTP/1.0\r\n\r\n")
	if resp, body := answerOf(t, r, "GET"); resp.StatusCode != 200 || body != "ok" {
		t.Errorf("an old client got %d %q", resp.StatusCode, body)
	}
	c, r := w.raw("POST /take HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
	if resp, _ := answerOf(t, r, "POST"); resp.StatusCode != 100 {
		t.Fatalf("got %d before the body", resp.StatusCode)
	}
	_, _ = io.WriteString(c, "abc")
	if _, body := answerOf(t, r, "POST"); body != "3" {
		t.Errorf("got %q", body)
	}
	_, r = w.raw("POST /refuse HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
	if resp, _ := answerOf(t, r, "POST"); resp.StatusCode != 403 || !resp.Close {
		t.Errorf("refused: %d, last %v: whether a body follows is not known", resp.StatusCode, resp.Close)
	}
	if continued.Load() != 1 {
		t.Errorf("%d bodies were asked for", continued.Load())
	}
}

// TestInterimAnswersWithoutEnd: a backend that answers with nothing else has
// failed, and its client is not kept busy.
func TestInterimAnswersWithoutEnd(t *testing.T) {
	scripted(t, "10.99.62.14:80", func(r *http.Request, c net.Conn) {
		_, _ = io.Copy(io.Discard, r.Body)
		for {
			if _, err := io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\n"); err != nil {
				return
			}
		}
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.62.14:80")
	w.route(ingress("main", rule("", "/", "a")))
	for _, method := range []string{"GET", "POST"} {
		for name, c := range map[string]*http.Client{"HTTP/1.1": plainClient, "HTTP/2": http2Plain(t)} {
			n := 0
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error { n++; return nil }})
			var body io.Reader
			if method == "POST" {
				body = strings.NewReader("x")
			}
			req, _ := http.NewRequestWithContext(ctx, method, w.url("/"), body)
			resp, err := c.Do(req)
			if err != nil {
				t.Errorf("%s by %s: %v", method, name, err)
				continue
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusBadGateway || n == 0 {
				t.Errorf("%s by %s: %d after %d interim answers", method, name, resp.StatusCode, n)
			}
		}
	}
}

// TestLargeBodies: megabytes come through whole, both ways, in every framing,
// also where the kernel carries them.
func TestLargeBodies(t *testing.T) {
	data := make([]byte, 3<<20+12345)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	backendServer(t, "10.99.62.6:80", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			if r.URL.Path == "/known" {
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			}
			_, _ = w.Write(data)
			return
		}
		h := sha256.New()
		_, _ = io.Copy(h, r.Body)
		fmt.Fprintf(w, "%x", h.Sum(nil))
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.62.6:80")
	w.route(ingress("main", rule("", "/", "a")))
	for _, path := range []string{"/known", "/chunked", "/known"} {
		if _, body := w.do("GET", "a", path, nil); !bytes.Equal(body, data) {
			t.Errorf("%s: %d bytes, want %d the same", path, len(body), len(data))
		}
	}
	for name, body := range map[string]io.Reader{"known": bytes.NewReader(data), "chunked": io.MultiReader(bytes.NewReader(data))} {
		if _, got := w.do("POST", "a", "/", body); string(got) != sum {
			t.Errorf("%s upload: got %s", name, got)
		}
	}
}

// TestEarlyAnswer: a backend that answers before it has read the body is
// heard, and the connection ends with that.
func TestEarlyAnswer(t *testing.T) {
	scripted(t, "10.99.62.7:80", func(r *http.Request, c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
		time.Sleep(50 * time.Millisecond)
		_ = c.Close()
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.62.7:80")
	w.route(ingress("main", rule("", "/", "a")))
	c, r := w.raw("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin")
	resp, body := answerOf(t, r, "POST")
	if resp.StatusCode != 413 || body != "no" || !resp.Close {
		t.Errorf("got %d %q, last %v", resp.StatusCode, body, resp.Close)
	}
	_ = c.Close()
}

// TestBrokenAnswers: what breaks off does not look whole, and what is
// malformed becomes 502.
func TestBrokenAnswers(t *testing.T) {
	scripted(t, "10.99.62.8:80", func(r *http.Request, c net.Conn) {
		_, _ = io.WriteString(c, map[string]string{
			"/short":   "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
			"/chunk":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
			"/badsize": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
			"/both":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
			"/switch":  "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
			"/nothing": "",
		}[r.URL.Path])
		_ = c.Close()
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.62.8:80")
	w.route(ingress("main", rule("", "/", "a")))
	for _, path := range []string{"/short", "/chunk", "/badsize"} {
		resp, err := http.Get(w.url(path))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if body, err := io.ReadAll(resp.Body); err == nil || string(body) != "abc" {
			t.Errorf("%s: %q, %v", path, body, err)
		}
		resp.Body.Close()
	}
	for _, path := range []string{"/both", "/switch", "/nothing"} {
		if resp, _ := w.do("GET", "a", path, nil); resp.StatusCode != 502 {
			t.Errorf("%s: got %d", path, resp.StatusCode)
		}
	}
}

// TestSurplusAnswer: bytes behind an answer are nobody's, and must not become
// the next client's answer.
func TestSurplusAnswer(t *testing.T) {
	scripted(t, "10.99.62.9:80", func(r *http.Request, c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.62.9:80")
	w.route(ingress("main", rule("", "/", "a")))
	for range 20 {
		if _, body := w.do("GET", "a", "/", nil); string(body) != "ok" {
			t.Fatalf("got %q", body)
		}
	}
}

// TestUnsafeRequestsAreNotRepeated: a POST that may have been served is not
// sent again, a GET is.
func TestUnsafeRequestsAreNotRepeated(t *testing.T) {
	var asked atomic.Int64
	for _, addr := range []string{"10.99.62.10:80", "10.99.62.11:80"} {
		scripted(t, addr, func(r *http.Request, c net.Conn) {
			asked.Add(1)
			_ = c.Close()
		})
	}
	w := newWorld(t, nil)
	w.service("a", "", "10.99.62.10:80", "10.99.62.11:80")
	w.route(ingress("main", rule("", "/", "a")))
	for method, want := range map[string]int64{"POST": 1, "GET": 2, "DELETE": 1} {
		asked.Store(0)
		var body io.Reader
		if method == "POST" {
			body = strings.NewReader("x")
		}
		if resp, _ := w.do(method, "a", "/", body); resp.StatusCode != 502 || asked.Load() != want {
			t.Errorf("%s: %d after %d attempts, want %d", method, resp.StatusCode, asked.Load(), want)
		}
	}
}

// TestAdaptedClients: HTTP/1 clients of a backend that speaks HTTP/2 see
// HTTP/1 as it should be.
func TestAdaptedClients(t *testing.T) {
	backendServer(t, "10.99.62.12:80", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/known" {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		} else {
			w.Header().Set("Trailer", "X-Sum")
		}
		_, _ = w.Write(body)
		w.Header().Set("X-Sum", fmt.Sprintf("%d %s", len(body), r.Trailer.Get("X-Check")))
	})
	w := newWorld(t, nil)
	w.service("a", "kubernetes.io/h2c", "10.99.62.12:80")
	w.route(ingress("main", rule("", "/", "a"), rule("", "/small", "a", filters(model.Filters{MaxBodyBytes: 3}))))
	c, r := w.raw("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Check\r\n\r\n3\r\nabc\r\n0\r\nX-Check: 7\r\n\r\n")
	resp, body := answerOf(t, r, "POST")
	if body != "abc" || resp.Trailer.Get("X-Sum") != "3 7" || resp.Close {
		t.Errorf("got %q, %v", body, resp)
	}
	_, _ = io.WriteString(c, "POST /known HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
	if resp, body = answerOf(t, r, "POST"); body != "hello" || resp.ContentLength != 5 {
		t.Errorf("got %q, %v", body, resp)
	}
	_, _ = io.WriteString(c, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, body = answerOf(t, r, "HEAD"); body != "" || resp.StatusCode != 200 {
		t.Errorf("HEAD: %q, %v", body, resp)
	}
	_, _ = io.WriteString(c, "POST /small HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n")
	if resp, _ = answerOf(t, r, "POST"); resp.StatusCode != 413 {
		t.Errorf("too large: %v", resp)
	}
	_, r = w.raw("POST /x HTTP/1.0\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
	if resp, body = answerOf(t, r, "POST"); body != "abc" || !resp.Close || len(resp.TransferEncoding) > 0 {
		t.Errorf("an old client: %q, %v", body, resp)
	}
}

// TestNoAllocations: the plain path of a request makes no garbage.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	serveConns(t, "10.99.62.14:80", func(c net.Conn) {
		buf, answer := make([]byte, 4096), []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok")
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.62.14:80")
	w.route(ingress("main", rule("a.test", "/x", "a")))
	c, _ := w.raw("")
	request := []byte("GET /x/y?z HTTP/1.1\r\nHost: a.test\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n")
	buf := make([]byte, 4096)
	got := testing.AllocsPerRun(2000, func() {
		if _, err := c.Write(request); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
	})
	if got > 0 {
		t.Errorf("%v allocations per request", got)
	}
}

// TestFault: a request that the gateway fails at by a fault of its own gets a
// 500 that says whom to ask about, and is counted and logged once.
func TestFault(t *testing.T) {
	backendServer(t, "10.99.35.30:80", nil)
	log := &testenv.Log{}
	w := newWorld(t, func(o *Options) { o.AccessLog = log })
	w.service("a", "", "10.99.35.30:80")
	w.route(ingress("main", rule("", "/", "a")))
	c := *w.g.config.Load()
	c.router = nil // what would not happen
	w.g.config.Store(&c)
	resp, body := w.do("GET", "a", "/", nil)
	if resp.StatusCode != 500 || !resp.Close || !strings.Contains(string(body), "request id "+resp.Header.Get("X-Request-Id")) {
		t.Errorf("got %d, %v, %s", resp.StatusCode, resp.Header, body)
	}
	w.eventually("it is logged", func() bool { return strings.Count(log.String(), `"status":500`) == 1 })
}

// breaking is a filter that has the gateway fail once a backend has answered.
type breaking struct{}

func (breaking) Apply(x *filter.Exchange) *filter.Answer {
	x.Session = &model.Session{Cookie: "c"}
	x.Match.Rule.Spec = nil
	return nil
}

func (breaking) String() string { return "breaks" }

// TestFaultEndsExchange: nothing of a request that ended by a fault counts as
// under way, and its connection to the backend is not used again.
func TestFaultEndsExchange(t *testing.T) {
	for _, backend := range []string{"", "kubernetes.io/h2c"} {
		for _, client := range []string{"HTTP/1.1", "HTTP/2"} {
			t.Run(client+" to "+backend, func(t *testing.T) {
				backendServer(t, "10.99.35.31:80", nil)
				w := newWorld(t, nil)
				w.service("a", backend, "10.99.35.31:80")
				w.route(ingress("main", rule("a", "/", "a")))
				c := *w.g.config.Load()
				c.sites = slices.Clone(c.sites)
				for i := range c.sites {
					c.sites[i].chain = append(slices.Clone(c.sites[i].chain), breaking{})
				}
				w.g.config.Store(&c)
				tr := &http.Transport{Protocols: new(http.Protocols)}
				tr.Protocols.SetHTTP1(client == "HTTP/1.1")
				tr.Protocols.SetUnencryptedHTTP2(client != "HTTP/1.1")
				t.Cleanup(tr.CloseIdleConnections)
				req, _ := http.NewRequest("GET", w.url("/"), nil)
				req.Host = "a"
				resp, err := tr.RoundTrip(req)
				if err == nil {
					_ = resp.Body.Close()
				}
				if err == nil && resp.StatusCode != http.StatusInternalServerError {
					t.Fatalf("no fault: %d", resp.StatusCode)
				}
				w.eventually("nothing is under way", func() bool {
					e := w.g.State("services").Services[0].Endpoints[0]
					return e.InFlight == 0 && e.Kept == 0
				})
			})
		}
	}
}
