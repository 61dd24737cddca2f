package dns

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/corefile"
	"fairway.dev/fairway/internal/dns/cache"
	"fairway.dev/fairway/internal/dns/dnstest"
	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func mustCorefile(t testing.TB, text string) *model.DNSConfig {
	t.Helper()
	c, notes, err := corefile.Parse(corefile.Options{Name: "Corefile", Text: text})
	if err != nil || len(notes) > 0 {
		t.Fatalf("%v %v\n%s", err, notes, text)
	}
	return c
}

// echo is an upstream that says its name: every name has the address of the
// server, an alias "alias." and more of it, and MX, SRV and the like.
func echo(t testing.TB, addr string) *dnstest.Server {
	return dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		name := q.Question[0].Name
		switch {
		case strings.HasPrefix(name, "gone."):
			return dnstest.Reply(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, ". 60 IN SOA ns. mail. 1 2 3 4 60")
		case strings.HasPrefix(name, "fails."):
			return dnstest.Reply(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure })
		case strings.HasPrefix(name, "to."):
			return dnstest.Reply(t, q, nil, name+" 60 IN CNAME x."+name, "x."+name+" 60 IN A "+addr)
		case q.Question[0].Qtype == dns.TypeMX:
			return dnstest.Reply(t, q, nil, name+" 60 IN MX 10 mail."+name)
		case q.Question[0].Qtype == dns.TypeA:
			return dnstest.Reply(t, q, nil, name+" 60 IN A "+addr)
		}
		return dnstest.Reply(t, q, nil, name+" 60 IN SOA ns. mail. 1 2 3 4 60")
	})
}

// told is an answer in a line: the rcode, and each record without its TTL and class.
func told(m *dns.Msg) string {
	if m == nil {
		return "nothing"
	}
	out := []string{dns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		f := strings.Fields(rr.String())
		out = append(out, strings.Join(slices.Delete(f, 1, 3), " "))
	}
	return strings.Join(out, "; ")
}

