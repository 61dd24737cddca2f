package query_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/dns/dnstest"
	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/query"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func TestSteps(t *testing.T) {
	pod := query.ForPods("shop", "cluster.local.", nil, "corp.example")
	for _, tt := range []struct {
		name  string
		ndots int
		want  string
	}{
		{"web", 5, "web.shop.svc.cluster.local. web.svc.cluster.local. web.cluster.local. web.corp.example. web."},
		{"web.", 5, "web."},
		{"a.b", 1, "a.b. a.b.shop.svc.cluster.local. a.b.svc.cluster.local. a.b.cluster.local. a.b.corp.example."},
		{"a.b.c.d.e.f", 5, "a.b.c.d.e.f. a.b.c.d.e.f.shop.svc.cluster.local. a.b.c.d.e.f.svc.cluster.local. a.b.c.d.e.f.cluster.local. a.b.c.d.e.f.corp.example."},
		{strings.Repeat("a", 63) + "." + strings.Repeat("b.", 90) + "c", 99, strings.Repeat("a", 63) + "." + strings.Repeat("b.", 90) + "c."}, // too long with any domain but none
	} {
		pod.Ndots = tt.ndots
		got := strings.Join(pod.Steps(tt.name), " ")
		if tt.ndots == 99 {
			got = pod.Steps(tt.name)[0]
		}
		if got != tt.want {
			t.Errorf("%s, ndots %d: %s, want %s", tt.name, tt.ndots, got, tt.want)
		}
	}
}

