package ipam

import (
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
)

// claimPorts takes the Service's ports at the nodes' addresses and says why it
// cannot; empty when it could.
func (r *round) claimPorts(s *model.Service) (taken PortKey, by string) {
	for _, p := range s.Ports {
		k := PortKey{p.Protocol, p.Port}
		if who, ok := r.options.Reserved[k]; ok {
			return k, who
		}
		if owner := r.ports[k]; owner != nil && owner != s {
			return k, "Service " + owner.Key.String()
		}
	}
	for _, p := range s.Ports {
		r.ports[PortKey{p.Protocol, p.Port}] = s
	}
	return PortKey{}, ""
}

// giveNodes gives the addresses of the nodes that take traffic for the Service,
// IPv4 first and in the order of the nodes' names: many clients use the first
// address only, and in a cluster of one machine only the first node's can be
// reached by others.
func (r *round) giveNodes(s *model.Service) {
	if port, by := r.claimPorts(s); by != "" {
		r.problem(s, ReasonPortConflict, "port %s of the nodes is taken by %s; use another port, or a pool of addresses (--lb-pool)", port, by)
		return
	}
	var local map[string]bool
	if s.ExternalLocal {
		local = r.nodesWithEndpoints(s.Key)
	}
	var nodes []*model.Node
	for name, n := range r.snap.Nodes.All() {
		if n.Ready && !n.Leaving && (local == nil || local[name]) {
			nodes = append(nodes, n)
		}
	}
	slices.SortFunc(nodes, func(x, y *model.Node) int { return strings.Compare(x.Name, y.Name) })
	var out []netip.Addr
	for _, v4 := range []bool{true, false} {
		for _, n := range nodes {
			i := slices.IndexFunc(n.Addrs, func(a netip.Addr) bool { return a.Is4() == v4 })
			if i >= 0 && hasFamily(s, v4) && !slices.Contains(out, n.Addrs[i]) {
				out = append(out, n.Addrs[i])
			}
		}
	}
	r.result.Addrs[s.Key] = out
}

// nodesWithEndpoints are the nodes with a ready endpoint of the Service, or where
// there is none, with one that terminates and still serves: their nodes lead
// clients there (KEP-1669).
func (r *round) nodesWithEndpoints(service model.Key) map[string]bool {
	ready, ending := map[string]bool{}, map[string]bool{}
	if set, ok := r.snap.Endpoints.Get(service); ok {
		for i := range set.Endpoints {
			switch e := &set.Endpoints[i]; {
			case e.Ready:
				ready[e.Node] = true
			case e.Serving && e.Terminating:
				ending[e.Node] = true
			}
		}
	}
	if len(ready) == 0 {
		return ending
	}
	return ready
}
