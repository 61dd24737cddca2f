package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/model"
)

func TestVerdicts(t *testing.T) {
	addr := netip.MustParseAddr
	ports := []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 8080}}
	node := &model.Node{Name: "here", Zone: "a"}
	port := model.ServicePort{Name: "web", Protocol: model.TCP, Port: 80}
	zone := func(z string) *model.Hints { return &model.Hints{Zones: []string{z}} }
	for _, test := range []struct {
		name string
		eps  []model.Endpoint
		want []string
	}{
		{"ready, here and elsewhere", []model.Endpoint{
			{Addr: addr("10.0.0.1"), Ready: true, Node: "here", Ports: ports}, {Addr: addr("10.0.0.2"), Ready: true, Node: "there", Ports: ports},
		}, []string{"10.0.0.1:8080 true ready | true ready", "10.0.0.2:8080 true ready | false it is not on this node"}},
		{"conditions, with others ready", []model.Endpoint{
			{Addr: addr("10.0.0.1"), Ready: true, Node: "here", Ports: ports},
			{Addr: addr("10.0.0.2"), Node: "here", Ports: ports},
			{Addr: addr("10.0.0.3"), Serving: true, Terminating: true, Node: "here", Ports: ports},
			{Addr: addr("10.0.0.4"), Terminating: true, Node: "here", Ports: ports},
		}, []string{
			"10.0.0.1:8080 true ready | true ready", "10.0.0.2:8080 false not ready | false not ready",
			"10.0.0.3:8080 false it terminates, and others are ready | false it terminates, and others are ready",
			"10.0.0.4:8080 false it terminates and does not serve any more | false it terminates and does not serve any more",
		}},
		{"nobody is ready", []model.Endpoint{{Addr: addr("10.0.0.3"), Serving: true, Terminating: true, Node: "here", Ports: ports}},
			[]string{"10.0.0.3:8080 true it terminates but serves, and none is ready | true it terminates but serves, and none is ready"}},
		{"zones", []model.Endpoint{
			{Addr: addr("10.0.0.1"), Ready: true, Node: "here", Ports: ports, Hints: zone("a")},
			{Addr: addr("10.0.0.2"), Ready: true, Node: "here", Ports: ports, Hints: zone("b")},
		}, []string{
			"10.0.0.1:8080 true ready, and meant for zone a | true ready",
			"10.0.0.2:8080 false meant for other zones: b | true ready",
		}},
		{"hints on some", []model.Endpoint{
			{Addr: addr("10.0.0.1"), Ready: true, Node: "there", Ports: ports, Hints: zone("a")},
			{Addr: addr("10.0.0.2"), Ready: true, Node: "here", Ports: ports},
		}, []string{
			"10.0.0.1:8080 true ready; hints are not followed, for not every ready endpoint has one or none is meant for here | false it is not on this node",
			"10.0.0.2:8080 true ready | true ready",
		}},
		{"left alone", []model.Endpoint{
			{Addr: addr("10.0.0.1"), Ready: true, NotProxied: true, Node: "here", Ports: ports},
			{Addr: addr("10.0.0.2"), Serving: true, Terminating: true, Node: "here", Ports: ports},
		}, []string{
			"10.0.0.1:8080 false a label of its EndpointSlice, service.kubernetes.io/headless or service.kubernetes.io/service-proxy-name, tells service proxies to leave it alone" +
				" | false a label of its EndpointSlice, service.kubernetes.io/headless or service.kubernetes.io/service-proxy-name, tells service proxies to leave it alone",
			"10.0.0.2:8080 true it terminates but serves, and none is ready | true it terminates but serves, and none is ready",
		}},
		{"what cannot be", []model.Endpoint{
			{Addr: addr("10.0.0.1"), Ready: true, Node: "here", Ports: []model.EndpointPort{{Name: "other", Protocol: model.TCP, Port: 1}}},
			{Addr: addr("10.0.0.2"), Ready: true, Node: "here", Ports: []model.EndpointPort{{Name: "web", Protocol: model.TCP}}},
			{Addr: addr("10.0.0.3"), Ready: true, Node: "here", Ports: []model.EndpointPort{{Name: "web", Protocol: model.UDP, Port: 1}}},
			{Addr: addr("127.0.0.1"), Ready: true, Node: "here", Ports: ports},
			{Addr: addr("fd00::1"), Ready: true, Node: "here", Ports: ports},
		}, []string{
			`10.0.0.1:0 false it has no port named "web" | false it has no port named "web"`,
			`10.0.0.2:0 false its TCP port named "web" has no number | false its TCP port named "web" has no number`,
			`10.0.0.3:0 false its port named "web" is of UDP, not of TCP | false its port named "web" is of UDP, not of TCP`,
			"127.0.0.1:8080 false its address is a loopback address | false its address is a loopback address",
			"[fd00::1]:8080 false the Service has no cluster IP of family IPv6 | false the Service has no cluster IP of family IPv6",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, v := range Verdicts(Input{
				Service: &model.Service{ClusterIPs: []netip.Addr{addr("10.96.0.1")}}, Node: node, Endpoints: &model.EndpointSet{Endpoints: test.eps},
			}, port) {
				got = append(got, fmt.Sprintf("%s %v %s | %v %s", v.Addr, v.Cluster.In, v.Cluster.Why, v.Local.In, v.Local.Why))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("want-, got+:\n%s", diff)
			}
		})
	}
}

