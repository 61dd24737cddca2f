package podnet

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The Pods' gateway exists on each link alone; that both ends know the other's
// hardware address makes ARP and neighbour discovery unnecessary.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// podInterface is the name of the Pod's end.
const podInterface = "eth0"

// linkPattern begins the name of the node's end of every Pod's link.
const linkPattern = "fwp"

func linkPrefix(owner string) string { return linkPattern + digest(owner, 3) }

// linkName fits the kernel's 15 characters.
func linkName(owner, id string) string { return linkPrefix(owner) + digest(id, 8) }

func digest(s string, length int) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])[:length]
}

// link makes the veth pair and sets up both ends.
func (n *Network) link(pod Pod, a *attachment) error {
	hostMAC, podMAC := newMAC(), newMAC()
	ipv6 := hasFamily(a.addresses, netip.Addr.Is6)
	if err := InNamespace(pod.Namespace, func() error { return podDefaults(ipv6) }); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = a.link, n.mtu, hostMAC
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = podInterface, podMAC, uint32(n.mtu)
	veth.PeerNamespace = netlink.NsFd(int(pod.Namespace.Fd()))
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make veth %s: %w", a.link, err)
	}
	if err := n.hostEnd(pod, a, podMAC, ipv6); err != nil {
		return err
	}
	return podEnd(pod, a, hostMAC)
}

func (n *Network) hostEnd(pod Pod, a *attachment, podMAC net.HardwareAddr, ipv6 bool) error {
	link, err := netlink.LinkByName(a.link)
	if err != nil {
		return fmt.Errorf("link %s: %w", a.link, err)
	}
	if err := netlink.LinkSetAlias(link, "fairway Pod "+pod.Name); err != nil {
		return fmt.Errorf("alias of %s: %w", a.link, err)
	}
	if err := hostLinkSysctls(a.link, ipv6, len(a.ports) > 0); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", a.link, err)
	}
	if ipv6 {
		addr := &netlink.Addr{IPNet: toNet(netip.PrefixFrom(gateway6, 64)), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("address %s on %s: %w", gateway6, a.link, err)
		}
	}
	for _, addr := range a.addresses {
		if err := setNeighbour(netlink.NeighSet, link, addr, podMAC); err != nil {
			return err
		}
	}
	return n.routesTo(a, link)
}

// routesTo leads from the node to the Pod's addresses.
func (n *Network) routesTo(a *attachment, link netlink.Link) error {
	for _, addr := range a.addresses {
		route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: hostNet(addr), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC}
		if err := n.replaceRoute(route, addr); err != nil {
			return fmt.Errorf("route to %s: %w", addr, err)
		}
	}
	return nil
}

// replaceRoute lets the node talk to the Pod from its own address, if it has
// it, and leaves the choice to the kernel if not.
func (n *Network) replaceRoute(route netlink.Route, addr netip.Addr) error {
	for _, ip := range n.opts.NodeIPs {
		if ip.Is4() != addr.Is4() {
			continue
		}
		route.Src = ip.AsSlice()
		err := netlink.RouteReplace(&route)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINVAL) { // EINVAL: not an address of this namespace
			return err
		}
	}
	route.Src = nil
	return netlink.RouteReplace(&route)
}

func podEnd(pod Pod, a *attachment, hostMAC net.HardwareAddr) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(int(pod.Namespace.Fd())))
	if err != nil {
		return fmt.Errorf("netlink in the Pod's network namespace: %w", err)
	}
	defer h.Close()
	for _, name := range []string{"lo", podInterface} {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	link, err := h.LinkByName(podInterface)
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	for _, addr := range a.addresses {
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: hostNet(addr), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address %s: %w", addr, err)
		}
		gateway, everything := gateway4, netip.MustParsePrefix("0.0.0.0/0")
		if addr.Is6() {
			gateway, everything = gateway6, netip.MustParsePrefix("::/0")
		} else if err := h.RouteAdd(&netlink.Route{LinkIndex: index, Dst: hostNet(gateway), Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route to the gateway %s: %w", gateway, err)
		}
		if err := setNeighbour(h.NeighSet, link, gateway, hostMAC); err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: index, Dst: toNet(everything), Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("default route via %s: %w", gateway, err)
		}
	}
	return nil
}

func setNeighbour(set func(*netlink.Neigh) error, link netlink.Link, addr netip.Addr, mac net.HardwareAddr) error {
	family := unix.AF_INET6
	if addr.Is4() {
		family = unix.AF_INET
	}
	err := set(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac})
	if err != nil {
		return fmt.Errorf("neighbour %s: %w", addr, err)
	}
	return nil
}

// removeLink deletes the link and with it its routes and neighbours.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	// It goes by itself when the Pod's namespace does.
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

func removeLinks(prefix string) error {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, link := range links {
		if strings.HasPrefix(link.Attrs().Name, prefix) {
			errs = append(errs, removeLink(link.Attrs().Name))
		}
	}
	return errors.Join(errs...)
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("link lo: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// uplinkMTU is the MTU of the way out, so that Pods do not send what it cannot
// carry; Ethernet's if there is no way out.
func uplinkMTU() int {
	const ethernet, ipv6Minimum = 1500, 1280
	mtu := 0
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			continue
		}
		for _, r := range routes {
			if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
				continue
			}
			link, err := netlink.LinkByIndex(r.LinkIndex)
			if err == nil && link.Attrs().Name != "lo" && (mtu == 0 || link.Attrs().MTU < mtu) {
				mtu = link.Attrs().MTU
			}
		}
	}
	if mtu == 0 {
		return ethernet
	}
	return max(mtu, ipv6Minimum)
}

// newMAC is a random, locally administered unicast address.
func newMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}

func hasFamily(addresses []netip.Addr, is func(netip.Addr) bool) bool {
	for _, a := range addresses {
		if is(a) {
			return true
		}
	}
	return false
}

func hostNet(a netip.Addr) *net.IPNet { return toNet(netip.PrefixFrom(a, a.BitLen())) }

func toNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
