package plan

import (
	"net/netip"
	"slices"

	"fairway.dev/fairway/internal/model"
)

// Backend is one endpoint that connections to a frontend may go to.
type Backend struct {
	netip.AddrPort
	// Local is true when it is on the node that the plan is for.
	Local bool
}

// Upstreams returns the endpoints that serve a port of a Service by the
// Cluster traffic policy, in order of address, each once and in every address
// family: the ready ones that topology hints leave for the node, or, with no
// ready one anywhere, those that are terminating but still serving. With a
// nil node there is no topology. The gateway and Service TLS use it.
func Upstreams(svc *model.Service, port model.ServicePort, eps *model.EndpointSet, node *model.Node) []netip.AddrPort {
	if svc == nil || eps == nil {
		return nil
	}
	c := candidates(port, eps, node, anyFamily)
	list := clusterBackends(c, topologyOf(c, node))
	out := make([]netip.AddrPort, len(list))
	for i, b := range list {
		out[i] = b.AddrPort
	}
	return out
}

// Serving is an endpoint that can serve.
type Serving struct {
	netip.AddrPort
	// Draining tells that it is about to end.
	Draining bool
}

// Others returns the endpoints that can serve a port besides those that
// [Upstreams] has chosen, each once: the ready ones of other zones, and those
// that are terminating but still serving. What a client began at one of them it
// may go on with there; what is new goes to Upstreams.
func Others(port model.ServicePort, eps *model.EndpointSet, chosen []netip.AddrPort) []Serving {
	if eps == nil {
		return nil
	}
	var out []Serving
	at := map[netip.AddrPort]int{}
	for _, c := range candidates(port, eps, nil, anyFamily) {
		if !c.Ready && !c.fallback() {
			continue
		}
		if _, ok := slices.BinarySearchFunc(chosen, c.AddrPort, netip.AddrPort.Compare); ok {
			continue
		}
		if i, twice := at[c.AddrPort]; twice {
			out[i].Draining = out[i].Draining && !c.Ready
			continue
		}
		at[c.AddrPort] = len(out)
		out = append(out, Serving{c.AddrPort, !c.Ready})
	}
	return out
}

func anyFamily(netip.Addr) bool { return true }
func only4(a netip.Addr) bool   { return a.Is4() }
func only6(a netip.Addr) bool   { return a.Is6() }

// isOn reports whether an endpoint is on the node: by its name, or, where a
// hand-written EndpointSlice names no node, by its address.
func isOn(n *model.Node, name string, addr netip.Addr) bool {
	switch {
	case n == nil:
		return false
	case name != "":
		return name == n.Name
	}
	return slices.Contains(n.Addrs, addr) || slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// candidate is an endpoint that has the port in question.
type candidate struct {
	Backend
	*model.Endpoint
}

// fallback reports whether the endpoint serves while it terminates, which
// makes it a last resort (KEP-1669).
func (c candidate) fallback() bool { return c.Serving && c.Terminating }

// candidates returns the usable endpoints of a port whose address family
// accepts: those with a valid address and with the port.
func candidates(port model.ServicePort, eps *model.EndpointSet, node *model.Node, family func(netip.Addr) bool) []candidate {
	list := make([]candidate, 0, len(eps.Endpoints))
	for i := range eps.Endpoints {
		e := &eps.Endpoints[i]
		addr := e.Addr.Unmap()
		if !family(addr) || unusable(addr) != "" {
			continue
		}
		number, ok := e.Port(port.Name, port.Protocol)
		if !ok || number == 0 {
			continue
		}
		b := Backend{netip.AddrPortFrom(addr, number), isOn(node, e.Node, addr)}
		list = append(list, candidate{b, e})
	}
	return list
}

// leftAlone reports whether the endpoint is none of a service proxy's.
func leftAlone(c candidate) bool { return c.NotProxied }

// unusable says why an address can be no endpoint, or "". It repeats the API's
// validation (ValidateEndpointIP) because the API tolerates old objects, and
// because a route to the node's own loopback would be a hole.
func unusable(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return "is not an IP address"
	case a.IsUnspecified():
		return "is the unspecified address"
	case a.IsLoopback():
		return "is a loopback address"
	case a.IsLinkLocalUnicast():
		return "is a link-local address"
	case a.IsMulticast():
		return "is a multicast address"
	case a.Is4() && a.As4()[0] == 0: // 240.0.0.0/4 is routed by Linux, and some networks use it
		return "is of 0.0.0.0/8, which no packet is sent to"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is the broadcast address"
	}
	return ""
}

// topology is the subset of ready endpoints that hints choose for a node.
type topology struct {
	// node and zone, of which at most one is set, must be among an endpoint's hints.
	node, zone string
}

// topologyOf follows hints only when every ready endpoint of the port has
// them and at least one is meant for this node, or else for its zone: anything
// less could leave a node without endpoints or overload a few
// (KEP-2433, KEP-3015).
func topologyOf(list []candidate, node *model.Node) topology {
	if node == nil {
		return topology{}
	}
	ready, nodeHints, zoneHints := false, true, true
	forNode, forZone := false, false
	for _, c := range list {
		if !c.Ready {
			continue
		}
		ready = true
		var hints model.Hints
		if c.Hints != nil {
			hints = *c.Hints
		}
		nodeHints = nodeHints && len(hints.Nodes) > 0
		zoneHints = zoneHints && len(hints.Zones) > 0
		forNode = forNode || slices.Contains(hints.Nodes, node.Name)
		forZone = forZone || node.Zone != "" && slices.Contains(hints.Zones, node.Zone)
	}
	switch {
	case !ready:
	case nodeHints && forNode:
		return topology{node: node.Name}
	case zoneHints && forZone:
		return topology{zone: node.Zone}
	}
	return topology{}
}

// takes reports whether the topology leaves the endpoint in.
func (t topology) takes(c candidate) bool {
	switch {
	case t.node != "":
		return slices.Contains(c.Hints.Nodes, t.node)
	case t.zone != "":
		return slices.Contains(c.Hints.Zones, t.zone)
	}
	return true
}

// clusterBackends is the choice of the Cluster policy.
func clusterBackends(list []candidate, t topology) []Backend {
	ready := choose(list, func(c candidate) bool { return c.Ready && t.takes(c) })
	if len(ready) > 0 {
		return ready
	}
	return choose(list, candidate.fallback)
}

// localBackends is the choice of the Local policy: this node's endpoints,
// whatever the hints say; the fallback is decided apart from the cluster's.
func localBackends(list []candidate) []Backend {
	ready := choose(list, func(c candidate) bool { return c.Local && c.Ready })
	if len(ready) > 0 {
		return ready
	}
	return choose(list, func(c candidate) bool { return c.Local && !c.Ready && c.fallback() })
}

// choose returns the backends that fit, ordered, each address and port once:
// two target port names of one Pod may lead to the same socket.
func choose(list []candidate, fits func(candidate) bool) []Backend {
	n := 0
	for _, c := range list {
		if fits(c) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	out := make([]Backend, 0, n)
	for _, c := range list {
		if fits(c) {
			out = append(out, c.Backend)
		}
	}
	slices.SortStableFunc(out, func(a, b Backend) int { return a.Compare(b.AddrPort) })
	return slices.CompactFunc(out, func(a, b Backend) bool { return a.AddrPort == b.AddrPort })
}
