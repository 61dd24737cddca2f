package nft

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

func TestPickNames(t *testing.T) {
	for name, want := range map[string]pick{
		"to-1":                          {n: 1},
		"external-to-12":                {external: true, n: 12},
		"nodeport-to-3":                 {nodePort: true, n: 3},
		"nodeport-external-to-5-sticky": {nodePort: true, external: true, sticky: true, n: 5},
	} {
		if got, ok := parsePick(name); !ok || got != want {
			t.Errorf("%s: got %+v, %v", name, got, ok)
		}
		if got := want.name(); got != name {
			t.Errorf("%+v: got %s, want %s", want, got, name)
		}
	}
	for _, name := range []string{"prerouting", "to-", "to-0", "to-x", "to-1-sticky-9s", "to-1-", "remember-9s", "refuse", ""} {
		if p, ok := parsePick(name); ok {
			t.Errorf("%q is taken for %+v", name, p)
		}
	}
	for name, want := range map[string]memory{"remember-90s": {seconds: 90}, "nodeport-remember-1s": {nodePort: true, seconds: 1}} {
		if got, ok := parseMemory(name); !ok || got != want || want.name() != name {
			t.Errorf("%s: got %+v, %v", name, got, ok)
		}
	}
	for _, name := range []string{"to-1", "remember-", "remember-s", "remember-0s", "remember-5", "remember"} {
		if m, ok := parseMemory(name); ok {
			t.Errorf("%q is taken for %+v", name, m)
		}
	}
}

// TestPlaces checks that backends stay in their places: the number of places
// that change is the number of backends that do, and one for the gap.
func TestPlaces(t *testing.T) {
	backend := func(i int) plan.Backend {
		return plan.Backend{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80)}
	}
	list := func(ids ...int) (out []plan.Backend) {
		for _, i := range ids {
			out = append(out, backend(i))
		}
		return out
	}
	var slots []netip.AddrPort
	for _, step := range []struct {
		name string
		want []plan.Backend
		then []int
	}{
		{"first", list(1, 2, 3, 4), []int{1, 2, 3, 4}},
		{"one more, least of all", list(0, 1, 2, 3, 4), []int{1, 2, 3, 4, 0}},
		{"one less: the last takes its place", list(0, 1, 3, 4), []int{1, 0, 3, 4}},
		{"the last goes", list(0, 1, 3), []int{1, 0, 3}},
		{"one for another", list(0, 3, 7), []int{7, 0, 3}},
		{"all others", list(5, 6), []int{5, 6}},
		{"none", nil, nil},
	} {
		slots = place(slots, step.want)
		var got []int
		for _, s := range slots {
			got = append(got, int(s.Addr().As4()[3]))
		}
		if diff := cmp.Diff(step.then, got); diff != "" {
			t.Errorf("%s: %s", step.name, diff)
		}
	}
}

// TestSmallChanges checks what the shape is for: one change of one Service is
// a few elements, however many endpoints and Services there are.
func TestSmallChanges(t *testing.T) {
	n := newNode(t)
	for i := range 20 {
		n.put(n.service(fmt.Sprint("other-", i), func(s *model.Service) {
			s.ClusterIPs[0] = netip.AddrFrom4([4]byte{10, 96, 1, byte(i)})
		}, "10.0.1.1", "10.0.1.2"))
	}
	var eps []string
	for i := range 200 {
		eps = append(eps, fmt.Sprintf("10.0.0.%d", i+1))
	}
	many := func(s *model.Service) {
		s.Ports[0].NodePort = 30080
		s.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: netip.MustParseAddr("192.0.2.1")}}
	}
	n.put(n.service("many", many, eps...))
	before := n.kernel()
	for _, step := range []struct {
		name string
		eps  []string
		most int
	}{
		{"one endpoint less", eps[1:], 9}, // three frontends lead elsewhere, one place of each moves, one goes
		{"one endpoint more", eps, 9},
		{"one endpoint for another", append([]string{"10.0.9.9"}, eps[1:]...), 3},
		{"no change", append([]string{"10.0.9.9"}, eps[1:]...), 0},
	} {
		n.put(n.service("many", many, step.eps...))
		now, changed := n.kernel(), 0
		for e, v := range now {
			if old, had := before[e]; !had || old != v {
				changed++
			}
		}
		for e := range before {
			if _, has := now[e]; !has {
				changed++
			}
		}
		if changed > step.most {
			t.Errorf("%s: %d elements changed, want at most %d", step.name, changed, step.most)
		}
		before = now
		n.check()
	}
	n.put(n.service("new", func(s *model.Service) { s.ClusterIPs[0] = netip.MustParseAddr("10.96.0.9") }, "10.0.0.1", "10.0.0.2"))
	if more := len(n.kernel()) - len(before); more != 5 {
		t.Errorf("a new Service with two endpoints took %d elements, want 5", more)
	}
}

