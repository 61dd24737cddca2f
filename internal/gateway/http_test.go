package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func TestHTTPEndToEnd(t *testing.T) {
	backendServer(t, "10.99.1.1:8080", nil)
	backendServer(t, "10.99.1.2:8080", nil)
	w := newWorld(t, nil)
	w.service("a", "", "10.99.1.1:8080")
	w.service("b", "", "10.99.1.2:8080")
	w.service("empty", "")
	w.route(ingress("main",
		rule("a.test", "/", "a"), rule("a.test", "/b", "b"), rule("*.wild.test", "/", "b"), rule("a.test", "/empty", "empty"),
		rule("a.test", "/missing", "missing"),
		rule("a.test", "/badport", "a", func(r *model.RouteRule) { r.Backends[0].Port = model.PortRef{Name: "nope"} }),
		rule("a.test", "/named", "a", func(r *model.RouteRule) { r.Backends[0].Port = model.PortRef{Name: "http"} }),
		rule("a.test", "/nobackend", "a", func(r *model.RouteRule) { r.Backends = nil }),
		rule("a.test", "/api(/|$)(.*)", "a", regex, filters(model.Filters{Rewrite: &model.Rewrite{Target: "/v2/$2"}})),
		rule("a.test", "/up(.*)", "a", regex, filters(model.Filters{Rewrite: &model.Rewrite{Target: "/pub/$1"}})),
		rule("a.test", "/office", "a", filters(model.Filters{AllowFrom: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})),
		rule("a.test", "/moved", "a", filters(model.Filters{Redirect: &model.Redirect{Location: "https://new.test/", Status: 301}})),
	))
	tests := []struct {
		name, host, path string
		status           int
		backend, uri     string
	}{
		{"host and path", "a.test", "/x?q=1&r", 200, "10.99.1.1:8080", "/x?q=1&r"},
		{"host with port and upper case", "A.TEST:8080", "/x", 200, "10.99.1.1:8080", "/x"},
		{"longer path", "a.test", "/b/c", 200, "10.99.1.2:8080", "/b/c"},
		{"wildcard", "x.wild.test", "/", 200, "10.99.1.2:8080", "/"},
		{"other host", "c.test", "/", 404, "", ""},
		{"no endpoint", "a.test", "/empty", 503, "", ""},
		{"no Service", "a.test", "/missing", 503, "", ""},
		{"no port", "a.test", "/badport", 503, "", ""},
		{"no backend", "a.test", "/nobackend", 503, "", ""},
		{"named port", "a.test", "/named", 200, "10.99.1.1:8080", "/named"},
		{"rewrite", "a.test", "/api/users?id=1", 200, "10.99.1.1:8080", "/v2/users?id=1"},
		{"rewrite that climbs", "a.test", "/up../admin", 400, "", ""},
		{"not allowed", "a.test", "/office", 403, "", ""},
		{"redirect", "a.test", "/moved", 301, "", ""},
		{"path is normalised before it is matched and sent", "a.test", "/x/..//%62/./d%2fe", 200, "10.99.1.2:8080", "/b/d%2Fe"},
		{"escaped path", "a.test", "/%7Euser/a%20b/%e4", 200, "10.99.1.1:8080", "/~user/a%20b/%E4"},
		{"ambiguous path", "a.test", "/b/..%2fadmin", 400, "", ""},
		{"query is left alone", "a.test", "/?a;b&c=%zz&/../", 200, "10.99.1.1:8080", "/?a;b&c=%zz&/../"},
		{"bad host", "a..test", "/", 400, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, r := w.get(tt.host, tt.path)
			if status != tt.status || r.Backend != tt.backend || r.URI != tt.uri {
				t.Errorf("got %d from %q with %q, want %d from %q with %q", status, r.Backend, r.URI, tt.status, tt.backend, tt.uri)
			}
			if tt.status == 200 && r.Host != tt.host {
				t.Errorf("backend saw host %q, want %q", r.Host, tt.host)
			}
		})
	}
	want := `Ingress default/main spec.rules[0].http.paths[0] ServicePortNotFound: Service default/a has no port nope/TCP, it has 80/TCP (http): correct the port; until then clients get 503
Ingress default/main spec.rules[0].http.paths[0] ServiceNotFound: Service default/missing does not exist: create it or correct the name; until then clients get 503
`
	if d := cmp.Diff(want, w.problemText()); d != "" {
		t.Errorf("problems (-want +got):\n%s", d)
	}
	// Once the Service is there it serves, and the problem is gone.
	w.service("missing", "", "10.99.1.2:8080")
	if status, _ := w.get("a.test", "/missing"); status != 200 {
		t.Errorf("got %d from a Service that came later", status)
	}
	if strings.Contains(w.problemText(), "ServiceNotFound") {
		t.Errorf("problems still: %s", w.problemText())
	}
}

