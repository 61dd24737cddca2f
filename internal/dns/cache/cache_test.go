package cache

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

type clock struct{ now time.Time }

func (c *clock) Now() time.Time          { return c.now }
func (c *clock) advance(d time.Duration) { c.now = c.now.Add(d) }

func newCache(t *testing.T, o Options) (*Cache, *clock) {
	t.Helper()
	c := &clock{time.Unix(1e9, 0)}
	o.Now = c.Now
	cache, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return cache, c
}

func message(t *testing.T, rcode int, records ...string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
	if len(records) > 0 && rcode == dns.RcodeSuccess {
		m.Question[0].Name = strings.Fields(records[0])[0]
	}
	m.Response, m.Rcode = true, rcode
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := rr.(*dns.SOA); ok {
			m.Ns = append(m.Ns, rr)
		} else {
			m.Answer = append(m.Answer, rr)
		}
	}
	return m
}

// key is the question for the A records of a name.
func key(name string) Key {
	packed := make([]byte, 256)
	n, err := dns.PackDomainName(name, packed, 0, nil, false)
	if err != nil {
		panic(err)
	}
	return Key{Name: string(packed[:n]), Type: dns.TypeA}
}

// get returns the cache's answer, nil for none.
func get(t *testing.T, c *Cache, k Key) (*dns.Msg, Freshness) {
	t.Helper()
	h := c.Get(k)
	if h.Freshness == Miss {
		return nil, Miss
	}
	m, err := h.Unpack()
	if err != nil {
		t.Fatal(err)
	}
	return m, h.Freshness
}

const soa = "example.com. 600 IN SOA ns. mail. 1 2 3 4 120"

func TestLifetime(t *testing.T) {
	tests := []struct {
		name  string
		opts  Options
		rcode int
		rrs   []string
		want  time.Duration // 0: not stored
	}{
		{"lowest TTL of all records", Options{}, dns.RcodeSuccess, []string{"example.com. 300 IN A 192.0.2.1", "example.com. 60 IN A 192.0.2.2"}, time.Minute},
		{"TTL of the alias counts", Options{}, dns.RcodeSuccess, []string{"example.com. 20 IN CNAME a.", "a. 300 IN A 192.0.2.1"}, 20 * time.Second},
		{"bounded above", Options{Limits: Limits{MaxTTL: 30 * time.Second}}, dns.RcodeSuccess, []string{"example.com. 300 IN A 192.0.2.1"}, 30 * time.Second},
		{"bounded below", Options{Limits: Limits{MinTTL: 7 * time.Second}}, dns.RcodeSuccess, []string{"example.com. 0 IN A 192.0.2.1"}, 7 * time.Second},
		{"TTL 0 is not stored", Options{}, dns.RcodeSuccess, []string{"example.com. 0 IN A 192.0.2.1"}, 0},
		{"NXDOMAIN for the SOA's minimum", Options{}, dns.RcodeNameError, []string{soa}, 2 * time.Minute},
		{"SOA's TTL below its minimum", Options{}, dns.RcodeNameError, []string{"example.com. 30 IN SOA ns. mail. 1 2 3 4 120"}, 30 * time.Second},
		{"NODATA", Options{}, dns.RcodeSuccess, []string{soa}, 2 * time.Minute},
		{"NODATA behind an alias", Options{}, dns.RcodeSuccess, []string{"example.com. 20 IN CNAME a.", soa}, 20 * time.Second},
		{"negative bounded above", Options{Limits: Limits{MaxNegativeTTL: time.Minute}}, dns.RcodeNameError, []string{soa}, time.Minute},
		{"NXDOMAIN without SOA", Options{}, dns.RcodeNameError, nil, 0},
		{"NODATA without SOA", Options{}, dns.RcodeSuccess, []string{"example.com. 20 IN CNAME a."}, 0},
		{"SERVFAIL", Options{}, dns.RcodeServerFailure, []string{soa}, 0},
		{"REFUSED", Options{}, dns.RcodeRefused, []string{soa}, 0},
	}
	k := key("example.com.")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, clk := newCache(t, tt.opts)
			c.Put(k, message(t, tt.rcode, tt.rrs...))
			if tt.want == 0 {
				if _, f := get(t, c, k); f != Miss {
					t.Fatalf("stored, freshness %d", f)
				}
				return
			}
			clk.advance(tt.want - time.Second)
			if _, f := get(t, c, k); f != Fresh && f != Expiring {
				t.Errorf("not fresh a second before its end: %d", f)
			}
			clk.advance(time.Second)
			if _, f := get(t, c, k); f != Stale {
				t.Errorf("not stale at its end: %d", f)
			}
		})
	}
}

func TestTruncatedIsNotStored(t *testing.T) {
	c, _ := newCache(t, Options{})
	m := message(t, dns.RcodeSuccess, "example.com. 300 IN A 192.0.2.1")
	m.Truncated = true
	c.Put(key("example.com."), m)
	if c.Len() != 0 {
		t.Error("stored")
	}
}

func TestTTLCountsDown(t *testing.T) {
	c, clk := newCache(t, Options{})
	k := key("example.com.")
	c.Put(k, message(t, dns.RcodeSuccess, "example.com. 300 IN A 192.0.2.1", "example.com. 60 IN A 192.0.2.2"))
	for range 2 { // the copy given out must not count down for the next
		clk.advance(10 * time.Second)
		m, _ := get(t, c, k)
		m.Answer[1].Header().Ttl = 7
	}
	m, _ := get(t, c, k)
	if got := m.Answer[1].Header().Ttl; got != 40 {
		t.Errorf("TTL after 20 of 60 s: %d", got)
	}
	if got := m.Answer[0].Header().Ttl; got != 40 {
		t.Errorf("TTL above the lifetime of the answer: %d, want 40", got)
	}
}

