package dataplane

import (
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/state"
)

// TrafficPort names a Service's port in one address family.
type TrafficPort struct {
	Service  model.Key
	Name     string // of the port; may be empty
	Protocol model.Protocol
	IPv6     bool
}

// Traffic is what clients of a Service's port have had of it on this node since
// it was first served, which may be before this process.
type Traffic struct {
	// Connections are TCP connections and UDP flows that were given an
	// endpoint, Refused those that nobody served.
	Connections, Refused uint64
}

// TrafficCounter is a data path that counts. Others need not.
type TrafficCounter interface {
	// Traffic yields the ports that have counters. It reads the kernel, and is
	// called once for each scrape.
	Traffic() iter.Seq2[TrafficPort, Traffic]
}

// families are kube-proxy's labels. It has a proxier for each; here one data
// path serves both, and tells the same of both.
var families = [2]string{"IPv4", "IPv6"}

// round is what one round of the controller has done.
type round = reconcile.Round[model.Key, plan.Service]

// metrics have kube-proxy's names and labels, so that dashboards for it go on
// to work.
type metrics struct {
	duration, full, partial, programming *prometheus.HistogramVec
	lastQueued, lastDone, noLocal        *prometheus.GaugeVec
	failures                             *prometheus.CounterVec
	serviceChanges, endpointChanges      prometheus.Counter

	started time.Time
	applied atomic.Pointer[state.Snapshot]
	synced  atomic.Bool

	// without counts the Services whose Local policy finds nobody, by
	// withoutLocal.
	mu      sync.Mutex
	without [2][2]int
}

func newMetrics(store *state.Store, loop func() reconcile.Status, path Dataplane, reg prometheus.Registerer) (*metrics, error) {
	const subsystem = "kubeproxy"
	family := []string{"ip_family"}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Subsystem: subsystem, Name: name, Help: help, Buckets: buckets}, family)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Subsystem: subsystem, Name: name, Help: help}, append(labels, "ip_family"))
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Subsystem: subsystem, Name: name, Help: help})
	}
	// 1 ms to 16 s as kube-proxy has it, and below, for a round takes less here.
	sync := prometheus.ExponentialBuckets(0.000125, 2, 18)
	m := &metrics{
		duration:        histogram("sync_proxy_rules_duration_seconds", "Time to program the changes of one round.", sync),
		full:            histogram("sync_full_proxy_rules_duration_seconds", "Time of a round that programs everything.", sync),
		partial:         histogram("sync_partial_proxy_rules_duration_seconds", "Time of a round that programs what has changed.", sync),
		programming:     histogram("network_programming_duration_seconds", "Time from what changed the endpoints of a Service, as the endpoints controller says, to the change being programmed.", programmingBuckets()),
		lastQueued:      gauge("sync_proxy_rules_last_queued_timestamp_seconds", "When a round began last; much later than the time of the last one that ended means that something hangs."),
		lastDone:        gauge("sync_proxy_rules_last_timestamp_seconds", "When a round ended last in which all changes were programmed."),
		noLocal:         gauge("sync_proxy_rules_no_local_endpoints_total", "Services with traffic policy Local that have no endpoint on this node, but elsewhere.", "traffic_policy"),
		failures:        prometheus.NewCounterVec(prometheus.CounterOpts{Subsystem: subsystem, Name: "sync_proxy_rules_nftables_sync_failures_total", Help: "Rounds in which changes failed, with whichever data path."}, family),
		serviceChanges:  counter("sync_proxy_rules_service_changes_total", "Changes of Services that have been taken up; several of one Service in one round count once."),
		endpointChanges: counter("sync_proxy_rules_endpoint_changes_total", "Changes of the endpoints of Services that have been taken up; several of one Service in one round count once."),
		started:         time.Now(),
	}
	m.applied.Store(&state.Snapshot{})
	own := func(name, help string, value func(reconcile.Status) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value(loop())) })
	}
	pending := func(name, help string, count func(prev, next *state.Snapshot) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Subsystem: subsystem, Name: name, Help: help}, func() float64 {
			return float64(count(m.applied.Load(), store.Snapshot()))
		})
	}
	collectors := []prometheus.Collector{
		m.duration, m.full, m.partial, m.programming, m.lastQueued, m.lastDone, m.noLocal, m.failures, m.serviceChanges, m.endpointChanges,
		pending("sync_proxy_rules_service_changes_pending", "Services whose change is not programmed yet.", changedServices),
		pending("sync_proxy_rules_endpoint_changes_pending", "Services the change of whose endpoints is not programmed yet.", changedEndpoints),
		own("fairway_dataplane_services", "Services that the data path holds.", func(s reconcile.Status) int { return s.Objects }),
		own("fairway_dataplane_services_failed", "Services whose change the data path could not take, and which are tried again; the log has the reasons.", func(s reconcile.Status) int { return s.Failing }),
	}
	if t, ok := path.(TrafficCounter); ok {
		collectors = append(collectors, trafficCollector{t})
	}
	for _, c := range collectors {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("dataplane: %w", err)
		}
	}
	return m, nil
}