func TestConfigured(t *testing.T) {
	a, b, c := echo(t, "192.0.2.1"), echo(t, "192.0.2.2"), echo(t, "192.0.2.3")
	text := fmt.Sprintf(`
.:53 {
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    pods disabled
    ttl 17
  }
  rewrite name db.example.com db.default.svc.cluster.local
  rewrite name out.example.com out.default.svc.cluster.local
  rewrite stop name suffix .shop.example .default.svc.cluster.local answer auto
  rewrite name prefix old. new.
  rewrite name substring .middle. .centre. answer auto
  rewrite name regex ^([a-z]+)\.in\.([a-z]+)\.$ {2}.{1}.test answer auto
  rewrite continue name one.test two.test
  rewrite name two.test three.test
  rewrite name exact to-corp.test www.corp.example
  rewrite stop {
    name regex ^mapped\.test\.$ to.mapped.example
    answer name (.*)mapped\.example\.$ {1}mapped.test
    answer value ^x\.(.*)\.$ y.{1}
  }
  rewrite name long.test %s.test
  hosts {
    192.0.2.50 host.example host2.example
    192.0.2.51 host.example
    2001:db8::50 host.example
    192.0.2.52 *.wild.example
    192.0.2.53 web.default.svc.cluster.local
    192.0.2.54 new.hosts
    192.0.2.55 www.example.com
    ttl 99
    fallthrough
  }
  forward lab.example %s
  forward . %s {
    except secret.example
  }
}
corp.example {
  hosts {
    192.0.2.60 printer.corp.example
    fallthrough www.corp.example to-corp.test
  }
  forward . %s
}
alone.example {
  errors
}
`, strings.Repeat("a", 70), c.Addr, a.Addr, b.Addr)
	store := cluster()
	store.Update(func(tx *state.Tx) { tx.SetDNS(mustCorefile(t, text)) })
	s := newServer(t, Options{Store: store})
	s.update()
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"plain.test.", dns.TypeA, "NOERROR; plain.test. A 192.0.2.1"},
		{"a.lab.example.", dns.TypeA, "NOERROR; a.lab.example. A 192.0.2.3"},
		{"a.secret.example.", dns.TypeA, "SERVFAIL"},
		{"a.alone.example.", dns.TypeA, "SERVFAIL"},
		{"WWW.corp.example.", dns.TypeA, "NOERROR; WWW.corp.example. A 192.0.2.2"},

		{"Host.example.", dns.TypeA, "NOERROR; Host.example. A 192.0.2.50; Host.example. A 192.0.2.51"},
		{"host.example.", dns.TypeAAAA, "NOERROR; host.example. AAAA 2001:db8::50"},
		{"host.example.", dns.TypeMX, "NOERROR"},
		{"host2.example.", dns.TypeAAAA, "NOERROR"},
		{"any.wild.example.", dns.TypeA, "NOERROR; any.wild.example. A 192.0.2.52"},
		{"a.any.wild.example.", dns.TypeA, "NOERROR; a.any.wild.example. A 192.0.2.1"},
		{"wild.example.", dns.TypeA, "NOERROR; wild.example. A 192.0.2.1"},
		{"50.2.0.192.in-addr.arpa.", dns.TypePTR, "NOERROR; 50.2.0.192.in-addr.arpa. PTR host.example.; 50.2.0.192.in-addr.arpa. PTR host2.example."},
		{"web.default.svc.cluster.local.", dns.TypeA, "NOERROR; web.default.svc.cluster.local. A 192.0.2.53"},
		{"web.default.svc.cluster.local.", dns.TypeSRV, "NOERROR"},
		{"db.default.svc.cluster.local.", dns.TypeA, "NOERROR; db.default.svc.cluster.local. A 10.244.9.1"},
		{"out.default.svc.cluster.local.", dns.TypeA, "NOERROR; out.default.svc.cluster.local. CNAME www.example.com.; www.example.com. A 192.0.2.55"},
		{"printer.corp.example.", dns.TypeA, "NOERROR; printer.corp.example. A 192.0.2.60"},
		{"other.corp.example.", dns.TypeA, "SERVFAIL"},       // no fallthrough for it
		{"60.2.0.192.in-addr.arpa.", dns.TypePTR, "NOERROR"}, // its block is another
		{"10-244-0-5.default.pod.cluster.local.", dns.TypeA, "NXDOMAIN"},

		{"DB.example.com.", dns.TypeA, "NOERROR; DB.example.com. A 10.244.9.1"},
		{"_http._tcp.db.example.com.", dns.TypeA, "NOERROR; _http._tcp.db.example.com. A 192.0.2.1"},
		{"db.example.com.", dns.TypeSRV, "NOERROR; db.example.com. SRV 0 100 8080 db-0.db.example.com."},
		{"out.example.com.", dns.TypeA, "NOERROR; out.example.com. CNAME www.example.com.; www.example.com. A 192.0.2.55"},
		{"db.shop.example.", dns.TypeA, "NOERROR; db.shop.example. A 10.244.9.1"},
		{"db.shop.example.", dns.TypeSRV, "NOERROR; db.shop.example. SRV 0 100 8080 db-0.db.shop.example."},
		{"none.shop.example.", dns.TypeA, "NXDOMAIN"},
		{"old.hosts.", dns.TypeA, "NOERROR; new.hosts. A 192.0.2.54"}, // no answer auto: as CoreDNS
		{"old.test.", dns.TypeA, "NOERROR; new.test. A 192.0.2.1"},
		{"a.middle.test.", dns.TypeA, "NOERROR; a.middle.test. A 192.0.2.1"},
		{"web.in.shop.", dns.TypeA, "NOERROR; web.in.shop. A 192.0.2.1"},
		{"web.in.shop.", dns.TypeMX, "NOERROR; web.in.shop. MX 10 mail.web.in.shop."},
		{"one.test.", dns.TypeA, "NOERROR; one.test. A 192.0.2.1"},
		{"two.test.", dns.TypeA, "NOERROR; two.test. A 192.0.2.1"},
		{"three.test.", dns.TypeA, "NOERROR; three.test. A 192.0.2.1"},
		{"to-corp.test.", dns.TypeA, "NOERROR; to-corp.test. A 192.0.2.1"}, // of the servers of its own block
		{"mapped.test.", dns.TypeA, "NOERROR; to.mapped.test. CNAME y.to.mapped.example.; x.to.mapped.test. A 192.0.2.1"},
		{"long.test.", dns.TypeA, "SERVFAIL"}, // a label of 70 letters
	} {
		for _, tcp := range []bool{false, true} {
			m := exchange(t, s, question(tt.name, tt.qtype), tcp)
			if got := told(m); got != tt.want {
				t.Errorf("%s %s: %s, want %s", tt.name, dns.TypeToString[tt.qtype], got, tt.want)
			}
			if m != nil && (len(m.Question) != 1 || m.Question[0].Name != tt.name) {
				t.Errorf("%s: the question came back as %v", tt.name, m.Question)
			}
		}
	}
	ttl := func(name string) uint32 {
		return exchange(t, s, question(name, dns.TypeA), false).Answer[0].Header().Ttl
	}
	if got := ttl("db.default.svc.cluster.local."); got != 17 {
		t.Errorf("TTL of the cluster %d", got)
	}
	if got := ttl("host.example."); got != 99 {
		t.Errorf("TTL of hosts %d", got)
	}
	q := question("host.example.", dns.TypeA).SetEdns0(1232, false)
	q.Extra[0].(*dns.OPT).Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: wire.OptionExplain}}
	if m := exchange(t, s, q, false); !strings.Contains(m.String(), fmt.Sprintf("%x", "hosts")) && string(m.IsEdns0().Option[0].(*dns.EDNS0_LOCAL).Data) != "hosts" {
		t.Errorf("origin of %v", m)
	}
}

