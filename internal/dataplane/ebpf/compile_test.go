package ebpf

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// show writes a wanted Service in a form to compare.
func show(s service) (out []string) {
	for _, f := range s.frontends {
		line := fmt.Sprintf("%s %s:%d/%d", f.kind, f.key.Addr.addr(), f.key.Port.number(), f.key.Protocol)
		for class, name := range []string{"inside", "outside"} {
			line += fmt.Sprintf(" %s:%s", name, plan.Action(f.actions[class]))
			if f.actions[class] == actionForward {
				for _, b := range s.pools[f.pools[class]].backends {
					line += " " + b.addrPort().String()
					if b.Flags&backendLocal != 0 {
						line += "(local)"
					}
				}
			}
		}
		if f.affinity != 0 {
			line += fmt.Sprintf(" affinity:%d", f.affinity)
		}
		if f.restricted {
			line += fmt.Sprint(" from:", f.sources)
		}
		out = append(out, line)
	}
	for _, a := range s.clusterIPs {
		out = append(out, "cluster IP "+a.addr().String())
	}
	return out
}

func TestCompile(t *testing.T) {
	svc := &model.Service{
		Key: model.Key{Name: "web"}, Type: model.LoadBalancer, IPv4: true, IPv6: true,
		ClusterIPs: addrs("10.96.0.1", "fd00::1"), ExternalLocal: true, AffinityTimeout: 1500 * time.Millisecond,
		Ports:       []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080}, {Name: "dns", Protocol: model.UDP, Port: 53}},
		ExternalIPs: addrs("192.0.2.1"),
	}
	svc.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: netip.MustParseAddr("192.0.2.1")}}
	svc.LoadBalancer.SourceRanges = prefixes("198.51.100.0/24")
	endpoints := &model.EndpointSet{Key: svc.Key}
	for _, e := range []struct{ addr, node string }{{"10.0.0.1", "here"}, {"10.0.0.2", "there"}, {"fd00::2", "there"}} {
		endpoints.Endpoints = append(endpoints.Endpoints, model.Endpoint{
			Addr: netip.MustParseAddr(e.addr), Node: e.node, Ready: true, Serving: true,
			Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}},
		})
	}
	got := compile(plan.Compile(plan.Input{
		Service: svc, Endpoints: endpoints, Node: &model.Node{Name: "here"}, Options: plan.Options{ExternalIPs: true},
	}))
	want := []string{
		"ClusterIP 10.96.0.1:80/6 inside:forward 10.0.0.1:8080(local) 10.0.0.2:8080 outside:forward 10.0.0.1:8080(local) 10.0.0.2:8080 affinity:2",
		"NodePort 0.0.0.0:30080/6 inside:forward 10.0.0.1:8080(local) 10.0.0.2:8080 outside:forward 10.0.0.1:8080(local) affinity:2",
		"LoadBalancer 192.0.2.1:80/6 inside:forward 10.0.0.1:8080(local) 10.0.0.2:8080 outside:forward 10.0.0.1:8080(local) affinity:2 from:[198.51.100.0/24]",
		"ClusterIP [fd00::1]:80/6 inside:forward [fd00::2]:8080 outside:forward [fd00::2]:8080 affinity:2",
		"NodePort [::]:30080/6 inside:forward [fd00::2]:8080 outside:drop affinity:2",
		"ClusterIP 10.96.0.1:53/17 inside:reject outside:reject affinity:2",
		"LoadBalancer 192.0.2.1:53/17 inside:reject outside:reject affinity:2 from:[198.51.100.0/24]",
		"ClusterIP [fd00::1]:53/17 inside:reject outside:reject affinity:2",
		"cluster IP 10.96.0.1",
		"cluster IP fd00::1",
	}
	for i, w := range want {
		for _, a := range []string{"fd00::1", "::"} { // addresses are printed without brackets
			w = replaceFirst(w, " ["+a+"]:", " "+a+":")
		}
		want[i] = w
	}
	if diff := cmp.Diff(want, show(got)); diff != "" {
		t.Error(diff)
	}
	if len(got.pools) != 3 {
		t.Errorf("%d pools, want one for each family and policy that forwards: %v", len(got.pools), got.pools)
	}
}

