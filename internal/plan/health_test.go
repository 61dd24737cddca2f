package plan

import (
	"net/netip"
	"testing"

	"fairway.dev/fairway/internal/model"
)

func TestHealth(t *testing.T) {
	addr := netip.MustParseAddr
	node := &model.Node{Name: "here", Addrs: []netip.Addr{addr("192.0.2.1")}}
	service := func(edit func(*model.Service)) *model.Service {
		s := &model.Service{HealthCheckNodePort: 31000, ExternalLocal: true, ClusterIPs: []netip.Addr{addr("10.96.0.7")}}
		if edit != nil {
			edit(s)
		}
		return s
	}
	ports := []model.EndpointPort{{Protocol: model.TCP, Port: 80}}
	ready := func(a, node string) model.Endpoint {
		return model.Endpoint{Addr: addr(a), Ready: true, Serving: true, Node: node, Ports: ports}
	}
	v4 := func(n int) [2]FamilyHealth { return [2]FamilyHealth{{true, n}, {}} }
	for _, test := range []struct {
		name string
		svc  *model.Service
		eps  []model.Endpoint
		want [2]FamilyHealth
		none bool
	}{
		{name: "no port", svc: service(func(s *model.Service) { s.HealthCheckNodePort = 0 }), none: true},
		{name: "another proxy's", svc: service(func(s *model.Service) { s.NotProxied = true }), none: true},
		{name: "no endpoints", svc: service(nil), want: v4(0)},
		{name: "here and elsewhere", svc: service(nil), eps: []model.Endpoint{ready("10.0.0.1", "here"), ready("10.0.0.2", "there")}, want: v4(1)},
		{name: "left alone", svc: service(nil), want: v4(1), eps: []model.Endpoint{
			{Addr: addr("10.0.0.1"), Ready: true, Serving: true, Node: "here", Ports: ports, NotProxied: true}, ready("10.0.0.2", "here"),
		}},
		{name: "an address with two ports counts once", svc: service(nil), want: v4(2), eps: []model.Endpoint{
			ready("10.0.0.1", "here"),
			{Addr: addr("10.0.0.1"), Ready: true, Serving: true, Node: "here", Ports: []model.EndpointPort{{Protocol: model.TCP, Port: 81}}},
			ready("10.0.0.2", "here"),
		}},
		{name: "not ready, terminating", svc: service(nil), want: v4(0), eps: []model.Endpoint{
			{Addr: addr("10.0.0.1"), Node: "here", Ports: ports},
			{Addr: addr("10.0.0.2"), Serving: true, Terminating: true, Node: "here", Ports: ports},
		}},
		{name: "by the node's address where no node is named", svc: service(nil), eps: []model.Endpoint{ready("192.0.2.1", "")}, want: v4(1)},
		{name: "addresses that no connection goes to", svc: service(nil), eps: []model.Endpoint{ready("127.0.0.1", "here"), ready("169.254.1.1", "here")}, want: v4(0)},
		{name: "each family for itself", svc: service(func(s *model.Service) { s.ClusterIPs = append(s.ClusterIPs, addr("fd00::7")) }),
			eps:  []model.Endpoint{ready("10.0.0.1", "here"), ready("fd00::1", "here"), ready("fd00::2", "here")},
			want: [2]FamilyHealth{{true, 1}, {true, 2}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var eps *model.EndpointSet
			if test.eps != nil {
				eps = &model.EndpointSet{Endpoints: test.eps}
			}
			got, ok := Health(test.svc, eps, node)
			if ok == test.none {
				t.Fatalf("has a health check: %v", ok)
			}
			if ok && (got.Port != 31000 || got.Families != test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}
