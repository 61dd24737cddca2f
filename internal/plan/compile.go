package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
)

// Options are what concerns every Service on the node.
type Options struct {
	// ExternalIPs serves spec.externalIPs. The API deprecates them (KEP-5707)
	// because anybody who may write Services may claim any address with them
	// (CVE-2020-8554); without it they are reported and not served.
	ExternalIPs bool
	// SCTP is true when the kernel can translate SCTP; without it SCTP ports
	// are reported and not served.
	SCTP bool
	// TLSProxy are where the node's TLS proxy listens, at most one address of
	// each family; with none, TLS ports of that family refuse connections.
	TLSProxy []netip.AddrPort
	// OwnServer is where a server within the node's agent listens, at most one
	// address of each family: data paths are told whether it answers. Optional.
	OwnServer []netip.AddrPort
}

// Input is all that the frontends of a Service depend on.
type Input struct {
	// Service is required.
	Service *model.Service
	// Endpoints may be nil: none.
	Endpoints *model.EndpointSet
	// Node is the node to plan for. Required.
	Node *model.Node
	// CertificateReady is true when a certificate of Service.TLS is usable.
	CertificateReady bool
	Options          Options
}

// Compile returns what the node serves for a Service. Headless and
// ExternalName Services, and those that carry a label which tells service
// proxies to leave them alone, have no frontends.
func Compile(in Input) Service {
	svc := in.Service
	out := Service{Key: svc.Key, UID: svc.UID, Created: svc.Created}
	if svc.NotProxied || svc.Headless || svc.Type == model.ExternalName {
		return out
	}
	if in.Endpoints == nil {
		in.Endpoints = &model.EndpointSet{Key: svc.Key}
	}
	c := compiler{Input: in, out: &out}
	if len(svc.Ports) == 0 {
		c.problem(ReasonNoPorts, "spec.ports", "the Service has no port that can be served, so that nothing is served; give it at least one port, or make it headless (clusterIP: None)")
	}
	for _, port := range svc.Ports {
		if port.Protocol == model.SCTP && !in.Options.SCTP {
			c.problem(ReasonProtocolUnsupported, fmt.Sprintf("spec.ports[%s]", portLabel(port)),
				fmt.Sprintf("port %d is not served: this node's kernel has no SCTP; use TCP or UDP, or load the modules sctp and nf_conntrack", port.Port))
			continue
		}
		c.port(port, only4)
		c.port(port, only6)
	}
	c.reportAddresses()
	c.reportEndpoints()
	return out
}

type compiler struct {
	Input
	out *Service
}

func (c *compiler) problem(reason, field, message string) {
	ref := model.Ref{Kind: "Service", Key: c.Service.Key, UID: c.Service.UID}
	c.out.Problems = append(c.out.Problems, model.Problem{Object: ref, Reason: reason, Field: field, Message: message})
}

func portLabel(p model.ServicePort) string {
	if p.Name != "" {
		return p.Name
	}
	return fmt.Sprint(p.Port)
}

