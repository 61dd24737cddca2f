package ipam

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"fairway.dev/fairway/internal/model"
)

func withClusterIP(addrs ...string) func(*model.Service) {
	return func(s *model.Service) {
		for _, a := range addrs {
			s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(a))
		}
	}
}

// nodeWithPods has 192.0.2.66, Pods in 10.244.0.0/24 and fd00:10:244::/64, and
// is on network 192.0.2.64/27.
func nodeWithPods() *model.Node {
	n := node("n1", true, false, "192.0.2.66", "2001:db8::66")
	n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/64")}
	n.Networks = []netip.Prefix{netip.MustParsePrefix("192.0.2.67/27"), netip.MustParsePrefix("198.51.100.8/31"), netip.MustParsePrefix("2001:db8::/64")}
	return n
}

func apiServerAt(addr string) *model.EndpointSlice {
	return &model.EndpointSlice{Key: apiServer, Service: apiServer, Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr(addr), Ready: true}}}
}

func avoidBuggy(p *model.Pool)                 { p.AvoidBuggy = true }
func inNamespace(n string) func(p *model.Pool) { return func(p *model.Pool) { p.Namespace = n } }

// TestReservedAddressesAreGivenToNobody has a pool that consists of one address
// that is something else's: neither who asks for it, nor who holds it, nor who
// takes any address gets it, and both the pool and the asking Service say why.
func TestReservedAddressesAreGivenToNobody(t *testing.T) {
	other := svc("other", clusterIP, withClusterIP("10.96.0.7", "fd00:10:96::7"))
	tests := []struct{ addr, what string }{
		{"192.0.2.66", "the address of node n1"},
		{"2001:db8::66", "the address of node n1"},
		{"192.0.2.95", "the broadcast address of network 192.0.2.64/27 of node n1"},
		{"10.244.0.0", "an address for Pods on node n1"},
		{"10.244.0.255", "an address for Pods on node n1"},
		{"fd00:10:244::ffff", "an address for Pods on node n1"},
		{"10.96.0.7", "the cluster IP of Service default/other"},
		{"fd00:10:96::7", "the cluster IP of Service default/other"},
		{"10.245.0.1", "the address of a Kubernetes API server"},
		{"0.0.0.0", "an unspecified address"},
		{"127.0.0.1", "a loopback address"},
		{"169.254.1.1", "a link-local address"},
		{"224.0.0.251", "a multicast address"},
		{"239.255.255.255", "a multicast address"},
		{"255.255.255.255", "the broadcast address"},
		{"::", "the unspecified address"},
		{"::1", "the loopback address"},
		{"::ffff:192.0.2.66", "an IPv4-mapped address"},
		{"fe80::1", "a link-local address"},
		{"febf::1", "a link-local address"},
		{"ff02::fb", "a multicast address"},
	}
	for _, tt := range tests {
		t.Run(tt.addr, func(t *testing.T) {
			family := func(s *model.Service) {
				s.IPv4 = netip.MustParseAddr(tt.addr).Is4()
				s.IPv6 = !s.IPv4
			}
			p := pool("p", tt.addr, inNamespace("team"))
			p.UID = "uid-p"
			for _, mode := range []Mode{FromPools, FromNodes} {
				snap := snapshot(p, nodeWithPods(), other, apiServerAt("10.245.0.1"),
					svc("any", family, inPoolNamed("p")), svc("asks", family, wants(tt.addr)),
					svc("holds", family, inPoolNamed("p"), has(tt.addr)), svc("keeps", family, wants(tt.addr), has(tt.addr)),
					svc("shares", family, inPoolNamed("p"), sharing("k"), has(tt.addr)))
				a := New(Options{Mode: mode})
				a.Remember(model.Key{Namespace: "default", Name: "holds"}, "uid-holds", []netip.Addr{netip.MustParseAddr(tt.addr)})
				result := a.Sync(snap)
				want := []string{
					"! AddressReserved asks: address " + tt.addr + " is " + tt.what + ", which is never given to a Service; ask for another address",
					"! AddressReserved keeps: address " + tt.addr + " is " + tt.what,
					"! AddressReserved p: " + tt.addr + " contains " + tt.addr + ", " + tt.what + ", which is never given to a Service; take ",
					"! PoolExhausted any: no IPv", "! PoolExhausted holds: no IPv", "! PoolExhausted shares: no IPv",
					"any:", "asks:", "holds:", "keeps:", "shares:",
				}
				check(t, want, text(result))
				problems := result.Problems[model.Ref{Kind: "IPAddressPool", Key: p.Key}]
				if len(problems) != 1 || problems[0].Object.UID != "uid-p" || problems[0].Field != "spec.addresses[0]" {
					t.Errorf("problems of the pool: %+v", problems)
				}
			}
		})
	}
}

