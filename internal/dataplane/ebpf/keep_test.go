package ebpf

import (
	"context"
	"maps"
	"net/netip"
	"testing"
	"time"

	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// TestRestartWithoutRoom checks that a Service for which there is no room after a
// restart, as it has grown, goes on as the process before left it, with its
// number and source ranges, and that nothing of it is lost to the maps.
func TestRestartWithoutRoom(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	o := m.options(t, n)
	o.MaxBackends = 8
	first := start(t, o)
	lb := netip.MustParseAddr("198.51.100.1")
	// web has a port with one endpoint, and one with more.
	web := func(more ...string) plan.Service {
		svc := &model.Service{
			Key: model.Key{Namespace: "ns", Name: "web"}, IPv4: true, ClusterIPs: []netip.Addr{vip.Addr()}, Type: model.LoadBalancer,
			LoadBalancer: model.ServiceLoadBalancer{
				Ingress: []model.LoadBalancerIngress{{Addr: lb}}, SourceRanges: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
			},
			Ports: []model.ServicePort{{Name: "one", Protocol: model.TCP, Port: 80}, {Name: "more", Protocol: model.TCP, Port: 81}},
		}
		set := &model.EndpointSet{Key: svc.Key}
		for i, a := range append([]string{"10.244.0.3"}, more...) {
			e := model.Endpoint{Addr: netip.MustParseAddr(a), Ready: true, Serving: true, Node: "node-1", Ports: []model.EndpointPort{{Name: "more", Protocol: model.TCP, Port: 8080}}}
			if i == 0 {
				e.Ports = append(e.Ports, model.EndpointPort{Name: "one", Protocol: model.TCP, Port: 8080})
			}
			set.Endpoints = append(set.Endpoints, e)
		}
		return plan.Compile(plan.Input{Service: svc, Endpoints: set, Node: n.Node1})
	}
	gone := planOf("gone", model.TCP, netip.MustParseAddrPort("10.96.0.12:80"), "10.244.0.3:8080")
	small, big := web("192.168.50.1"), web("10.244.9.1", "10.244.9.2", "10.244.9.3", "10.244.9.4")
	apply(t, first, small, gone)
	prune(t, first, n)
	before := maps.Clone(first.have.frontends)
	delete(before, frontendKeyOf(&gone.Frontends[0]))
	first.abandon(t)

	d := start(t, o)
	if failed := d.Apply(t.Context(), changes(big)); failed[big.Key] == nil {
		t.Fatal("there is room for a Service that has grown beyond the map")
	}
	if err := d.SetNode(t.Context(), n.Settings); err != nil {
		t.Fatal(err)
	}
	if err := d.Prune(t.Context(), maps.All(map[model.Key]plan.Service{big.Key: big})); err != nil {
		t.Fatal(err)
	}
	ask := func(when, at string) {
		t.Helper()
		if a, err := n.Hosts["pod-a"].Ask("tcp", netip.AddrPort{}, netip.MustParseAddrPort(at), 5*time.Second); err != nil || a.Name != "pod-b" && a.Name != "node-1" {
			t.Errorf("%s, %s answers %s, %v", when, at, a.Name, err)
		}
	}
	ask("without room", "10.96.0.10:80")
	ask("without room", "10.96.0.10:81")
	if !maps.Equal(d.have.frontends, before) {
		t.Errorf("without room, the frontends became\n%v\nfrom\n%v", d.have.frontends, before)
	}
	sources, err := readTrie[sourceKey, uint8](d.maps[socketMapSources])
	if err != nil || len(sources) != 2 { // of two ports
		t.Errorf("without room, the source ranges are %v, %v", sources, err)
	}
	if err := d.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if failed := d.Apply(t.Context(), changes(big)); failed[big.Key] == nil {
		t.Fatal("there is room at the second try")
	}
	ask("after the second try", "10.96.0.10:81")
	apply(t, d, small)
	if !maps.Equal(d.have.frontends, before) {
		t.Errorf("with room, the frontends became\n%v\nfrom\n%v", d.have.frontends, before)
	}
	for key, err := range d.Apply(context.Background(), []reconcile.Change[model.Key, plan.Service]{{Key: small.Key}}) {
		t.Errorf("removing %s: %v", key, err)
	}
	if len(d.have.frontends)+len(d.owners)+len(d.guards)+len(d.claims) != 0 {
		t.Errorf("left over: %v, %v, %v, %v", d.have.frontends, d.owners, d.guards, d.claims)
	}
	if _, ok := d.rows.take(8); !ok {
		t.Error("not all of the map of backends is free again")
	}
}