// programmingBuckets are kube-proxy's, to 5 minutes, and some below 250 ms.
func programmingBuckets() []float64 {
	b := []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5}
	b = append(b, prometheus.LinearBuckets(1, 1, 59)...)
	b = append(b, prometheus.LinearBuckets(60, 5, 12)...)
	return append(b, prometheus.LinearBuckets(120, 30, 7)...)
}

func changedServices(prev, next *state.Snapshot) int {
	n := 0
	for range state.Diff(prev.Services, next.Services) {
		n++
	}
	return n
}

func changedEndpoints(prev, next *state.Snapshot) int {
	n := 0
	for range state.Diff(prev.Endpoints, next.Endpoints) {
		n++
	}
	return n
}

func (m *metrics) begin(at time.Time) {
	for _, family := range families {
		m.lastQueued.WithLabelValues(family).Set(seconds(at))
	}
}

func (m *metrics) done(r round) {
	if !r.Next.Synced {
		return // nothing is programmed before everything is known
	}
	prev := m.applied.Load()
	m.serviceChanges.Add(float64(changedServices(prev, r.Next)))
	m.endpointChanges.Add(float64(changedEndpoints(prev, r.Next)))
	m.applied.Store(r.Next)
	if len(r.Changes) == 0 {
		return
	}
	kind := m.partial
	if !m.synced.Swap(true) {
		kind = m.full
	}
	ended := r.Started.Add(r.Took)
	failed := 0
	for _, c := range r.Changes {
		if r.Failed[c.Key] != nil {
			failed++
			continue
		}
		m.count(c)
		before, _ := prev.Endpoints.Get(c.Key)
		now, ok := r.Next.Endpoints.Get(c.Key)
		if !ok || !now.Triggered.After(m.started) || before != nil && before.Triggered.Equal(now.Triggered) {
			continue
		}
		for _, family := range families {
			m.programming.WithLabelValues(family).Observe(max(0, ended.Sub(now.Triggered).Seconds()))
		}
	}
	for _, family := range families {
		m.duration.WithLabelValues(family).Observe(r.Took.Seconds())
		kind.WithLabelValues(family).Observe(r.Took.Seconds())
		if failed > 0 {
			m.failures.WithLabelValues(family).Inc()
		} else {
			m.lastDone.WithLabelValues(family).Set(seconds(ended))
		}
	}
}

// count keeps the number of Services whose Local policy finds nobody here.
func (m *metrics) count(c reconcile.Change[model.Key, plan.Service]) {
	old, now := withoutLocal(&c.Old), withoutLocal(&c.New)
	m.mu.Lock()
	defer m.mu.Unlock()
	for policy, name := range [2]string{"internal", "external"} {
		for family, label := range families {
			if old[policy][family] {
				m.without[policy][family]--
			}
			if now[policy][family] {
				m.without[policy][family]++
			}
			m.noLocal.WithLabelValues(name, label).Set(float64(m.without[policy][family]))
		}
	}
}

// withoutLocal tells by policy, internal and external, and by family where a
// Local policy finds no endpoint on this node.
func withoutLocal(s *plan.Service) (out [2][2]bool) {
	for i := range s.Frontends {
		f := &s.Frontends[i]
		family := 0
		if f.Addr.Is6() {
			family = 1
		}
		policy, pool := 0, f.Internal
		if f.Kind != plan.ClusterIP {
			policy, pool = 1, f.External
		}
		if pool.Policy == plan.Local && pool.Action == plan.Drop {
			out[policy][family] = true
		}
	}
	return out
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// trafficCollector reads the counters of a data path when they are asked for.
type trafficCollector struct{ from TrafficCounter }

var trafficDesc = prometheus.NewDesc("fairway_service_connections_total",
	"Connections and UDP flows to a Service on this node, by what became of them.",
	[]string{"namespace", "service", "port", "protocol", "ip_family", "result"}, nil)

// Describe implements prometheus.Collector.
func (trafficCollector) Describe(out chan<- *prometheus.Desc) { out <- trafficDesc }

// Collect implements prometheus.Collector.
func (c trafficCollector) Collect(out chan<- prometheus.Metric) {
	for port, t := range c.from.Traffic() {
		family := families[0]
		if port.IPv6 {
			family = families[1]
		}
		for _, v := range []struct {
			result string
			n      uint64
		}{{"forwarded", t.Connections}, {"refused", t.Refused}} {
			out <- prometheus.MustNewConstMetric(trafficDesc, prometheus.CounterValue, float64(v.n),
				port.Service.Namespace, port.Service.Name, port.Name, port.Protocol.String(), family, v.result)
		}
	}
}
