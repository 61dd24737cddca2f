package dns

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/dns/dnstest"
	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

const many = 300

// cluster has a Service with cluster IPs, a headless one with many endpoints,
// a StatefulSet's and aliases.
func cluster() *state.Store {
	s := state.New()
	port := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}
	key := func(name string) model.Key { return model.Key{Namespace: "default", Name: name} }
	s.Update(func(tx *state.Tx) {
		tx.PutNamespace(&model.Namespace{Name: "default"})
		tx.PutService(&model.Service{
			Key: key("web"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20"), netip.MustParseAddr("fd00:96::20")},
			Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}},
		})
		tx.PutService(&model.Service{Key: key("crowd"), Headless: true})
		tx.PutService(&model.Service{Key: key("db"), Headless: true})
		tx.PutService(&model.Service{Key: key("out"), Type: model.ExternalName, ExternalName: "www.example.com"})
		var crowd []model.Endpoint
		for i := range many {
			crowd = append(crowd, model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, byte(i / 200), byte(i % 200)}), Ready: true, Ports: port})
		}
		tx.PutSlice(&model.EndpointSlice{Key: key("crowd-1"), Service: key("crowd"), Endpoints: crowd})
		tx.PutSlice(&model.EndpointSlice{Key: key("db-1"), Service: key("db"), Endpoints: []model.Endpoint{
			{Addr: netip.MustParseAddr("10.244.9.1"), Ready: true, Hostname: "db-0", Ports: port},
		}})
		tx.SetSynced()
	})
	return s
}

func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Store == nil {
		o.Store = cluster()
	}
	if o.Listen == nil {
		o.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	}
	if o.Upstreams == nil && o.ResolvConf == "" {
		o.ResolvConf = "/nonexistent"
	}
	o.Logger = slog.New(slog.DiscardHandler)
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.zone.Update(o.Store.Snapshot())
	return s
}

var (
	local  = netip.MustParseAddrPort("127.0.0.1:53")
	client = netip.MustParseAddrPort("127.0.0.1:4242")
)

// exchange hands a query to the handler and returns the answer; nil for none.
func exchange(t testing.TB, s *Server, q *dns.Msg, tcp bool) *dns.Msg {
	t.Helper()
	packed, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return exchangeRaw(t, s, packed, tcp)
}

func exchangeRaw(t testing.TB, s *Server, packed []byte, tcp bool) *dns.Msg {
	t.Helper()
	answer := answerTo(t, s, packed, client, tcp)
	if answer == nil {
		return nil
	}
	m := new(dns.Msg)
	if err := m.Unpack(answer); err != nil {
		t.Fatalf("answer %x: %v", answer, err)
	}
	return m
}

// answerTo hands a packed query to the handler.
func answerTo(t testing.TB, s *Server, packed []byte, from netip.AddrPort, tcp bool) []byte {
	t.Helper()
	answer, rest := begin(s, packed, from, tcp)
	if rest != nil {
		answer = rest(t.Context())
	}
	return answer
}

func begin(s *Server, packed []byte, from netip.AddrPort, tcp bool) ([]byte, later) {
	w := s.handler.newWorker(local, tcp, s.handler.metrics.counts(local))
	w.client, w.start = from, time.Now()
	answer, rest := s.handler.begin(w, packed, nil)
	w.settle(time.Now())
	return answer, rest
}

func question(name string, qtype uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, qtype) }

func TestHeader(t *testing.T) {
	s := newServer(t, Options{})
	q := question("wEb.default.svc.cluster.LOCAL.", dns.TypeA)
	q.Id, q.CheckingDisabled = 4711, true
	m := exchange(t, s, q, false)
	switch {
	case m.Id != 4711 || !m.Response || !m.Authoritative || !m.RecursionDesired || !m.RecursionAvailable || m.AuthenticatedData || !m.CheckingDisabled:
		t.Errorf("header %v", m.MsgHdr)
	case m.Question[0] != q.Question[0] || m.Answer[0].Header().Name != q.Question[0].Name:
		t.Errorf("case is not kept: %v", m)
	case m.IsEdns0() != nil:
		t.Error("EDNS to a client that does not speak it")
	}
	q.RecursionDesired = false
	if m := exchange(t, s, q, false); m.RecursionDesired {
		t.Error("RD is not the client's")
	}
}

