package machine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// OwnInterface is the interface on every node that carries the node's own addresses and catches what is meant for
	// the cluster but has no better route.
	OwnInterface = "fairway0"
)

// Node is one node as the machine sees it.
type Node struct {
	// Index counts from 1. Node 1 lives in the namespace that the cluster was started in, the others each in their own.
	Index int
	// Namespace is the name to pin the node's namespace under. Not used for node 1.
	Namespace string
	// Addresses are the node's own stable addresses, at most one of each family.
	Addresses []netip.Addr
	// Sources are the addresses that node 1 speaks to the other nodes from while the machine has them, at most one of each
	// family: those that Kubernetes knows it by. Where there is none, Addresses are. Not used for other nodes.
	Sources []netip.Addr
	// PodCIDRs are the ranges of the node's Pods, at most one of each family.
	PodCIDRs []netip.Prefix
}

// Options describes the network of a cluster. All ranges and addresses of IPv6 are left out by the caller where the
// kernel has no IPv6.
type Options struct {
	// Journal is told about everything before it is made. Required.
	Journal Journal
	// Alias is written on the interfaces, so that people and other clusters see whose they are. Required.
	Alias string
	// Nodes in order of Index. At least one.
	Nodes []Node
	// PodCIDRs are the ranges of all Pods of the cluster. Required.
	PodCIDRs []netip.Prefix
	// NodeCIDRs are the ranges that the nodes' own addresses are from. Required.
	NodeCIDRs []netip.Prefix
	// ServiceCIDRs are the ranges of ClusterIPs and LoadBalancer addresses, kept on each node. Required.
	ServiceCIDRs []netip.Prefix
}

// Build makes the whole network and returns each node's namespace, node 1's first. After an error Undo takes back what
// the journal lists; namespaces made so far are closed.
func Build(node1 *Namespace, o Options) (nodes []*Namespace, err error) {
	nodes = []*Namespace{node1}
	defer func() {
		if err != nil {
			for _, n := range nodes[1:] {
				n.Close()
			}
			nodes = nil
		}
	}()
	if err := node1.setLoopbackUp(o.Journal); err != nil {
		return nodes, err
	}
	if err := node1.enableForwarding(o.Journal); err != nil {
		return nodes, err
	}
	// The nodes' range too: a node that is gone must not be looked for outside. The others send it to node 1 by default.
	if err := node1.addOwnInterface(o.Journal, o, o.Nodes[0], slices.Concat(o.PodCIDRs, o.NodeCIDRs)); err != nil {
		return nodes, err
	}
	for _, node := range o.Nodes[1:] {
		ns, err := Create(o.Journal, node.Namespace)
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, ns)
		if err := buildFurtherNode(node1, ns, o, node); err != nil {
			return nodes, fmt.Errorf("network of node %d: %w", node.Index, err)
		}
	}
	if err := node1.addMasquerade(o); err != nil {
		return nodes, fmt.Errorf("masquerading of Pods: %w", err)
	}
	return nodes, nil
}