func TestAddressesBesideReservedOnes(t *testing.T) {
	rows := []any{nodeWithPods(), svc("kubernetes", clusterIP, withClusterIP("10.96.0.1")), apiServerAt("10.245.0.1")}
	damaged := model.Problem{Object: model.Ref{Kind: "IPAddressPool", Key: model.Key{Name: "p"}}}
	reserved := "! AddressReserved p: "
	tests := []struct {
		name string
		rows []any
		want []string
	}{
		{"the next one", []any{pool("p", "192.0.2.66-192.0.2.68"), svc("a"), svc("b")}, []string{
			reserved + "192.0.2.66-192.0.2.68 contains 192.0.2.66, the address of node n1, which is never given to a Service; take 192.0.2.66 out of the range", "a: 192.0.2.67", "b: 192.0.2.68"}},
		{"instead of the one held", []any{pool("p", "192.0.2.66-192.0.2.68"), svc("a", has("192.0.2.66")), svc("b", has("192.0.2.67"))}, []string{
			reserved + "192.0.2.66-192.0.2.68 contains", "a: 192.0.2.68", "b: 192.0.2.67"}},
		{"held, while a pool is damaged", []any{pool("p", "203.0.113.0/24"), damaged, svc("a", has("192.0.2.66")), svc("b", has("192.0.2.67"))}, []string{"a: 203.0.113.0", "b: 192.0.2.67"}},
		{"all of IPv4", []any{pool("p", "0.0.0.0/0"), svc("a")}, []string{
			reserved + "0.0.0.0-255.255.255.255 contains 0.0.0.0, an unspecified address, which is never given to a Service; take 0.0.0.0-0.255.255.255 out of the range", "a: 1.0.0.0"}},
		{"all of IPv6", []any{pool("p", "::/0"), svc("a", v6only)}, []string{reserved + "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff contains ::, the unspecified address", "a: ::2"}},
		{"a range from within a reserved one", []any{pool("p", "127.255.0.0-128.0.0.1"), svc("a")}, []string{
			reserved + "127.255.0.0-128.0.0.1 contains 127.255.0.0, a loopback address, which is never given to a Service; take 127.255.0.0-127.255.255.255 out", "a: 128.0.0.0"}},
		{"up to the end", []any{pool("p", "255.255.255.254-255.255.255.255"), svc("a"), svc("b", young)}, []string{
			reserved + "255.255.255.254-255.255.255.255 contains 255.255.255.255, the broadcast address", `! PoolExhausted b: no IPv4 address is free in pool "p"`, "a: 255.255.255.254", "b:"}},
		{"cluster IPs", []any{pool("p", "10.96.0.0/16"), svc("a"), svc("b")}, []string{
			reserved + "10.96.0.0-10.96.255.255 contains 10.96.0.1, the cluster IP of Service default/kubernetes, which is never given to a Service; take the range of cluster IPs out", "a: 10.96.0.0", "b: 10.96.0.2"}},
		{"Pods", []any{pool("p", "10.244.0.128-10.244.1.1"), svc("a")}, []string{
			reserved + "10.244.0.128-10.244.1.1 contains 10.244.0.128, an address for Pods on node n1, which is never given to a Service; take the range of Pods out", "a: 10.244.1.0"}},
		{"one problem for each range", []any{pool("p", "192.0.2.66/32,203.0.113.0/24,192.0.2.90-192.0.2.95")}, []string{
			reserved + "192.0.2.66 contains", reserved + "192.0.2.90-192.0.2.95 contains 192.0.2.95, the broadcast address"}},
		{"no broadcast address on a network of two", []any{pool("p", "198.51.100.9"), svc("a")}, []string{"a: 198.51.100.9"}},
		{"left out anyway", []any{pool("p", "203.0.113.0/24", avoidBuggy), &model.Node{Name: "n2", Networks: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}}, nil},
		{"left out anyway, and another", []any{pool("p", "203.0.113.0/24,10.96.0.0/24", avoidBuggy), svc("net", clusterIP, withClusterIP("10.96.0.0"))}, []string{
			reserved + "10.96.0.0-10.96.0.255 contains 10.96.0.1"}},
		{"endpoints of others are no reason", []any{pool("p", "203.0.113.5/32"), svc("a"),
			&model.EndpointSlice{Key: model.Key{Namespace: "x", Name: "x"}, Service: model.Key{Namespace: "x", Name: "kubernetes"}, Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("203.0.113.5"), Ready: true}}}},
			[]string{"a: 203.0.113.5"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := New(Options{})
			snap := snapshot(append(tt.rows, rows...)...)
			check(t, tt.want, text(a.Sync(snap)))
			check(t, tt.want, text(a.Sync(snap)))
		})
	}
}

func TestAddressIsLostWhenItBecomesReserved(t *testing.T) {
	a := New(Options{Pool: pool(FlagPool, "192.0.2.66-192.0.2.67")})
	check(t, []string{"a: 192.0.2.66"}, text(a.Sync(snapshot(svc("a")))))
	// Nothing is reported on the flag's pool, which is no object.
	check(t, []string{"a: 192.0.2.67"}, text(a.Sync(snapshot(svc("a"), nodeWithPods()))))
}

func TestNodesGiveTheirOwnAddresses(t *testing.T) {
	a := New(Options{Mode: FromNodes})
	check(t, []string{"a: 192.0.2.66"}, text(a.Sync(snapshot(svc("a", has("192.0.2.66")), nodeWithPods()))))
}

