package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/gateway/shed"
	"fairway.dev/fairway/internal/gateway/tracing"
	"fairway.dev/fairway/internal/gateway/upstream"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// metrics are documented in docs/features/ingress.md. No label holds what a
// client can choose: host names and paths would grow without bound.
type metrics struct {
	requests    *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	failures    *prometheus.CounterVec
	connections *prometheus.CounterVec
	refused     *prometheus.CounterVec
	ended       *prometheus.CounterVec
	shed        prometheus.Counter
	shedding    prometheus.GaugeFunc
	memory      prometheus.GaugeFunc
	inFlight    prometheus.Gauge
	reloads     prometheus.Counter
	rules       prometheus.Gauge
	checks      *prometheus.CounterVec
	limits      *prometheus.CounterVec
	proofs      *prometheus.CounterVec

	refusedForLimit, refusedForMemory, refusedSession prometheus.Counter
}

func newMetrics(r prometheus.Registerer, shedder *shed.Shedder, held, unacked *shed.Held, tracer *tracing.Tracer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fairway_gateway_requests_total",
			Help: "HTTP requests, by the route that took them (empty for none)."}, []string{"namespace", "route", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "fairway_gateway_request_duration_seconds",
			Help:    "Time from a request's header to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}}, []string{"namespace", "route"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fairway_gateway_upstream_failures_total",
			Help: "Failures at backends: connect for each endpoint that could not be connected to, tls for each with which TLS came to nothing, else the code that the client got."}, []string{"namespace", "service", "reason"}),
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fairway_gateway_stream_connections_total",
			Help: "TCP connections and UDP sessions that ended."}, []string{"namespace", "route", "protocol", "result"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fairway_gateway_connections_refused_total",
			Help: "Connections closed at once: client_limit if their client had as many as it may, memory if memory was short; and datagrams left out: udp_client_limit if their client had as many sessions as it may."}, []string{"reason"}),
		checks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fairway_gateway_health_checks_total",
			Help: "Health checks of endpoints."}, []string{"namespace", "service", "result"}),
		limits: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fairway_gateway_upstream_limited_total",
			Help: "Requests that got 503, and connections that were reset, since their Service had as much under way as it may."}, []string{"namespace", "service", "limit"}),
		proofs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fairway_gateway_ocsp_fetches_total",
			Help: "Questions to OCSP responders of certificates."}, []string{"result"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fairway_gateway_connections_ended_total",
			Help: "HTTP/2 and HTTP/3 connections ended because their client made work for nothing."}, []string{"reason"}),
		shed: prometheus.NewCounter(prometheus.CounterOpts{Name: "fairway_gateway_requests_shed_total",
			Help: "Requests that got 503 because memory was short."}),
		shedding: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "fairway_gateway_shedding",
			Help: "1 while memory is short and new requests get 503."}, func() float64 {
			if shedder.Active() {
				return 1
			}
			return 0
		}),
		memory: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "fairway_gateway_memory_share",
			Help: "Share of the memory limit in use; 0 where there is no limit."}, shedder.Share),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "fairway_gateway_requests_in_flight", Help: "HTTP requests under way."}),
		reloads:  prometheus.NewCounter(prometheus.CounterOpts{Name: "fairway_gateway_route_changes_total", Help: "How often changed routes were taken in."}),
		rules:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "fairway_gateway_rules", Help: "Rules that can get requests."}),
	}
	m.refusedSession = m.refused.WithLabelValues("udp_client_limit")
	m.refusedForLimit, m.refusedForMemory = m.refused.WithLabelValues("client_limit"), m.refused.WithLabelValues("memory")
	if r == nil {
		return m, nil
	}
	for result, count := range map[string]func() uint64{"sent": tracer.Sent, "failed": tracer.Failed} {
		if tracer == nil {
			break
		}
		if err := r.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "fairway_gateway_spans_total", Help: "Spans of traces that were to be sent.",
			ConstLabels: prometheus.Labels{"result": result}}, func() float64 { return float64(count()) })); err != nil {
			return nil, fmt.Errorf("register gateway metrics: %w", err)
		}
	}
	bodies := [...]prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "fairway_gateway_unacknowledged_bytes",
			Help: "Bytes of answers by HTTP/3 that clients may not have acknowledged, above 64 KiB of each."}, func() float64 { return float64(unacked.Bytes()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "fairway_gateway_bodies_held_bytes",
			Help: "Bytes of bodies by HTTP/2 that wait for their client or backend to take them."}, func() float64 { return float64(held.Bytes()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "fairway_gateway_requests_cut_total",
			Help: "Requests by HTTP/2 ended because too much of such bodies waited."}, func() float64 { return float64(held.Cut()) }),
	}
	for _, c := range []prometheus.Collector{bodies[0], bodies[1], bodies[2], m.requests, m.duration, m.failures, m.connections, m.refused, m.ended, m.shed, m.shedding, m.memory, m.inFlight, m.reloads, m.rules, m.checks, m.limits, m.proofs} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register gateway metrics: %w", err)
		}
	}
	return m, nil
}

