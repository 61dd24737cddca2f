package dns

import (
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func TestACL(t *testing.T) {
	a := newACL([]netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/64")})
	check := func(addr string, want bool) {
		t.Helper()
		if got := a.allows(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	check("10.244.7.7", true)
	check("::ffff:10.244.7.7", true)
	check("fd00:244::7", true)
	check("127.0.0.1", true)
	check("198.51.100.7", false)
	check("2001:db8::7", false)

	store := state.New()
	store.Update(func(tx *state.Tx) {
		tx.PutNode(&model.Node{Name: "n", Addrs: []netip.Addr{netip.MustParseAddr("198.51.100.7")}})
	})
	a.update(store.Snapshot())
	check("198.51.100.7", true)
	store.Update(func(tx *state.Tx) { tx.DeleteNode("n") })
	a.update(store.Snapshot())
	check("198.51.100.7", false)

	local, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range local {
		if n, ok := l.(*net.IPNet); ok {
			check(n.IP.String(), true)
		}
	}
	if !newACL(nil).allows(netip.MustParseAddr("198.51.100.7")) {
		t.Error("without ranges not everybody may ask")
	}
}

func TestStrangersAreRefused(t *testing.T) {
	s := newServer(t, Options{AllowFrom: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}})
	packed, err := question("web.default.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]int{"10.244.1.1:4242": dns.RcodeSuccess, "198.51.100.7:4242": dns.RcodeRefused} {
		answer := answerTo(t, s, packed, netip.MustParseAddrPort(from), false)
		m := new(dns.Msg)
		if err := m.Unpack(answer); err != nil || m.Rcode != want {
			t.Errorf("from %s: %v, %v", from, m.MsgHdr, err)
		}
	}
}
