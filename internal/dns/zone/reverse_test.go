package zone

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// TestReverseOfClusterIP: an endpoint with the address of a cluster IP, which anybody
// may write, adds nothing to that one's reverse name, whichever of the Services comes
// first; not in the Service's own namespace either.
func TestReverseOfClusterIP(t *testing.T) {
	s := state.New()
	ip := netip.MustParseAddr("10.96.0.77")
	s.Update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: model.Key{Namespace: "shop", Name: "web"}, ClusterIPs: []netip.Addr{ip}, IPv4: true})
		for _, k := range []model.Key{{Namespace: "a", Name: "evil"}, {Namespace: "shop", Name: "web2"}, {Namespace: "z", Name: "evil"}, {Namespace: "shop", Name: "web"}} {
			if k.Name != "web" {
				tx.PutService(&model.Service{Key: k, Headless: true, IPv4: true})
			}
			tx.PutSlice(&model.EndpointSlice{Key: k, Service: k, Endpoints: []model.Endpoint{{Addr: ip, Ready: true, Hostname: "login"}}})
		}
		tx.SetSynced()
	})
	z := newZone(t, s)
	q := dns.Question{Name: "77.0.96.10.in-addr.arpa.", Qtype: dns.TypePTR, Qclass: dns.ClassINET}
	a, ours := z.Answer(q)
	if !ours || len(a.Answer) != 1 || a.Answer[0].(*dns.PTR).Ptr != "web.shop.svc.cluster.local." {
		t.Errorf("%+v", a)
	}
	if key := serviceOf(t, z, q); key != (model.Key{Namespace: "shop", Name: "web"}) {
		t.Errorf("the answer is said to be of %s", key)
	}
	// Without the Service the address is an endpoint's as any other.
	s.Update(func(tx *state.Tx) { tx.DeleteService(model.Key{Namespace: "shop", Name: "web"}) })
	z.Update(s.Snapshot())
	if a, _ := z.Answer(q); len(a.Answer) != 3 {
		t.Errorf("without the Service: %+v", a)
	}
}

// serviceOf is the Service that an answer is said to be of.
func serviceOf(t *testing.T, z *Zone, q dns.Question) model.Key {
	t.Helper()
	packed, err := (&dns.Msg{Question: []dns.Question{q}}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	var query wire.Query
	if err := query.Parse(packed); err != nil {
		t.Fatal(err)
	}
	var b wire.Builder
	b.Reset(nil, &query, wire.MaxSize)
	return z.Write(&query, &b).Service()
}
