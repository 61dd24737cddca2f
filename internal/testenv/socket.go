package testenv

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func parseCIDR(s string) (net.IP, *net.IPNet, error) { return net.ParseCIDR(s) }

// Listen listens on a TCP address in the namespace.
func (n *Netns) Listen(addr netip.AddrPort) net.Listener {
	n.lab.tb.Helper()
	var l net.Listener
	n.must(n.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		return err
	}), "listening on %s", addr)
	n.lab.tb.Cleanup(func() { _ = l.Close() })
	return l
}

// ListenPacket listens on a UDP address in the namespace.
func (n *Netns) ListenPacket(addr netip.AddrPort) *net.UDPConn {
	n.lab.tb.Helper()
	var c *net.UDPConn
	n.must(n.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	}), "listening on %s/udp", addr)
	n.lab.tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Dial connects from the namespace; network is tcp or udp. A local address
// that is not valid is left to the kernel.
func (n *Netns) Dial(ctx context.Context, network string, local, to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		var d net.Dialer
		switch {
		case !local.IsValid():
		case network == "udp":
			d.LocalAddr = net.UDPAddrFromAddrPort(local)
		default:
			d.LocalAddr = net.TCPAddrFromAddrPort(local)
		}
		c, err = d.DialContext(ctx, network, to.String())
		return err
	})
	return c, err
}

// Identify answers everybody who connects to addr, by TCP and by UDP, with
// name and the address that the client is seen with, until the test ends.
func (n *Netns) Identify(name string, addr netip.AddrPort) {
	n.lab.tb.Helper()
	l, p := n.Listen(addr), n.ListenPacket(addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
			_ = c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 512)
		for {
			_, from, err := p.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			_, _ = p.WriteToUDPAddrPort([]byte(fmt.Sprintf("%s %s\n", name, from)), from)
		}
	}()
}

// Answer is what Identify told a client.
type Answer struct {
	// Name is the server that answered, Client the address it saw.
	Name   string
	Client netip.AddrPort
}

// Ask connects to addr and returns who answered within the time limit.
func (n *Netns) Ask(network string, local, to netip.AddrPort, limit time.Duration) (Answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := n.Dial(ctx, network, local, to)
	if err != nil {
		return Answer{}, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	if network == "udp" {
		if _, err := c.Write([]byte("who?\n")); err != nil {
			return Answer{}, err
		}
	}
	buf := make([]byte, 512)
	got, err := c.Read(buf)
	if err != nil {
		return Answer{}, err
	}
	var a Answer
	var client string
	if _, err := fmt.Sscan(string(buf[:got]), &a.Name, &client); err != nil {
		return Answer{}, fmt.Errorf("answer %q: %w", buf[:got], err)
	}
	a.Client, err = netip.ParseAddrPort(client)
	return a, err
}

// TCPInfo is what the kernel knows of a TCP connection at this moment, such as how
// much it has got.
func TCPInfo(tb testing.TB, c net.Conn) (info *unix.TCPInfo) {
	tb.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); e != nil || err != nil {
		tb.Fatal(e, err)
	}
	return info
}
