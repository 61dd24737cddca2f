package forward

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/dns/dnstest"
)

// TestForeignRecordsAreLeftOut: of what an upstream says only that is passed on
// which belongs to the question.
func TestForeignRecordsAreLeftOut(t *testing.T) {
	const sig = " 60 IN RRSIG %s 8 2 60 20300101000000 20200101000000 1 %s AAAA"
	signed := func(owner, kind, signer string) string {
		return owner + strings.Replace(strings.Replace(sig, "%s", kind, 1), "%s", signer, 1)
	}
	for name, tt := range map[string]struct {
		qtype             uint16
		answer, ns, extra []string
		want              string // owners and types of all sections
		servfail          bool
	}{
		"good":                    {answer: []string{"www.example.com. 60 IN A 192.0.2.1"}, want: "www.example.com. A||"},
		"another name":            {answer: []string{"other.test. 60 IN A 192.0.2.6"}, servfail: true},
		"another name besides":    {answer: []string{"www.example.com. 60 IN A 192.0.2.1", "other.test. 60 IN A 192.0.2.6"}, want: "www.example.com. A||"},
		"another class":           {answer: []string{"www.example.com. 60 CH TXT a"}, servfail: true},
		"another class besides":   {answer: []string{"www.example.com. 60 IN A 192.0.2.1", "www.example.com. 60 CH TXT a"}, want: "www.example.com. A||"},
		"aliases in any order":    {answer: []string{"c.test. 60 IN A 192.0.2.1", "B.test. 60 IN CNAME c.test.", "www.Example.com. 60 IN CNAME b.test."}, want: "c.test. A B.test. CNAME www.example.com. CNAME||"},
		"an alias into our zone":  {answer: []string{"www.example.com. 60 IN CNAME web.t.svc.cluster.local.", "web.t.svc.cluster.local. 60 IN A 192.0.2.6"}, want: "www.example.com. CNAME||"},
		"through our zone":        {answer: []string{"www.example.com. 60 IN CNAME web.t.svc.cluster.local.", "web.t.svc.cluster.local. 60 IN CNAME x.test.", "x.test. 60 IN A 192.0.2.6"}, want: "www.example.com. CNAME||"},
		"an alias in circles":     {answer: []string{"www.example.com. 60 IN CNAME b.test.", "b.test. 60 IN CNAME www.example.com."}, want: "www.example.com. CNAME b.test. CNAME||"},
		"a DNAME":                 {answer: []string{"example.com. 60 IN DNAME example.net.", signed("example.com.", "DNAME", "example.com."), "example.com. 60 IN A 192.0.2.6", "www.example.com. 60 IN CNAME www.example.net.", "www.example.net. 60 IN A 192.0.2.1"}, want: "example.com. DNAME example.com. RRSIG www.example.com. CNAME www.example.net. A||"},
		"a DNAME by itself":       {answer: []string{"com. 60 IN DNAME net.", "www.example.net. 60 IN A 192.0.2.1"}, want: "com. DNAME www.example.net. A||"},
		"a DNAME beside":          {answer: []string{"www.example.com. 60 IN A 192.0.2.1", "example.org. 60 IN DNAME net."}, want: "www.example.com. A||"},
		"signatures":              {answer: []string{"www.example.com. 60 IN A 192.0.2.1", signed("www.example.com.", "A", "example.com."), signed("other.test.", "A", "test.")}, want: "www.example.com. A www.example.com. RRSIG||"},
		"an alias that is wanted": {qtype: dns.TypeCNAME, answer: []string{"www.example.com. 60 IN CNAME b.test.", "b.test. 60 IN CNAME c.test."}, want: "www.example.com. CNAME||"},
		"zones": {ns: []string{"example.com. 60 IN SOA a. b. 1 2 3 4 5", "com. 60 IN NS ns.com.", "other.test. 60 IN NS ns.test.", "a.www.example.com. 60 IN NS ns.test.", "example.com. 60 IN TXT a", "example.com. 60 CH NS ns.com.", signed("example.com.", "SOA", "example.com.")},
			want: "|example.com. SOA com. NS example.com. RRSIG|"},
		"the zone of an alias": {answer: []string{"www.example.com. 60 IN CNAME a.b.test."}, ns: []string{"b.test. 60 IN SOA a. b. 1 2 3 4 5"}, want: "www.example.com. CNAME|b.test. SOA|"},
		"proofs": {ns: []string{"a.example.com. 60 IN NSEC z.example.com. A", signed("a.example.com.", "NSEC", "example.com."), "b.example.com. 60 IN NSEC z.example.com. A", "a.test. 60 IN NSEC z.test. A", signed("a.test.", "NSEC", "test.")},
			want: "|a.example.com. NSEC a.example.com. RRSIG|"},
		"hosts": {qtype: dns.TypeMX, answer: []string{"www.example.com. 60 IN MX 1 Mail.test.", "www.example.com. 60 IN MX 1 web.t.svc.cluster.local."}, extra: []string{"mail.test. 60 IN A 192.0.2.1", "mail.test. 60 IN TXT a", "mail.test. 60 CH A 192.0.2.6", "other.test. 60 IN A 192.0.2.6", "web.t.svc.cluster.local. 60 IN A 192.0.2.6"},
			want: "www.example.com. MX www.example.com. MX||mail.test. A"},
	} {
		t.Run(name, func(t *testing.T) {
			up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
				return dnstest.Reply(t, q, func(m *dns.Msg) {
					m.Answer, m.Ns, m.Extra = records(t, tt.answer), records(t, tt.ns), records(t, tt.extra)
				})
			})
			f, _ := newForwarder(t, Options{Own: func(name string) bool { return dns.IsSubDomain("cluster.local.", name) }}, up)
			q := Query{Name: "www.example.com.", Type: dns.TypeA}
			if tt.qtype != 0 {
				q.Type = tt.qtype
			}
			for _, when := range []string{"asked", "remembered"} {
				m, _, err := f.Resolve(t.Context(), q)
				if err != nil {
					t.Fatal(err)
				}
				if tt.servfail {
					if m.Rcode != dns.RcodeServerFailure || len(m.Answer) > 0 {
						t.Errorf("%s: %v", when, m)
					}
					continue
				}
				if got := owners(m.Answer) + "|" + owners(m.Ns) + "|" + owners(m.Extra); m.Rcode != dns.RcodeSuccess || got != tt.want {
					t.Errorf("%s: %s, want %s", when, got, tt.want)
				}
			}
		})
	}
}