func TestRanges(t *testing.T) {
	keys := func(m elements) map[string]bool {
		out := map[string]bool{}
		for e := range m {
			out[fmt.Sprintf("%x %v", e.key, e.end)] = true
		}
		return out
	}
	prefix := netip.MustParsePrefix
	for _, tt := range []struct {
		name string
		in   []netip.Prefix
		want []string
	}{
		{"one", []netip.Prefix{prefix("10.0.0.0/8")}, []string{"0a000000 false", "0b000000 true"}},
		{"one within another, given twice, not masked", []netip.Prefix{prefix("10.1.0.0/16"), prefix("10.0.0.1/8"), prefix("10.1.0.0/16")}, []string{"0a000000 false", "0b000000 true"}},
		{"up to the last address", []netip.Prefix{prefix("255.0.0.0/8")}, []string{"ff000000 false"}},
		{"everything", []netip.Prefix{prefix("0.0.0.0/0")}, []string{"00000000 false"}},
		{"none", []netip.Prefix{{}}, nil},
		{"IPv6", []netip.Prefix{prefix("fd00::/16")}, []string{"fd000000000000000000000000000000 false", "fd010000000000000000000000000000 true"}},
	} {
		m := elements{}
		m.addPrefixes(localPods, tt.in)
		want := map[string]bool{}
		for _, k := range tt.want {
			want[k] = true
		}
		if diff := cmp.Diff(want, keys(m)); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

// TestAddressTwice checks that of an address that a Service has twice, as load
// balancer's and as external IP, the first in the plan counts, with its source
// ranges, however much else the Service has; so it is with eBPF.
func TestAddressTwice(t *testing.T) {
	lb := netip.MustParseAddr("198.51.100.1")
	for ports := range 40 {
		svc := &model.Service{
			Key: model.Key{Namespace: "ns", Name: "web"}, IPv4: true, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
			Type: model.LoadBalancer, ExternalIPs: []netip.Addr{lb},
			LoadBalancer: model.ServiceLoadBalancer{
				Ingress: []model.LoadBalancerIngress{{Addr: lb}}, SourceRanges: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
			},
		}
		for i := range ports + 1 {
			svc.Ports = append(svc.Ports, model.ServicePort{Name: fmt.Sprint("p", i), Protocol: model.TCP, Port: uint16(80 + i)})
		}
		s := plan.Compile(plan.Input{Service: svc, Node: &model.Node{Name: "node-1"}, Options: plan.Options{ExternalIPs: true}})
		wants, _ := compile(s, func(poolKey, element) []netip.AddrPort { return nil })
		for i := range svc.Ports {
			key := frontendKey(lb, model.TCP, svc.Ports[i].Port)
			value, ok := wants.value(element{fam: v4, set: frontends, key: key})
			if _, restricted := block(value).value(guarded, ""); !ok || !restricted {
				t.Fatalf("of %d ports, that with number %d is open to everybody", ports+1, svc.Ports[i].Port)
			}
			if kind := kindsOf(s)[key]; kind != plan.LoadBalancer {
				t.Fatalf("of %d ports, that with number %d is claimed as %s", ports+1, svc.Ports[i].Port, kind)
			}
		}
	}
}