// flooded counts a connection that was ended for what its client did.
func (m *metrics) flooded(reason string) { m.ended.WithLabelValues(reason).Inc() }

func (m *metrics) reloaded(rules int) {
	m.reloads.Inc()
	m.rules.Set(float64(rules))
}

// request counts a request that is done. Looking series up by their labels
// would cost more than the rest of what the gateway does for a small request,
// so those of a rule stand beside it.
func (m *metrics) request(t *transaction, code int, took time.Duration) {
	method := methodLabel(t.view.Method)
	if t.site == nil {
		m.requests.WithLabelValues("", "", method, strconv.Itoa(code)).Inc()
		m.duration.WithLabelValues("", "").Observe(took.Seconds())
		return
	}
	route := t.rule.Ref().Key
	// A route that went meanwhile must not get its series back.
	if now := t.g.config.Load(); now != t.config {
		if _, ok := now.live[route]; !ok {
			route = model.Key{}
		}
	}
	t.site.series.get(m, route, method, code).observe(took)
}

// series are the metrics of a rule that have been in use.
type series struct{ list atomic.Pointer[[]*counted] }

// counted are the metrics of one sort of request.
type counted struct {
	route    model.Key
	method   string
	code     int
	requests prometheus.Counter
	duration prometheus.Observer
}

func (c *counted) observe(took time.Duration) {
	c.requests.Inc()
	c.duration.Observe(took.Seconds())
}

// get finds the metrics of a sort, of which a rule has few.
func (s *series) get(m *metrics, route model.Key, method string, code int) *counted {
	list := s.list.Load()
	if list != nil {
		for _, c := range *list {
			if c.code == code && c.method == method && c.route == route {
				return c
			}
		}
	}
	c := &counted{route, method, code, m.requests.WithLabelValues(route.Namespace, route.Name, method, strconv.Itoa(code)),
		m.duration.WithLabelValues(route.Namespace, route.Name)}
	if list == nil {
		s.list.CompareAndSwap(nil, &[]*counted{c})
	} else if longer := append(slices.Clip(*list), c); len(longer) <= maxSeries {
		s.list.CompareAndSwap(list, &longer) // whoever lost adds it with the next request
	}
	return c
}

// maxSeries bounds what is looked through for each request: backends can answer
// with any code.
const maxSeries = 32

// methodLabel bounds what clients can make up. It returns its own text, for
// what it is given may be a view.
func methodLabel(method string) string {
	for _, known := range [...]string{http.MethodGet, http.MethodPost, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodPatch,
		http.MethodOptions, http.MethodConnect, http.MethodTrace} {
		if method == known {
			return known
		}
	}
	return "OTHER"
}