func TestErrorsNameTheRequest(t *testing.T) {
	w := newWorld(t, nil)
	resp, body := w.do("GET", "a.test", "/", nil, "X-Request-Id", "my-id")
	want := "404 Not Found: no route for this host and path\nrequest id my-id\n"
	if resp.StatusCode != 404 || string(body) != want || resp.Header.Get("X-Request-Id") != "my-id" {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
	if _, body = w.do("HEAD", "a.test", "/", nil); len(body) != 0 {
		t.Errorf("HEAD got a body %q", body)
	}
}

func TestNothingIsServedBeforeSync(t *testing.T) {
	w := &world{t: t, store: state.New()}
	g, err := New(Options{Store: w.store, Logger: discardLogger(), HTTPAddrs: []string{"127.0.0.1:0"}, StartTimeout: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	w.g = g
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- g.Run(ctx) }()
	w.store.Update(func(tx *state.Tx) { tx.PutRoute(ingress("main", rule("", "/", "a"))) })
	if status, _ := w.get("a", "/"); status != 503 || g.Ready() {
		t.Errorf("before the first list: %d, ready %v", status, g.Ready())
	}
	w.store.Update(func(tx *state.Tx) { tx.SetSynced() })
	w.eventually("ready", g.Ready)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestConnectionsWaitForRoutes: a client that comes before the first list gets
// its answer, and not a 503.
func TestConnectionsWaitForRoutes(t *testing.T) {
	backendServer(t, "10.99.11.1:80", nil)
	w := &world{t: t, store: state.New()}
	g, err := New(Options{Store: w.store, Logger: discardLogger(), HTTPAddrs: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	w.g = g
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- g.Run(ctx) }()
	got := make(chan int)
	go func() {
		resp, err := http.Get(w.url("/"))
		if err != nil {
			got <- 0
			return
		}
		resp.Body.Close()
		got <- resp.StatusCode
	}()
	time.Sleep(50 * time.Millisecond)
	w.store.Update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: key("a"), Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}})
		putEndpoints(tx, "a", "http", model.TCP, []string{"10.99.11.1:80"})
		tx.PutRoute(ingress("main", rule("", "/", "a")))
		tx.SetSynced()
	})
	if status := <-got; status != 200 {
		t.Errorf("got %d", status)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNoUpgradeToHTTP: an upgrade that would carry requests past the router is
// not passed on.
func TestNoUpgradeToHTTP(t *testing.T) {
	backendServer(t, "10.99.12.1:80", nil)
	w := newWorld(t, nil)
	w.service("a", "", "10.99.12.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	for _, upgrade := range []string{"h2c", "websocket, h2c", "TLS/1.2", "HTTP/2.0"} {
		status, r := w.get("a", "/", "Connection", "Upgrade, HTTP2-Settings", "Upgrade", upgrade, "HTTP2-Settings", "AAMAAABkAAQAAP__")
		if status != 200 || r.Header["Upgrade"] != nil || r.Header["Http2-Settings"] != nil {
			t.Errorf("%s: %d, backend saw %v", upgrade, status, r.Header)
		}
	}
}

// TestConnectionsAreKept: a connection to the endpoint serves many requests. It
// may take a few: a client can be faster with its next request than the gateway
// with noticing the end of the last answer.
func TestConnectionsAreKept(t *testing.T) {
	var opened atomic.Int64
	s := &http.Server{Handler: echo("kept"), ConnState: func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}}
	serve(t, "10.99.13.1:80", s.Serve)
	t.Cleanup(func() { _ = s.Close() })
	w := newWorld(t, nil)
	w.service("a", "", "10.99.13.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	for range 100 {
		w.do("POST", "a", "/", strings.NewReader("x"))
	}
	if n := opened.Load(); n > 20 {
		t.Errorf("%d connections for 100 requests, one after the other", n)
	}
	// A removed endpoint's connections do not linger.
	w.endpoints("a")
	w.eventually("the kept connection is closed", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		return s.Shutdown(ctx) == nil
	})
}

