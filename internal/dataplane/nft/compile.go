package nft

import (
	"net/netip"
	"slices"
	"time"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

// poolKey names the backends of a Service port in one family by one policy.
type poolKey struct {
	port     string
	protocol model.Protocol
	fam      fam
	policy   plan.Policy
}

// place returns the backends in places 0..n-1, each where it already is if it
// can. Places stay as they are when others come and go, so that a change of one
// endpoint is a change of one or two elements of each frontend.
func place(had []netip.AddrPort, backends []plan.Backend) []netip.AddrPort {
	n := len(backends)
	slots := make([]netip.AddrPort, n)
	if len(had) == 0 {
		for i, b := range backends {
			slots[i] = b.AddrPort
		}
		return slots
	}
	wanted := make(map[netip.AddrPort]bool, n)
	for _, b := range backends {
		wanted[b.AddrPort] = true
	}
	for i := 0; i < n && i < len(had); i++ {
		if wanted[had[i]] {
			slots[i] = had[i]
			delete(wanted, had[i])
		}
	}
	i := 0
	for _, b := range backends {
		if !wanted[b.AddrPort] {
			continue
		}
		for slots[i].IsValid() {
			i++
		}
		slots[i] = b.AddrPort
	}
	return slots
}

// pooled says where the places of a pool are: at is the beginning of the
// elements of a frontend that uses it.
type pooled struct {
	poolKey
	at element
}

// compile returns what a Service wants, and where its pools are. places gives the
// places that a pool has had, if any; at is where it is going to be.
func compile(s plan.Service, places func(k poolKey, at element) []netip.AddrPort) (wishes, []pooled) {
	return (&serviceCompiler{}).compile(s, places)
}

type serviceCompiler struct {
	places func(k poolKey, at element) []netip.AddrPort
	out    wishes
	pools  []pooled
	slots  [][]netip.AddrPort // of the pools
	parts  []part             // of the frontend at work
}

// compile does so with the memory that it has had for another Service.
func (c *serviceCompiler) compile(s plan.Service, places func(k poolKey, at element) []netip.AddrPort) (wishes, []pooled) {
	c.places, c.out, c.pools, c.slots = places, nil, nil, c.slots[:0]
	for i := range s.Frontends {
		c.frontend(&s.Frontends[i])
	}
	// Of an address that a Service has twice, as load balancer's and as external IP, the first counts.
	slices.SortStableFunc(c.out, func(a, b addition) int { return a.element.compare(b.element) })
	return slices.Clip(slices.CompactFunc(c.out, func(a, b addition) bool { return a.element == b.element })), c.pools
}

// scope is the sets that one class of clients uses.
type scope struct{ frontends, endpoints, sticky setID }

var (
	internalScope = scope{frontends, endpoints, sticky}
	externalScope = scope{frontendsExternal, endpointsExternal, stickyExternal}
)

// add wants an element that is of no frontend.
func (c *serviceCompiler) add(f fam, set setID, key string) {
	c.out = append(c.out, addition{element{fam: f, set: set, key: key}, ""})
}

// part adds an element of the frontend at work.
func (c *serviceCompiler) part(set setID, key, value string) {
	c.parts = append(c.parts, part{set: set, key: key, value: value})
}

func (c *serviceCompiler) frontend(f *plan.Frontend) {
	front := element{fam: famOf(f.Addr), set: frontends, key: frontendKey(f.Addr, f.Protocol, f.Port)}
	c.parts = c.parts[:0]
	if f.Kind == plan.ClusterIP {
		c.add(front.fam, clusterIPs, front.key[:len(front.key)-len(protocolWord(0))-len(portWord(0))])
	}
	inside := &f.Internal
	if f.OwnServer {
		c.part(ownServer, "", addrPort(inside.Backends[0].AddrPort))
	}
	if f.StandsBy() {
		c.local(inside.Backends, front.fam)
		inside = &f.Standby
	}
	c.scope(f, inside, internalScope, front)
	if f.Split() {
		c.scope(f, &f.External, externalScope, front)
	}
	if f.Restricted {
		c.parts = append(c.parts, restriction(f, front)...)
	}
	c.out = append(c.out, addition{front, string(pack(c.parts))})
}

// restriction returns the elements that tell who may connect.
func restriction(f *plan.Frontend, front element) []part {
	m := elements{{fam: front.fam, set: guarded, key: front.key}: ""}
	for _, p := range f.SourceRanges {
		m.addRange(front.fam, sourceRanges, front.key, p)
	}
	out := make([]part, 0, len(m))
	for e := range m {
		out = append(out, e.part(front, ""))
	}
	return out
}

// scope adds what one class of clients gets.
func (c *serviceCompiler) scope(f *plan.Frontend, p *plan.Pool, in scope, front element) {
	switch p.Action {
	case plan.Reject:
		c.part(in.frontends, "", chainReject)
		return
	case plan.Drop:
		c.part(in.frontends, "", verdictDrop)
		return
	case plan.Redirect:
		c.part(in.frontends, "", chainTLS)
		return
	}
	nodePort, seconds := f.Kind == plan.NodePort, wholeSeconds(f.AffinityTimeout)
	c.part(in.frontends, "", pick{nodePort: nodePort, external: in == externalScope, sticky: seconds > 0, n: len(p.Backends)}.name())
	c.part(forwarded, "", "")
	if seconds > 0 {
		c.part(memories, "", memory{nodePort: nodePort, seconds: seconds}.name())
	}
	at := element{fam: front.fam, set: in.endpoints, key: front.key}
	for slot, to := range c.pool(poolKey{port: f.ServicePort.Name, protocol: f.Protocol, fam: front.fam, policy: p.Policy}, at, p.Backends) {
		backend := addrPort(to)
		c.part(in.endpoints, slotWord(slot), backend)
		if seconds > 0 {
			c.part(in.sticky, backend, "")
		}
	}
	c.local(p.Backends, front.fam)
}

// local adds which of the backends are on this node.
func (c *serviceCompiler) local(backends []plan.Backend, f fam) {
	for _, b := range backends {
		if b.Local {
			addr := addrBytes(b.Addr())
			c.add(f, localEndpoints, addr)
			c.add(f, hairpin, addr+addr)
		}
	}
}

// pool returns the places of a pool's backends.
func (c *serviceCompiler) pool(k poolKey, at element, backends []plan.Backend) []netip.AddrPort {
	if i := slices.IndexFunc(c.pools, func(p pooled) bool { return p.poolKey == k }); i >= 0 {
		return c.slots[i]
	}
	slots := place(c.places(k, at), backends)
	c.pools, c.slots = append(c.pools, pooled{k, at}), append(c.slots, slots)
	return slots
}

// wholeSeconds rounds up, as chains are named by seconds.
func wholeSeconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// compileNode returns the elements of the node's settings.
func compileNode(n dataplane.Node) elements {
	out := elements{}
	out.addPrefixes(insideClients, append(append([]netip.Prefix{}, n.Cluster...), n.LocalPods...))
	out.addPrefixes(localPods, n.LocalPods)
	out.addPrefixes(serviceCIDRs, n.Services)
	out.addInterfaces(n.PodInterfaces)
	if len(n.NodePorts) > 0 {
		out.addPrefixes(nodePortAddresses, n.NodePorts)
	} else {
		addr := func(s string) string { return addrBytes(netip.MustParseAddr(s)) }
		out.addKeys(v4, nodePortAddresses, addr("0.0.0.0"), addr("126.255.255.255"))
		out.addKeys(v4, nodePortAddresses, addr("128.0.0.0"), addr("255.255.255.255"))
		out.addKeys(v6, nodePortAddresses, addr("::"), addr("::"))
		out.addKeys(v6, nodePortAddresses, addr("::2"), addr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
	}
	for _, a := range n.TLSProxy {
		out[element{fam: famOf(a.Addr()), set: tlsProxy, key: string([]byte{byte(model.TCP)})}] = addrPort(a)
	}
	return out
}
