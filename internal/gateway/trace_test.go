package gateway

import (
	"cmp"
	"compress/gzip"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"fairway.dev/fairway/internal/gateway/tracing"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/testenv"
)

// receiver takes spans by OTLP.
type receiver struct {
	t   *testing.T
	url string

	mu       sync.Mutex
	spans    []*otlp.Span
	resource map[string]string
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{t: t}
	s := httptest.NewServer(http.HandlerFunc(r.take))
	t.Cleanup(s.Close)
	r.url = s.URL
	return r
}

func (r *receiver) take(w http.ResponseWriter, q *http.Request) {
	var in io.Reader = q.Body
	if q.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(in)
		if err != nil {
			r.t.Error(err)
			return
		}
		in = z
	}
	body, err := io.ReadAll(in)
	if err != nil || q.URL.Path != "/v1/traces" || q.Header.Get("Content-Type") != "application/x-protobuf" {
		r.t.Errorf("%v, %s, %v", err, q.URL, q.Header)
	}
	var export collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &export); err != nil {
		r.t.Error(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range export.ResourceSpans {
		r.resource = map[string]string{}
		for _, a := range one.Resource.Attributes {
			r.resource[a.Key] = a.Value.GetStringValue()
		}
		for _, scope := range one.ScopeSpans {
			r.spans = append(r.spans, scope.Spans...)
		}
	}
}

// of returns the spans of a path.
func (r *receiver) of(path string) []*otlp.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*otlp.Span
	for _, s := range r.spans {
		if attributes(s)["url.path"] == path {
			list = append(list, s)
		}
	}
	return list
}

// tries returns the spans of a request's tries, as they began.
func (r *receiver) tries(of *otlp.Span) []*otlp.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*otlp.Span
	for _, s := range r.spans {
		if string(s.TraceId) == string(of.TraceId) && string(s.ParentSpanId) == string(of.SpanId) {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b *otlp.Span) int { return cmp.Compare(a.StartTimeUnixNano, b.StartTimeUnixNano) })
	return list
}

// contextOf is the traceparent that names a span.
func contextOf(s *otlp.Span) string {
	return "00-" + hex.EncodeToString(s.TraceId) + "-" + hex.EncodeToString(s.SpanId) + "-01"
}

func attributes(s *otlp.Span) map[string]any {
	out := map[string]any{}
	for _, a := range s.Attributes {
		out[a.Key] = a.Value.GetStringValue()
		if n := a.Value.GetIntValue(); n != 0 {
			out[a.Key] = n
		}
	}
	return out
}