func TestBackendHeaders(t *testing.T) {
	backendServer(t, "10.99.2.1:8080", nil)
	w := newWorld(t, nil)
	w.service("a", "", "10.99.2.1:8080")
	w.route(ingress("main", rule("", "/", "a")))
	_, r := w.get("a.test:123", "/", "X-Forwarded-For", "1.2.3.4", "X_Forwarded_For", "1.2.3.4", "X-Real-Ip", "1.2.3.4", "Forwarded", "for=1.2.3.4",
		"Connection", "X-Hop", "X-Hop", "1", "Proxy", "http://evil", "X-Request-Id", "rid", "X-Other", "kept", "Keep-Alive", "300", "Te", "trailers", "My_header", "kept")
	port := fmt.Sprint(portOf(w.g.HTTPAddr()))
	want := http.Header{
		"Accept-Encoding": {"gzip"}, "User-Agent": {"Go-http-client/1.1"}, "X-Other": {"kept"}, "Te": {"trailers"}, "My_header": {"kept"},
		"X-Real-Ip": {"127.0.0.1"}, "X-Forwarded-For": {"127.0.0.1"}, "X-Original-Forwarded-For": {"1.2.3.4"}, "X-Forwarded-Host": {"a.test:123"},
		"X-Forwarded-Port": {port}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Scheme": {"http"}, "X-Scheme": {"http"}, "X-Request-Id": {"rid"},
	}
	if d := cmp.Diff(want, r.Header); d != "" {
		t.Errorf("headers (-want +got):\n%s", d)
	}
	if _, r = w.get("a.test", "/"); len(r.Header.Get("X-Request-Id")) != 32 {
		t.Errorf("made request id %q", r.Header.Get("X-Request-Id"))
	}
}

