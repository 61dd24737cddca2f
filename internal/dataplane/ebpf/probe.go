package ebpf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The network of the self-check: a client that asks a Service, and the
// endpoint, behind one interface of the node.
var (
	probeNode    = netip.MustParsePrefix("192.0.2.1/29")
	probeClient  = netip.MustParsePrefix("192.0.2.2/29")
	probeBackend = netip.MustParsePrefix("192.0.2.3/29")
	probeService = netip.MustParseAddrPort("198.51.100.1:53")
)

// ProbeIngress reports why the ingress programs cannot serve on this kernel, or
// nil if they can: it loads them, and has them carry a datagram to an endpoint
// and back between two network namespaces that it makes for that. Kernels call
// the functions that the programs need unstable, so that they are loaded is no
// proof. types are those of [Options].
func ProbeIngress(ctx context.Context, types *btf.Cache) error {
	node, err := newNamespace()
	if err != nil {
		return err
	}
	defer node.close()
	away, err := newNamespace()
	if err != nil {
		return err
	}
	defer away.close()
	// The table first: it makes the kernel load the modules that have the functions.
	if err := (netfilter{int(node.ns)}).ensure(nil); err != nil {
		return err
	}
	spec, err := loadIngress()
	if err != nil {
		return err
	}
	for _, m := range spec.Maps {
		m.MaxEntries = min(m.MaxEntries, 16)
	}
	programs, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: types})
	if err != nil {
		return fmt.Errorf("loading the ingress programs: %w", err)
	}
	defer programs.Close()
	if err := probeMaps(programs); err != nil {
		return err
	}
	index, err := connectProbe(node, away)
	if err != nil {
		return err
	}
	return node.do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: programs.Programs["fairway_uplink"], Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		defer l.Close()
		ctx, cancel := context.WithTimeout(ctx, probePatience)
		defer cancel()
		return away.do(func() error { return exchange(ctx) })
	})
}

const (
	probePort = 5353
	// probePatience is for a machine that is very busy; an exchange takes less
	// than a millisecond.
	probePatience = 15 * time.Second
)

// probeMaps makes a Service with one endpoint on another node.
func probeMaps(c *ebpf.Collection) error {
	key := frontendKey{Addr: addressOf(probeService.Addr()), Port: portOf(probeService.Port()), Protocol: unix.IPPROTO_UDP}
	rows := [2]pool{{Count: 1}, {Count: 1}}
	return errors.Join(
		c.Maps["backends"].Put(uint32(0), backend{Addr: addressOf(probeBackend.Addr()), Port: portOf(probePort)}),
		c.Maps["addresses"].Put(key.Addr, addressFrontend),
		c.Maps["frontends"].Put(key, frontend{Pools: rows, ID: 1}))
}

// connectProbe joins both namespaces and returns the node's interface.
func connectProbe(node, away *namespace) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "probe", PeerNamespace: netlink.NsFd(int(away.ns))}
	if err := node.netlink.LinkAdd(veth); err != nil {
		return 0, fmt.Errorf("making a pair of interfaces: %w", err)
	}
	if err := errors.Join(node.up("probe", probeNode), away.up("probe", probeClient, probeBackend)); err != nil {
		return 0, err
	}
	err := away.netlink.RouteAdd(&netlink.Route{
		Dst: &net.IPNet{IP: probeService.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: probeNode.Addr().AsSlice(),
	})
	if err != nil {
		return 0, fmt.Errorf("making a route: %w", err)
	}
	if err := node.do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }); err != nil {
		return 0, err
	}
	l, err := node.netlink.LinkByName("probe")
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}

// exchange asks the Service, again while interfaces come up.
func exchange(ctx context.Context) error {
	server, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(probeBackend.Addr(), probePort)))
	if err != nil {
		return err
	}
	defer server.Close()
	saw := make(chan netip.Addr, 1)
	go func() {
		buf := make([]byte, 16)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			select {
			case saw <- from.Addr():
			default:
			}
			_, _ = server.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	client, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(probeClient.Addr(), 0)), net.UDPAddrFromAddrPort(probeService))
	if err != nil {
		return err
	}
	defer client.Close()
	buf := make([]byte, 16)
	for ctx.Err() == nil {
		_, _ = client.Write([]byte("probe"))
		_ = client.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := client.Read(buf); err != nil {
			continue
		}
		if from := <-saw; from != probeNode.Addr() {
			return fmt.Errorf("the endpoint saw %s in place of the node", from)
		}
		return nil
	}
	return errors.New("a datagram to a Service was not carried to its endpoint and back")
}

// namespace is a network namespace that nobody else sees.
type namespace struct {
	ns      netns.NsHandle
	netlink *netlink.Handle
}

func newNamespace() (*namespace, error) {
	n := &namespace{ns: netns.None()}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		n.ns, err = netns.New()
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	var err error
	if n.netlink, err = netlink.NewHandleAt(n.ns); err != nil {
		_ = n.ns.Close()
		return nil, err
	}
	return n, nil
}

func (n *namespace) close() {
	n.netlink.Close()
	_ = n.ns.Close()
}

func (n *namespace) do(fn func() error) error { return inNetns(int(n.ns), fn) }

// up gives an interface addresses and brings it up.
func (n *namespace) up(name string, addrs ...netip.Prefix) error {
	l, err := n.netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), 32)}}
		if err := n.netlink.AddrAdd(l, addr); err != nil {
			return err
		}
	}
	return n.netlink.LinkSetUp(l)
}