// addOwnInterface makes fairway0 with the node's addresses, and routes the services' and the given other ranges to it.
//
// It is a bridge without ports. Wanted was an interface where a connect() to a service address that no dataplane has
// programmed (yet) neither leaves the machine nor ends at a local listener on 0.0.0.0 (which it would with a route of
// type local), while one that nftables redirects to a Pod in its nat output hook works, with the node's own address as
// its source. Measured on Linux 6.18 in a namespace with a dead-end default route, IPv4 and IPv6, from the host and,
// forwarded, from a Pod; all kinds kept the packets and took the redirect:
//
//	bridge without ports         "No route to host" after 3.06 s, carrier is up
//	veth, far end down           the same, but no carrier: with sysctl ignore_routes_with_linkdown=1 the route is
//	                             skipped and packets leave by the default route
//	veth, far end in a namespace as the bridge, but one more namespace to keep
//	ifb                          no answer at all: 127 s until connect() gives up; module often not there
//	tun                          as ifb, and no carrier as the veth
//	dummy                        (not in every kernel) as ifb, being NOARP
//	unreachable route            no redirect: connect() fails before the nat output hook sees a packet
//
// The quick error is worth having: a connection tried before its Service was programmed keeps its conntrack entry without
// NAT, so its retransmissions can never succeed.
func (n *Namespace) addOwnInterface(journal Journal, o Options, node Node, others []netip.Prefix) error {
	if journal != nil {
		thing := Thing{Kind: KindInterface, Name: OwnInterface, Value: o.Alias}
		if err := journal.Record(thing); err != nil {
			return err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = OwnInterface
	link, err := n.addLink(&netlink.Bridge{LinkAttrs: attrs}, o.Alias)
	if err != nil {
		return err
	}
	for _, family := range families(node.Addresses) {
		// Some kernels report a bridge without ports as having no carrier; its routes must hold all the same.
		path := "/proc/sys/net/" + family + "/conf/" + OwnInterface + "/ignore_routes_with_linkdown"
		if err := n.setSysctl(nil, path, "0"); err != nil {
			return err
		}
	}
	if err := n.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting %s up: %w", OwnInterface, err)
	}
	for _, addr := range node.Addresses {
		if err := n.addAddress(link, addr); err != nil {
			return err
		}
	}
	for _, prefix := range slices.Concat(o.ServiceCIDRs, others) {
		route := netlink.Route{Dst: ipNet(prefix), Scope: netlink.SCOPE_LINK}
		if err := n.addRoute(link, route, sourceFor(node.Addresses, prefix.Addr())); err != nil {
			return err
		}
	}
	return nil
}

// addLink makes an interface and writes the alias on it. Linux takes the alias only of an interface that exists.
func (n *Namespace) addLink(link netlink.Link, alias string) (netlink.Link, error) {
	name := link.Attrs().Name
	if err := n.links.LinkAdd(link); err != nil {
		return nil, fmt.Errorf("making interface %s: %w", name, err)
	}
	made, err := n.links.LinkByName(name)
	if err == nil {
		err = n.links.LinkSetAlias(made, alias)
	}
	if err != nil {
		return nil, fmt.Errorf("naming the owner of interface %s: %w", name, err)
	}
	return made, nil
}

// families names the directories below /proc/sys/net for the families that addrs have.
func families(addrs []netip.Addr) []string {
	var names []string
	for _, a := range addrs {
		if a.Is4() {
			names = append(names, "ipv4")
		} else {
			names = append(names, "ipv6")
		}
	}
	return names
}

// sourceFor is the address of to's family, or the zero Addr.
func sourceFor(addrs []netip.Addr, to netip.Addr) netip.Addr {
	for _, a := range addrs {
		if a.Is4() == to.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

func (n *Namespace) addAddress(link netlink.Link, addr netip.Addr) error {
	// Nobody else is on this link: duplicate address detection would only keep the address unusable for a second.
	a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, addr.BitLen())), Flags: unix.IFA_F_NODAD}
	if err := n.links.AddrReplace(link, a); err != nil {
		return fmt.Errorf("adding address %s to %s: %w", addr, link.Attrs().Name, err)
	}
	return nil
}

