package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/gateway/filter"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/testenv"
)

// faulty is a filter that has the gateway fail at some paths: at once, or once a
// backend has answered.
type faulty struct{}

func (faulty) Apply(x *filter.Exchange) *filter.Answer {
	if x.View.Path == "/fault" {
		panic("a fault")
	}
	if strings.HasPrefix(x.View.Path, "/late") {
		return breaking{}.Apply(x)
	}
	return nil
}

func (faulty) String() string { return "fails at some paths" }

// TestFaultsRelease: however a request ends, by every protocol, it is counted
// once, and nothing of it is under way after that: at the endpoint, for the
// limits of its Service, in the metrics.
func TestFaultsRelease(t *testing.T) {
	started, closing := make(chan struct{}, 100), make(chan struct{})
	t.Cleanup(func() { close(closing) })
	handler := func(w http.ResponseWriter, r *http.Request) {
		begin := func() {
			_, _ = io.WriteString(w, "some")
			_ = http.NewResponseController(w).Flush()
		}
		wait := func() {
			select {
			case <-r.Context().Done():
			case <-closing:
			}
		}
		switch r.URL.Path {
		case "/think":
			started <- struct{}{}
			wait()
		case "/answer":
			begin()
			wait()
		case "/flood":
			piece := make([]byte, 32<<10)
			for {
				if _, err := w.Write(piece); err != nil {
					return
				}
			}
		case "/upload":
			started <- struct{}{}
			_, _ = io.Copy(io.Discard, r.Body)
		case "/break":
			panic(http.ErrAbortHandler)
		case "/breaks":
			begin()
			panic(http.ErrAbortHandler)
		case "/hang":
			wait()
		case "/hangs":
			begin()
			wait()
		}
	}
	for i, backend := range []string{"", "kubernetes.io/h2c"} {
		addr := fmt.Sprintf("10.99.75.%d:80", i+1)
		backendServer(t, addr, handler)
		registry := prometheus.NewRegistry()
		log := &testenv.Log{}
		w, pair := http3World(t, fmt.Sprintf("10.99.75.%d:443", i+101), backend, addr, func(o *Options) { o.Registerer, o.AccessLog = registry, log })
		limited := filters(model.Filters{ReadTimeout: 50 * time.Millisecond})
		rules := []model.RouteRule{rule("a.test", "/hang", "a", limited), rule("a.test", "/hangs", "a", limited)}
		for _, client := range []string{"1.1", "2", "3"} { // the fault is one of the rule's own
			rules = append(rules, rule("a.test", "/lateGET"+client, "a"), rule("a.test", "/latePOST"+client, "a"))
		}
		w.route(ingress("faults", rules...))
		w.upstream("a", &model.ServiceUpstream{Limits: &model.UpstreamLimits{Requests: 1, Connections: 1}})
		c := *w.g.config.Load()
		c.sites = slices.Clone(c.sites)
		for i := range c.sites {
			c.sites[i].chain = append(slices.Clone(c.sites[i].chain), faulty{})
		}
		w.g.config.Store(&c)
		requests := 0.
		// released waits until nothing is under way, and each request was counted.
		released := func(what string) {
			t.Helper()
			requests++
			w.eventually(what+": nothing is under way, and it is counted", func() bool {
				s := w.g.State("services").Services[0]
				// One connection by HTTP/2 is there for the next request.
				return s.Endpoints[0].InFlight == 0 && s.Limited.Requests == 0 && s.Limited.Waiting == 0 && (s.Limited.Connections == 0 || backend != "" && s.Limited.Connections == 1) &&
					value(t, registry, "fairway_gateway_requests_in_flight") == 0 && value(t, registry, "fairway_gateway_requests_total") >= requests
			})
			if n := value(t, registry, "fairway_gateway_requests_total"); n != requests {
				t.Fatalf("%s: %v requests counted, want %v", what, n, requests)
			}
		}
		newClient := map[string]func() *http.Client{
			"HTTP/3": func() *http.Client { return http3Client(t, w.g.HTTPSAddr().String(), pair) },
		}
		for name, http2Client := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
			newClient[name] = func() *http.Client {
				tr := &http.Transport{DialContext: w.dialHTTPS, ForceAttemptHTTP2: http2Client, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
				t.Cleanup(tr.CloseIdleConnections)
				return &http.Client{Transport: tr, Timeout: 20 * time.Second}
			}
		}
		for name, client := range newClient {
			t.Run(name+" to "+backend, func(t *testing.T) {
				c := client()
				for _, tt := range []struct {
					method, path string
					// leave tells when the client goes: "thinking" while nothing has come,
					// "answering" when some of the answer has.
					leave  string
					status int // of the answer; 0 if there may be none
				}{
					{"GET", "/", "", 200},
					{"POST", "/", "", 200},
					{"GET", "/think", "thinking", 0},
					{"POST", "/think", "thinking", 0},
					{"GET", "/answer", "answering", 200},
					{"GET", "/flood", "answering", 200},
					{"POST", "/upload", "thinking", 0},
					{"GET", "/break", "", 502},
					{"POST", "/break", "", 502},
					{"GET", "/breaks", "", 0},
					{"POST", "/breaks", "", 0},
					{"GET", "/hang", "", 504},
					{"POST", "/hang", "", 504},
					{"GET", "/hangs", "", 0},
					{"POST", "/hangs", "", 0},
					{"GET", "/fault", "", 0},
					{"POST", "/fault", "", 0},
					{"GET", "/late", "", 0},
					{"POST", "/late", "", 0},
					{"GET", "/", "", 200},
				} {
					if tt.path == "/late" {
						tt.path += tt.method + strings.TrimPrefix(name, "HTTP/")
					}
					what := tt.method + " " + tt.path
					ctx, leave := context.WithCancel(t.Context())
					var body io.Reader
					if tt.method == "POST" {
						body = strings.NewReader("some")
					}
					if tt.path == "/upload" {
						r, more := io.Pipe()
						go func() { _, _ = more.Write([]byte("some")) }()
						context.AfterFunc(ctx, func() { _ = more.CloseWithError(context.Canceled) }) // net/http's client waits for that
						body = r
					}
					req, _ := http.NewRequestWithContext(ctx, tt.method, "https://a.test"+tt.path, body)
					if tt.leave == "thinking" {
						go func() {
							<-started
							leave()
						}()
					}
					status := 0
					resp, err := c.Do(req)
					if err == nil {
						status = resp.StatusCode
						if tt.leave == "answering" {
							_, _ = resp.Body.Read(make([]byte, 1))
							leave()
						}
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
					if tt.status != 0 && status != tt.status {
						t.Errorf("%s: status %d, error %v, want %d", what, status, err, tt.status)
					}
					released(what)
					leave()
				}
				if name == "HTTP/3" {
					// The whole connection ends.
					go func() {
						<-started
						_ = c.Transport.(io.Closer).Close()
					}()
					if resp, err := c.Get("https://a.test/think"); err == nil {
						_ = resp.Body.Close()
					}
					released("a connection that ends")
				}
			})
		}
		w.eventually("faults are logged as such", func() bool {
			return strings.Count(log.String(), `"path":"/fault"`) == 2*len(newClient) && strings.Count(log.String(), `"status":500`) == 2*len(newClient)
		})
	}
}
