package gateway

import (
	"bytes"
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

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

// TestChurnLosesNothing sends requests while endpoints roll, routes and
// certificates change, and Pods are shut down the way Kubernetes does it.
func TestChurnLosesNothing(t *testing.T) {
	w := newWorld(t, nil)
	pods := []string{"10.99.50.1:80", "10.99.50.2:80", "10.99.50.3:80"}
	servers := map[string]*http.Server{}
	for _, a := range pods[:2] {
		servers[a] = backendServer(t, a, nil)
	}
	w.service("a", "", pods[:2]...)
	w.route(ingress("main", rule("a.test", "/", "a")))

	stop := make(chan struct{})
	var sent, failed atomic.Int64
	var first sync.Once
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: i == 0}}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				method, body := http.MethodGet, io.Reader(nil)
				if i%2 == 1 {
					method, body = http.MethodPost, strings.NewReader("payload")
				}
				req, _ := http.NewRequest(method, w.url("/x"), body)
				req.Host = "a.test"
				sent.Add(1)
				resp, err := client.Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if err == nil && resp.StatusCode != 200 {
						err = fmt.Errorf("status %d", resp.StatusCode)
					}
				}
				if err != nil {
					failed.Add(1)
					first.Do(func() { t.Errorf("%s: %v", method, err) })
				}
			}
		})
	}
	for i := range 12 {
		in, out := pods[(i+2)%3], pods[i%3]
		servers[in] = backendServer(t, in, nil)
		w.endpoints("a", pods[(i+1)%3], in)
		w.update(func(tx *state.Tx) {
			tx.PutRoute(ingress("other", rule(fmt.Sprintf("h%d.test", i), "/", "a")))
			tx.PutCertificate(secret(t, "pair", "a.test"))
		})
		// The Pod stops a moment after it has left the endpoints, long enough for a POST that was on its way there on a busy machine: nobody may repeat it.
		time.Sleep(100 * time.Millisecond)
		shutdown(t, servers[out])
	}
	close(stop)
	clients.Wait()
	if failed.Load() > 0 || sent.Load() < 10 {
		t.Errorf("%d of %d requests failed", failed.Load(), sent.Load())
	}
}

func shutdown(t *testing.T, s *http.Server) {
	t.Helper()
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestEjection: an endpoint that refuses connections is left alone for a
// while, and is used again when it is back.
func TestEjection(t *testing.T) {
	backendServer(t, "10.99.51.1:80", nil)
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(o *Options) { o.Registerer = reg })
	w.service("a", "", "10.99.51.1:80", "10.99.51.2:80")
	w.route(ingress("main", rule("", "/", "a")))
	for range 50 {
		if status, _ := w.get("a", "/"); status != 200 {
			t.Fatalf("got %d", status)
		}
	}
	if n := samples(t, reg)[`fairway_gateway_upstream_failures_total{namespace=default,reason=connect,service=a}`]; n < 1 || n > 2 {
		t.Errorf("the dead endpoint was tried %v times", n)
	}
	backendServer(t, "10.99.51.2:80", nil)
	w.eventually("the endpoint is used again", func() bool {
		_, r := w.get("a", "/")
		return r.Backend == "10.99.51.2:80"
	})
}

func TestLoadIsSpread(t *testing.T) {
	pods := []string{"10.99.52.1:80", "10.99.52.2:80", "10.99.52.3:80"}
	for _, a := range pods {
		backendServer(t, a, nil)
	}
	w := newWorld(t, nil)
	w.service("a", "", pods...)
	w.route(ingress("main", rule("", "/", "a")))
	counts := map[string]int{}
	for range 300 {
		_, r := w.get("a", "/")
		counts[r.Backend]++
	}
	for _, a := range pods {
		if counts[a] < 80 || counts[a] > 120 {
			t.Errorf("counts %v", counts)
		}
	}
}

func TestMetricsAndTheirEnd(t *testing.T) {
	backendServer(t, "10.99.53.1:80", nil)
	reg := prometheus.NewRegistry()
	w := newWorld(t, func(o *Options) { o.Registerer = reg })
	w.service("a", "", "10.99.53.1:80")
	w.route(ingress("main", rule("a.test", "/", "a")))
	for range 3 {
		w.get("a.test", "/")
	}
	w.get("nobody.test", "/")
	w.do("BREW", "a.test", "/", nil)
	const requests = "fairway_gateway_requests_total"
	w.eventually("requests are counted", func() bool {
		m := samples(t, reg)
		return m[requests+"{code=200,method=GET,namespace=default,route=main}"] == 3 &&
			m[requests+"{code=200,method=OTHER,namespace=default,route=main}"] == 1 &&
			m[requests+"{code=404,method=GET,namespace=,route=}"] == 1
	})
	w.update(func(tx *state.Tx) { tx.DeleteRoute(ingress("main").Ref) })
	for name := range samples(t, reg) {
		if strings.Contains(name, "route=main") {
			t.Errorf("the route has gone and %s is still there", name)
		}
	}
}