func records(t *testing.T, list []string) []dns.RR {
	var out []dns.RR
	for _, text := range list {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		out = append(out, rr)
	}
	return out
}

func owners(list []dns.RR) string {
	var out []string
	for _, rr := range list {
		out = append(out, rr.Header().Name+" "+dns.TypeToString[rr.Header().Rrtype])
	}
	return strings.Join(out, " ")
}

// TestLiarsAreAskedNoFurther: where one server says nothing that belongs to the
// question, or counts what is not there, the next is asked.
func TestLiarsAreAskedNoFurther(t *testing.T) {
	good := dnstest.New(t, says(t, record))
	counts := func(at int) dnstest.Handler {
		return func(q *dns.Msg, _ string) [][]byte {
			packed := slices.Clone(dnstest.Reply(t, q, nil, record)[0])
			binary.BigEndian.PutUint16(packed[at:], 9)
			return [][]byte{packed}
		}
	}
	fewer := func(q *dns.Msg, _ string) [][]byte {
		packed := slices.Clone(dnstest.Reply(t, q, func(m *dns.Msg) { m.Ns, m.Extra = nil, nil }, record, record)[0])
		binary.BigEndian.PutUint16(packed[6:], 1)
		return [][]byte{packed}
	}
	junk := func(q *dns.Msg, _ string) [][]byte {
		return [][]byte{append(slices.Clone(dnstest.Reply(t, q, nil, record)[0]), 0, 1, 2)}
	}
	for name, h := range map[string]dnstest.Handler{
		"fewer answers counted": fewer, "something behind the answer": junk, "another name": says(t, "other.test. 60 IN A 192.0.2.6"), "answers counted": counts(6), "authority counted": counts(8), "additional counted": counts(10),
	} {
		bad := dnstest.New(t, h)
		f, _ := newForwarder(t, Options{}, bad, good)
		if got := answer(t, f, query); !strings.HasSuffix(got, "192.0.2.1") || good.UDP.Swap(0) != 1 {
			t.Errorf("%s: %s", name, got)
		}
		reg := prometheus.NewRegistry()
		reg.MustRegister(newCacheStats(f.opts.Cache, "", f.metrics))
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		drops := 0.0
		for _, family := range families {
			if family.GetName() == "coredns_cache_drops_total" {
				drops = family.GetMetric()[0].GetCounter().GetValue()
			}
		}
		if (drops == 1) != (name == "another name") {
			t.Errorf("%s: %v answers dropped", name, drops)
		}
		tcp, _ := newForwarder(t, Options{}, bad)
		if err := tcp.Configure([]Domain{{Name: ".", Groups: []Group{{From: ".", NodeServers: false, Servers: []Server{{Addr: bad.Addr}}, TCP: true}}}}); err != nil {
			t.Fatal(err)
		}
		if m, _, err := tcp.Resolve(t.Context(), query); err == nil && m.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s, by TCP: %v", name, m)
		}
	}
}