// TestNoBlockForAName: what no block is for is refused, as by CoreDNS.
func TestNoBlockForAName(t *testing.T) {
	up := echo(t, "192.0.2.1")
	store := cluster()
	store.Update(func(tx *state.Tx) {
		tx.SetDNS(mustCorefile(t, fmt.Sprintf("corp.example {\n forward . %s\n rewrite name a.corp.example b.corp.example\n}", up.Addr)))
	})
	s := newServer(t, Options{Store: store})
	s.update()
	for name, want := range map[string]string{
		"a.corp.example.":               "NOERROR; a.corp.example. A 192.0.2.1",
		"www.example.org.":              "REFUSED",
		"db.default.svc.cluster.local.": "NOERROR; db.default.svc.cluster.local. A 10.244.9.1",
	} {
		if got := told(exchange(t, s, question(name, dns.TypeA), false)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// TestFlagsGoBeforeTheCorefile: servers, stub domains and the TTL.
func TestFlagsGoBeforeTheCorefile(t *testing.T) {
	flag, file, stub := echo(t, "192.0.2.1"), echo(t, "192.0.2.2"), echo(t, "192.0.2.3")
	store := cluster()
	store.Update(func(tx *state.Tx) {
		tx.SetDNS(mustCorefile(t, fmt.Sprintf(". {\n kubernetes {\n ttl 17\n }\n forward . %s\n}\ncorp.example lab.example {\n forward . %[1]s\n}", file.Addr)))
	})
	for _, tt := range []struct {
		o                    Options
		plain, corp, lab, in string
	}{
		{Options{ResolvConf: "/nonexistent"}, "192.0.2.2", "192.0.2.2", "192.0.2.2", "17"},
		{Options{TTL: 3 * time.Second, Upstreams: forward.Plain(flag.Addr), Stubs: []forward.Stub{{Domain: "Corp.example", Servers: forward.Plain(stub.Addr)}}}, "192.0.2.1", "192.0.2.3", "192.0.2.2", "3"},
	} {
		tt.o.Store = store
		s := newServer(t, tt.o)
		s.update()
		for name, want := range map[string]string{"a.": tt.plain, "a.corp.example.": tt.corp, "a.lab.example.": tt.lab} {
			if got := told(exchange(t, s, question(name, dns.TypeA), false)); got != "NOERROR; "+name+" A "+want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
		if got := exchange(t, s, question("db.default.svc.cluster.local.", dns.TypeA), false).Answer[0].Header().Ttl; fmt.Sprint(got) != tt.in {
			t.Errorf("TTL %d, want %s", got, tt.in)
		}
	}
}

// TestCacheOfTheCorefile: what is kept, and how long, is a block's own affair.
func TestCacheOfTheCorefile(t *testing.T) {
	up := echo(t, "192.0.2.1")
	store := cluster()
	store.Update(func(tx *state.Tx) {
		tx.SetDNS(mustCorefile(t, fmt.Sprintf(`
. {
  cache 30 {
    success 1000 20
    denial 1000 10
    disable success kept-not.example
  }
  forward . %s
}
fresh.example {
  forward . %[1]s
}
`, up.Addr)))
	})
	s := newServer(t, Options{Store: store})
	s.update()
	for name, want := range map[string]struct {
		asked int32
		ttl   uint32
	}{"a.": {1, 20}, "gone.a.": {1, 10}, "b.kept-not.example.": {2, 20}, "gone.kept-not.example.": {1, 10}, "c.fresh.example.": {2, 60}} {
		before := up.UDP.Load()
		exchange(t, s, question(name, dns.TypeA), false)
		m := exchange(t, s, question(name, dns.TypeA), false)
		if got := up.UDP.Load() - before; got != want.asked {
			t.Errorf("%s: asked upstream %d times, want %d", name, got, want.asked)
		}
		if got := append(m.Answer, m.Ns...)[0].Header().Ttl; got != want.ttl {
			t.Errorf("%s: TTL %d, want %d", name, got, want.ttl)
		}
	}
	if got := cacheBytes(5, store.Snapshot().DNS); got != 2000<<10 {
		t.Errorf("%d bytes for 2000 answers", got)
	}
	if got := cacheBytes(5, nil); got != 5 {
		t.Errorf("%d bytes", got)
	}
	keep, err := keeping(&model.DNSCache{StaleFor: 2 * time.Hour, Prefetch: 7, PrefetchPercent: 30, MinTTL: time.Second, MinNegativeTTL: 2 * time.Second})
	if l := keep("a."); err != nil || *l != (cache.Limits{MinTTL: time.Second, MaxTTL: time.Hour, MinNegativeTTL: 2 * time.Second, MaxNegativeTTL: 5 * time.Minute, StaleFor: 2 * time.Hour, PrefetchHits: 7, PrefetchPercent: 30}) {
		t.Errorf("%+v, %v", l, err)
	}
}

// TestConfigurationChanges swaps the configuration back and forth under clients:
// every query gets the answer of one or the other, and once a change is there no
// answer of before.
func TestConfigurationChanges(t *testing.T) {
	a, b := echo(t, "192.0.2.1"), echo(t, "192.0.2.2")
	text := func(i int) string {
		return fmt.Sprintf(". {\n cache\n rewrite name r.example x%d.example\n hosts {\n 192.0.2.%d h.example\n fallthrough\n }\n forward . %s\n}", i, i, []*dnstest.Server{a, b}[i-1].Addr)
	}
	store := cluster()
	store.Update(func(tx *state.Tx) { tx.SetDNS(mustCorefile(t, text(1))) })
	s := newServer(t, Options{Store: store})
	addr := run(t, s)
	names := []string{"r.example.", "h.example.", "www.example.", "db.default.svc.cluster.local."}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			client := dns.Client{Net: []string{"udp", "tcp"}[i%2], Timeout: 20 * time.Second}
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				name := names[n%len(names)]
				m, _, err := client.Exchange(question(name, dns.TypeA), addr.String())
				if err != nil || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
					t.Errorf("%s while the configuration changes: %v, %v", name, m, err)
					return
				}
			}
		})
	}
	for n := range 20 {
		i := 1 + n%2
		store.Update(func(tx *state.Tx) { tx.SetDNS(mustCorefile(t, text(i))) })
		for _, name := range names[:3] {
			want := fmt.Sprintf("NOERROR; %s A 192.0.2.%d", name, i)
			eventually(t, func() bool { return told(lookup(t, "udp", addr, name)) == want })
			for range 3 {
				if got := told(lookup(t, "udp", addr, name)); got != want {
					t.Errorf("change %d: %s after %s", n, got, want)
				}
			}
		}
	}
	close(stop)
	clients.Wait()
	store.Update(func(tx *state.Tx) { tx.SetDNS(nil) })
	eventually(t, func() bool { return told(lookup(t, "udp", addr, "h.example.")) == "SERVFAIL" })
}