func TestBodies(t *testing.T) {
	backendServer(t, "10.99.3.1:8080", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d %v %s %v", n, err, strings.Join(r.TransferEncoding, ","), r.Trailer)
	})
	w := newWorld(t, func(o *Options) { o.MaxBodyBytes = 0 })
	w.service("a", "", "10.99.3.1:8080")
	w.route(ingress("main", rule("", "/", "a"), rule("", "/small", "a", filters(model.Filters{MaxBodyBytes: 10}))))
	zeros := func(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }
	tests := []struct {
		name, path string
		body       io.Reader
		status     int
		want       string
	}{
		{"none", "/", nil, 200, "0 <nil>  map[]"},
		{"known length", "/", strings.NewReader("hello"), 200, "5 <nil>  map[]"},
		{"unknown length", "/", zeros(50 << 20), 200, "52428800 <nil> chunked map[]"},
		{"fits", "/small", strings.NewReader("0123456789"), 200, "10 <nil>  map[]"},
		{"too large by length", "/small", strings.NewReader("0123456789x"), 413, "larger than 10 bytes"},
		{"too large while it comes", "/small", zeros(1 << 20), 413, "larger than 10 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := w.do("POST", "a", tt.path, tt.body)
			if resp.StatusCode != tt.status || !strings.Contains(string(body), tt.want) {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, tt.status, tt.want)
			}
		})
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestTrailersBothWays(t *testing.T) {
	backendServer(t, "10.99.4.1:8080", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.Copy(w, r.Body)
		w.Header().Set("X-Sum", "got "+r.Trailer.Get("X-Check"))
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.4.1:8080")
	w.route(ingress("main", rule("", "/", "a")))
	req, err := http.NewRequest("POST", w.url("/"), io.MultiReader(strings.NewReader("body")))
	if err != nil {
		t.Fatal(err)
	}
	req.Trailer = http.Header{"X-Check": {"42"}}
	resp, err := plainClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "body" || resp.Trailer.Get("X-Sum") != "got 42" {
		t.Errorf("body %q, %v, trailers %v", body, err, resp.Trailer)
	}
}

func TestStreamingIsNotBuffered(t *testing.T) {
	next := make(chan string)
	backendServer(t, "10.99.5.1:8080", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		for line := range next {
			_, _ = io.WriteString(w, line+"\n")
			_ = http.NewResponseController(w).Flush()
		}
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.5.1:8080")
	w.route(ingress("main", rule("", "/", "a")))
	resp, err := http.Get(w.url("/"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for i := range 5 {
		next <- fmt.Sprint("event ", i)
		// The backend waits for the next event: a proxy that buffers hangs here.
		if line, err := lines.ReadString('\n'); err != nil || line != fmt.Sprintf("event %d\n", i) {
			t.Fatalf("got %q, %v", line, err)
		}
	}
	close(next)
}

func TestClientAbortCancelsBackend(t *testing.T) {
	started, aborted := make(chan struct{}), make(chan struct{})
	backendServer(t, "10.99.6.1:8080", func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
		close(aborted)
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.6.1:8080")
	w.route(ingress("main", rule("", "/", "a")))
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, "GET", w.url("/"), nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-started
		cancel()
	}()
	if _, err := http.DefaultClient.Do(req); err == nil {
		t.Fatal("no error")
	}
	select {
	case <-aborted:
	case <-time.After(5 * time.Second):
		t.Error("the backend was not told")
	}
}

func TestTimeoutsAndBrokenBackends(t *testing.T) {
	release := make(chan struct{})
	backendServer(t, "10.99.7.1:8080", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang", "/total":
			<-release
		case "/stall":
			_, _ = io.WriteString(w, "begin")
			_ = http.NewResponseController(w).Flush()
			<-release
		case "/deaf":
			<-release // does not read its body
		}
	})
	t.Cleanup(func() { close(release) })
	serve(t, "10.99.7.2:8080", func(l net.Listener) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, "garbage\r\n\r\n")
				_ = c.Close()
			}()
		}
	})
	w := newWorld(t, func(o *Options) { o.AnswerTimeout = 300 * time.Millisecond })
	w.service("a", "", "10.99.7.1:8080")
	w.service("garbage", "", "10.99.7.2:8080")
	w.service("refused", "", "10.99.7.3:8080", "10.99.7.4:8080")
	w.route(ingress("main",
		rule("", "/hang", "a"),
		rule("", "/total", "a", filters(model.Filters{RequestTimeout: 100 * time.Millisecond})),
		rule("", "/stall", "a", filters(model.Filters{ReadTimeout: 100 * time.Millisecond})),
		rule("", "/deaf", "a", filters(model.Filters{SendTimeout: 100 * time.Millisecond, ReadTimeout: 5 * time.Second})),
		rule("", "/garbage", "garbage"), rule("", "/refused", "refused")))
	for path, want := range map[string]int{"/hang": 504, "/total": 504, "/garbage": 502, "/refused": 502} {
		if status, _ := w.get("a", path); status != want {
			t.Errorf("%s: got %d, want %d", path, status, want)
		}
	}
	if resp, _ := w.do("POST", "a", "/deaf", io.LimitReader(zeroReader{}, 64<<20)); resp.StatusCode != 504 {
		t.Errorf("a backend that does not read: got %d, want 504", resp.StatusCode)
	}
	resp, err := http.Get(w.url("/stall"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("an answer that was cut off looks whole: %q", body)
	}
}

