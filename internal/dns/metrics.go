package dns

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// Labels of counts are numbers until somebody asks for the metrics.
const (
	outZone, inZone = 0, 1
	udp, tcp        = 0, 1
	ipv4, ipv6      = 0, 1
)

// typeNames are the types that CoreDNS names; clients must not be able to make
// a time series for each of 65536. The last stands for all others.
var typeNames = [...]string{
	"A", "AAAA", "CNAME", "DNSKEY", "DS", "HTTPS", "MX", "NS", "NSEC", "NSEC3", "PTR", "RRSIG", "SOA", "SRV", "TXT", "ANY", "other",
}

func typeIndex(t uint16) int {
	switch t {
	case dns.TypeA:
		return 0
	case dns.TypeAAAA:
		return 1
	case dns.TypeCNAME:
		return 2
	case dns.TypeDNSKEY:
		return 3
	case dns.TypeDS:
		return 4
	case dns.TypeHTTPS:
		return 5
	case dns.TypeMX:
		return 6
	case dns.TypeNS:
		return 7
	case dns.TypeNSEC:
		return 8
	case dns.TypeNSEC3:
		return 9
	case dns.TypePTR:
		return 10
	case dns.TypeRRSIG:
		return 11
	case dns.TypeSOA:
		return 12
	case dns.TypeSRV:
		return 13
	case dns.TypeTXT:
		return 14
	case dns.TypeANY:
		return 15
	}
	return len(typeNames) - 1
}

// maxRcode bounds the rcodes that are told apart (RFC 6895 section 2.3 assigns 0 to 23).
const maxRcode = 24

var (
	durationBuckets = prometheus.ExponentialBuckets(0.00001, 4, 10) // seconds
	sizeBuckets     = []float64{0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3}
)

// counts are what one socket counts; only its own answers touch them, so that
// counting costs a few nanoseconds.
type counts struct {
	server    string
	requests  [2][2][2][len(typeNames)]atomic.Uint64       // by zone, protocol, family, type
	responses [2][len(plugins)][maxRcode + 1]atomic.Uint64 // by zone, plugin, rcode
	dnssec    [2]atomic.Uint64                             // with the DO bit, by zone
	duration  [2]histogram                                 // by zone; nanoseconds
	asked     [2][2]histogram                              // by zone, protocol; bytes
	answered  [2][2]histogram

	rateLimited, dropped atomic.Uint64
}

// plugins are those of CoreDNS that stand for where an answer is from; none for
// queries that are refused.
var plugins = [...]string{"", "kubernetes", "forward", "cache", "hosts"}

// pluginOf is the place of an origin in plugins.
func pluginOf(origin string) int {
	switch {
	case origin == originZone:
		return 1
	case origin == originCache, origin == originStale:
		return 3
	case origin == originHosts:
		return 4
	case origin == "":
		return 0
	}
	return 2 // upstream with the server
}

type histogram struct {
	buckets [16]atomic.Uint64 // not cumulative; the one behind the last bound is for all above
	sum     atomic.Uint64
}

// sample is one answer.
type sample struct {
	inZone, tcp, do bool
	origin          string
	client          netip.Addr
	qtype           uint16
	rcode           int
	asked, answered int // bytes
}

func (c *counts) add(s sample) {
	z, p, f := number(s.inZone), number(s.tcp), number(s.client.Is6() && !s.client.Is4In6())
	c.requests[z][p][f][typeIndex(s.qtype)].Add(1)
	c.responses[z][pluginOf(s.origin)][min(s.rcode, maxRcode)].Add(1)
	if s.do {
		c.dnssec[z].Add(1)
	}
	c.asked[z][p].addSize(s.asked)
	c.answered[z][p].addSize(s.answered)
}