func TestEDNS(t *testing.T) {
	s := newServer(t, Options{})
	q := question("web.default.svc.cluster.local.", dns.TypeA)
	q.SetEdns0(4096, true)
	opt := exchange(t, s, q, false).IsEdns0()
	if opt == nil || !opt.Do() || opt.UDPSize() != 1232 || opt.Version() != 0 {
		t.Errorf("OPT %v", opt)
	}
	q.SetEdns0(4096, false)
	q.Extra = q.Extra[1:]
	if opt := exchange(t, s, q, false).IsEdns0(); opt == nil || opt.Do() {
		t.Errorf("OPT %v", opt)
	}
	q.IsEdns0().SetVersion(1)
	m := exchange(t, s, q, false)
	if m.Rcode != dns.RcodeBadVers || len(m.Answer) != 0 || m.IsEdns0() == nil || m.IsEdns0().Version() != 0 {
		t.Errorf("version 1: %v", m)
	}
}

func TestBadQueries(t *testing.T) {
	const web = "web.default.svc.cluster.local."
	edit := func(f func(*dns.Msg)) []byte {
		q := question(web, dns.TypeA)
		f(q)
		p, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	tests := []struct {
		name  string
		query []byte
		want  int // -1 for no answer
	}{
		{"too short", []byte{1, 2, 3}, -1},
		{"an answer", edit(func(q *dns.Msg) { q.Response = true }), -1},
		{"no question", edit(func(q *dns.Msg) { q.Question = nil }), dns.RcodeFormatError},
		{"two questions", edit(func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }), dns.RcodeFormatError},
		{"two OPT", edit(func(q *dns.Msg) { q.SetEdns0(1232, false); q.SetEdns0(1232, false) }), dns.RcodeFormatError},
		{"cut off", edit(func(*dns.Msg) {})[:20], dns.RcodeFormatError},
		{"a label that points at itself", append(edit(func(*dns.Msg) {})[:12], 0xc0, 12, 0, 1, 0, 1), dns.RcodeFormatError},
		{"NOTIFY", edit(func(q *dns.Msg) { q.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		{"UPDATE", edit(func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"STATUS that is garbage", append(edit(func(q *dns.Msg) { q.Opcode = dns.OpcodeStatus })[:12], 0xff), dns.RcodeNotImplemented},
		{"class CH", edit(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		{"zone transfer", edit(func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused},
		{"type OPT", edit(func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeOPT }), dns.RcodeFormatError},
		{"good", edit(func(*dns.Msg) {}), dns.RcodeSuccess},
	}
	s := newServer(t, Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := -1
			if m := exchangeRaw(t, s, tt.query, false); m != nil {
				got = m.Rcode
				if m.Id != uint16(tt.query[0])<<8|uint16(tt.query[1]) || !m.Response {
					t.Errorf("header %v", m.MsgHdr)
				}
			}
			if got != tt.want {
				t.Errorf("rcode %d, want %d", got, tt.want)
			}
		})
	}
}

func TestTruncation(t *testing.T) {
	s := newServer(t, Options{})
	for _, tt := range []struct {
		name      string
		edns      uint16 // 0 for none
		tcp       bool
		limit     int
		truncated bool
	}{
		{"without EDNS", 0, false, 512, true},
		{"small EDNS size", 100, false, 512, true},
		{"medium EDNS size", 800, false, 800, true},
		{"large EDNS size", 4096, false, 1232, true},
		{"TCP", 0, true, 65535, false},
		{"TCP with EDNS", 512, true, 65535, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := question("crowd.default.svc.cluster.local.", dns.TypeA)
			if tt.edns > 0 {
				q.SetEdns0(tt.edns, false)
			}
			packed, err := q.Pack()
			if err != nil {
				t.Fatal(err)
			}
			answer := answerTo(t, s, packed, client, tt.tcp)
			m := new(dns.Msg)
			if err := m.Unpack(answer); err != nil {
				t.Fatal(err)
			}
			if len(answer) > tt.limit || m.Truncated != tt.truncated {
				t.Errorf("%d bytes, limit %d, TC %v", len(answer), tt.limit, m.Truncated)
			}
			if !tt.truncated && len(m.Answer) != many {
				t.Errorf("%d addresses of %d", len(m.Answer), many)
			}
			if tt.truncated && len(m.Answer) < tt.limit/32 {
				t.Errorf("only %d addresses in %d bytes", len(m.Answer), tt.limit)
			}
			if tt.edns > 0 && m.IsEdns0() == nil {
				t.Error("OPT was cut off")
			}
		})
	}
}

func TestExternalName(t *testing.T) {
	up := dnstest.New(t, nil)
	s := newServer(t, Options{Upstreams: forward.Plain(up.Addr), UpstreamTimeout: 200 * time.Millisecond})
	const alias = "out.default.svc.cluster.local.\t5\tIN\tCNAME\twww.example.com."
	ask := func(qtype uint16) (int, []string) {
		m := exchange(t, s, question("out.default.svc.cluster.local.", qtype), false)
		var rrs []string
		for _, rr := range m.Answer {
			rrs = append(rrs, rr.String())
		}
		return m.Rcode, rrs
	}
	check := func(what string, qtype uint16, rcode int, want ...string) {
		t.Helper()
		got, rrs := ask(qtype)
		if got != rcode || fmt.Sprint(rrs) != fmt.Sprint(want) {
			t.Errorf("%s: rcode %d, %q", what, got, rrs)
		}
	}
	up.Handle(func(q *dns.Msg, _ string) [][]byte {
		return dnstest.Reply(t, q, nil, "www.example.com. 60 IN CNAME cdn.example.com.", "cdn.example.com. 60 IN A 192.0.2.1")
	})
	check("chased", dns.TypeA, 0, alias, "www.example.com.\t60\tIN\tCNAME\tcdn.example.com.", "cdn.example.com.\t60\tIN\tA\t192.0.2.1")
	check("CNAME itself", dns.TypeCNAME, 0, alias)
	up.Handle(func(q *dns.Msg, _ string) [][]byte {
		return dnstest.Reply(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, "example.com. 60 IN SOA ns. mail. 1 2 3 4 5")
	})
	check("no such name", dns.TypeAAAA, dns.RcodeNameError, alias)
	up.Handle(func(*dns.Msg, string) [][]byte { return nil })
	check("nobody answers", dns.TypeMX, dns.RcodeServerFailure, alias)
}

// An alias of elsewhere into the cluster has what stands there now, whatever others
// say of it, and from the cache too.
func TestAliasIntoTheCluster(t *testing.T) {
	var refused atomic.Bool
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		name := q.Question[0].Name
		to := map[string]string{
			"web.example.": "web.default.svc.cluster.local.", "gone.example.": "gone.default.svc.cluster.local.", "out.example.": "out.default.svc.cluster.local.",
			"round.example.": "round.default.svc.cluster.local.", "far.example.": "web.example.", "srv.example.": "_http._tcp.web.default.svc.cluster.local.",
		}[name]
		rcode := dns.RcodeNameError // as a resolver says of a domain that it does not know
		if refused.Load() {
			rcode = dns.RcodeServerFailure
		}
		if to == "" {
			return dnstest.Reply(t, q, nil, name+" 60 IN A 192.0.2.1")
		}
		records := []string{name + " 60 IN CNAME " + to, ". 600 IN SOA a. b. 1 2 3 4 600"}
		if to == "web.example." {
			records = append(records[:1], to+" 60 IN CNAME web.default.svc.cluster.local.", "web.default.svc.cluster.local. 60 IN A 192.0.2.66")
		}
		return dnstest.Reply(t, q, func(m *dns.Msg) { m.Rcode, m.AuthenticatedData = rcode, true }, records...)
	})
	store := cluster()
	store.Update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: model.Key{Namespace: "default", Name: "round"}, Type: model.ExternalName, ExternalName: "round.example"})
	})
	s := newServer(t, Options{Store: store, Upstreams: forward.Plain(up.Addr)})
	ask := func(name string, qtype uint16) string {
		q := question(name, qtype)
		q.AuthenticatedData = true
		m := exchange(t, s, q, false)
		said := dns.RcodeToString[m.Rcode]
		for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
			said += " |"
			for _, rr := range section {
				said += " " + dns.TypeToString[rr.Header().Rrtype] + " " + strings.TrimPrefix(rr.String(), rr.Header().String())
			}
		}
		if m.AuthenticatedData {
			said += " authentic"
		}
		return said
	}
	check := func(name string, qtype uint16, want string) {
		t.Helper()
		for _, round := range []string{"asked", "from the cache"} {
			if got := ask(name, qtype); !strings.HasPrefix(got, want) {
				t.Errorf("%s %s, %s: %s, want %s", name, dns.TypeToString[qtype], round, got, want)
			}
		}
	}
	const to = "CNAME web.default.svc.cluster.local."
	check("web.example.", dns.TypeA, "NOERROR | "+to+" A 10.96.0.20 | |")
	asked := up.UDP.Load()
	check("web.example.", dns.TypeA, "NOERROR | "+to+" A 10.96.0.20 | |")
	if up.UDP.Load() != asked {
		t.Error("the alias is not kept in the cache")
	}
	check("web.example.", dns.TypeAAAA, "NOERROR | "+to+" AAAA fd00:96::20 | |")
	check("web.example.", dns.TypeCNAME, "N") // what upstream says, as it is
	check("far.example.", dns.TypeA, "NOERROR | CNAME web.example. "+to+" A 10.96.0.20 | |")
	check("web.example.", dns.TypeTXT, "NOERROR | "+to+" | SOA ns.dns.cluster.local.")
	check("gone.example.", dns.TypeA, "NXDOMAIN | CNAME gone.default.svc.cluster.local. | SOA ns.dns.cluster.local.")
	check("srv.example.", dns.TypeSRV, "NOERROR | CNAME _http._tcp.web.default.svc.cluster.local. SRV 0 100 80 web.default.svc.cluster.local. | | A 10.96.0.20 AAAA fd00:96::20")
	check("out.example.", dns.TypeA, "NOERROR | CNAME out.default.svc.cluster.local. CNAME www.example.com. A 192.0.2.1 | |")
	check("round.example.", dns.TypeA, "SERVFAIL")
	check("round.default.svc.cluster.local.", dns.TypeA, "SERVFAIL | CNAME round.example.")
	refused.Store(true)
	check("WEB.example.", dns.TypeSRV, "NOERROR | "+to+" SRV 0 100 80 web.default.svc.cluster.local. | | A 10.96.0.20 AAAA fd00:96::20")
	refused.Store(false)
	// The Service goes, and so does what the alias leads to.
	store.Update(func(tx *state.Tx) { tx.DeleteService(model.Key{Namespace: "default", Name: "web"}) })
	s.zone.Update(store.Snapshot())
	check("web.example.", dns.TypeA, "NXDOMAIN | "+to+" | SOA ns.dns.cluster.local.")
}