func newTracer(t *testing.T, url string, share float64) *tracing.Tracer {
	t.Helper()
	tracer, err := tracing.New(tracing.Options{Endpoint: url, Share: share, Version: "1.2.3", Node: "node-1", Logger: discardLogger(), Delay: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return tracer
}

const (
	traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID  = "00f067aa0ba902b7"
	kept    = "00-" + traceID + "-" + spanID + "-01"
	dropped = "00-" + traceID + "-" + spanID + "-00"
)

// TestTraces: a request's span goes on with the trace that its client began, or
// begins one, by every protocol; the backend is told of it.
func TestTraces(t *testing.T) {
	const addr = "10.99.73.1:80"
	backendServer(t, addr, nil)
	r := newReceiver(t)
	registry := prometheus.NewRegistry()
	log := &testenv.Log{}
	w, pair := http3World(t, "10.99.74.1:443", "", addr, func(o *Options) {
		o.Tracer, o.Registerer, o.AccessLog = newTracer(t, r.url, 1), registry, log
	})
	w.service("gone", "", "10.99.73.99:80")
	w.route(ingress("plain", rule("plain.test", "/", "a"), rule("plain.test", "/gone", "gone"),
		rule("plain.test", "/off", "a", filters(model.Filters{TraceOff: true})),
		rule("plain.test", "/distrust", "a", filters(model.Filters{TraceDistrust: true})),
		rule("plain.test", "/redirect", "a", filters(model.Filters{Redirect: &model.Redirect{Location: "/x", Status: 302}}))))
	clients := map[string]*http.Client{"1.1": plainClient, "3": http3Client(t, w.g.HTTPSAddr().String(), pair),
		"2": {Transport: &http.Transport{DialContext: w.dialHTTPS, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 20 * time.Second}}
	t.Cleanup(clients["2"].CloseIdleConnections)
	// get asks, and returns the trace context that the backend got.
	get := func(protocol, path string, header ...string) (parent, state string) {
		t.Helper()
		url := "https://a.test" + path
		if protocol == "1.1" {
			url = w.url(path)
		}
		req, _ := http.NewRequest("GET", url, nil)
		if protocol == "1.1" {
			req.Host = "plain.test"
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Add(header[i], header[i+1])
		}
		resp, err := clients[protocol].Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var got reply
		_ = json.NewDecoder(resp.Body).Decode(&got)
		return got.Header.Get("Traceparent"), got.Header.Get("Tracestate")
	}
	// one waits for the span of a path.
	one := func(path string) *otlp.Span {
		t.Helper()
		w.eventually("the span of "+path+" is sent", func() bool { return len(r.of(path)) == 1 })
		return r.of(path)[0]
	}
	// context is that of the one try to a backend.
	context := func(s *otlp.Span) string {
		t.Helper()
		w.eventually("the span of the try is sent", func() bool { return len(r.tries(s)) == 1 })
		return contextOf(r.tries(s)[0])
	}
	for protocol := range clients {
		// A trace that the client began.
		path := "/goes-on-" + protocol
		parent, state := get(protocol, path+"?secret=1", "Traceparent", kept, "Tracestate", "a=1", "Tracestate", "b=2", "User-Agent", "test/1")
		s := one(path)
		if parent != context(s) || !strings.HasPrefix(parent, "00-"+traceID) || hex.EncodeToString(s.ParentSpanId) != spanID || state != "a=1,b=2" || s.TraceState != "a=1,b=2" {
			t.Errorf("%s: the backend got %q, %q for span %v", protocol, parent, state, s)
		}
		a := attributes(s)
		for name, want := range map[string]any{"http.request.method": "GET", "http.route": "/", "network.protocol.version": protocol,
			"user_agent.original": "test/1", "fairway.service": "default/a", "fairway.endpoint": addr, "http.response.status_code": int64(200)} {
			if a[name] != want {
				t.Errorf("%s: %s is %v, want %v", protocol, name, a[name], want)
			}
		}
		if s.Name != "GET /" || s.Kind != otlp.Span_SPAN_KIND_SERVER || s.Status.GetCode() != otlp.Status_STATUS_CODE_UNSET || s.EndTimeUnixNano <= s.StartTimeUnixNano || strings.Contains(s.String(), "secret") {
			t.Errorf("%s: %v", protocol, s)
		}
		// One that begins here.
		path = "/begins-" + protocol
		parent, state = get(protocol, path, "Tracestate", "a=1")
		if s = one(path); parent != context(s) || len(s.ParentSpanId) != 0 || state != "" {
			t.Errorf("%s: the backend got %q, %q for span %v", protocol, parent, state, s)
		}
		// One that its client does not keep.
		parent, state = get(protocol, "/dropped-"+protocol, "Traceparent", dropped, "Tracestate", "a=1")
		if !strings.HasPrefix(parent, "00-"+traceID) || !strings.HasSuffix(parent, "-00") || parent == dropped || state != "a=1" {
			t.Errorf("%s: of a trace that is not kept the backend got %q, %q", protocol, parent, state)
		}
		// Bytes that are no UTF-8, for which the exporter would refuse this span
		// and all others that it is sent with.
		path = "/bytes-" + protocol
		get(protocol, path, "User-Agent", "caf\xe9/1", "X-Request-Id", "\xff")
		if got := attributes(one(path))["user_agent.original"]; got != "caf\ufffd/1" {
			t.Errorf("%s: a user agent that is no UTF-8 is told as %q", protocol, got)
		}
	}
	// What is not right does not count.
	for i, bad := range [][]string{{kept, kept}, {strings.ToUpper(kept)}, {"00-" + strings.Repeat("0", 32) + "-" + spanID + "-01"}, {"ff" + kept[2:]}, {kept + "-x"}, {"x"}} {
		path := "/bad-" + string(rune('a'+i))
		var header []string
		for _, v := range bad {
			header = append(header, "Traceparent", v)
		}
		if parent, _ := get("1.1", path, header...); strings.Contains(parent, traceID) || parent != context(one(path)) {
			t.Errorf("%q: the backend got %q", bad, parent)
		}
	}
	// Annotations.
	if parent, state := get("1.1", "/off", "Traceparent", kept, "Tracestate", "a=1"); parent != kept || state != "a=1" {
		t.Errorf("with traces off the backend got %q, %q", parent, state)
	}
	if parent, _ := get("1.1", "/distrust", "Traceparent", kept); strings.Contains(parent, traceID) || parent != context(one("/distrust")) {
		t.Errorf("without trust the backend got %q", parent)
	}
	// Answers of the gateway's own.
	get("1.1", "/redirect")
	get("1.1", "/gone")
	if a := attributes(one("/redirect")); a["http.response.status_code"] != int64(302) || a["fairway.service"] != nil {
		t.Errorf("redirect: %v", a)
	}
	if s := one("/gone"); s.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR || attributes(s)["error.type"] != "502" || attributes(s)["fairway.failure"] == nil {
		t.Errorf("failed: %v", s)
	}
	if len(r.of("/off")) != 0 || len(r.of("/dropped-1.1")) != 0 {
		t.Error("spans that were not to be kept were sent")
	}
	if r.resource["service.name"] != "fairway-gateway" || r.resource["service.version"] != "1.2.3" || r.resource["k8s.node.name"] != "node-1" {
		t.Errorf("resource: %v", r.resource)
	}
	w.eventually("all that were sent are counted", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return metric(t, registry, "fairway_gateway_spans_total")["result=sent"] == float64(len(r.spans))
	})
	if !strings.Contains(log.String(), `"traceId":"`+traceID+`"`) {
		t.Error("the access log does not name the trace")
	}
}

// TestTraceTries: each time that a request is sent has a span of its own, and
// the backend is told of that one, whatever protocols are spoken.
func TestTraceTries(t *testing.T) {
	var mu sync.Mutex
	got := map[string][]string{} // the trace contexts that backends got, by path
	begun := make(chan struct{}) // the client has the beginning of an answer that breaks off
	handler := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		got[r.URL.Path] = append(got[r.URL.Path], r.Header.Get("Traceparent"))
		n := len(got[r.URL.Path])
		mu.Unlock()
		switch _, what, _ := strings.Cut(r.URL.Path[1:], "/"); {
		case what == "again" && n == 1:
			panic(http.ErrAbortHandler)
		case what == "missing":
			w.WriteHeader(http.StatusNotFound)
		case what == "breaks":
			_, _ = io.WriteString(w, strings.Repeat("x", 10000))
			_ = http.NewResponseController(w).Flush()
			<-begun
			panic(http.ErrAbortHandler)
		}
	}
	backendServer(t, "10.99.73.11:80", handler)
	backendServer(t, "10.99.73.12:80", handler)
	r := newReceiver(t)
	w, pair := http3World(t, "10.99.74.11:443", "", "10.99.73.11:80", func(o *Options) { o.Tracer = newTracer(t, r.url, 1) })
	var rules []model.RouteRule
	clients := map[string]*http.Client{"3": http3Client(t, w.g.HTTPSAddr().String(), pair),
		"1.1": {Transport: &http.Transport{DialContext: w.dialHTTPS, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 20 * time.Second},
		"2":   {Transport: &http.Transport{DialContext: w.dialHTTPS, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 20 * time.Second}}
	backends := map[string]string{"1.1": "", "2": "kubernetes.io/h2c"}
	for client := range clients {
		for backend, appProtocol := range backends {
			name := "c" + client[:1] + "b" + backend[:1]
			w.service("two-"+name, appProtocol, "10.99.73.11:80", "10.99.73.12:80")
			// An endpoint that was in vain is not asked soon again: each has its own.
			w.service("half-"+name, appProtocol, "10.99.73.99:80", "10.99.73.11:80")
			w.service("half2-"+name, appProtocol, "10.99.73.99:80", "10.99.73.11:80")
			rules = append(rules, rule("a.test", "/"+name, "two-"+name), rule("a.test", "/"+name+"/half", "half-"+name), rule("a.test", "/"+name+"/half-upload", "half2-"+name))
		}
	}
	w.route(ingress("tries", rules...))
	t.Cleanup(func() { clients["1.1"].CloseIdleConnections(); clients["2"].CloseIdleConnections() })
	type want struct {
		kind   string // of failure
		status int64
	}
	for client, c := range clients {
		for backend := range backends {
			t.Run("client="+client+",backend="+backend, func(t *testing.T) {
				name := "c" + client[:1] + "b" + backend[:1]
				check := func(method, path string, want ...want) {
					t.Helper()
					w.eventually("the spans of "+path+" are sent", func() bool { return len(r.of(path)) > 0 })
					server := r.of(path)[0]
					w.eventually("the spans of the tries of "+path+" are sent", func() bool { return len(r.tries(server)) >= len(want) })
					var asked []string
					for i, try := range r.tries(server) {
						a := attributes(try)
						if i >= len(want) || try.Kind != otlp.Span_SPAN_KIND_CLIENT || try.Name != method || a["http.request.method"] != method ||
							(a["error.type"] != nil || want[i].kind != "") && a["error.type"] != want[i].kind ||
							(try.Status.GetCode() == otlp.Status_STATUS_CODE_ERROR) != (want[i].kind != "") ||
							(a["http.response.status_code"] != nil || want[i].status != 0) && a["http.response.status_code"] != want[i].status ||
							(a["http.request.resend_count"] != nil || i > 0) && a["http.request.resend_count"] != int64(i) {
							t.Errorf("%s: try %d is %v, %v, want %+v", path, i, a, try, want)
							continue
						}
						if addr := a["server.address"]; a["server.port"] != int64(80) || a["url.full"] != fmt.Sprintf("http://%v:80%s", addr, path) || a["network.protocol.version"] != backend {
							t.Errorf("%s: %v", path, a)
						}
						if try.StartTimeUnixNano < server.StartTimeUnixNano || try.EndTimeUnixNano > server.EndTimeUnixNano || try.EndTimeUnixNano < try.StartTimeUnixNano {
							t.Errorf("%s: a try that is not within its request: %v, %v", path, try, server)
						}
						if want[i].kind != "connection_failed" {
							asked = append(asked, contextOf(try))
						}
					}
					mu.Lock()
					defer mu.Unlock()
					if !slices.Equal(got[path], asked) {
						t.Errorf("%s: the backend got %q, want %q", path, got[path], asked)
					}
				}
				send := func(method, path, body string) {
					t.Helper()
					req, _ := http.NewRequest(method, "https://a.test"+path, nil)
					if body != "" {
						req, _ = http.NewRequest(method, "https://a.test"+path, strings.NewReader(body))
					}
					resp, err := c.Do(req)
					if err != nil {
						t.Fatal(path, err)
					}
					if strings.HasSuffix(path, "/breaks") {
						begun <- struct{}{}
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				path := func(what string) string { return "/" + name + "/" + what }
				send("GET", path("ok?secret=1"), "")
				check("GET", path("ok"), want{"", 200})
				send("POST", path("upload"), "body")
				check("POST", path("upload"), want{"", 200})
				send("GET", path("missing"), "")
				check("GET", path("missing"), want{"404", 404})
				send("GET", path("again"), "")
				check("GET", path("again"), want{"backend_failed", 0}, want{"", 200})
				send("GET", path("breaks"), "")
				check("GET", path("breaks"), want{"backend_failed", 200})
				// Of two requests one comes to the endpoint that is not there first.
				tried := func(what, method, body string) string {
					t.Helper()
					for i := range 2 {
						p := path(fmt.Sprintf("%s/%d", what, i))
						send(method, p, body)
						w.eventually("the spans of "+p+" are sent", func() bool { return len(r.of(p)) > 0 })
						if len(r.tries(r.of(p)[0])) == 2 {
							return p
						}
					}
					t.Fatalf("%s: the endpoint that is not there was not tried", what)
					return ""
				}
				check("GET", tried("half", "GET", ""), want{"connection_failed", 0}, want{"", 200})
				check("POST", tried("half-upload", "POST", "body"), want{"connection_failed", 0}, want{"", 200})
			})
		}
	}
}

// TestTraceShare: of traces begun here the share is kept, and what clients began
// is kept as they say.
func TestTraceShare(t *testing.T) {
	backendServer(t, "10.99.73.2:80", nil)
	r := newReceiver(t)
	w := newWorld(t, func(o *Options) { o.Tracer = newTracer(t, r.url, 0) })
	w.service("a", "", "10.99.73.2:80")
	w.route(ingress("main", rule("", "/", "a")))
	for range 10 {
		if _, got := w.get("a.test", "/own"); !strings.HasSuffix(got.Header.Get("Traceparent"), "-00") {
			t.Errorf("of a trace that is not kept the backend got %v", got.Header)
		}
	}
	w.get("a.test", "/theirs", "Traceparent", kept)
	w.eventually("the client's span is sent", func() bool { return len(r.of("/theirs")) == 1 })
	if len(r.of("/own")) != 0 {
		t.Error("spans were sent that were not to be kept")
	}
}

// TestTraceReceiverGone: requests do not mind, and it is counted. What is left
// in the end is sent.
func TestTraceReceiverGone(t *testing.T) {
	backendServer(t, "10.99.73.3:80", nil)
	registry := prometheus.NewRegistry()
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer bad.Close()
	w := newWorld(t, func(o *Options) { o.Tracer, o.Registerer = newTracer(t, bad.URL, 1), registry })
	w.service("a", "", "10.99.73.3:80")
	w.route(ingress("main", rule("", "/", "a")))
	if status, _ := w.get("a.test", "/"); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	w.eventually("it is counted", func() bool {
		return metric(t, registry, "fairway_gateway_spans_total")["result=failed"] == 2
	})

	r := newReceiver(t)
	tracer, err := tracing.New(tracing.Options{Endpoint: r.url, Share: 1, Logger: discardLogger(), Delay: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	w = newWorld(t, func(o *Options) { o.Tracer = tracer })
	w.service("a", "", "10.99.73.3:80")
	w.route(ingress("main", rule("", "/", "a")))
	w.get("a.test", "/last")
	plainClient.CloseIdleConnections()
	w.stop()
	if err := <-w.done; err != nil {
		t.Error(err)
	}
	w.done <- nil
	if len(r.of("/last")) != 1 {
		t.Error("the last span was not sent")
	}
}

func TestTraceEndpoint(t *testing.T) {
	for _, url := range []string{"collector:4318", "ftp://collector", "http://", "://"} {
		if _, err := tracing.New(tracing.Options{Endpoint: url, Logger: discardLogger()}); err == nil || !strings.Contains(err.Error(), "http://collector:4318") {
			t.Errorf("%q: %v", url, err)
		}
	}
}