// took counts the time of n answers of a zone.
func (c *counts) took(z int, d time.Duration, n uint64) {
	d = max(0, d)
	c.duration[z].buckets[durationBucket(d)].Add(n)
	c.duration[z].sum.Add(uint64(d) * n)
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

func durationBucket(d time.Duration) int {
	i := 0
	for bound := 10 * time.Microsecond; d > bound && i < len(durationBuckets); bound *= 4 {
		i++
	}
	return i
}

func (h *histogram) addSize(n int) {
	i := 0
	for i < len(sizeBuckets) && float64(n) > sizeBuckets[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.sum.Add(uint64(n))
}

// metrics have CoreDNS' names and labels, so that dashboards for it go on to
// work. They are the sums of all counts.
type metrics struct {
	zones    [2]string
	panics   prometheus.Counter
	autopath *prometheus.CounterVec

	programming *prometheus.HistogramVec
	health      prometheus.Histogram
	unhealthy   prometheus.Counter

	requests, responses, dnssec, duration, asked, answered, rateLimited, dropped *prometheus.Desc

	mu  sync.Mutex
	all []*counts
}

func newMetrics(reg prometheus.Registerer, domain string, queries *queryLog) (*metrics, error) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	m := &metrics{
		zones: [...]string{outZone: ".", inZone: domain},
		autopath: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coredns_autopath_success_total", Help: "Queries answered with the end of a search path.",
		}, []string{"server"}),
		programming: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "coredns_kubernetes_dns_programming_duration_seconds", Help: "Time from a change of endpoints of a headless Service to answers that have it.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 20),
		}, []string{"service_kind"}),
		health: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "coredns_health_request_duration_seconds", Help: "Time that a question takes which the server asks itself each second.",
			Buckets: prometheus.ExponentialBuckets(0.00001, 4, 10),
		}),
		unhealthy: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "coredns_health_request_failures_total", Help: "Questions to itself that the server did not answer, or with SERVFAIL.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "coredns_panics_total", Help: "Queries whose answering failed by a mistake in the program.",
		}),
		requests:    desc("coredns_dns_requests_total", "DNS queries.", "server", "zone", "view", "proto", "family", "type"),
		responses:   desc("coredns_dns_responses_total", "DNS answers by response code.", "server", "zone", "view", "rcode", "plugin"),
		dnssec:      desc("coredns_dns_do_requests_total", "DNS queries with the DO bit.", "server", "zone", "view"),
		duration:    desc("coredns_dns_request_duration_seconds", "Time to answer a DNS query.", "server", "zone", "view"),
		asked:       desc("coredns_dns_request_size_bytes", "Size of DNS queries.", "server", "zone", "view", "proto"),
		answered:    desc("coredns_dns_response_size_bytes", "Size of DNS answers.", "server", "zone", "view", "proto"),
		rateLimited: desc("fairway_dns_rate_limited_total", "DNS queries of clients that asked more than they may.", "server"),
		dropped:     desc("fairway_dns_answers_dropped_total", "DNS answers that the kernel did not take.", "server"),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.autopath, m.panics, m.programming, m.health, m.unhealthy} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	unlogged := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "fairway_dns_query_log_dropped_total", Help: "DNS queries that the query log had no time for.",
	}, func() float64 {
		if queries == nil {
			return 0
		}
		return float64(queries.dropped.Load())
	})
	if err := reg.Register(unlogged); err != nil {
		return nil, err
	}
	return m, reg.Register(m)
}

// serverLabel is what stands for a server in metrics, as in CoreDNS'.
func serverLabel(server netip.AddrPort) string { return "dns://" + server.String() }

// counts returns new ones, for one socket at the server's address.
func (m *metrics) counts(server netip.AddrPort) *counts {
	c := &counts{server: serverLabel(server)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, c)
	return c
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.requests, m.responses, m.dnssec, m.duration, m.asked, m.answered, m.rateLimited, m.dropped} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector]. Series that never counted are left out.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	byServer := map[string][]*counts{}
	for _, c := range m.all {
		byServer[c.server] = append(byServer[c.server], c)
	}
	m.mu.Unlock()
	for server, all := range byServer {
		c := collection{m, ch, server, all}
		c.counter(m.rateLimited, true, func(c *counts) *atomic.Uint64 { return &c.rateLimited })
		c.counter(m.dropped, true, func(c *counts) *atomic.Uint64 { return &c.dropped })
		for z := range m.zones {
			c.zone(z)
		}
	}
}

// collection is the metrics of one server.
type collection struct {
	*metrics
	ch     chan<- prometheus.Metric
	server string
	all    []*counts
}

func (c collection) zone(z int) {
	for p, plugin := range plugins {
		for rcode := range maxRcode + 1 {
			name := dns.RcodeToString[rcode]
			if name == "" {
				name = "other"
			}
			c.counter(c.responses, false, func(s *counts) *atomic.Uint64 { return &s.responses[z][p][rcode] }, c.zones[z], "", name, plugin)
		}
	}
	c.counter(c.dnssec, false, func(s *counts) *atomic.Uint64 { return &s.dnssec[z] }, c.zones[z], "")
	c.histogram(c.duration, 1e-9, durationBuckets, func(s *counts) *histogram { return &s.duration[z] }, c.zones[z], "")
	for p, proto := range [...]string{udp: "udp", tcp: "tcp"} {
		c.histogram(c.asked, 1, sizeBuckets, func(s *counts) *histogram { return &s.asked[z][p] }, c.zones[z], "", proto)
		c.histogram(c.answered, 1, sizeBuckets, func(s *counts) *histogram { return &s.answered[z][p] }, c.zones[z], "", proto)
		for f, family := range [...]string{ipv4: "1", ipv6: "2"} {
			for t, name := range typeNames {
				c.counter(c.requests, false, func(s *counts) *atomic.Uint64 { return &s.requests[z][p][f][t] }, c.zones[z], "", proto, family, name)
			}
		}
	}
}

func (c collection) counter(d *prometheus.Desc, always bool, of func(*counts) *atomic.Uint64, labels ...string) {
	sum := uint64(0)
	for _, s := range c.all {
		sum += of(s).Load()
	}
	if sum > 0 || always {
		c.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(sum), append([]string{c.server}, labels...)...)
	}
}

func (c collection) histogram(d *prometheus.Desc, unit float64, bounds []float64, of func(*counts) *histogram, labels ...string) {
	buckets, count, sum := map[float64]uint64{}, uint64(0), uint64(0)
	for i := range len(bounds) + 1 {
		for _, s := range c.all {
			count += of(s).buckets[i].Load()
		}
		if i < len(bounds) {
			buckets[bounds[i]] = count
		}
	}
	for _, s := range c.all {
		sum += of(s).sum.Load()
	}
	if count > 0 {
		c.ch <- prometheus.MustNewConstHistogram(d, count, float64(sum)*unit, buckets, append([]string{c.server}, labels...)...)
	}
}
