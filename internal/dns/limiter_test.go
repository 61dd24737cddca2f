package dns

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

func TestLimiter(t *testing.T) {
	l := newLimiter(10, []netip.Prefix{netip.MustParsePrefix("fd00:244::/48")})
	now := time.Now()
	ask := func(from string, n int) (allowed int) {
		for range n {
			if l.allows(netip.MustParseAddr(from), now) {
				allowed++
			}
		}
		return allowed
	}
	check := func(what string, got, want int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %d queries, want %d", what, got, want)
		}
	}
	check("one second's worth at once", ask("192.0.2.1", 50), 10)
	check("another client", ask("192.0.2.2", 5), 5)
	now = now.Add(300 * time.Millisecond)
	check("after 300 ms", ask("192.0.2.1", 50), 3)
	check("IPv4 mapped is the same client", ask("::ffff:192.0.2.1", 5), 0)
	now = now.Add(time.Hour)
	check("no more than one second's worth is saved up", ask("192.0.2.1", 50), 10)
	check("a /64", ask("2001:db8::1", 50)+ask("2001:db8::2", 50), 10)
	check("Pods of a /64", ask("fd00:244::1", 50)+ask("fd00:244::2", 50), 20)

	// Far more clients than are remembered: one that goes on stays limited.
	for i := range 100000 {
		ask(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String(), 1)
	}
	check("among many others", ask("192.0.2.1", 50), 0)

	if !(*limiter)(nil).allows(client.Addr(), now) || newLimiter(0, nil) != nil {
		t.Error("no limit is a limit")
	}
	if n := testing.AllocsPerRun(100, func() { l.allows(netip.MustParseAddr("fd00:244::9"), now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestClientRate(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := newServer(t, Options{ClientRate: 20, Registerer: reg})
	q := question("web.default.svc.cluster.local.", dns.TypeA)
	answered := 0
	for range 60 {
		if exchange(t, s, q, false) != nil {
			answered++
		}
	}
	if answered < 20 || answered > 50 { // a slow machine answers a few more
		t.Errorf("%d answers by UDP", answered)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := 0.0
	for _, f := range families {
		if f.GetName() == "fairway_dns_rate_limited_total" {
			for _, m := range f.Metric {
				counted += m.GetCounter().GetValue()
			}
		}
	}
	if int(counted) != 60-answered {
		t.Errorf("%v counted, %d without answer", counted, 60-answered)
	}

	// By TCP none is lost.
	run(t, s)
	conn := dialFrom(t, s, "127.0.0.7", false)
	start := time.Now()
	for range 30 {
		ask(t, conn)
	}
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("30 queries took %v", took)
	}
}
