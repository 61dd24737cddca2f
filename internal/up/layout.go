package up

import (
	"fmt"
	"net/netip"
	"slices"

	"fairway.dev/fairway/internal/up/machine"
)

// Node is one node of the cluster.
type Node struct {
	// Name is the name of its Node object.
	Name string `json:"name"`
	// Zone is its topology zone, or empty.
	Zone string `json:"zone,omitempty"`
	// IPs are what it shows to other nodes and to Kubernetes (InternalIP), at most one of each family, IPv4 first.
	IPs []netip.Addr `json:"ips"`
	// Network is what the machine makes for it.
	Network machine.Node `json:"-"`
}

// layout gives every node its names and addresses. primary are the machine's own addresses, which node 1 shows where there
// are any.
func layout(o Options, r Ranges, id string, primary []netip.Addr) ([]Node, error) {
	nodes := make([]Node, o.Nodes)
	for i := range nodes {
		index := i + 1
		node := Node{Name: fmt.Sprintf("node-%d", index)}
		if len(o.Zones) > 0 {
			node.Zone = o.Zones[i%len(o.Zones)]
		}
		node.Network = machine.Node{Index: index, Namespace: namespaceName(id, node.Name)}
		for _, p := range r.Node {
			a, err := offset(p, uint64(index))
			if err != nil {
				return nil, fmt.Errorf("--node-cidr %s: too small for %d nodes", p, o.Nodes)
			}
			node.Network.Addresses = append(node.Network.Addresses, a)
		}
		for _, p := range r.Pod {
			bits := 24
			if p.Addr().Is6() {
				bits = 64
			}
			sub, err := subnet(p, bits, uint64(i))
			if err != nil {
				return nil, fmt.Errorf("--pod-cidr %s: too small for %d nodes, each needs a /%d", p, o.Nodes, bits)
			}
			node.Network.PodCIDRs = append(node.Network.PodCIDRs, sub)
		}
		node.IPs = slices.Clone(node.Network.Addresses)
		if index == 1 {
			node.IPs = preferPrimary(node.IPs, primary)
			node.Network.Sources = node.IPs
		}
		nodes[i] = node
	}
	return nodes, nil
}

// preferPrimary replaces each own address by the machine's primary one of the same family, where there is one.
func preferPrimary(own, primary []netip.Addr) []netip.Addr {
	ips := slices.Clone(own)
	for i, a := range ips {
		for _, p := range primary {
			if p.Is4() == a.Is4() {
				ips[i] = p
			}
		}
	}
	return ips
}

// fixedAddresses returns the address of that number in each service range: 1 is the Kubernetes API's, 10 the DNS server's.
func fixedAddresses(r Ranges, n uint64) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, p := range r.Service {
		a, err := offset(p, n)
		if err != nil {
			return nil, fmt.Errorf("--service-cidr %s: too small", p)
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}
