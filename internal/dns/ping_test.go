package dns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestPing checks that a server answers pings of its own machine, counts them among
// no queries, and answers nobody else's; and that one which hangs is found out.
func TestPing(t *testing.T) {
	registry := prometheus.NewRegistry()
	s := newServer(t, Options{Registerer: registry})
	addr := run(t, s)
	if len(s.Sockets()) == 0 {
		t.Error("it tells of no sockets")
	}
	p := NewPinger(addr)
	defer p.Close()
	for range 3 {
		if err := p.Ping(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "coredns_dns_requests_total" && len(f.Metric) > 0 {
			t.Errorf("pings are counted: %v", f)
		}
	}

	other := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.2:0"))}
	c, err := other.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, pingSize)); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 512)); err == nil {
		t.Errorf("another machine got %d bytes", n)
	}

	hung, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	q := NewPinger(netip.MustParseAddrPort(hung.LocalAddr().String()))
	defer q.Close()
	if err := q.Ping(t.Context(), 10*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a server that hangs: %v", err)
	}
	hung.Close()
	if err := q.Ping(t.Context(), time.Minute); err == nil {
		t.Error("a server that has ended: no error")
	}
}
