package servicetls

import "github.com/prometheus/client_golang/prometheus"

// The results of a connection, as the metric has them.
const (
	resultServed    = "served"
	resultRefused   = "refused"   // no such Service, no certificate, or over a limit
	resultHandshake = "handshake" // the client's TLS failed
	resultBackend   = "backend"   // no endpoint could be reached
)

type metrics struct {
	connections  *prometheus.CounterVec
	active       prometheus.Gauge
	handshakes   prometheus.Histogram
	dialFailures prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_servicetls_connections_total", Help: "Connections to Services with TLS, by what became of them.",
		}, []string{"result"}),
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairway_servicetls_connections_active", Help: "Connections to Services with TLS that are open.",
		}),
		handshakes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "fairway_servicetls_handshake_duration_seconds", Help: "Time of TLS handshakes with clients.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		dialFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairway_servicetls_dial_failures_total", Help: "Endpoints that could not be reached.",
		}),
	}
	for _, r := range []string{resultServed, resultRefused, resultHandshake, resultBackend} {
		m.connections.WithLabelValues(r)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.connections, m.active, m.handshakes, m.dialFailures} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