func replaceFirst(s, old, new string) string {
	for i := 0; i+len(old) <= len(s); i++ {
		if s[i:i+len(old)] == old {
			return s[:i] + new + s[i+len(old):]
		}
	}
	return s
}

// TestKeys checks the form of addresses, by which the programs find things.
func TestKeys(t *testing.T) {
	f := plan.Frontend{Addr: netip.MustParseAddr("10.96.0.1"), Protocol: model.UDP, Port: 0x1234}
	want := frontendKey{Addr: address{10: 0xff, 11: 0xff, 12: 10, 13: 96, 15: 1}, Port: port{0x12, 0x34}, Protocol: 17}
	if got := frontendKeyOf(&f); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	f.Addr = netip.IPv4Unspecified()
	if got := frontendKeyOf(&f).Addr; got != (address{10: 0xff, 11: 0xff}) {
		t.Errorf("any IPv4 address is %v", got)
	}
	f.Addr = netip.IPv6Unspecified()
	if got := frontendKeyOf(&f).Addr; got != (address{}) {
		t.Errorf("any IPv6 address is %v", got)
	}
	if got := sourceKeyOf(7, netip.MustParsePrefix("10.1.2.3/8")); got != (sourceKey{Prefix: 32 + 96 + 8, Guard: 7, Addr: address{10: 0xff, 11: 0xff, 12: 10}}) {
		t.Errorf("a source range is %v", got)
	}
}

// TestPlaces checks that backends stay in their places: the number of places
// that change is the number of backends that do, and one for the gap.
// TestKeysInWords names keys in messages as people know them.
func TestKeysInWords(t *testing.T) {
	for want, at := range map[string]string{
		"10.96.0.1 port 80": "10.96.0.1:80", "NodePort 30080 (IPv4)": "0.0.0.0:30080", "NodePort 30080 (IPv6)": "[::]:30080",
		"10.96.0.1": "10.96.0.1:0", "fd00::1 port 53": "[fd00::1]:53",
	} {
		a := netip.MustParseAddrPort(at)
		if got := (frontendKey{Addr: addressOf(a.Addr()), Port: portOf(a.Port())}).String(); got != want {
			t.Errorf("%s is told as %q, want %q", at, got, want)
		}
	}
}

// TestRefusalStaysTheSame: a message that changes from one try to the next
// would be another Event each time.
func TestRefusalStaysTheSame(t *testing.T) {
	full := errors.New("full")
	web := planOf("web", model.TCP, vip)
	o := &owner{key: web.Key, want: compile(web)}
	d := &Dataplane{claims: map[frontendKey][]*owner{}}
	refused := map[frontendKey]error{{Addr: addressOf(vip.Addr())}: full}
	for i := range 20 {
		f := o.want.frontends[0]
		f.key.Port = portOf(uint16(1000 + i))
		o.want.frontends = append(o.want.frontends, f)
		d.claims[f.key] = []*owner{o}
		refused[f.key] = full
	}
	for range 50 {
		if got, want := d.settle(o, refused).Error(), "service ns/web: 10.96.0.10: full"; got != want {
			t.Fatalf("told %q, want %q", got, want)
		}
	}
	delete(refused, frontendKey{Addr: addressOf(vip.Addr())})
	for range 50 {
		if got, want := d.settle(o, refused).Error(), "service ns/web: 10.96.0.10 port 1000: full"; got != want {
			t.Fatalf("told %q, want %q", got, want)
		}
	}
}

func TestPlaces(t *testing.T) {
	list := func(ids ...byte) (out []backend) {
		for _, i := range ids {
			out = append(out, backend{Addr: addressOf(netip.AddrFrom4([4]byte{10, 0, 0, i})), Port: portOf(80)})
		}
		return out
	}
	var row []backend
	for _, step := range []struct {
		name       string
		want, then []backend
	}{
		{"first", list(1, 2, 3, 4), list(1, 2, 3, 4)},
		{"one more, least of all", list(0, 1, 2, 3, 4), list(1, 2, 3, 4, 0)},
		{"one less: the last takes its place", list(0, 1, 3, 4), list(1, 0, 3, 4)},
		{"the last goes", list(0, 1, 3), list(1, 0, 3)},
		{"one for another", list(0, 3, 7), list(7, 0, 3)},
		{"all others", list(5, 6), list(5, 6)},
		{"none", nil, list()},
	} {
		row = place(row, step.want)
		if len(row) != len(step.then) || cmp.Diff(step.then, row) != "" && len(row) > 0 {
			t.Errorf("%s: got %v, want %v", step.name, row, step.then)
		}
	}
	moved := list(1, 2)
	moved[1].Flags = backendLocal
	if got := place(list(2, 1), moved); got[0].Flags != backendLocal {
		t.Error("a backend that has moved to this node stays as it was")
	}
}