func TestForwarded(t *testing.T) {
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		return dnstest.Reply(t, q, func(m *dns.Msg) { m.AuthenticatedData = true; m.SetEdns0(1232, true) }, "www.example.com. 60 IN A 192.0.2.1")
	})
	s := newServer(t, Options{Upstreams: forward.Plain(up.Addr)})
	q := question("WWW.example.com.", dns.TypeA)
	m := exchange(t, s, q, false)
	if m.Authoritative || m.AuthenticatedData || len(m.Answer) != 1 || m.Question[0].Name != "WWW.example.com." || m.Answer[0].Header().Name != "WWW.example.com." || len(m.Extra) != 0 {
		t.Errorf("got %v", m)
	}
	q.AuthenticatedData = true
	if m := exchange(t, s, q, false); !m.AuthenticatedData {
		t.Error("AD is kept from a client that asks for it")
	}
}

// TestOthersSayNothingOfTheZone: what upstream says of the cluster's names, or
// of localhost, is not passed on; neither just asked nor from the cache.
func TestOthersSayNothingOfTheZone(t *testing.T) {
	for _, target := range []string{"db.default.svc.cluster.local.", "none.default.svc.cluster.local.", "4.0.244.10.in-addr.arpa.", "localhost."} {
		up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
			return dnstest.Reply(t, q, nil, q.Question[0].Name+" 60 IN CNAME "+target, target+" 60 IN A 192.0.2.66")
		})
		s := newServer(t, Options{Store: cluster(), Upstreams: forward.Plain(up.Addr), ReverseRanges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}})
		s.update()
		for range 2 {
			if m := exchange(t, s, question("www.example.com.", dns.TypeA), false); len(m.Answer) == 0 || m.Answer[0].Header().Rrtype != dns.TypeCNAME || strings.Contains(m.String(), "192.0.2.66") {
				t.Errorf("%s: %v", target, m)
			}
		}
	}
}

