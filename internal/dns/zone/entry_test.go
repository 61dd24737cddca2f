package zone

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// Services are found whether their names fit in an entry's key or not, and nothing
// is that only looks like one.
func TestEntries(t *testing.T) {
	s := state.New()
	keys := map[int]model.Key{}
	for _, n := range []int{shortest - 1, shortest, shortest + 1, 63} {
		keys[n] = model.Key{Namespace: "ns", Name: strings.Repeat("a", n-2)}
	}
	s.Update(func(tx *state.Tx) {
		for n, k := range keys {
			tx.PutService(&model.Service{Key: k, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(n)})}})
		}
		tx.PutService(&model.Service{Key: model.Key{Namespace: "c", Name: "ab"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.1.1"), netip.MustParseAddr("10.96.1.2"), netip.MustParseAddr("fd00::1")}})
		tx.SetSynced()
	})
	z := newZone(t, s)
	ask := func(name string, qtype uint16) string {
		a, _ := z.Answer(dns.Question{Name: name + ".svc.cluster.local.", Qtype: qtype, Qclass: dns.ClassINET})
		var said []string
		for _, rr := range a.Answer {
			said = append(said, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
		return dns.RcodeToString[a.Rcode] + " " + strings.Join(said, " ")
	}
	for n, k := range keys {
		if got, want := ask(k.Name+".ns", dns.TypeA), "NOERROR "+netip.AddrFrom4([4]byte{10, 96, 0, byte(n)}).String(); got != want {
			t.Errorf("%d letters: %s, want %s", n, got, want)
		}
		if got := ask(k.Name+".ns", dns.TypeAAAA); got != "NOERROR " {
			t.Errorf("%d letters, AAAA: %s", n, got)
		}
	}
	if got := ask("ab.c", dns.TypeA); got != "NOERROR 10.96.1.1 10.96.1.2" && got != "NOERROR 10.96.1.2 10.96.1.1" {
		t.Errorf("two addresses of a family: %s", got)
	}
	if got := ask("ab.c", dns.TypeAAAA); got != "NOERROR fd00::1" {
		t.Errorf("AAAA: %s", got)
	}
	for _, name := range []string{"a.bc", "abc.c", `ab.c\000`, `ab\000.c`, `a.b\.c`} {
		if got := ask(name, dns.TypeA); got != "NXDOMAIN " {
			t.Errorf("%s: %s", name, got)
		}
	}
	s.Update(func(tx *state.Tx) {
		for _, k := range keys {
			tx.DeleteService(k)
		}
	})
	z.Update(s.Snapshot())
	for n, k := range keys {
		if got := ask(k.Name+".ns", dns.TypeA); got != "NXDOMAIN " {
			t.Errorf("%d letters, deleted: %s", n, got)
		}
	}
}