func TestCompileNode(t *testing.T) {
	n := dataplane.Node{
		LocalPods: prefixes("10.244.0.0/24"), Cluster: prefixes("10.244.0.0/16", "fd00::/48"), Services: prefixes("10.96.0.0/12"),
		TLSProxy: []netip.AddrPort{netip.MustParseAddrPort("[fd01::1]:443")},
	}
	got := compileNode(n, addrs("127.0.0.1", "::1", "192.0.2.1", "fe80::1%eth0"))
	wantRanges := map[string]uint32{"10.244.0.0/24": rangeLocalPods | rangeCluster, "10.244.0.0/16": rangeCluster, "fd00::/48": rangeCluster, "10.96.0.0/12": rangeServices}
	if len(got.ranges) != len(wantRanges) {
		t.Errorf("ranges %v", got.ranges)
	}
	for p, flags := range wantRanges {
		if g := got.ranges[rangeKeyOf(netip.MustParsePrefix(p))]; g != flags {
			t.Errorf("range %s has flags %b, want %b", p, g, flags)
		}
	}
	check := func(name string, want map[string]uint32) {
		t.Helper()
		for a, flags := range want {
			if g := got.addresses[addressOf(netip.MustParseAddr(a))]; g != flags {
				t.Errorf("%s: address %s has flags %b, want %b", name, a, g, flags)
			}
		}
	}
	both := addressNode | addressNodePorts
	check("by default", map[string]uint32{"127.0.0.1": both, "::1": both, "192.0.2.1": both, "fe80::1": both, "192.0.2.2": 0})
	if got.proxies[0].Port.number() != 0 || got.proxies[1].addrPort() != n.TLSProxy[0] {
		t.Errorf("proxies %v", got.proxies)
	}
	n.NodePorts = prefixes("192.0.2.0/24")
	got = compileNode(n, addrs("127.0.0.1", "192.0.2.1"))
	check("as chosen", map[string]uint32{"127.0.0.1": addressNode, "192.0.2.1": both})
}

func TestFrontendValue(t *testing.T) {
	w := wantedFrontend{kind: plan.NodePort, actions: [2]uint8{actionForward, actionDrop}, pools: [2]uint16{inside: 1}, affinity: 9}
	got := w.decide(3, 4, []row{{pool: pool{Base: 1, Count: 1}}, {pool: pool{Base: 8, Count: 2}}})
	want := frontend{Pools: [2]pool{inside: {8, 2}}, ID: 3, Guard: 4, Affinity: 9, Actions: w.actions, Kind: 1}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestLayout compares the structures of Go with those that the programs were
// compiled with.
func TestLayout(t *testing.T) {
	spec, err := loadSocket()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		goes any
	}{
		{"frontend_key", frontendKey{}}, {"frontend", frontend{}}, {"backend", backend{}}, {"range_key", rangeKey{}},
		{"source_key", sourceKey{}}, {"counters", Counts{}}, {"flow", flow{}},
	} {
		var s *btf.Struct
		if err := spec.Types.TypeByName(c.name, &s); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		goes := reflect.TypeOf(c.goes)
		if int(s.Size) != int(goes.Size()) {
			t.Errorf("%s has %d bytes, in Go %d", c.name, s.Size, goes.Size())
		}
		for i, m := range s.Members {
			if i >= goes.NumField() || uint32(goes.Field(i).Offset)*8 != uint32(m.Offset) {
				t.Errorf("%s.%s is not where it is in Go", c.name, m.Name)
			}
		}
	}
}