func TestNothingInTheZoneIsForwarded(t *testing.T) {
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte { return dnstest.Reply(t, q, nil) })
	unsynced := state.New()
	for name, s := range map[string]*Server{
		"synced":   newServer(t, Options{Upstreams: forward.Plain(up.Addr)}),
		"unsynced": newServer(t, Options{Upstreams: forward.Plain(up.Addr), Store: unsynced}),
	} {
		for _, n := range []string{"gone.default.svc.cluster.local.", "x.cluster.local.", "localhost."} {
			exchange(t, s, question(n, dns.TypeA), false)
		}
		if n := up.UDP.Load(); n != 0 {
			t.Errorf("%s: %d questions went out", name, n)
		}
	}
}

func TestNoUpstreamFailsFast(t *testing.T) {
	s := newServer(t, Options{})
	if m := exchange(t, s, question("example.com.", dns.TypeA), false); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", m)
	}
}

func TestWaitingIsBounded(t *testing.T) {
	s := newServer(t, Options{})
	s.handler.waiting = make(chan struct{}, 1)
	packed, _ := question("example.com.", dns.TypeA).Pack()
	_, first := begin(s, packed, client, false)
	if m := exchangeRaw(t, s, packed, false); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", m)
	}
	first(t.Context())
	if len(s.handler.waiting) != 0 {
		t.Error("a place is never given back")
	}
}

