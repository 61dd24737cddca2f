package dns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
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
	if len(p.conns) == 0 || len(p.conns) > len(s.Sockets()) || p.all != len(s.Sockets()) {
		t.Errorf("it asks %d sockets of %d, and there are %d", len(p.conns), p.all, len(s.Sockets()))
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

// TestPingOneOfSeveral checks that one socket of several that hangs is found out, and
// that the server is known again once that one answers.
func TestPingOneOfSeveral(t *testing.T) {
	listen := func(at string) net.PacketConn {
		c := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		}}
		p, err := c.ListenPacket(t.Context(), "udp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	var hangs atomic.Bool
	serve := func(c net.PacketConn, i byte) {
		b := make([]byte, pingSize)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if i == 1 && hangs.Load() {
				continue
			}
			_, _ = c.WriteTo(append(b[:n-2:n-2], i, 2), from)
		}
	}
	first := listen("127.0.0.1:0")
	second := listen(first.LocalAddr().String())
	go serve(first, 0)
	go serve(second, 1)
	p := NewPinger(netip.MustParseAddrPort(first.LocalAddr().String()))
	defer p.Close()
	for len(p.conns) < 2 { // all are found with the first Ping but for once in thousands
		if err := p.Ping(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	hangs.Store(true)
	if err := p.Ping(t.Context(), 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one socket hangs: %v", err)
	}
	hangs.Store(false)
	if err := p.Ping(t.Context(), time.Minute); err != nil {
		t.Error(err)
	}
}
