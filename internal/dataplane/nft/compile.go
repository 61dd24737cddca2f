package nft

import (
	"net/netip"
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

// pool is the place of each backend. Places stay as they are when others come
// and go, so that a change of one endpoint is a change of one or two elements
// of each frontend.
type pool struct {
	slots []netip.AddrPort
}

// place puts the backends into slots 0..n-1, each where it already is if it can.
func (p *pool) place(backends []plan.Backend) {
	n := len(backends)
	wanted := make(map[netip.AddrPort]bool, n)
	for _, b := range backends {
		wanted[b.AddrPort] = true
	}
	slots := make([]netip.AddrPort, n)
	for i := 0; i < n && i < len(p.slots); i++ {
		if wanted[p.slots[i]] {
			slots[i] = p.slots[i]
			delete(wanted, p.slots[i])
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
	p.slots = slots
}

// compile returns the elements of a Service. pools gives the pool of a list,
// choosing one if there is none; at is the beginning of the elements of a
// frontend that uses it.
func compile(s plan.Service, pools func(k poolKey, at element) *pool) elements {
	c := serviceCompiler{out: elements{}, pools: pools, placed: map[*pool]bool{}}
	for i := range s.Frontends {
		c.frontend(&s.Frontends[i])
	}
	return c.out
}

type serviceCompiler struct {
	out    elements
	pools  func(k poolKey, at element) *pool
	placed map[*pool]bool
}

// scope is the sets that one class of clients uses.
type scope struct{ frontends, endpoints, sticky setID }

var (
	internalScope = scope{frontends, endpoints, sticky}
	externalScope = scope{frontendsExternal, endpointsExternal, stickyExternal}
)

func (c *serviceCompiler) frontend(f *plan.Frontend) {
	family := famOf(f.Addr)
	key := frontendKey(f.Addr, f.Protocol, f.Port)
	if f.Kind == plan.ClusterIP {
		c.out[element{fam: family, set: clusterIPs, key: addrBytes(f.Addr)}] = ""
	}
	c.scope(f, &f.Internal, internalScope)
	if f.Split() {
		c.scope(f, &f.External, externalScope)
	}
	if f.Restricted {
		c.out[element{fam: family, set: guarded, key: key}] = ""
		for _, p := range f.SourceRanges {
			c.out.addRange(family, sourceRanges, key, p)
		}
	}
}

// scope adds what one class of clients gets.
func (c *serviceCompiler) scope(f *plan.Frontend, p *plan.Pool, in scope) {
	family, key := famOf(f.Addr), frontendKey(f.Addr, f.Protocol, f.Port)
	front := element{fam: family, set: in.frontends, key: key}
	switch p.Action {
	case plan.Reject:
		c.out[front] = chainReject
		return
	case plan.Drop:
		c.out[front] = verdictDrop
		return
	case plan.Redirect:
		c.out[front] = chainTLS
		return
	}
	nodePort, seconds := f.Kind == plan.NodePort, wholeSeconds(f.AffinityTimeout)
	c.out[front] = pick{nodePort: nodePort, external: in == externalScope, sticky: seconds > 0, n: len(p.Backends)}.name()
	c.out[element{fam: family, set: forwarded, key: key}] = ""
	if seconds > 0 {
		c.out[element{fam: family, set: memories, key: key}] = memory{nodePort: nodePort, seconds: seconds}.name()
	}
	chosen := c.pools(poolKey{port: f.ServicePort.Name, protocol: f.Protocol, fam: family, policy: p.Policy},
		element{fam: family, set: in.endpoints, key: key})
	if !c.placed[chosen] {
		c.placed[chosen] = true
		chosen.place(p.Backends)
	}
	for slot, to := range chosen.slots {
		c.out[element{fam: family, set: in.endpoints, key: key + slotWord(slot)}] = addrPort(to)
		if seconds > 0 {
			c.out[element{fam: family, set: in.sticky, key: key + addrPort(to)}] = ""
		}
	}
	for _, b := range p.Backends {
		if b.Local {
			addr := addrBytes(b.Addr())
			c.out[element{fam: family, set: localEndpoints, key: addr}] = ""
			c.out[element{fam: family, set: hairpin, key: addr + addr}] = ""
		}
	}
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
