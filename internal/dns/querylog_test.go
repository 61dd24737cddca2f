package dns

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/testenv"
)

func TestParseQueryLog(t *testing.T) {
	for text, want := range map[string]QueryLog{
		"": {}, "off": {}, "errors": {Errors: true}, "all": {Errors: true, Percent: 100}, "0.5%": {Errors: true, Percent: 0.5}, "100%": {Errors: true, Percent: 100},
	} {
		if got, err := ParseQueryLog(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"on", "5", "%", "0%", "-1%", "101%", "NaN%"} {
		if got, err := ParseQueryLog(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// newLoggingServer is newServer with a query log that the test reads.
func newLoggingServer(t *testing.T, o QueryLog, upstreams ...netip.AddrPort) (*Server, *testenv.Log) {
	t.Helper()
	s := newServer(t, Options{Upstreams: forward.Plain(upstreams...)})
	log := &testenv.Log{}
	s.handler.queries = newQueryLog(o, slog.New(slog.NewJSONHandler(log, nil)))
	return s, log
}

func TestQueryLog(t *testing.T) {
	up := outside(t)
	for _, tt := range []struct {
		log  QueryLog
		want string // what is logged of the queries below, without client and duration
	}{
		{QueryLog{Errors: true, Percent: 100}, `
			web.default.svc.cluster.local. A udp NOERROR zone
			web.default.svc.cluster.local. A tcp NOERROR zone
			nothing.default.svc.cluster.local. A udp NXDOMAIN zone
			www.example.com. A udp NOERROR upstream ` + up.Addr.String() + `
			www.example.com. A udp NOERROR cache
			out.default.svc.cluster.local. A udp NOERROR cache
			cluster.local. AXFR udp REFUSED none
			web.default.svc.cluster.local. A udp BADVERS none`},
		{QueryLog{Errors: true}, `
			cluster.local. AXFR udp REFUSED none
			web.default.svc.cluster.local. A udp BADVERS none`},
		{QueryLog{}, ""},
	} {
		s, log := newLoggingServer(t, tt.log, up.Addr)
		badVersion := question("web.default.svc.cluster.local.", dns.TypeA).SetEdns0(1232, false)
		badVersion.IsEdns0().SetVersion(1)
		exchange(t, s, question("WEB.default.svc.cluster.local.", dns.TypeA), false)
		exchange(t, s, question("web.default.svc.cluster.local.", dns.TypeA), true)
		exchange(t, s, question("nothing.default.svc.cluster.local.", dns.TypeA), false)
		exchange(t, s, question("wwW.example.com.", dns.TypeA), false)
		exchange(t, s, question("www.example.com.", dns.TypeA), false)
		exchange(t, s, question("out.default.svc.cluster.local.", dns.TypeA), false)
		exchange(t, s, question("cluster.local.", dns.TypeAXFR), false)
		exchange(t, s, badVersion, false)
		if q := s.handler.queries; q != nil {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			q.run(ctx)
		}
		var got []string
		for line := range strings.Lines(log.String()) {
			var l struct {
				Msg, Client, Name, Type, Protocol, Rcode, Source string
				Duration                                         time.Duration
			}
			if err := json.Unmarshal([]byte(line), &l); err != nil || l.Msg != "DNS query" || l.Client != client.String() || l.Duration <= 0 {
				t.Errorf("%v: %s", err, line)
			}
			got = append(got, strings.Join([]string{l.Name, l.Type, l.Protocol, l.Rcode, l.Source}, " "))
		}
		if got, want := strings.Join(got, "\n"), strings.ReplaceAll(strings.TrimSpace(tt.want), "\t", ""); got != want {
			t.Errorf("%+v logs\n%s\nwant\n%s", tt.log, got, want)
		}
	}
}

// A log that cannot keep up costs lines, which are counted, and never answers.
func TestQueryLogNeverBlocks(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := newServer(t, Options{Registerer: reg, QueryLog: QueryLog{Percent: 100}}) // nobody runs it
	const more = 10
	for range queryLogBacklog + more {
		exchange(t, s, question("web.default.svc.cluster.local.", dns.TypeA), false)
	}
	if got := metric(t, reg, "fairway_dns_query_log_dropped_total"); got != more {
		t.Errorf("%v queries counted as dropped, want %d", got, more)
	}
}

func TestQueryLogSamples(t *testing.T) {
	s, _ := newLoggingServer(t, QueryLog{Errors: true, Percent: 10})
	for range 5000 {
		exchange(t, s, question("web.default.svc.cluster.local.", dns.TypeA), false)
	}
	if n := len(s.handler.queries.backlog); n < 300 || n > 700 {
		t.Errorf("%d of 5000 queries, want 10%%", n)
	}
}

// Clients on the node that ask for it are told where the answer is from; nobody else is.
func TestOriginIsTold(t *testing.T) {
	up := outside(t)
	s := newServer(t, Options{Upstreams: forward.Plain(up.Addr)})
	for _, tt := range []struct{ name, want string }{
		{"web.default.svc.cluster.local.", "zone"},
		{"www.example.com.", "upstream " + up.Addr.String()},
		{"www.example.com.", "cache"},
		{"many.example.com.", "upstream " + up.Addr.String()},
		{"many.example.com.", "cache"}, // and cut
		{"out.default.svc.cluster.local.", "cache"},
	} {
		for _, ask := range []bool{true, false} {
			q := question(tt.name, dns.TypeA).SetEdns0(1232, false)
			if ask {
				q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: wire.OptionExplain}}
			}
			got := "none"
			m := exchange(t, s, q, false)
			for _, o := range m.IsEdns0().Option {
				if l, ok := o.(*dns.EDNS0_LOCAL); ok && l.Code == wire.OptionExplain {
					got = string(l.Data)
				}
			}
			want := tt.want
			if !ask {
				want = "none"
			}
			if got != want {
				t.Errorf("%s, asked %v: %q, want %q", tt.name, ask, got, want)
			}
		}
	}
}

// Whom the server asks is told on the node only.
func TestOriginIsToldOnTheNodeOnly(t *testing.T) {
	up := outside(t)
	s := newServer(t, Options{Upstreams: forward.Plain(up.Addr)})
	for _, name := range []string{"web.default.svc.cluster.local.", "www.example.com.", "many.example.com.", "out.default.svc.cluster.local."} {
		q := question(name, dns.TypeA).SetEdns0(1232, false)
		q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: wire.OptionExplain}}
		packed, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		for from, told := range askers(t) {
			for _, tcp := range []bool{false, true} {
				m := new(dns.Msg)
				if err := m.Unpack(answerTo(t, s, packed, from, tcp)); err != nil {
					t.Fatal(err)
				}
				if n := len(m.IsEdns0().Option); (n > 0) != told || len(m.Answer) == 0 && !m.Truncated {
					t.Errorf("%s, from %s: %d options, %d records", name, from, n, len(m.Answer))
				}
			}
		}
	}
}

// askers are addresses of clients, and whether they are on this machine.
func askers(t *testing.T) map[netip.AddrPort]bool {
	t.Helper()
	list := map[netip.AddrPort]bool{}
	for addr, told := range map[string]bool{
		"127.0.0.1": true, "127.3.4.5": true, "::1": true, "::ffff:127.0.0.1": true,
		"10.244.0.9": false, "192.0.2.9": false, "2001:db8::9": false, "fe80::9%eth0": false, "::ffff:192.0.2.9": false,
	} {
		list[netip.AddrPortFrom(netip.MustParseAddr(addr), 4242)] = told
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			list[netip.AddrPortFrom(p.Addr(), 4242)] = true
		}
	}
	return list
}