func TestPoolsBesideEachOther(t *testing.T) {
	flag := pool(FlagPool, "192.0.2.0/28")
	taken := "! PoolNameTaken "
	overlap := "! PoolOverlap "
	tests := []struct {
		name string
		rows []any
		want []string
	}{
		{"apart", []any{pool("a", "192.0.2.16/28"), pool("b", "192.0.2.32/28,2001:db8::/64")}, nil},
		{"the flag's", []any{pool("a", "192.0.2.8-192.0.2.20", inNamespace("x"))}, []string{
			overlap + "a: 192.0.2.8-192.0.2.20 overlaps 192.0.2.0-192.0.2.15 of the pool of --lb-pool; take the addresses out of one of them"}},
		{"the flag's, from before", []any{pool("a", "192.0.1.0-192.0.2.0", inNamespace("x"))}, []string{overlap + "a: 192.0.1.0-192.0.2.0 overlaps 192.0.2.0-192.0.2.15 of the pool of --lb-pool"}},
		{"the greater key", []any{pool("b", "203.0.113.0/25"), pool("a", "203.0.113.64/26")}, []string{overlap + "b: 203.0.113.0-203.0.113.127 overlaps 203.0.113.64-203.0.113.127 of IPAddressPool a"}},
		{"the greater namespace", []any{pool("a", "203.0.113.1", inNamespace("y")), pool("b", "203.0.113.1", inNamespace("x"))}, []string{overlap + "a: 203.0.113.1 overlaps 203.0.113.1 of IPAddressPool x/b"}},
		{"one within itself", []any{pool("a", "203.0.113.0/24,203.0.113.64/26")}, nil},
		{"behind a long one of its own", []any{pool("a", "203.0.113.8-203.0.113.40"), pool("b", "203.0.113.0/24,203.0.113.32/28")}, []string{
			overlap + "b: 203.0.113.0-203.0.113.255 overlaps 203.0.113.8-203.0.113.40 of IPAddressPool a", overlap + "b: 203.0.113.32-203.0.113.47 overlaps 203.0.113.8-203.0.113.40 of IPAddressPool a"}},
		{"behind two that reach further", []any{pool("a", "203.0.113.0-203.0.113.100"), pool("b", "203.0.113.50-203.0.113.200,203.0.113.90-203.0.113.95")}, []string{
			overlap + "b: 203.0.113.50-203.0.113.200 overlaps 203.0.113.0-203.0.113.100 of IPAddressPool a", overlap + "b: 203.0.113.90-203.0.113.95 overlaps 203.0.113.0-203.0.113.100 of IPAddressPool a"}},
		{"once for each range", []any{pool("z", "203.0.113.0/24"), pool("a", "203.0.113.1,203.0.113.2,203.0.113.3")}, []string{overlap + "z: 203.0.113.0-203.0.113.255 overlaps 203.0.113.1 of IPAddressPool a"}},
		{"the flag's name", []any{pool(FlagPool, "203.0.113.1", inNamespace("x"))}, []string{
			taken + "default: is also that of the pool of --lb-pool; Services that name it get addresses of either, so give it another name"}},
		{"each other's name", []any{pool("p", "203.0.113.1", inNamespace("y")), pool("p", "203.0.113.2", inNamespace("x"))}, []string{taken + "p: is also that of IPAddressPool x/p"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			result := New(Options{Pool: flag}).Sync(snapshot(tt.rows...))
			check(t, tt.want, text(result))
		})
	}
}

func TestFieldsOfPoolProblems(t *testing.T) {
	p := pool("p", "203.0.113.1,127.0.0.1")
	ref := model.Ref{Kind: "IPAddressPool", Key: p.Key}
	for _, tt := range []struct {
		want string
		rows []any
	}{
		{"spec.addresses[1]", []any{p}},
		// With entries that could not be read, the place is not known.
		{"spec.addresses", []any{p, model.Problem{Object: ref}}},
	} {
		problems := New(Options{}).Sync(snapshot(tt.rows...)).Problems[ref]
		if len(problems) != 1 || problems[0].Field != tt.want {
			t.Errorf("problems %+v, want one at %s", problems, tt.want)
		}
	}
}

// TestReservationsRandom compares with looking at every range.
func TestReservationsRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	at := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}) }
	for range 300 {
		var list []reservation
		for i := range rng.IntN(8) {
			first := rng.IntN(256)
			list = append(list, reservation{AddrRange: model.AddrRange{First: at(first), Last: at(min(255, first+rng.IntN(40)))}, what: fmt.Sprint(i)})
		}
		r := newReservations(slices.Clone(list))
		for n := range 256 {
			want := slices.ContainsFunc(list, func(x reservation) bool { return x.Contains(at(n)) })
			found, ok := r.of(at(n))
			if ok != want || ok && !found.Contains(at(n)) {
				t.Fatalf("%v: %s is in %v (%t), want %t", list, at(n), found, ok, want)
			}
		}
	}
}
