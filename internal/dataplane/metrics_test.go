package dataplane_test

import (
	"iter"
	"maps"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// counting is a data path with counters.
type counting struct {
	fake
	traffic map[dataplane.TrafficPort]dataplane.Traffic
}

func (c *counting) Traffic() iter.Seq2[dataplane.TrafficPort, dataplane.Traffic] {
	return maps.All(c.traffic)
}

// TestMetrics follows kube-proxy's metrics through a few changes.
func TestMetrics(t *testing.T) {
	reg, store := prometheus.NewRegistry(), state.New()
	dp := &counting{
		fake: fake{failKey: model.Key{Namespace: "ns", Name: "bad"}},
		traffic: map[dataplane.TrafficPort]dataplane.Traffic{
			{Service: model.Key{Namespace: "ns", Name: "web"}, Name: "http", Protocol: model.TCP, IPv6: true}: {Connections: 7, Refused: 2},
		},
	}
	run(t, dataplane.Options{Store: store, Logger: logger(t), NodeName: "here", Dataplane: dp, Registerer: reg})
	scrape := func() string {
		w := httptest.NewRecorder()
		promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Body.String()
	}
	has := func(lines ...string) {
		t.Helper()
		var last string
		for _, line := range lines {
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if last = scrape(); strings.Contains(last, "\n"+line+"\n") {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("no line %q in:\n%s", line, last)
				}
			}
		}
	}
	number := func(name string) float64 {
		t.Helper()
		m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(scrape())
		if m == nil {
			return 0
		}
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	key := func(name string) model.Key { return model.Key{Namespace: "ns", Name: name} }
	ports := []model.ServicePort{{Protocol: model.TCP, Port: 80, NodePort: 30080}}
	service := func(name, addr string) *model.Service {
		return &model.Service{Key: key(name), ClusterIPs: []netip.Addr{netip.MustParseAddr(addr)}, Ports: ports, ExternalLocal: true, InternalLocal: true}
	}
	endpoint := func(node string, triggered time.Time) *model.EndpointSlice {
		return &model.EndpointSlice{Key: key("web"), Service: key("web"), Triggered: triggered, Endpoints: []model.Endpoint{{
			Addr: netip.MustParseAddr("10.0.0.1"), Ready: true, Serving: true, Node: node, Ports: []model.EndpointPort{{Protocol: model.TCP, Port: 80}},
		}}}
	}
	store.Update(func(tx *state.Tx) {
		tx.PutNode(&model.Node{Name: "here"})
		tx.PutService(service("web", "10.96.0.1"))
		tx.PutSlice(endpoint("there", time.Now().Add(-time.Hour))) // before the start: nobody's fault
	})
	has(`kubeproxy_sync_proxy_rules_service_changes_pending 1`, `kubeproxy_sync_proxy_rules_endpoint_changes_pending 1`)
	store.Update(func(tx *state.Tx) { tx.SetSynced() })
	has(
		`fairway_dataplane_services 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1`,
		`kubeproxy_sync_proxy_rules_service_changes_total 1`, `kubeproxy_sync_proxy_rules_endpoint_changes_total 1`,
		`kubeproxy_sync_proxy_rules_service_changes_pending 0`, `kubeproxy_sync_proxy_rules_endpoint_changes_pending 0`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 1`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 1`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="external"} 0`,
		`fairway_service_connections_total{ip_family="IPv6",namespace="ns",port="http",protocol="TCP",result="forwarded",service="web"} 7`,
		`fairway_service_connections_total{ip_family="IPv6",namespace="ns",port="http",protocol="TCP",result="refused",service="web"} 2`,
	)
	const programming = `kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"}`
	if n := number(programming); n != 0 {
		t.Errorf("%v programmings measured from before the start", n)
	}
	const done = `kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}`
	first := number(done)
	if age := float64(time.Now().Unix()) - first; age < -1 || age > 60 {
		t.Errorf("the last round ended at %v", first)
	}

	store.Update(func(tx *state.Tx) { tx.PutSlice(endpoint("here", time.Now())) })
	has(
		programming+` 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="60"} 1`,
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_total 2`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 0`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 0`,
	)
	second := number(done)
	if second <= first {
		t.Errorf("the last round ended at %v, the one before at %v", second, first)
	}

	store.Update(func(tx *state.Tx) { tx.PutService(service("bad", "10.96.0.2")) })
	has(`fairway_dataplane_services_failed 1`)
	if n := number(`kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"}`); n < 1 {
		t.Errorf("%v failed rounds", n)
	}
	if n := number(done); n != second {
		t.Error("a failed round counts as done")
	}
	if n := number(`kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"}`); n <= second {
		t.Errorf("the last round began at %v, the last good one ended at %v", n, second)
	}
}