// samples returns counters and histogram counts by name and labels.
func samples(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			out[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}

func TestAccessLog(t *testing.T) {
	backendServer(t, "10.99.54.1:80", nil)
	jsonLog, combined := &testenv.Log{}, &testenv.Log{}
	for _, o := range []func(*Options){
		func(o *Options) { o.AccessLog = jsonLog },
		func(o *Options) { o.AccessLog, o.AccessLogFormat = combined, "combined" },
	} {
		w := newWorld(t, o)
		w.service("a", "", "10.99.54.1:80")
		w.route(ingress("main", rule("a.test", "/", "a")))
		w.get("a.test", "/x?y=1", "User-Agent", "evil\"\\", "X-Request-Id", "rid")
		w.get("b.test", "/")
		w.eventually("two lines", func() bool {
			return strings.Count(jsonLog.String(), "\n") == 2 || strings.Count(combined.String(), "\n") == 2
		})
		w.stop()
	}
	var entry map[string]any
	if err := json.NewDecoder(bytes.NewReader([]byte(jsonLog.String()))).Decode(&entry); err != nil {
		t.Fatalf("%v in %s", err, jsonLog)
	}
	for k, want := range map[string]any{"requestId": "rid", "client": "127.0.0.1", "method": "GET", "host": "a.test", "path": "/x?y=1", "status": 200.0,
		"route": "Ingress default/main", "rule": "spec.rules[0].http.paths[0]", "service": "default/a", "endpoint": "10.99.54.1:80", "scheme": "http"} {
		if entry[k] != want {
			t.Errorf("%s is %v, want %v", k, entry[k], want)
		}
	}
	if !strings.Contains(jsonLog.String(), `"failure":"no route for this host and path"`) {
		t.Errorf("the log does not say why: %s", jsonLog)
	}
	line := combined.String()
	if !strings.HasPrefix(line, "127.0.0.1 - - [") || !strings.Contains(line, `"GET /x?y=1 HTTP/1.1" 200 `) || !strings.Contains(line, `"evil\x22\x5C"`) {
		t.Errorf("combined: %s", line)
	}
	if _, err := New(Options{Store: state.New(), Logger: discardLogger(), AccessLog: combined, AccessLogFormat: "xml"}); err == nil {
		t.Error("an unknown format is accepted")
	}
}

func TestProblemsChangedFires(t *testing.T) {
	w := newWorld(t, nil)
	select {
	case <-w.g.ProblemsChanged():
		t.Error("fired without problems")
	default:
	}
	w.route(ingress("main", rule("", "/", "missing")))
	select {
	case <-w.g.ProblemsChanged():
	case <-time.After(5 * time.Second):
		t.Error("did not fire")
	}
	w.route(ingress("main", rule("", "/", "missing"), rule("x.test", "/", "missing")))
	w.service("missing", "")
	select {
	case <-w.g.ProblemsChanged():
	case <-time.After(5 * time.Second):
		t.Error("did not fire when the problem was gone")
	}
	if p := w.g.Problems(); len(p) != 0 {
		t.Errorf("problems %v", p)
	}
}

// TestBadRequests sends raw bytes that must not reach a backend.
func TestBadRequests(t *testing.T) {
	var reached atomic.Int64
	backendServer(t, "10.99.55.1:80", func(http.ResponseWriter, *http.Request) { reached.Add(1) })
	w := newWorld(t, nil)
	w.service("a", "", "10.99.55.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	tests := []struct{ name, raw, want string }{
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "400"},
		{"bad host", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400"},
		{"space before colon", "GET / HTTP/1.1\r\nHost: a\r\nX-A : 1\r\n\r\n", "400"},
		{"bad escape", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"NUL in path", "GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"path without slash", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", "405"},
		{"TRACE", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", "405 Method Not Allowed\r\nAllow: GET, HEAD, "},
		{"bad length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", "400"},
		{"fragment", "GET /?x=1#y HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"},
		{"unknown coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", "501"},
		{"header too large", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n", "431"},
		{"encoded dots", "GET /a/..%2f..%2fetc HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := net.Dial("tcp", w.g.HTTPAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.WriteString(c, tt.raw)
			answer := make([]byte, 256)
			n, err := io.ReadAtLeast(c, answer, 12)
			if err != nil || !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 "+tt.want) {
				t.Errorf("got %q, %v, want %s", answer[:n], err, tt.want)
			}
		})
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d of them reached the backend", n)
	}
	// The absolute form is taken apart, not forwarded.
	c, err := net.Dial("tcp", w.g.HTTPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET http://b.test?x=1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if answer, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200") {
		t.Errorf("absolute form: %q, %v", answer, err)
	}
}

// TestThousandsOfRoutes takes in a large state and one change to it.
func TestThousandsOfRoutes(t *testing.T) {
	backendServer(t, "10.99.56.1:80", nil)
	w := newWorld(t, nil)
	w.service("a", "", "10.99.56.1:80")
	start := time.Now()
	w.update(func(tx *state.Tx) {
		for i := range 5000 {
			tx.PutRoute(ingress(fmt.Sprint("r", i), rule(fmt.Sprintf("h%d.test", i), "/", "a"), rule(fmt.Sprintf("h%d.test", i), "/api", "a")))
		}
	})
	t.Logf("5000 routes taken in after %v", time.Since(start))
	start = time.Now()
	w.update(func(tx *state.Tx) { tx.PutRoute(ingress("late", rule("late.test", "/", "a"))) })
	t.Logf("one more after %v", time.Since(start))
	for _, host := range []string{"h0.test", "h4999.test", "late.test"} {
		if status, _ := w.get(host, "/api/x"); status != 200 {
			t.Errorf("%s: %d", host, status)
		}
	}
	if p := w.g.Problems(); len(p) != 0 {
		t.Errorf("problems: %v", p[0])
	}
}
