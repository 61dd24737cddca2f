package l2

import (
	"crypto/sha256"
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// Elect returns the node that answers for each load-balancer address. The
// choice is stable: a node that comes or goes moves only the addresses that it
// gets or had. With externalTrafficPolicy Local only nodes with a ready
// endpoint are chosen from; where there is none, those whose endpoints terminate and
// still serve, for nodes lead there then (KEP-1669); else nobody answers. Nodes that
// are not on the network of an address are never chosen for it.
func Elect(snap *state.Snapshot) map[netip.Addr]string {
	all := eligible(snap)
	own := map[netip.Addr]bool{}
	for _, n := range snap.Nodes.All() {
		for _, a := range n.Addrs {
			own[a] = true
		}
	}
	candidates := map[netip.Addr][]string{}
	for key, s := range snap.Services.All() {
		if s.Type != model.LoadBalancer || s.LoadBalancer.Class != "" && s.LoadBalancer.Class != class {
			continue
		}
		nodes := all
		if s.ExternalLocal {
			nodes = withEndpoints(snap, key, all)
		}
		for _, in := range s.LoadBalancer.Ingress {
			// Nodes answer for their own addresses themselves.
			if in.Proxy || own[in.Addr] {
				continue
			}
			if _, shared := candidates[in.Addr]; !shared || s.ExternalLocal {
				candidates[in.Addr] = nodes
			}
		}
	}
	elected := make(map[netip.Addr]string, len(candidates))
	for addr, nodes := range candidates {
		nodes = slices.DeleteFunc(slices.Clone(nodes), func(name string) bool { return !onNetworkOf(snap, name, addr) })
		if node := first(addr, nodes); node != "" {
			elected[addr] = node
		}
	}
	return elected
}

// class is the loadBalancerClass of Services that are Fairway's.
const class = "fairway.dev/lb"

// eligible are the nodes that can take traffic. Where none is ready, the news
// of that is more likely wrong than all nodes are.
func eligible(snap *state.Snapshot) []string {
	var ready, others []string
	for name, n := range snap.Nodes.All() {
		switch {
		case n.Leaving:
		case n.Ready:
			ready = append(ready, name)
		default:
			others = append(others, name)
		}
	}
	if len(ready) == 0 {
		return others
	}
	return ready
}

// withEndpoints are those of nodes that have an endpoint of the Service: a ready one,
// or where no node has any, one that terminates and still serves.
func withEndpoints(snap *state.Snapshot, service model.Key, nodes []string) []string {
	set, ok := snap.Endpoints.Get(service)
	if !ok {
		return nil
	}
	ready, ending := map[string]bool{}, map[string]bool{}
	for i := range set.Endpoints {
		switch e := &set.Endpoints[i]; {
		case e.Ready:
			ready[e.Node] = true
		case e.Serving && e.Terminating:
			ending[e.Node] = true
		}
	}
	for _, has := range []map[string]bool{ready, ending} {
		if out := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return !has[n] }); len(out) > 0 {
			return out
		}
	}
	return nil
}

// onNetworkOf reports whether the node is on the network of addr, or may be
// because nobody has said where it is.
func onNetworkOf(snap *state.Snapshot, name string, addr netip.Addr) bool {
	n, ok := snap.Nodes.Get(name)
	return ok && (!n.NetworksKnown || slices.ContainsFunc(n.Networks, func(p netip.Prefix) bool { return p.Contains(addr) }))
}

// first returns the node with the lowest hash for addr (rendezvous hashing).
func first(addr netip.Addr, nodes []string) string {
	var best string
	var lowest string
	for _, node := range nodes {
		h := sha256.Sum256([]byte(node + "#" + addr.String()))
		if s := string(h[:]); best == "" || strings.Compare(s, lowest) < 0 {
			best, lowest = node, s
		}
	}
	return best
}
