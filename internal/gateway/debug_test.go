package gateway

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/upstream"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// TestState: the state tells of everything that is in use, and of no key.
func TestState(t *testing.T) {
	started, release := make(chan struct{}, 1), make(chan struct{})
	backendServer(t, "10.99.75.1:80", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		slow(started, release)(w, r)
	})
	greeter(t, "10.99.75.2:80", "hello")
	w := newWorld(t, func(o *Options) { o.Version = "1.2.3" })
	w.service("a", "", "10.99.75.1:80")
	w.service("db", "", "10.99.75.2:80")
	pair := secret(t, "pair", "a.test")
	w.update(func(tx *state.Tx) { tx.PutCertificate(pair) })
	w.upstream("a", &model.ServiceUpstream{Limits: &model.UpstreamLimits{Requests: 10, Connections: 5, Pending: 1}, Health: &model.HealthCheck{
		Kind: model.CheckHTTP, Path: "/healthz", Status: []model.StatusRange{{Low: 200, High: 200}},
		Interval: 10 * time.Millisecond, Timeout: 5 * time.Second, HealthyAfter: 1, UnhealthyAfter: 1}})
	w.route(withTLS(ingress("main", rule("a.test", "/x", "a", filters(model.Filters{ReadTimeout: time.Minute})), rule("", "/none", "none")), "pair", "a.test"))
	w.streams(stream("tcp", model.TCP, 14101, "db"))
	c := dial(t, "127.0.0.1:14101")
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	done := make(chan int, 1)
	go func() {
		status, _ := w.get("a.test", "/x/y")
		done <- status
	}()
	<-started

	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/state", w.g.ServeState)
	mux.HandleFunc("GET /debug/state/{part}", w.g.ServeState)
	ask := func(path string) (int, string, *State) {
		r := httptest.NewRecorder()
		mux.ServeHTTP(r, httptest.NewRequest("GET", path, nil))
		var s State
		if err := json.Unmarshal(r.Body.Bytes(), &s); err != nil && r.Code == http.StatusOK {
			t.Fatal(err)
		}
		return r.Code, r.Body.String(), &s
	}
	var text string
	var s *State
	w.eventually("the health check has failed", func() bool {
		_, text, s = ask("/debug/state")
		return s.Services[0].Endpoints[0].State == "unhealthy"
	})
	if s.Version != "1.2.3" || !s.Ready || s.Draining || s.Revision == 0 {
		t.Errorf("%+v", s)
	}
	if len(s.Routes) != 2 || s.Routes[0].Object != "Ingress default/main" || s.Routes[0].Path != "/none" || len(s.Routes[1].Filters) != 1 || len(s.Routes[1].Backends) != 1 {
		t.Errorf("routes: %+v", s.Routes)
	}
	a := s.Services[0]
	if len(s.Services) != 3 || a.Service != "default/a" || a.Port != "80/TCP" || a.Requests != 1 || *a.Limited != (upstream.GateState{Requests: 1, Connections: 1}) ||
		a.Endpoints[0].Address != "10.99.75.1:80" || a.Endpoints[0].InFlight != 1 || a.Endpoints[0].Check != "status 503" || s.Services[2].Error == "" {
		t.Errorf("services: %+v", s.Services)
	}
	if len(s.Certificates) != 2 || s.Certificates[0].Secret != "default/pair" || s.Certificates[0].Names[0] != "a.test" || !s.Certificates[0].NotAfter.After(time.Now()) ||
		s.Certificates[1].Issuer != DefaultCertificateName {
		t.Errorf("certificates: %+v", s.Certificates)
	}
	if len(s.Listeners) != 3 || s.Listeners[0].Connections["HTTP/1.1"] < 1 || s.Listeners[2].Address != "14101/TCP" || s.Listeners[2].Connections["TCP"] != 1 || len(s.Listeners[2].Routes) != 1 {
		t.Errorf("listeners: %+v", s.Listeners)
	}
	if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "does not exist") {
		t.Errorf("problems: %q", s.Problems)
	}
	key := strings.Split(string(pair.PrivateKey), "\n")[1]
	if strings.Contains(text, key) || strings.Contains(text, "PRIVATE") {
		t.Error("a key is told")
	}
	w.route(withClientAuth(ingress("asks", rule("asks.test", "/", "a"))))
	for _, part := range stateParts {
		code, text, _ := ask("/debug/state/" + part)
		if code != http.StatusOK || !strings.Contains(text, `"`+part+`"`) || len(text) > 3000 {
			t.Errorf("%s: %d %s", part, code, text)
		}
	}
	if code, _, _ := ask("/debug/state/keys"); code != http.StatusNotFound {
		t.Errorf("a part that is none: %d", code)
	}
	close(release)
	if status := <-done; status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	// An endpoint that cannot be connected to.
	w.service("gone", "", "10.99.75.9:80")
	w.route(ingress("gone", rule("gone.test", "/", "gone")))
	w.get("gone.test", "/")
	for _, p := range w.g.State("services").Services {
		if p.Service == "default/gone" && (p.Endpoints[0].State != "ejected" || p.Endpoints[0].EjectedUntil == nil) {
			t.Errorf("%+v", p)
		}
	}
}