func TestMistakesOfOursAnswerServerFailure(t *testing.T) {
	s := newServer(t, Options{})
	s.handler.zone = nil
	if m := exchange(t, s, question("web.default.svc.cluster.local.", dns.TypeA), false); m.Rcode != dns.RcodeServerFailure || m.Response != true {
		t.Errorf("got %v", m)
	}
	if m := exchange(t, newServer(t, Options{}), question("web.default.svc.cluster.local.", dns.TypeA), false); m.Rcode != dns.RcodeSuccess {
		t.Errorf("got %v", m)
	}
}

// TestMetrics holds names, kinds, labels and values to those that CoreDNS 1.15
// has (for its own: plugin/metrics/vars, cache, forward, pkg/proxy, kubernetes,
// health, autopath).
func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		if q.Question[0].Name == "gone.example.com." {
			return dnstest.Reply(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, "example.com. 60 IN SOA ns. mail. 1 2 3 4 60")
		}
		return dnstest.Reply(t, q, nil, "example.com. 60 IN A 192.0.2.1")
	})
	store := cluster()
	store.Update(func(tx *state.Tx) {
		tx.SetDNS(mustCorefile(t, fmt.Sprintf(". {\n hosts {\n 192.0.2.9 h.example\n fallthrough\n }\n cache\n forward . %s\n}", up.Addr)))
	})
	s := newServer(t, Options{Store: store, Registerer: reg, Autopath: true})
	s.update()
	for _, n := range []string{"web.default.svc.cluster.local.", "gone.default.svc.cluster.local.", "example.com.", "example.com.", "gone.example.com.", "gone.example.com.", "h.example.", "example.com.default.svc.cluster.local."} {
		exchange(t, s, question(n, dns.TypeA), false)
	}
	exchange(t, s, question("web.default.svc.cluster.local.", dns.TypeAAAA).SetEdns0(1232, true), true)
	exchange(t, s, question("web.default.svc.cluster.local.", dns.TypeAXFR), false)
	w := s.handler.newWorker(local, false, &counts{})
	w.client, w.start = local, time.Now()
	packed, err := question("cluster.local.", dns.TypeSOA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	s.askSelf(t.Context(), w, packed)
	store.Update(func(tx *state.Tx) {
		tx.PutSlice(&model.EndpointSlice{Key: model.Key{Namespace: "default", Name: "db-1"}, Service: model.Key{Namespace: "default", Name: "db"}, Triggered: time.Now()})
	})
	s.update()

	const self, cached = "server=dns://127.0.0.1:53", "server=dns://127.0.0.1:0 zones=. view="
	in, out := self+" zone=cluster.local. view=", self+" zone=. view="
	to := "proxy_name=forward to=" + up.Addr.String()
	want := map[string]float64{
		"counter coredns_dns_requests_total " + in + " proto=udp family=1 type=A":                           3,
		"counter coredns_dns_requests_total " + in + " proto=tcp family=1 type=AAAA":                        1,
		"counter coredns_dns_requests_total " + out + " proto=udp family=1 type=A":                          5,
		"counter coredns_dns_requests_total " + out + " proto=udp family=1 type=other":                      1,
		"counter coredns_dns_responses_total " + in + " rcode=NOERROR plugin=kubernetes":                    2,
		"counter coredns_dns_responses_total " + in + " rcode=NXDOMAIN plugin=kubernetes":                   1,
		"counter coredns_dns_responses_total " + in + " rcode=NOERROR plugin=cache":                         1, // autopath
		"counter coredns_dns_responses_total " + out + " rcode=NOERROR plugin=forward":                      1,
		"counter coredns_dns_responses_total " + out + " rcode=NOERROR plugin=cache":                        1,
		"counter coredns_dns_responses_total " + out + " rcode=NXDOMAIN plugin=forward":                     1,
		"counter coredns_dns_responses_total " + out + " rcode=NXDOMAIN plugin=cache":                       1,
		"counter coredns_dns_responses_total " + out + " rcode=NOERROR plugin=hosts":                        1,
		"counter coredns_dns_responses_total " + out + " rcode=REFUSED plugin=":                             1,
		"counter coredns_dns_do_requests_total " + in:                                                       1,
		"histogram coredns_dns_request_duration_seconds " + in:                                              4,
		"histogram coredns_dns_request_duration_seconds " + out:                                             6,
		"histogram coredns_dns_request_size_bytes " + in + " proto=udp":                                     3,
		"histogram coredns_dns_request_size_bytes " + in + " proto=tcp":                                     1,
		"histogram coredns_dns_request_size_bytes " + out + " proto=udp":                                    6,
		"histogram coredns_dns_response_size_bytes " + in + " proto=udp":                                    3,
		"histogram coredns_dns_response_size_bytes " + in + " proto=tcp":                                    1,
		"histogram coredns_dns_response_size_bytes " + out + " proto=udp":                                   6,
		"counter coredns_panics_total ":                                                                     0,
		"counter coredns_autopath_success_total " + self:                                                    1,
		"counter coredns_cache_requests_total " + cached:                                                    5,
		"counter coredns_cache_misses_total " + cached:                                                      2,
		"counter coredns_cache_hits_total " + strings.Replace(cached, " ", " type=success ", 1):             2,
		"counter coredns_cache_hits_total " + strings.Replace(cached, " ", " type=denial ", 1):              1,
		"counter coredns_cache_served_stale_total " + cached:                                                0,
		"counter coredns_cache_prefetch_total " + cached:                                                    0,
		"counter coredns_cache_drops_total " + cached:                                                       0,
		"gauge coredns_cache_entries " + strings.Replace(cached, " ", " type=success ", 1):                  1,
		"gauge coredns_cache_entries " + strings.Replace(cached, " ", " type=denial ", 1):                   1,
		"counter coredns_cache_evictions_total " + strings.Replace(cached, " ", " type=success ", 1):        0,
		"counter coredns_cache_evictions_total " + strings.Replace(cached, " ", " type=denial ", 1):         0,
		"counter coredns_forward_max_concurrent_rejects_total ":                                             0,
		"counter coredns_forward_healthcheck_broken_total ":                                                 0,
		"histogram coredns_proxy_request_duration_seconds " + to + " rcode=NOERROR":                         1,
		"histogram coredns_proxy_request_duration_seconds " + to + " rcode=NXDOMAIN":                        1,
		"counter coredns_proxy_conn_cache_misses_total " + to + " proto=udp":                                2,
		"histogram coredns_health_request_duration_seconds ":                                                1,
		"counter coredns_health_request_failures_total ":                                                    0,
		"histogram coredns_kubernetes_dns_programming_duration_seconds service_kind=headless_with_selector": 1,
		"counter fairway_dns_upstream_loops_total ":                                                         0,
		"counter fairway_dns_query_log_dropped_total ":                                                      0,
		"counter fairway_dns_rate_limited_total " + self:                                                    0,
		"counter fairway_dns_answers_dropped_total " + self:                                                 0,
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	order := []string{"server", "type", "zones", "zone", "view", "proto", "family", "rcode", "plugin", "proxy_name", "to", "service_kind"}
	for _, f := range families {
		for _, m := range f.Metric {
			labels := map[string]string{}
			for _, l := range m.Label {
				labels[l.GetName()] = l.GetValue()
			}
			names := order
			if _, ok := labels["family"]; ok { // the order of the documentation
				names = []string{"server", "zone", "view", "proto", "family", "type"}
			} else if _, ok := labels["proxy_name"]; ok {
				names = []string{"proxy_name", "to", "rcode", "proto"}
			}
			var parts []string
			for _, name := range names {
				if v, ok := labels[name]; ok {
					parts = append(parts, name+"="+v)
				}
			}
			if len(parts) != len(labels) {
				t.Errorf("%s has labels %v", f.GetName(), labels)
			}
			key := strings.ToLower(f.GetType().String()) + " " + f.GetName() + " " + strings.Join(parts, " ")
			got[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func FuzzQuery(f *testing.F) {
	for _, name := range []string{"web.default.svc.cluster.local.", "_http._tcp.db.default.svc.cluster.local.", "10-0-0-1.default.pod.cluster.local.", "20.0.96.10.in-addr.arpa.", "example.com."} {
		q := question(name, dns.TypeA)
		q.SetEdns0(1232, true)
		packed, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed, false)
		f.Add(packed, true)
	}
	for _, p := range malformed(f) {
		f.Add(p.packet, true)
	}
	s := newServer(f, Options{})
	f.Fuzz(func(t *testing.T, packed []byte, tcp bool) {
		answer := answerTo(t, s, packed, client, tcp)
		if answer == nil {
			return
		}
		m := new(dns.Msg)
		if err := m.Unpack(answer); err != nil {
			t.Fatalf("query %x, answer %x: %v", packed, answer, err)
		}
		if !m.Response || m.Id != uint16(packed[0])<<8|uint16(packed[1]) {
			t.Fatalf("header %v", m.MsgHdr)
		}
		if !tcp && len(answer) > 1232 {
			t.Fatalf("%d bytes by UDP", len(answer))
		}
		if n := len(s.handler.waiting); n != 0 {
			t.Fatalf("%d places are taken", n)
		}
	})
}

// TestAnswersStandBehindWhatTheBufferHolds matters to TCP, where answers that
// did not leave yet, and a length, stand before.
func TestAnswersStandBehindWhatTheBufferHolds(t *testing.T) {
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		return dnstest.Reply(t, q, nil, "www.example.com. 60 IN A 192.0.2.1")
	})
	s := newServer(t, Options{Upstreams: forward.Plain(up.Addr)})
	outside := question("www.example.com.", dns.TypeA)
	exchange(t, s, outside, true) // from now on it is in the cache
	cached, _ := outside.Pack()
	inZone, _ := question("web.default.svc.cluster.local.", dns.TypeA).Pack()
	// A record that only the library looks into: an address of three bytes.
	unknown, _ := question("www.example.org.", dns.TypeA).Pack()
	broken := append(unknown, 0, 0, 1, 0, 1, 0, 0, 0, 5, 0, 3, 1, 2, 3)
	broken[11] = 1
	before := []byte("what stands before is longer than any of these answers, as when many were asked for at once, one right behind another")
	for name, tt := range map[string]struct {
		packed []byte
		rcode  int
	}{"in zone": {inZone, dns.RcodeSuccess}, "cached": {cached, dns.RcodeSuccess}, "broken": {broken, dns.RcodeFormatError}} {
		w := s.handler.newWorker(local, true, s.handler.metrics.counts(local))
		w.client, w.start = client, time.Now()
		answer, rest := s.handler.begin(w, tt.packed, slices.Clone(before))
		if rest != nil {
			t.Errorf("%s: has to wait for others", name)
			continue
		}
		m := new(dns.Msg)
		if !bytes.HasPrefix(answer, before) {
			t.Errorf("%s: overwrites what the buffer holds: %q", name, answer)
		} else if err := m.Unpack(answer[len(before):]); err != nil || m.Rcode != tt.rcode {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	if n := up.UDP.Load(); n != 1 {
		t.Errorf("%d questions went out, want one", n)
	}
}
