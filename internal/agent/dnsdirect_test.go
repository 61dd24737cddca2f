package agent

import (
	"net/netip"
	"slices"
	"testing"

	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// TestDNSDirect checks at which addresses a node's server answers directly.
func TestDNSDirect(t *testing.T) {
	listen := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:10053"), netip.MustParseAddrPort("[2001:db8::1]:10053")}
	v4, v6 := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")
	udp := model.ServicePort{Protocol: model.UDP, Port: 53}
	for name, test := range map[string]struct {
		ips    []netip.Addr
		ports  []model.ServicePort
		node   string // of the endpoint
		port   uint16 // of the endpoint
		listen []netip.AddrPort
		want   []string
	}{
		"both families":              {[]netip.Addr{v4, v6}, []model.ServicePort{{Protocol: model.TCP, Port: 54}, udp}, "node-1", 10053, listen, []string{"10.96.0.10:10053", "[fd00:10:96::a]:10053"}},
		"the node has IPv4 only":     {[]netip.Addr{v4, v6}, []model.ServicePort{udp}, "node-1", 10053, listen[:1], []string{"10.96.0.10:10053"}},
		"the server is not one":      {[]netip.Addr{v4}, []model.ServicePort{udp}, "node-2", 10053, listen, nil},
		"somebody else's is one":     {[]netip.Addr{v4}, []model.ServicePort{udp}, "node-1", 53, listen, nil},
		"there is no port for it":    {[]netip.Addr{v4}, []model.ServicePort{{Protocol: model.TCP, Port: 53}}, "node-1", 10053, listen, nil},
		"there is no address at all": {nil, []model.ServicePort{udp}, "node-1", 10053, listen, nil},
	} {
		store := state.New()
		store.Update(func(tx *state.Tx) {
			tx.PutService(&model.Service{Key: bootstrap.DNSService, ClusterIPs: test.ips, Ports: test.ports})
			tx.PutSlice(&model.EndpointSlice{Key: bootstrap.DNSService, Service: bootstrap.DNSService, Endpoints: []model.Endpoint{{
				Addr: listen[0].Addr(), Terminating: true, Node: test.node, Ports: []model.EndpointPort{{Protocol: model.UDP, Port: test.port}},
			}}})
		})
		var got []string
		direct := dnsDirect(store.Snapshot(), "node-1", test.listen)
		for _, a := range direct.at {
			got = append(got, a.String())
		}
		if !slices.Equal(got, test.want) || (got != nil && direct.port != 53) {
			t.Errorf("%s: %v, asked at port %d, want %v", name, got, direct.port, test.want)
		}
	}
	if got := dnsDirect(state.New().Snapshot(), "node-1", listen); got.at != nil {
		t.Errorf("without a Service: %v", got)
	}
}
