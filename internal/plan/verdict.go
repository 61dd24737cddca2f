package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
)

// Verdict is how one endpoint fares as a backend of a Service port on a node.
type Verdict struct {
	Endpoint *model.Endpoint
	// Addr is the endpoint's address with its number of the port; 0 where it
	// has no such port.
	Addr netip.AddrPort
	// Here is true when it is on the node.
	Here bool
	// Cluster and Local are what the two traffic policies make of it.
	Cluster, Local Standing
}

// Standing is whether an endpoint gets connections, and why or why not.
type Standing struct {
	In  bool
	Why string
}

// Verdicts tells of every endpoint why it is a backend of a port or not, in
// order of address. It is Compile's choice, explained: for people, not for
// data paths.
func Verdicts(in Input, port model.ServicePort) []Verdict {
	if in.Endpoints == nil {
		return nil
	}
	out := make([]Verdict, len(in.Endpoints.Endpoints))
	for i := range out {
		e := &in.Endpoints.Endpoints[i]
		addr := e.Addr.Unmap()
		number, ok := e.Port(port.Name, port.Protocol)
		v := &out[i]
		*v = Verdict{Endpoint: e, Addr: netip.AddrPortFrom(addr, number), Here: isOn(in.Node, e.Node, addr)}
		why := ""
		switch {
		case unusable(addr) != "":
			why = "its address " + unusable(addr)
		case in.Service.Headless: // it has no cluster IP, and DNS gives endpoints of both families
		case e.NotProxied:
			why = "a label of its EndpointSlice, service.kubernetes.io/headless or service.kubernetes.io/service-proxy-name, tells service proxies to leave it alone"
		case !slices.ContainsFunc(in.Service.ClusterIPs, func(a netip.Addr) bool { return a.Is4() == addr.Is4() }):
			why = fmt.Sprintf("the Service has no cluster IP of family %s", familyName(addr))
		}
		switch {
		case why != "":
		case !ok:
			why = lacks(e, port)
		case number == 0:
			why = fmt.Sprintf("its %s port named %q has no number", port.Protocol, port.Name)
		}
		if why != "" {
			v.Cluster, v.Local = Standing{Why: why}, Standing{Why: why}
		}
	}
	for _, family := range []func(netip.Addr) bool{only4, only6} {
		list := candidates(port, in.Endpoints, in.Node, family)
		if !in.Service.Headless {
			list = slices.DeleteFunc(list, leftAlone)
		}
		hints := topologyOf(list, in.Node)
		cluster, local := clusterBackends(list, hints), localBackends(list)
		anyReady := slices.ContainsFunc(list, func(c candidate) bool { return c.Ready })
		localReady := slices.ContainsFunc(list, func(c candidate) bool { return c.Ready && c.Local })
		for i := range out {
			v := &out[i]
			if v.Cluster.Why != "" || !family(v.Addr.Addr()) {
				continue
			}
			c := candidate{Backend{v.Addr, v.Here}, v.Endpoint}
			v.Cluster = standing(c, cluster, anyReady)
			if v.Endpoint.Ready {
				v.Cluster.Why = hints.why(c)
			}
			v.Local = standing(c, local, localReady)
			if !v.Here {
				v.Local.Why = "it is not on this node"
			}
		}
	}
	return out
}

// standing says by its conditions why an endpoint is among the chosen or not.
func standing(c candidate, chosen []Backend, othersReady bool) Standing {
	s := Standing{In: slices.Contains(chosen, c.Backend)}
	switch {
	case c.Ready:
		s.Why = "ready"
	case c.fallback() && !othersReady:
		s.Why = "it terminates but serves, and none is ready"
	case c.fallback():
		s.Why = "it terminates, and others are ready"
	case c.Terminating:
		s.Why = "it terminates and does not serve any more"
	default:
		s.Why = "not ready"
	}
	return s
}

// why says how the hints see a ready endpoint.
func (t topology) why(c candidate) string {
	hints := model.Hints{}
	if c.Hints != nil {
		hints = *c.Hints
	}
	switch in := t.takes(c); {
	case t.node != "" && in:
		return "ready, and meant for this node"
	case t.node != "":
		return "meant for other nodes: " + strings.Join(hints.Nodes, ", ")
	case t.zone != "" && in:
		return "ready, and meant for zone " + t.zone
	case t.zone != "":
		return "meant for other zones: " + strings.Join(hints.Zones, ", ")
	case len(hints.Nodes)+len(hints.Zones) > 0:
		return "ready; hints are not followed, for not every ready endpoint has one or none is meant for here"
	}
	return "ready"
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// lacks says how an endpoint lacks a Service's port.
func lacks(e *model.Endpoint, port model.ServicePort) string {
	i := slices.IndexFunc(e.Ports, func(p model.EndpointPort) bool { return p.Name == port.Name })
	switch {
	case i >= 0 && port.Name == "":
		return fmt.Sprintf("its port without a name is of %s, not of %s", e.Ports[i].Protocol, port.Protocol)
	case i >= 0:
		return fmt.Sprintf("its port named %q is of %s, not of %s", port.Name, e.Ports[i].Protocol, port.Protocol)
	case port.Name == "":
		return "it has no port without a name"
	}
	return fmt.Sprintf("it has no port named %q", port.Name)
}