func (m *metrics) endpointFailed(k upstream.Key, why, _ string) {
	m.failures.WithLabelValues(k.Service.Namespace, k.Service.Name, why).Inc()
}

func (m *metrics) checked(k upstream.Key, _ string, err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.checks.WithLabelValues(k.Service.Namespace, k.Service.Name, result).Inc()
}

// watch has the state of pools told when metrics are asked for.
func (m *metrics) watch(r prometheus.Registerer, pools *upstream.Set) error {
	if r == nil {
		return nil
	}
	if err := r.Register(endpointsOut{pools}); err != nil {
		return fmt.Errorf("register gateway metrics: %w", err)
	}
	return nil
}

// endpointsOut tells how many endpoints get no requests. Where all do there is
// no series: most clusters have thousands of these for each that is not well.
type endpointsOut struct{ pools *upstream.Set }

var endpointsOutDesc = prometheus.NewDesc("fairway_gateway_endpoints_out", "Endpoints that get no requests now: ejected for what they did, or unhealthy as health checks say.",
	[]string{"namespace", "service", "port", "reason"}, nil)

// Describe implements prometheus.Collector.
func (endpointsOut) Describe(ch chan<- *prometheus.Desc) { ch <- endpointsOutDesc }

// Collect implements prometheus.Collector.
func (c endpointsOut) Collect(ch chan<- prometheus.Metric) {
	for k, out := range c.pools.Out() {
		for reason, n := range map[string]int{"ejected": out.Ejected, "unhealthy": out.Unhealthy} {
			if n > 0 {
				ch <- prometheus.MustNewConstMetric(endpointsOutDesc, prometheus.GaugeValue, float64(n),
					k.Service.Namespace, k.Service.Name, k.PortText(), reason)
			}
		}
	}
}

func (m *metrics) proofFetched(err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.proofs.WithLabelValues(result).Inc()
}

func (m *metrics) limited(e *upstream.LimitError) {
	m.limits.WithLabelValues(e.Service.Namespace, e.Service.Name, e.Limit).Inc()
}

func (m *metrics) upstreamFailed(svc model.Key, status int) {
	m.failures.WithLabelValues(svc.Namespace, svc.Name, strconv.Itoa(status)).Inc()
}

func (m *metrics) connectionEnded(r *model.StreamRoute, err error) {
	result := "ok"
	var limit *upstream.LimitError
	switch {
	case errors.As(err, &limit):
		m.limited(limit)
		result = "limited"
	case errors.Is(err, upstream.ErrNoEndpoints), errors.Is(err, upstream.ErrNoService), errors.Is(err, upstream.ErrNoPort):
		result = "no_endpoint"
	case err != nil:
		result = "connect_failed"
	}
	m.connections.WithLabelValues(r.Namespace, r.Name, r.Protocol.String(), result).Inc()
}

// forget drops the series of objects that are gone.
func (m *metrics) forget(prev, next *state.Snapshot) {
	for d := range state.Diff(prev.Routes, next.Routes) {
		if !d.HasNew {
			m.forgetRoute(d.Key)
		}
	}
	for d := range state.Diff(prev.Streams, next.Streams) {
		if !d.HasNew {
			m.forgetRoute(d.Key)
		}
	}
	for d := range state.Diff(prev.Services, next.Services) {
		if !d.HasNew {
			m.forgetService(d.Key)
		}
	}
}

func (m *metrics) forgetRoute(ref model.Ref) {
	labels := prometheus.Labels{"namespace": ref.Namespace, "route": ref.Name}
	m.requests.DeletePartialMatch(labels)
	m.duration.DeletePartialMatch(labels)
	m.connections.DeletePartialMatch(labels)
}

func (m *metrics) forgetService(k model.Key) {
	labels := prometheus.Labels{"namespace": k.Namespace, "service": k.Name}
	m.failures.DeletePartialMatch(labels)
	m.checks.DeletePartialMatch(labels)
	m.limits.DeletePartialMatch(labels)
}