func TestPrefetchIsWorthIt(t *testing.T) {
	c, clk := newCache(t, Options{})
	k := key("example.com.")
	c.Put(k, message(t, dns.RcodeSuccess, "example.com. 100 IN A 192.0.2.1"))
	clk.advance(91 * time.Second)
	if _, f := get(t, c, k); f != Fresh {
		t.Errorf("used for the first time: %d", f)
	}
	if _, f := get(t, c, k); f != Expiring {
		t.Errorf("used again near its end: %d", f)
	}
}

func TestStale(t *testing.T) {
	c, clk := newCache(t, Options{Limits: Limits{StaleFor: time.Hour}})
	k := key("example.com.")
	c.Put(k, message(t, dns.RcodeSuccess, "example.com. 60 IN A 192.0.2.1"))
	clk.advance(2 * time.Minute)
	m, f := get(t, c, k)
	if f != Stale || m.Answer[0].Header().Ttl != StaleTTL {
		t.Fatalf("freshness %d, TTL %d", f, m.Answer[0].Header().Ttl)
	}
	c.Failed(k)
	if _, f := get(t, c, k); f != StaleForNow {
		t.Errorf("after a failure: %d", f)
	}
	clk.advance(retryAfter)
	if _, f := get(t, c, k); f != Stale {
		t.Errorf("servers must be asked again after a while: %d", f)
	}
	clk.advance(time.Hour)
	if _, f := get(t, c, k); f != Miss || c.Len() != 0 {
		t.Errorf("kept for ever: %d", f)
	}
}

func TestNoStale(t *testing.T) {
	c, clk := newCache(t, Options{Limits: Limits{StaleFor: -1}})
	k := key("example.com.")
	c.Put(k, message(t, dns.RcodeSuccess, "example.com. 60 IN A 192.0.2.1"))
	clk.advance(time.Minute)
	if _, f := get(t, c, k); f != Miss {
		t.Errorf("freshness %d", f)
	}
}

func TestSizeIsBounded(t *testing.T) {
	const limit = 1 << 20
	c, _ := newCache(t, Options{MaxBytes: limit})
	used := key("used.")
	c.Put(used, message(t, dns.RcodeSuccess, "used. 600 IN A 192.0.2.1"))
	for i := range 20000 {
		name := fmt.Sprintf("host-%d.example.com.", i)
		c.Put(key(name), message(t, dns.RcodeSuccess, name+" 600 IN A 192.0.2.1"))
		if _, f := get(t, c, used); f == Miss {
			t.Fatalf("answer in use was dropped after %d others", i)
		}
	}
	if b := c.Bytes(); b > limit || b < limit/2 {
		t.Errorf("%d bytes, limit %d", b, limit)
	}
	if _, f := get(t, c, key("host-0.example.com.")); f != Miss {
		t.Error("oldest answer is still there")
	}
}

func TestReplacingKeepsCount(t *testing.T) {
	c, _ := newCache(t, Options{})
	k := key("example.com.")
	c.Put(k, message(t, dns.RcodeSuccess, "example.com. 60 IN A 192.0.2.1"))
	one := c.Bytes()
	c.Put(k, message(t, dns.RcodeSuccess, "example.com. 60 IN A 192.0.2.2"))
	if c.Len() != 1 || c.Bytes() != one {
		t.Errorf("%d answers, %d bytes, want 1 and %d", c.Len(), c.Bytes(), one)
	}
	m, _ := get(t, c, k)
	if got := m.Answer[0].(*dns.A).A.String(); got != "192.0.2.2" {
		t.Errorf("old answer %s", got)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Options{Limits: Limits{MinTTL: time.Hour, MaxTTL: time.Minute}}); err == nil {
		t.Error("MinTTL above MaxTTL")
	}
}

// What the cache says of its size is what it takes of memory, more or less.
func TestBytesAreReal(t *testing.T) {
	c, err := New(Options{MaxBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	inUse := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := inUse()
	for i := range 40000 {
		name := fmt.Sprintf("host-%d.example.com.", i)
		c.Put(key(name), message(t, dns.RcodeSuccess, name+" 600 IN A 192.0.2.1", name+" 600 IN A 192.0.2.2"))
	}
	took := float64(inUse() - before)
	if says := float64(c.Bytes()); c.Len() != 40000 || took < 0.7*says || took > 1.3*says {
		t.Errorf("%d answers: %.0f bytes in use, the cache says %.0f", c.Len(), took, says)
	}
	runtime.KeepAlive(c)
}

// Owners have the case in which the question is asked; what is no answer to the
// question is not kept.
func TestPutNormalizes(t *testing.T) {
	c, _ := newCache(t, Options{})
	m := message(t, dns.RcodeSuccess, "eXample.Com. 60 IN A 192.0.2.1")
	c.Put(key("example.com."), m)
	if h := c.Get(key("example.com.")); h.Freshness != Fresh || strings.Contains(string(h.Message()), "eXample") {
		t.Errorf("%d, %q", h.Freshness, h.message)
	}
	c.Put(key("example.org."), m)
	if h := c.Get(key("example.org.")); h.Freshness != Miss {
		t.Error("an answer to another question was kept")
	}
}