// start returns a server over a small cluster, and its snapshot.
func start(t *testing.T) (netip.AddrPort, *state.Snapshot) {
	t.Helper()
	store := state.New()
	key := func(name string) model.Key { return model.Key{Namespace: "shop", Name: name} }
	addr := netip.MustParseAddr
	store.Update(func(tx *state.Tx) {
		tx.PutNamespace(&model.Namespace{Name: "shop"})
		tx.PutNamespace(&model.Namespace{Name: "other"})
		tx.PutService(&model.Service{Key: key("web"), ClusterIPs: []netip.Addr{addr("10.96.0.20")}, Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}})
		tx.PutService(&model.Service{Key: key("db"), Headless: true})
		tx.PutService(&model.Service{Key: key("ill"), Headless: true})
		tx.PutService(&model.Service{Key: key("empty"), Headless: true})
		tx.PutService(&model.Service{Key: key("out"), Type: model.ExternalName, ExternalName: "www.example.com"})
		tx.PutService(&model.Service{Key: key("self"), Type: model.ExternalName, ExternalName: "self.shop.svc.cluster.local"})
		tx.PutService(&model.Service{Key: key("none"), Type: model.ExternalName})
		tx.PutService(&model.Service{Key: key("long"), Type: model.ExternalName, ExternalName: strings.Repeat("a", 64) + ".example.com"})
		tx.PutService(&model.Service{Key: key("gone"), Type: model.ExternalName, ExternalName: "nope.shop.svc.cluster.local"})
		tx.PutSlice(&model.EndpointSlice{Key: key("db-1"), Service: key("db"), Endpoints: []model.Endpoint{
			{Addr: addr("10.244.0.5"), Ready: true, Hostname: "db-0", About: &model.EndpointAbout{Pod: key("db-0")}}, {Addr: addr("10.244.0.6"), Hostname: "db-1", About: &model.EndpointAbout{Pod: key("db-1")}},
		}})
		tx.PutSlice(&model.EndpointSlice{Key: key("ill-1"), Service: key("ill"), Endpoints: []model.Endpoint{{Addr: addr("10.244.0.7"), About: &model.EndpointAbout{Pod: key("ill-0")}}}})
		tx.SetDNS(&model.DNSConfig{Blocks: []model.DNSBlock{{
			Zones: []string{"."}, Cache: &model.DNSCache{}, Forwards: []model.DNSForward{{From: ".", NodeServers: true}},
			Hosts: &model.DNSHosts{Zones: []string{"."}, Fallthrough: []string{"."}, TTL: time.Minute, Entries: []model.DNSHost{
				{Name: "printer.lan.", Addr: addr("192.0.2.60")}, {Name: "nobody.shop.svc.cluster.local.", Addr: addr("192.0.2.61")},
			}},
			Rewrites: []model.DNSRewrite{
				{Match: model.DNSSuffix, From: ".old.example.", To: ".new.example.", Continue: true},
				{Match: model.DNSExact, From: "web.new.example.", To: "web.shop.svc.cluster.local.", Auto: true},
				{Match: model.DNSExact, From: "gone.new.example.", To: "lost.shop.svc.cluster.local.", Auto: true},
			},
		}}})
		tx.SetSynced()
	})
	up := dnstest.New(t, func(q *miekg.Msg, _ string) [][]byte {
		if q.Question[0].Name == "www.example.com." && q.Question[0].Qtype == miekg.TypeA {
			return dnstest.Reply(t, q, nil, "www.example.com. 60 IN A 192.0.2.1")
		}
		if q.Question[0].Name == "alias.example.com." {
			return dnstest.Reply(t, q, func(m *miekg.Msg) { m.Rcode = miekg.RcodeNameError }, "alias.example.com. 60 IN CNAME web.shop.svc.cluster.local.")
		}
		if strings.HasSuffix(q.Question[0].Name, "broken.") {
			return dnstest.Reply(t, q, func(m *miekg.Msg) { m.Rcode = miekg.RcodeServerFailure })
		}
		return dnstest.Reply(t, q, func(m *miekg.Msg) { m.Rcode = miekg.RcodeNameError }, "com. 90 IN SOA ns. mail. 1 2 3 4 60")
	})
	s, err := dns.New(dns.Options{
		Store: store, Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Upstreams: forward.Plain(up.Addr), Logger: slog.New(slog.DiscardHandler),
		Stubs: []forward.Stub{{Domain: "dead.example", Servers: forward.Plain(netip.MustParseAddrPort("127.0.0.1:1"))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for !s.Ready() {
		time.Sleep(time.Millisecond)
	}
	return s.Addrs()[0], store.Snapshot()
}

func TestAnswersAreExplained(t *testing.T) {
	server, snap := start(t)
	for _, tt := range []struct {
		name, qtype     string
		step            int // at which it is found; 0: not
		rcode, src, why string
	}{
		{"web", "A", 1, "NOERROR", "zone", "Service shop/web, with cluster IP 10.96.0.20"},
		{"web.shop", "A", 2, "NOERROR", "zone", "Service shop/web, with cluster IP 10.96.0.20"},
		{"web.shop.svc.cluster.local.", "AAAA", 0, "NOERROR", "zone", "the name exists, but has no IPv6 address"},
		{"db", "A", 1, "NOERROR", "zone", "Service shop/db, headless, with the ready ones of its endpoints: 10.244.0.5 (Pod shop/db-0), 10.244.0.6 (Pod shop/db-1) not ready"},
		{"db-0.db", "A", 1, "NOERROR", "zone", "of Service shop/db the endpoint 10.244.0.5 (Pod shop/db-0)"},
		{"db-1.db.shop.svc.cluster.local.", "A", 0, "NXDOMAIN", "zone", `Service shop/db has no ready endpoint with hostname "db-1"`},
		{"ill.shop.svc.cluster.local.", "A", 0, "NXDOMAIN", "zone", "Service shop/ill is headless and none of its 1 endpoints is ready (10.244.0.7 (Pod shop/ill-0) not ready); publishNotReadyAddresses would publish them"},
		{"empty.shop.svc.cluster.local.", "A", 0, "NXDOMAIN", "zone", "Service shop/empty is headless and has no endpoints: its selector matches no Pod with an address"},
		{"web.other.svc.cluster.local.", "A", 0, "NXDOMAIN", "zone", `there is no Service "web" in Namespace other; there is one in shop`},
		{"web.nope.svc.cluster.local.", "A", 0, "NXDOMAIN", "zone", `there is no Namespace "nope"`},
		{"web.shop.cluster.local.", "A", 0, "NXDOMAIN", "zone", `directly below the cluster domain there are svc and pod only, not "shop"`},
		{"x.shop.pod.cluster.local.", "A", 0, "NXDOMAIN", "zone", `"x" is no address with dashes, as 10-244-0-5`},
		{"10-244-0-9.shop.pod.cluster.local.", "A", 1, "NOERROR", "zone", "an address written as a name; the namespace exists, and no Pod is looked for"},
		{"_grpc._tcp.web.shop.svc.cluster.local.", "SRV", 0, "NXDOMAIN", "zone", `Service shop/web has no port of that name and protocol; it has "http"/TCP`},
		{"_http._tcp.web.shop.svc.cluster.local.", "SRV", 1, "NOERROR", "zone", "Service shop/web, with cluster IP 10.96.0.20"},
		{"20.0.96.10.in-addr.arpa.", "PTR", 1, "NOERROR", "zone", "the cluster IP of Service shop/web, which has that Service's name alone"},
		{"5.0.244.10.in-addr.arpa.", "PTR", 1, "NOERROR", "zone", "the address of a ready endpoint of Service shop/db"},
		{"cluster.local.", "SOA", 1, "NOERROR", "zone", "a name of the zone itself"},
		{"out", "A", 1, "NOERROR", "upstream", "it is an alias to www.example.com, outside of the cluster: asked just now of upstream"},
		{"out.shop.svc.cluster.local.", "A", 1, "NOERROR", "", "Service shop/out, of type ExternalName: an alias to www.example.com"},
		{"x.out.shop.svc.cluster.local.", "A", 0, "NXDOMAIN", "zone", "Service shop/out is an alias, which has no names below it"},
		{"none.shop.svc.cluster.local.", "A", 0, "NOERROR", "zone", "Service shop/none, of type ExternalName, without a name that DNS can give as an alias"},
		{"long.shop.svc.cluster.local.", "A", 0, "SERVFAIL", "zone", "Service shop/long, of type ExternalName, has a name that DNS cannot give as an alias"},
		{"gone.shop.svc.cluster.local.", "A", 0, "NXDOMAIN", "zone", `Service shop/gone, of type ExternalName: an alias to nope.shop.svc.cluster.local: there is no Service "nope" in Namespace shop`},
		{"www.example.com", "A", 4, "NOERROR", "cache", "from the server's cache"},
		{"self.shop.svc.cluster.local.", "A", 0, "SERVFAIL", "zone", "Service shop/self, of type ExternalName, leads back to itself"},
		{"alias.example.com.", "A", 1, "NOERROR", "upstream", "it is an alias to web.shop.svc.cluster.local., in the cluster: Service shop/web, with cluster IP 10.96.0.20"},
		{"alias.example.com.", "A", 1, "NOERROR", "cache", "it is an alias to web.shop.svc.cluster.local., in the cluster: Service shop/web, with cluster IP 10.96.0.20"},
		{"gone.example.com.", "A", 0, "NXDOMAIN", "upstream", "there is no such name, says zone com."},
		{"printer.lan.", "A", 1, "NOERROR", "hosts", "one of the hosts in the Corefile"},
		{"nobody", "A", 1, "NOERROR", "hosts", "one of the hosts in the Corefile"},
		{"web.old.example.", "A", 1, "NOERROR", "zone", `web.old.example. is looked up as web.new.example., by the Corefile's "rewrite continue name suffix .old.example. .new.example."`},
		{"web.old.example.", "A", 1, "NOERROR", "zone", `web.new.example. is looked up as web.shop.svc.cluster.local., by the Corefile's "rewrite stop name exact web.new.example. web.shop.svc.cluster.local."`},
		{"web.old.example.", "A", 1, "NOERROR", "zone", "Service shop/web, with cluster IP 10.96.0.20"},
		{"gone.new.example.", "A", 0, "NXDOMAIN", "zone", `there is no Service "lost" in Namespace shop`},
		{"a.dead.example.", "A", 0, "SERVFAIL", "none", "no name server of zone dead.example. gave an answer: ask 127.0.0.1:1 for a.dead.example."},
		{"a.broken.", "A", 0, "SERVFAIL", "upstream", "asked just now of upstream"},
	} {
		r, err := query.Run(t.Context(), query.Options{
			Name: tt.name, Types: []uint16{miekg.StringToType[tt.qtype]}, Resolver: query.ForPods("shop", "cluster.local", nil),
			Server: server, Snapshot: snap, Domain: "cluster.local",
		})
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		last := r.Steps[len(r.Steps)-1].Answers[0]
		if r.Found != (tt.step > 0) || r.Found && len(r.Steps) != tt.step || last.Rcode != tt.rcode || !strings.HasPrefix(last.Source, tt.src) {
			t.Errorf("%s %s: found %v after %d steps, %s from %q", tt.name, tt.qtype, r.Found, len(r.Steps), last.Rcode, last.Source)
		}
		if !slices.ContainsFunc(last.Why, func(w string) bool { return strings.Contains(w, tt.why) }) {
			t.Errorf("%s %s: %q, want %q", tt.name, tt.qtype, last.Why, tt.why)
		}
		if text := r.Text(); !strings.Contains(text, tt.why) || !strings.Contains(text, last.Rcode) {
			t.Errorf("%s: the text does not tell:\n%s", tt.name, text)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	}
}

// A server that knows less than the API, and one that says nothing.
func TestServersThatAreBehind(t *testing.T) {
	server, snap := start(t)
	newer := state.New()
	newer.Update(func(tx *state.Tx) {
		tx.PutNamespace(&model.Namespace{Name: "shop"})
		tx.PutService(&model.Service{Key: model.Key{Namespace: "shop", Name: "new"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.99")}})
		tx.SetSynced()
	})
	o := query.Options{
		Name: "new.shop.svc.cluster.local.", Types: []uint16{miekg.TypeA}, Server: server, Snapshot: newer.Snapshot(), Domain: "cluster.local", Timeout: time.Second,
	}
	r, err := query.Run(t.Context(), o)
	if err != nil || !strings.Contains(r.Text(), "older or newer") || !strings.Contains(r.Text(), "Service shop/new") {
		t.Errorf("%v\n%s", err, r.Text())
	}
	silent := dnstest.New(t, func(*miekg.Msg, string) [][]byte { return nil })
	o.Server, o.Snapshot, o.Timeout = silent.Addr, snap, 50*time.Millisecond
	r, err = query.Run(t.Context(), o)
	if err != nil || r.Found || !strings.Contains(r.Text(), "says nothing by UDP within 50ms") {
		t.Errorf("%v\n%s", err, r.Text())
	}
	// Along a search path a silent server does not take more than the time for all.
	o.Name, o.Resolver, o.Total = "web", query.ForPods("shop", "cluster.local", nil), time.Millisecond
	r, err = query.Run(t.Context(), o)
	if err != nil || r.Found || len(r.Steps) != 1 || len(r.Unasked) != 3 || !strings.Contains(r.Text(), "not found: there was no time to ask for web.svc.cluster.local. web.cluster.local. web.\n") {
		t.Errorf("%v\n%s", err, r.Text())
	}
	o.Name = "a..b"
	if _, err := query.Run(t.Context(), o); err == nil {
		t.Error("asked for a..b")
	}
}