// TestLastKnownConfiguration: it counts until the store has synced, and costs the
// cache nothing where it was true.
func TestLastKnownConfiguration(t *testing.T) {
	up := echo(t, "192.0.2.1")
	text := fmt.Sprintf(". {\n cache\n forward . %s\n}", up.Addr)
	last, store := cluster(), state.New()
	last.Update(func(tx *state.Tx) { tx.SetDNS(mustCorefile(t, text)) })
	s := newServer(t, Options{Store: store, LastKnown: last.Snapshot()})
	s.update()
	if got := told(exchange(t, s, question("a.", dns.TypeA), false)); got != "NOERROR; a. A 192.0.2.1" {
		t.Errorf("from the last known configuration: %s", got)
	}
	store.Update(func(tx *state.Tx) {
		tx.SetDNS(mustCorefile(t, text))
		tx.SetSynced()
	})
	s.update()
	exchange(t, s, question("a.", dns.TypeA), false)
	if n := up.UDP.Load(); n != 1 {
		t.Errorf("asked upstream %d times", n)
	}
}

// Rules cost names that they do not concern no memory.
func TestNothingIsAllocatedBesideRules(t *testing.T) {
	store := cluster()
	store.Update(func(tx *state.Tx) {
		tx.SetDNS(mustCorefile(t, ". {\n rewrite name a b\n rewrite name regex ^x[0-9]+\\. c\n rewrite name substring .q.r. .s.\n hosts {\n 192.0.2.1 h\n 192.0.2.2 *.w\n fallthrough\n }\n}"))
	})
	s := newServer(t, Options{Store: store})
	s.update()
	packed, err := question("db.default.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	w := s.handler.newWorker(local, false, s.handler.metrics.counts(local))
	w.client, w.start = client, time.Now()
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { s.handler.begin(w, packed, buf) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