// port adds the frontends of one port in one family. A Service has a family
// when it has a cluster address of it.
func (c *compiler) port(port model.ServicePort, family func(netip.Addr) bool) {
	svc := c.Service
	i := slices.IndexFunc(svc.ClusterIPs, family)
	if i < 0 {
		return
	}
	list := slices.DeleteFunc(candidates(port, c.Endpoints, c.Node, family), leftAlone)
	pools := c.pools(list, port, family)
	var serving []netip.AddrPort
	if port.Protocol == model.UDP {
		for _, b := range choose(list, func(c candidate) bool { return c.Ready || c.Serving }) {
			serving = append(serving, b.AddrPort)
		}
	}
	add := func(kind Kind, addr netip.Addr, number uint16) *Frontend {
		f := Frontend{
			Kind: kind, Addr: addr, Protocol: port.Protocol, Port: number, ServicePort: port,
			Internal: pools[Cluster], External: pools[Cluster], AffinityTimeout: svc.AffinityTimeout, Serving: serving,
		}
		switch {
		case kind == ClusterIP && svc.InternalLocal:
			f.Internal, f.External = pools[Local], pools[Local]
		case kind != ClusterIP && svc.ExternalLocal:
			f.External = pools[Local]
		}
		c.out.Frontends = append(c.out.Frontends, f)
		return &c.out.Frontends[len(c.out.Frontends)-1]
	}
	if f := add(ClusterIP, svc.ClusterIPs[i], port.Port); f.AffinityTimeout == 0 {
		f.Standby, f.OwnServer = c.standby(list, f.Internal)
	}
	if port.NodePort != 0 {
		add(NodePort, unspecified(svc.ClusterIPs[i]), port.NodePort)
	}
	for _, in := range svc.LoadBalancer.Ingress {
		addr := in.Addr.Unmap()
		if in.Proxy || !family(addr) || unusable(addr) != "" {
			continue
		}
		f := add(LoadBalancer, addr, port.Port)
		f.Restricted, f.SourceRanges = sourceRanges(svc.LoadBalancer.SourceRanges, c.Node, addr)
	}
	if !c.Options.ExternalIPs {
		return
	}
	for _, addr := range svc.ExternalIPs {
		if addr = addr.Unmap(); family(addr) && unusable(addr) == "" {
			add(ExternalIP, addr, port.Port)
		}
	}
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// pools returns what each policy leads to. With no usable endpoint on any node
// connections are rejected; where only the Local policy finds none they are
// dropped.
func (c *compiler) pools(list []candidate, port model.ServicePort, family func(netip.Addr) bool) [2]Pool {
	cluster := Pool{Policy: Cluster, Backends: clusterBackends(list, topologyOf(list, c.Node))}
	local := Pool{Policy: Local, Backends: localBackends(list)}
	if len(cluster.Backends) == 0 {
		cluster.Action, local.Action = Reject, Reject
	} else if len(local.Backends) == 0 {
		local.Action = Drop
	}
	if c.Service.TLS.Covers(port) {
		for _, p := range []*Pool{&cluster, &local} {
			switch {
			case p.Action != Forward:
			case c.CertificateReady && slices.ContainsFunc(c.Options.TLSProxy, func(a netip.AddrPort) bool { return family(a.Addr()) }):
				p.Action = Redirect
			default:
				p.Action, p.Backends = Reject, nil
			}
		}
	}
	return [2]Pool{cluster, local}
}

// standby reports whether the node's own server is all that clients have, and
// returns where they are to go while it does not answer: where they would if it
// were not there.
func (c *compiler) standby(list []candidate, p Pool) (Pool, bool) {
	if p.Policy != Cluster || p.Action != Forward || len(p.Backends) != 1 || !slices.Contains(c.Options.OwnServer, p.Backends[0].AddrPort) {
		return Pool{}, false
	}
	own := p.Backends[0].AddrPort
	others := slices.DeleteFunc(slices.Clone(list), func(c candidate) bool { return c.AddrPort == own })
	return Pool{Policy: Standby, Backends: clusterBackends(others, topologyOf(others, c.Node))}, true
}

// sourceRanges returns who may connect to a load-balancer address. A range
// that covers a whole family is no restriction. Where a node is allowed, so is
// the address itself: the node connects from it if it has it on an interface.
// Ranges of the other family only allow nobody of this one.
func sourceRanges(all []netip.Prefix, node *model.Node, vip netip.Addr) (bool, []netip.Prefix) {
	if len(all) == 0 {
		return false, nil
	}
	var ranges []netip.Prefix
	for _, p := range all {
		if p.Addr().Is4() == vip.Is4() {
			if p.Bits() == 0 {
				return false, nil
			}
			ranges = append(ranges, p.Masked())
		}
	}
	if slices.ContainsFunc(node.Addrs, func(a netip.Addr) bool { return contains(ranges, a) }) {
		ranges = append(ranges, netip.PrefixFrom(vip, vip.BitLen()))
	}
	slices.SortFunc(ranges, func(a, b netip.Prefix) int { return a.Compare(b) })
	kept := ranges[:0]
	for _, p := range ranges {
		if len(kept) == 0 || !kept[len(kept)-1].Contains(p.Addr()) {
			kept = append(kept, p)
		}
	}
	return true, slices.Clip(kept)
}

// reportAddresses says which addresses that the Service names are not served. The API refuses most of
// them today, but tolerates old objects, and anybody may write a status.
func (c *compiler) reportAddresses() {
	svc := c.Service
	for _, in := range svc.LoadBalancer.Ingress {
		if in.Proxy || !in.Addr.IsValid() {
			continue
		}
		if why := c.unserved(in.Addr.Unmap()); why != "" {
			c.problem(ReasonLoadBalancerAddressInvalid, "status.loadBalancer.ingress",
				fmt.Sprintf("%s, so that it is not served; have the load balancer that wrote it give another one", why))
		}
	}
	switch {
	case len(svc.ExternalIPs) == 0:
	case !c.Options.ExternalIPs:
		c.problem(ReasonExternalIPsIgnored, "spec.externalIPs",
			"external IPs are switched off on this cluster; use type LoadBalancer, or have the administrator switch them on")
	default:
		for _, addr := range svc.ExternalIPs {
			if why := c.unserved(addr.Unmap()); why != "" {
				c.problem(ReasonExternalIPInvalid, "spec.externalIPs",
					fmt.Sprintf("%s, so that it is not served; write an address that is routed to the nodes", why))
			}
		}
	}
}

// unserved says why an address from outside the cluster is not served, or "".
func (c *compiler) unserved(a netip.Addr) string {
	if why := unusable(a); why != "" {
		return fmt.Sprintf("%s %s", a, why)
	}
	if ips := c.Service.ClusterIPs; len(ips) > 0 && !slices.ContainsFunc(ips, func(ip netip.Addr) bool { return ip.Is4() == a.Is4() }) {
		return fmt.Sprintf("the Service has no cluster IP of family %s, that of %s (spec.ipFamilyPolicy)", familyName(a), a)
	}
	return ""
}

func contains(ranges []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// reportEndpoints says which endpoints were left out because of their address.
func (c *compiler) reportEndpoints() {
	var bad []string
	for i := range c.Endpoints.Endpoints {
		addr := c.Endpoints.Endpoints[i].Addr.Unmap()
		if why := unusable(addr); why != "" {
			bad = append(bad, fmt.Sprintf("%s %s", addr, why))
		}
	}
	if len(bad) == 0 {
		return
	}
	const shown = 3
	more := ""
	if len(bad) > shown {
		more = fmt.Sprintf(" and %d more", len(bad)-shown)
		bad = bad[:shown]
	}
	c.problem(ReasonEndpointInvalid, "", fmt.Sprintf("endpoints are left out: %s%s; correct the addresses in the Service's EndpointSlices", strings.Join(bad, ", "), more))
}