func TestRetryOnConnectFailure(t *testing.T) {
	backendServer(t, "10.99.8.1:8080", nil)
	w := newWorld(t, nil)
	// Nothing listens at .2 and .3.
	w.service("a", "", "10.99.8.2:8080", "10.99.8.1:8080", "10.99.8.3:8080")
	w.route(ingress("main", rule("", "/", "a")))
	for i := range 30 {
		// A body that can be read once only must reach the living endpoint whole.
		resp, body := w.do("POST", "a", "/", io.MultiReader(strings.NewReader("payload")))
		if resp.StatusCode != 200 || !strings.Contains(string(body), `"Body":"payload"`) {
			t.Fatalf("request %d: %d %s", i, resp.StatusCode, body)
		}
	}
}

func TestWeightsAndCanary(t *testing.T) {
	for _, a := range []string{"10.99.9.1:80", "10.99.9.2:80", "10.99.9.3:80"} {
		backendServer(t, a, nil)
	}
	w := newWorld(t, nil)
	w.service("main", "", "10.99.9.1:80")
	w.service("canary", "", "10.99.9.2:80")
	w.service("half", "", "10.99.9.3:80")
	w.route(ingress("primary", rule("c.test", "/", "main"), rule("w.test", "/", "main", func(r *model.RouteRule) {
		half := r.Backends[0]
		half.Service, half.Weight, r.Backends[0].Weight = key("half"), 1, 3
		r.Backends = append(r.Backends, half)
	})))
	w.route(ingress("canary", rule("c.test", "/", "canary", func(r *model.RouteRule) {
		r.Canary = &model.Canary{Header: "X-Canary", Cookie: "canary", Weight: 30}
	})))
	count := func(host string, header ...string) map[string]int {
		m := map[string]int{}
		for range 400 {
			_, r := w.get(host, "/", header...)
			m[r.Backend]++
		}
		return m
	}
	if m := count("c.test", "X-Canary", "always"); m["10.99.9.2:80"] != 400 {
		t.Errorf("header always: %v", m)
	}
	if m := count("c.test", "X-Canary", "never"); m["10.99.9.1:80"] != 400 {
		t.Errorf("header never: %v", m)
	}
	if m := count("c.test", "Cookie", "canary=always"); m["10.99.9.2:80"] != 400 {
		t.Errorf("cookie always: %v", m)
	}
	if m := count("c.test"); m["10.99.9.2:80"] < 70 || m["10.99.9.2:80"] > 170 {
		t.Errorf("weight 30: %v", m)
	}
	if m := count("w.test"); m["10.99.9.3:80"] < 50 || m["10.99.9.3:80"] > 150 {
		t.Errorf("weight 1 of 4: %v", m)
	}
}

func TestConfigKeepsRequestsUnderWay(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	backendServer(t, "10.99.10.1:80", func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-release
		_, _ = io.WriteString(w, "done")
	})
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(o *Options) { o.Registerer = reg })
	w.service("a", "", "10.99.10.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	got := make(chan string)
	go func() {
		resp, err := http.Get(w.url("/"))
		if err != nil {
			got <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		got <- fmt.Sprint(string(body), err)
	}()
	<-started
	// Endpoint, route and Service go away while the request is under way.
	w.endpoints("a")
	w.update(func(tx *state.Tx) {
		tx.DeleteRoute(ingress("main").Ref)
		tx.DeleteService(key("a"))
	})
	if status, _ := w.get("a", "/"); status != 404 {
		t.Errorf("a new request got %d", status)
	}
	close(release)
	if g := <-got; g != "done<nil>" {
		t.Errorf("the old request got %q", g)
	}
	for name := range samples(t, reg) {
		if strings.Contains(name, "route=main") {
			t.Errorf("the route has gone and %s came back", name)
		}
	}
}