func (n *Namespace) addRoute(link netlink.Link, route netlink.Route, source netip.Addr) error {
	route.LinkIndex = link.Attrs().Index
	route.Protocol = unix.RTPROT_STATIC
	if source.IsValid() {
		route.Src = source.AsSlice()
	}
	if err := n.links.RouteReplace(&route); err != nil {
		return fmt.Errorf("adding route %v dev %s: %w", route.Dst, link.Attrs().Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func host(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

// NodeInterface is what the interface to node i is called: on node 1 for i ≥ 2, on all others for i = 1. The Pod network
// knows by the prefix "fairway" that what leaves there is still on its way inside the cluster.
func NodeInterface(i int) string { return fmt.Sprintf("fairway-n%d", i) }

// buildFurtherNode joins the namespace of node i ≥ 2 with node 1 by a routed veth. All its traffic to other nodes and to
// the outside goes through node 1. Neighbours are permanent: no ARP, and no trouble with arp_ignore or for IPv6, which
// answers only for addresses of the interface asked on.
func buildFurtherNode(node1, ns *Namespace, o Options, node Node) error {
	if err := ns.enableForwarding(nil); err != nil {
		return err
	}
	if err := ns.addOwnInterface(nil, o, node, node.PodCIDRs); err != nil {
		return err
	}
	name := NodeInterface(node.Index)
	if err := o.Journal.Record(Thing{Kind: KindInterface, Name: name, Value: o.Alias}); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := netlink.NewVeth(attrs)
	veth.PeerName = NodeInterface(1)
	veth.PeerNamespace = netlink.NsFd(ns.fd)
	near, err := node1.addLink(veth, o.Alias)
	if err != nil {
		return err
	}
	far, err := ns.links.LinkByName(veth.PeerName)
	if err != nil {
		return err
	}
	if err := errors.Join(node1.links.LinkSetUp(near), ns.links.LinkSetUp(far)); err != nil {
		return err
	}
	for _, addr := range node.Addresses {
		first := sourceFor(o.Nodes[0].Addresses, addr)
		if err := joinNodes(node1, ns, near, far, first, addr); err != nil {
			return err
		}
	}
	return node1.routeTo(o.Nodes[0], node)
}

// joinNodes makes the addresses first (of node 1) and other (of node i) reach each other, and node 1 the default gateway of
// node i.
func joinNodes(node1, ns *Namespace, near, far netlink.Link, first, other netip.Addr) error {
	if err := node1.addNeighbour(near, other, far.Attrs().HardwareAddr); err != nil {
		return err
	}
	if err := ns.addNeighbour(far, first, near.Attrs().HardwareAddr); err != nil {
		return err
	}
	if err := ns.addRoute(far, netlink.Route{Dst: host(first), Scope: netlink.SCOPE_LINK}, other); err != nil {
		return err
	}
	every := netip.PrefixFrom(first, 0).Masked()
	route := netlink.Route{Dst: ipNet(every), Gw: first.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	return ns.addRoute(far, route, other)
}

func (n *Namespace) addNeighbour(link netlink.Link, addr netip.Addr, mac net.HardwareAddr) error {
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	err := n.links.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("adding neighbour %s on %s: %w", addr, link.Attrs().Name, err)
	}
	return nil
}

// enableForwarding turns on routing. Linux then sets conf/*/forwarding of every interface, and stops taking IPv6 routes
// from router advertisements; both are provided for, so that the machine keeps its own way out and Undo restores it.
func (n *Namespace) enableForwarding(journal Journal) error {
	if err := n.forwardFamily(journal, "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf"); err != nil {
		return err
	}
	if !n.HasIPv6() {
		return nil
	}
	const conf = "/proc/sys/net/ipv6/conf"
	interfaces, err := n.confOf(conf, "accept_ra")
	if err != nil {
		return err
	}
	for path, value := range interfaces {
		if value != "1" || strings.Contains(path, "/all/") || strings.HasSuffix(path, "/lo/accept_ra") {
			continue
		}
		if err := n.setSysctl(journal, path, "2"); err != nil { // 2: even while forwarding
			return err
		}
	}
	return n.forwardFamily(journal, conf+"/all/forwarding", conf)
}

func (n *Namespace) forwardFamily(journal Journal, master, conf string) error {
	interfaces, err := n.confOf(conf, "forwarding")
	if err != nil {
		return err
	}
	if journal != nil {
		for path, value := range interfaces {
			if value != "1" || path == master {
				continue
			}
			// Undoing the master switch below sets this to 0 too; recorded before it, this is then put back after it.
			if err := journal.Record(Thing{Kind: KindSysctl, Name: path, Value: "0", Before: value}); err != nil {
				return err
			}
		}
	}
	return n.setSysctl(journal, master, "1")
}

// confOf reads one sysctl of every interface: path to value.
func (n *Namespace) confOf(conf, name string) (map[string]string, error) {
	values := map[string]string{}
	err := n.Do(func() error {
		paths, err := filepath.Glob(conf + "/*/" + name)
		if err != nil {
			return err
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				continue // the interface went meanwhile
			}
			values[path] = strings.TrimSpace(string(text))
		}
		return nil
	})
	return values, err
}
