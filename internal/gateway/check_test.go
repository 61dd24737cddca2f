package gateway

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// upstream changes how the gateway treats a Service's endpoints.
func (w *world) upstream(name string, u *model.ServiceUpstream) {
	w.t.Helper()
	w.update(func(tx *state.Tx) {
		svc, _ := w.store.Snapshot().Services.Get(gatewaytest.Key(name))
		next := *svc
		next.Upstream = u
		tx.PutService(&next)
	})
}

// metric returns what the registry has of a metric, by its labels without the
// namespace: "reason=x,service=y".
func metric(t *testing.T, r *prometheus.Registry, name string) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				if l.GetName() != "namespace" {
					labels = append(labels, l.GetName()+"="+l.GetValue())
				}
			}
			out[strings.Join(labels, ",")] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return out
}

// TestHealthChecks: an endpoint that says it is unwell gets no requests until
// it is well, and all get them when all are unwell.
func TestHealthChecks(t *testing.T) {
	var sick [2]atomic.Bool
	for i, addr := range []string{"10.99.70.1:80", "10.99.70.2:80"} {
		backendServer(t, addr, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/healthz" {
				if sick[i].Load() {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
				return
			}
			echo(addr)(w, r)
		})
	}
	registry := prometheus.NewRegistry()
	w := newWorld(t, func(o *Options) { o.Registerer = registry })
	w.service("a", "", "10.99.70.1:80", "10.99.70.2:80")
	w.upstream("a", &model.ServiceUpstream{Health: &model.HealthCheck{
		Kind: model.CheckHTTP, Path: "/healthz", Status: []model.StatusRange{{Low: 200, High: 399}},
		Interval: 10 * time.Millisecond, Timeout: 5 * time.Second, HealthyAfter: 2, UnhealthyAfter: 2,
	}})
	w.route(ingress("main", rule("", "/", "a")))
	// served returns who answers 20 requests.
	served := func() string {
		got := map[string]bool{}
		for range 20 {
			status, r := w.get("a.test", "/")
			if status != http.StatusOK {
				t.Fatalf("status %d", status)
			}
			got[r.Backend] = true
		}
		var list []string
		for _, addr := range []string{"10.99.70.1:80", "10.99.70.2:80"} {
			if got[addr] {
				list = append(list, addr)
			}
		}
		return strings.Join(list, " ")
	}
	const both = "10.99.70.1:80 10.99.70.2:80"
	out := func() float64 {
		return metric(t, registry, "fairway_gateway_endpoints_out")["port=80/TCP,reason=unhealthy,service=a"]
	}
	if got := served(); got != both {
		t.Errorf("served by %s while both are well", got)
	}
	sick[0].Store(true)
	w.eventually("the sick endpoint is left out", func() bool { return out() == 1 })
	if got := served(); got != "10.99.70.2:80" {
		t.Errorf("served by %s", got)
	}
	// A change of routes does not forget it.
	w.route(ingress("other", rule("other.test", "/", "a")))
	if got := served(); got != "10.99.70.2:80" {
		t.Errorf("served by %s after a change of routes", got)
	}
	sick[1].Store(true)
	w.eventually("both are left out", func() bool { return out() == 2 })
	if got := served(); got != both {
		t.Errorf("served by %s while both are unwell", got)
	}
	sick[0].Store(false)
	w.eventually("one is back", func() bool { return out() == 1 })
	if got := served(); got != "10.99.70.1:80" {
		t.Errorf("served by %s", got)
	}
	w.upstream("a", nil)
	if got := served(); got != both || out() != 0 {
		t.Errorf("served by %s, %v left out, without checks", got, out())
	}
	checks, failures := metric(t, registry, "fairway_gateway_health_checks_total"), metric(t, registry, "fairway_gateway_upstream_failures_total")
	if checks["result=ok,service=a"] < 3 || checks["result=failed,service=a"] < 4 || failures["reason=unhealthy,service=a"] != 2 {
		t.Errorf("metrics: %v, %v", checks, failures)
	}
	if !strings.Contains(w.log.String(), "fails its health checks") || !strings.Contains(w.log.String(), "is well again") {
		t.Error("the log says nothing")
	}
}
