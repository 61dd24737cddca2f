package zone

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// ExternalName Services that lead round in circles: SERVFAIL, with each alias once.
func TestLoops(t *testing.T) {
	s := state.New()
	s.Update(func(tx *state.Tx) {
		for name, to := range map[string]string{
			"self": "self", "a": "b", "b": "c", "c": "b", // c leads back into the middle
			"1": "2", "2": "3", "3": "4", "4": "5", "5": "6", "6": "7", "7": "8", "8": "9", "9": "web", // no loop, but too far
		} {
			tx.PutService(&model.Service{Key: model.Key{Namespace: "default", Name: name}, Type: model.ExternalName, ExternalName: to + ".default.svc.cluster.local"})
		}
		tx.PutService(&model.Service{Key: model.Key{Namespace: "default", Name: "web"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20")}, IPv4: true})
		tx.SetSynced()
	})
	z := newZone(t, s)
	for name, aliases := range map[string]int{"self": 1, "a": 3, "b": 2, "1": maxChain + 1} {
		a, ours := z.Answer(dns.Question{Name: name + ".default.svc.cluster.local.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
		if !ours || a.Rcode != dns.RcodeServerFailure || len(a.Answer) != aliases {
			t.Errorf("%s: %+v", name, a)
		}
		if a, _ := z.Answer(dns.Question{Name: name + ".default.svc.cluster.local.", Qtype: dns.TypeCNAME, Qclass: dns.ClassINET}); a.Rcode != dns.RcodeSuccess || len(a.Answer) != 1 {
			t.Errorf("%s CNAME: %+v", name, a)
		}
	}
	// Through eight it is still told.
	a, _ := z.Answer(dns.Question{Name: "2.default.svc.cluster.local.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
	if a.Rcode != dns.RcodeSuccess || len(a.Answer) != maxChain+1 {
		t.Errorf("eight aliases: %+v", a)
	}
}
