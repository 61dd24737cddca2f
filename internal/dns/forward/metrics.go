package forward

import (
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/dns/cache"
)

// metrics have CoreDNS' names and labels (plugins cache, forward and proxy), so
// that dashboards for it go on to work. All answers are in one cache, which
// counts for the zone ".".
type metrics struct {
	requests, misses, staleServed, prefetches, rejects, loops, allDown prometheus.Counter

	hitSuccess, hitDenial prometheus.Counter
	exchanges             *prometheus.HistogramVec
	failures              *prometheus.CounterVec
	reused, opened        *prometheus.CounterVec
	// unrelated are answers of servers with nothing that belongs to the question.
	unrelated atomic.Int64
}

// proxyName is what CoreDNS calls whom it asks for plugin forward.
const proxyName = "forward"

// cacheStats reads what a cache has counted.
type cacheStats struct {
	cache                         *cache.Cache
	entries, evictions, malformed *prometheus.Desc
	server                        string
	metrics                       *metrics
}

func newCacheStats(c *cache.Cache, server string, m *metrics) *cacheStats {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &cacheStats{
		cache: c, server: server, metrics: m,
		entries:   desc("coredns_cache_entries", "Answers in the cache.", "server", "type", "zones", "view"),
		evictions: desc("coredns_cache_evictions_total", "Answers that had to make room for others.", "server", "type", "zones", "view"),
		malformed: desc("coredns_cache_drops_total", "Answers that were not kept because they do not fit the question.", "server", "zones", "view"),
	}
}

// Describe implements [prometheus.Collector].
func (c *cacheStats) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.entries
	ch <- c.evictions
	ch <- c.malformed
}

// Collect implements [prometheus.Collector].
func (c *cacheStats) Collect(ch chan<- prometheus.Metric) {
	s := c.cache.Stats()
	for i, kind := range [...]string{"success", "denial"} {
		ch <- prometheus.MustNewConstMetric(c.entries, prometheus.GaugeValue, float64(s.Entries[i]), c.server, kind, ".", "")
		ch <- prometheus.MustNewConstMetric(c.evictions, prometheus.CounterValue, float64(s.Evictions[i]), c.server, kind, ".", "")
	}
	ch <- prometheus.MustNewConstMetric(c.malformed, prometheus.CounterValue, float64(int64(s.Malformed)+c.metrics.unrelated.Load()), c.server, ".", "")
}

func newMetrics(reg prometheus.Registerer, c *cache.Cache, server string) (*metrics, error) {
	var all []prometheus.Collector
	counter := func(name, help string) prometheus.Counter {
		one := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		all = append(all, one)
		return one
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		all = append(all, v)
		return v
	}
	ofCache := func(name, help string) prometheus.Counter {
		return vec(name, help, "server", "zones", "view").WithLabelValues(server, ".", "")
	}
	hits := vec("coredns_cache_hits_total", "Answers from the cache, by type success or denial.", "server", "type", "zones", "view")
	m := &metrics{
		requests:    ofCache("coredns_cache_requests_total", "Questions looked up in the cache."),
		misses:      ofCache("coredns_cache_misses_total", "Questions without an answer in the cache."),
		staleServed: ofCache("coredns_cache_served_stale_total", "Answers past their TTL, given while no upstream answered."),
		prefetches:  ofCache("coredns_cache_prefetch_total", "Answers fetched again before they expired."),
		loops:       counter("fairway_dns_upstream_loops_total", "Upstreams found to lead back here, and not asked any more."),
		rejects:     counter("coredns_forward_max_concurrent_rejects_total", "Questions refused because too many were being asked."),
		allDown:     counter("coredns_forward_healthcheck_broken_total", "Questions asked although all their upstreams were down."),
		hitSuccess:  hits.WithLabelValues(server, "success", ".", ""),
		hitDenial:   hits.WithLabelValues(server, "denial", ".", ""),
		exchanges: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "coredns_proxy_request_duration_seconds", Help: "Time that an upstream took to answer.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16),
		}, []string{"proxy_name", "to", "rcode"}),
		failures: vec("coredns_proxy_healthcheck_failures_total", "Questions that an upstream did not answer.", "proxy_name", "to"),
		reused:   vec("coredns_proxy_conn_cache_hits_total", "Questions asked on a connection that was there.", "proxy_name", "to", "proto"),
		opened:   vec("coredns_proxy_conn_cache_misses_total", "Questions that a connection, or a port, was opened for.", "proxy_name", "to", "proto"),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range append(all, m.exchanges, newCacheStats(c, server, m)) {
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
	name := dns.RcodeToString[rcode]
	if name == "" {
		name = "other" // no upstream may make a time series for each of 4096
	}
	m.exchanges.WithLabelValues(proxyName, to.Addr.String(), name).Observe(d.Seconds())
}

func (m *metrics) failed(to Server) { m.failures.WithLabelValues(proxyName, to.Addr.String()).Inc() }

// connected counts a question by whether a connection was there for it.
func (m *metrics) connected(to Server, proto string, there bool) {
	v := m.opened
	if there {
		v = m.reused
	}
	v.WithLabelValues(proxyName, to.Addr.String(), proto).Inc()
}
