package zone

import (
	"net/netip"
	"strings"
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

// Those that DNS answers with SERVFAIL are the ones that are said to lead astray.
func TestAstrayAliases(t *testing.T) {
	s := state.New()
	s.Update(func(tx *state.Tx) {
		for name, to := range map[string]string{
			"self": "self", "to-self": "self", "a": "b", "b": "c", "c": "b",
			"1": "2", "2": "3", "3": "4", "4": "5", "5": "6", "6": "7", "7": "8", "8": "9", "9": "web",
			"fine": "web", "gone": "nobody", "pod": "db-0.b",
		} {
			tx.PutService(&model.Service{Key: model.Key{Namespace: "default", Name: name}, Type: model.ExternalName, ExternalName: to + ".default.svc.cluster.local"})
		}
		tx.PutService(&model.Service{Key: model.Key{Namespace: "default", Name: "out"}, Type: model.ExternalName, ExternalName: "a.default.svc.example.com"})
		tx.PutService(&model.Service{Key: model.Key{Namespace: "default", Name: "web"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20")}, IPv4: true})
		tx.SetSynced()
	})
	z := newZone(t, s)
	said := map[string]Astray{}
	for _, a := range AstrayAliases(s.Snapshot(), "Cluster.Local.") {
		said[a.Path[0].Name] = a
	}
	for key := range s.Snapshot().Services.All() {
		answer, ours := z.Answer(dns.Question{Name: key.Name + ".default.svc.cluster.local.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
		if _, ok := said[key.Name]; ok != (ours && answer.Rcode == dns.RcodeServerFailure) {
			t.Errorf("%s: said %v, and the answer is %+v", key.Name, ok, answer)
		}
	}
	path := func(name string) string {
		var names []string
		for _, k := range said[name].Path {
			names = append(names, k.Name)
		}
		return strings.Join(names, " ")
	}
	for name, want := range map[string]string{"self": "self self", "to-self": "to-self self self", "a": "a b c b", "b": "b c b", "1": "1 2 3 4 5 6 7 8 9"} {
		if got := path(name); got != want || said[name].Circle != (name != "1") {
			t.Errorf("%s: %q, circle %v, want %q", name, got, said[name].Circle, want)
		}
	}
}