// TestVerdictsOfHeadless: DNS gives the ready endpoints of both families.
func TestVerdictsOfHeadless(t *testing.T) {
	port := model.ServicePort{Name: "web", Protocol: model.TCP, Port: 80}
	ports := []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 8080}}
	for _, v := range Verdicts(Input{Service: &model.Service{Headless: true}, Node: &model.Node{Name: "here"}, Endpoints: &model.EndpointSet{Endpoints: []model.Endpoint{
		{Addr: netip.MustParseAddr("10.0.0.1"), Ready: true, Node: "here", Ports: ports},
		{Addr: netip.MustParseAddr("fd00::1"), Ready: true, Node: "there", Ports: ports},
		{Addr: netip.MustParseAddr("fd00::2"), Node: "here", Ports: ports},
	}}}, port) {
		if v.Cluster.In != v.Endpoint.Ready {
			t.Errorf("%s: %+v", v.Addr, v.Cluster)
		}
	}
}

// TestVerdictsAreTheCompiledOnes has many random Services: what is explained
// is what is served.
func TestVerdictsAreTheCompiledOnes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	one := func(p float64) bool { return rng.Float64() < p }
	for range 2000 {
		in := Input{
			Service: &model.Service{
				ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, InternalLocal: one(0.5), ExternalLocal: true,
				Ports: []model.ServicePort{{Name: "web", Protocol: model.TCP, Port: 80, NodePort: 30080}},
			},
			Node: &model.Node{Name: "n0", Zone: "z0"}, Endpoints: &model.EndpointSet{},
		}
		hinted := one(0.7)
		for i := range rng.IntN(6) {
			e := model.Endpoint{
				Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), Ready: one(0.5), Serving: one(0.5), Terminating: one(0.5), Node: fmt.Sprint("n", rng.IntN(3)),
				Ports: []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 8080}},
			}
			if hinted && one(0.9) {
				e.Hints = &model.Hints{Zones: []string{fmt.Sprint("z", rng.IntN(2))}}
				if one(0.5) {
					e.Hints.Nodes = []string{fmt.Sprint("n", rng.IntN(3))}
				}
			}
			in.Endpoints.Endpoints = append(in.Endpoints.Endpoints, e)
		}
		var cluster, local []netip.AddrPort
		for _, v := range Verdicts(in, in.Service.Ports[0]) {
			if v.Cluster.Why == "" || v.Local.Why == "" {
				t.Fatalf("%+v: no reason for %s", in.Endpoints, v.Addr)
			}
			if v.Cluster.In {
				cluster = append(cluster, v.Addr)
			}
			if v.Local.In {
				local = append(local, v.Addr)
			}
		}
		nodePort := Compile(in).Frontends[1]
		for _, c := range []struct {
			pool Pool
			want []netip.AddrPort
		}{{nodePort.Internal, cluster}, {nodePort.External, local}} {
			var got []netip.AddrPort
			for _, b := range c.pool.Backends {
				got = append(got, b.AddrPort)
			}
			if !slices.Equal(got, c.want) {
				t.Fatalf("%+v: policy %s has %v, explained are %v", in.Endpoints, c.pool.Policy, got, c.want)
			}
		}
	}
}
