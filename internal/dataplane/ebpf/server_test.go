package ebpf

import (
	"net/netip"
	"testing"

	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/model"
)

// TestServerPort checks that the node's own server is passed by, and nobody
// else: neither other sockets of the node nor a Pod's at the same port.
func TestServerPort(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	o := m.options(t, n)
	o.ServerPort = 10053
	d := start(t, o)
	to := netip.MustParseAddrPort("10.96.0.10:53")
	service := planOf("dns", model.UDP, to, "10.244.0.3:8080")
	apply(t, d, service)
	prune(t, d, n)
	translated := uint64(0)
	for _, tt := range []struct {
		host, bound string
		passed      bool
	}{
		{"node-1", "0.0.0.0:10053", true},
		{"node-1", "0.0.0.0:10054", false},
		{"pod-a", "0.0.0.0:10053", false},
	} {
		if !tt.passed {
			translated++
		}
		c := n.Hosts[tt.host].ListenPacket(netip.MustParseAddrPort(tt.bound))
		if _, err := c.WriteToUDPAddrPort([]byte("?"), to); err != nil {
			t.Fatal(err)
		}
		if got := d.Traffic()[PortOf(service.Key, &service.Frontends[0])].Connections; got != translated {
			t.Errorf("a datagram of %s at %s: %d were translated, want %d", tt.host, tt.bound, got, translated)
		}
	}
}
