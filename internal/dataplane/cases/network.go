package cases

import (
	"net/netip"
	"testing"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/testenv"
)

// Network is the cluster of the cases:
//
//	outside ── wan ── node-1 ── lan ── node-2
//	                  │    │            │
//	              pod-a  pod-b        pod-c
//
// The data path runs on node-1. Every Pod, node-1 at its address on lan, and
// the place of the TLS proxy answer at port 8080.
type Network struct {
	Lab   *testenv.Lab
	Hosts map[string]*testenv.Netns
	// Node1 is what the plan knows of node-1, Settings what its data path does.
	Node1    *model.Node
	Settings dataplane.Node
}

// names are the addresses of the cases, by family.
var names = [2]map[string]netip.Addr{
	parse(map[string]string{
		"outside": "203.0.113.9", "wan": "203.0.113.1", "node-1": "192.168.50.1", "node-2": "192.168.50.2", "own": "10.245.0.1",
		"pod-a": "10.244.0.2", "pod-b": "10.244.0.3", "pod-c": "10.244.1.2", "loopback": "127.0.0.1",
		"vip": "10.96.0.10", "free": "10.96.0.77", "lb": "198.51.100.1", "ext": "198.51.100.200",
	}),
	parse(map[string]string{
		"outside": "2001:db8:1::9", "wan": "2001:db8:1::1", "node-1": "fd50::1", "node-2": "fd50::2", "own": "fd00:10:245::1",
		"pod-a": "fd00:10:244::2", "pod-b": "fd00:10:244::3", "pod-c": "fd00:10:244:1::2", "loopback": "::1",
		"vip": "fd00:10:96::10", "free": "fd00:10:96::77", "lb": "2001:db8:ffff::1", "ext": "2001:db8:ffff::200",
	}),
}

func parse(in map[string]string) map[string]netip.Addr {
	out := map[string]netip.Addr{}
	for name, a := range in {
		out[name] = netip.MustParseAddr(a)
	}
	return out
}

// both returns a name's addresses in both families.
func both(name string) []netip.Addr { return []netip.Addr{names[0][name], names[1][name]} }

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

const serverPort = 8080

// NewNetwork builds the cluster; it goes when the test ends.
func NewNetwork(tb testing.TB) *Network {
	tb.Helper()
	l := testenv.NewLab(tb)
	n := &Network{Lab: l, Hosts: map[string]*testenv.Netns{}}
	add := func(name string) *testenv.Netns { n.Hosts[name] = l.Netns(name); return n.Hosts[name] }
	node1, node2, outside := add("node-1"), add("node-2"), add("outside")
	node1.Forward()
	node2.Forward()
	l.Connect(outside, "wan", node1, "wan")
	l.Connect(node1, "lan", node2, "lan")
	address := func(host *testenv.Netns, link, name string, bits4, bits6 int) {
		host.Address(link, netip.PrefixFrom(names[0][name], bits4).String(), netip.PrefixFrom(names[1][name], bits6).String())
	}
	address(outside, "wan", "outside", 24, 64)
	address(node1, "wan", "wan", 24, 64)
	address(node1, "lan", "node-1", 24, 64)
	address(node2, "lan", "node-2", 24, 64)
	// Neighbours are known for good: on a busy machine the kernel may give up
	// asking for them.
	known := func(host *testenv.Netns, link, name string, of *testenv.Netns) {
		for family := range names {
			host.Neighbor(names[family][name].String(), link, of, link)
		}
	}
	known(outside, "wan", "wan", node1)
	known(node1, "wan", "outside", outside)
	known(node1, "lan", "node-2", node2)
	known(node2, "lan", "node-1", node1)
	for family, all := range []string{"0.0.0.0/0", "::/0"} {
		outside.Route(all, names[family]["wan"].String(), "wan")
		node2.Route(all, names[family]["node-1"].String(), "lan")
	}
	for pod, node := range map[string]*testenv.Netns{"pod-a": node1, "pod-b": node1, "pod-c": node2} {
		n.Hosts[pod] = l.Pod(node, pod, both(pod)...)
	}
	node1.Route("10.244.1.0/24", names[0]["node-2"].String(), "lan")
	node1.Route("fd00:10:244:1::/64", names[1]["node-2"].String(), "lan")
	// The node's own interface, which holds what is meant for Services.
	l.Connect(node1, "own", node1, "own-peer")
	address(node1, "own", "own", 32, 128)
	for _, dst := range []string{"10.96.0.0/16", "fd00:10:96::/112", "198.51.100.0/24", "2001:db8:ffff::/64"} {
		node1.Route(dst, "", "own")
	}
	n.Node1 = &model.Node{Name: "node-1", Addrs: both("node-1"), PodCIDRs: prefixes("10.244.0.0/24", "fd00:10:244::/64"), Zone: "zone-1"}
	n.Settings = dataplane.Node{
		LocalPods: n.Node1.PodCIDRs,
		Cluster:   prefixes("10.244.0.0/16", "fd00:10:244::/48"),
		Services:  prefixes("10.96.0.0/16", "fd00:10:96::/112"),
	}
	for family := range names {
		for _, name := range []string{"pod-a", "pod-b", "pod-c", "node-1"} {
			n.Hosts[name].Identify(name, netip.AddrPortFrom(names[family][name], serverPort))
		}
		proxy := netip.AddrPortFrom(names[family]["own"], serverPort)
		node1.Identify("tls-proxy", proxy)
		n.Settings.TLSProxy = append(n.Settings.TLSProxy, proxy)
	}
	return n
}
