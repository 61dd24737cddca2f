package forward

import (
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/dns/cache"
)

// metrics have CoreDNS' names (plugins cache, forward and proxy), so that
// dashboards for it go on to work.
type metrics struct {
	requests, misses, staleServed, prefetches, rejects, loops prometheus.Counter

	hitSuccess, hitDenial prometheus.Counter
	exchanges             *prometheus.HistogramVec
	failures              *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, c *cache.Cache) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	hits := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "coredns_cache_hits_total", Help: "Answers from the cache, by type success or denial.",
	}, []string{"type"})
	m := &metrics{
		requests:    counter("coredns_cache_requests_total", "Questions looked up in the cache."),
		misses:      counter("coredns_cache_misses_total", "Questions without an answer in the cache."),
		staleServed: counter("coredns_cache_served_stale_total", "Answers past their TTL, given while no upstream answered."),
		prefetches:  counter("coredns_cache_prefetch_total", "Answers fetched again before they expired."),
		loops:       counter("fairway_dns_upstream_loops_total", "Upstreams found to lead back here, and not asked any more."),
		rejects:     counter("coredns_forward_max_concurrent_rejects_total", "Questions refused because too many were being asked."),
		hitSuccess:  hits.WithLabelValues("success"),
		hitDenial:   hits.WithLabelValues("denial"),
		exchanges: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "coredns_proxy_request_duration_seconds", Help: "Time that an upstream took to answer.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 14),
		}, []string{"to", "rcode"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coredns_proxy_healthcheck_failures_total", Help: "Questions that an upstream did not answer.",
		}, []string{"to"}),
	}
	if reg == nil {
		return m, nil
	}
	entries := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "coredns_cache_entries", Help: "Answers in the cache.",
	}, func() float64 { return float64(c.Len()) })
	for _, c := range []prometheus.Collector{
		m.requests, m.misses, m.staleServed, m.prefetches, m.rejects, m.loops, hits, m.exchanges, m.failures, entries,
	} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) lookup(hit *cache.Hit) {
	m.requests.Inc()
	switch f := hit.Freshness; {
	case f == cache.Miss || f == cache.Stale:
		m.misses.Inc()
	case f == cache.StaleForNow:
		m.staleServed.Inc()
	case hit.Denial():
		m.hitDenial.Inc()
	default:
		m.hitSuccess.Inc()
	}
}

func (m *metrics) exchanged(to Server, rcode int, d time.Duration) {
	m.exchanges.WithLabelValues(to.String(), dns.RcodeToString[rcode]).Observe(d.Seconds())
}
