package agent

import (
	"context"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
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

// TestDirectDNSWhileLed checks that whether the server answers at the Service's address is
// asked while the data path leads clients there and not before or after, and that those that
// were led there are answered once it does so no more. Here it never does: nothing is translated.
func TestDirectDNSWhileLed(t *testing.T) {
	netns := testenv.NewLab(t).Netns("node")
	netns.Address("lo", "192.0.2.1/32")
	own, service := netip.MustParseAddrPort("192.0.2.1:10053"), netip.MustParseAddrPort("10.96.0.10:10053")
	store := state.New()
	serve := func(ready bool) {
		slice := serverOf("node-1", own.Addr().String(), ready)
		slice.Endpoints[0].Ports = []model.EndpointPort{{Protocol: model.UDP, Port: own.Port()}}
		store.Update(func(tx *state.Tx) {
			tx.PutService(&model.Service{
				Key: bootstrap.DNSService, ClusterIPs: []netip.Addr{service.Addr()}, Ports: []model.ServicePort{{Protocol: model.UDP, Port: 53}},
			})
			tx.PutSlice(slice)
			tx.SetSynced()
		})
	}
	serve(false)
	server, err := dns.New(dns.Options{Store: store, Logger: quiet, Listen: []netip.AddrPort{own}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- netns.Do(func() error { return server.Run(ctx) }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	eventually(t, "the server runs", func() bool { return server.Sockets() != nil })

	var applied atomic.Uint64
	d := &directDNS{server: server, node: &node{
		NodeOptions: NodeOptions{Common: Common{Logger: quiet}, NodeName: "node-1", DNSNotrack: true, DNSPort: int(own.Port())},
		store:       store, self: &model.Node{Name: "node-1", Addrs: []netip.Addr{own.Addr()}}, applied: applied.Load,
	}}
	defer d.close()
	led := func(when string, want int) {
		t.Helper()
		if err := netns.Do(func() error {
			if at := d.addrs(ctx); len(at) != want {
				t.Errorf("when %s the data path is told of %v", when, at)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	answers := func() bool {
		c, err := netns.Dial(ctx, "tcp", netip.AddrPortFrom(service.Addr(), 0), service)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
	led("the server is no endpoint yet", 1)
	led("it is none still", 1)
	serve(true)
	led("the data path does not know yet", 1)
	applied.Store(store.Snapshot().Revision)
	led("nothing gets there", 0)
	if !answers() {
		t.Error("clients that are there already get no answer")
	}
	d.retry = time.Time{}
	led("clients wait for late answers", 0)
	d.late = time.Time{}
	led("it is tried again", 1)
	serve(false)
	led("the server is about to end", 1)
	store.Update(func(tx *state.Tx) { tx.DeleteService(bootstrap.DNSService) })
	led("there is no Service any more", 0)
	if !answers() {
		t.Error("clients of the Service that was there get no answer")
	}
	d.late = time.Time{}
	led("nobody waits any more", 0)
	if answers() {
		t.Error("it answers at the address of nobody")
	}
}
