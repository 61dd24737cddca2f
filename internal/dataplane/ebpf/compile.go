package ebpf

import (
	"net/netip"
	"slices"
	"time"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

// portKey names a Service's port in one family, which has one number
// (frontend.ID) at all frontends of it.
type portKey struct {
	port     string
	protocol model.Protocol
	is6      bool
}

// poolKey names the backends of a Service's port by one policy.
type poolKey struct {
	portKey
	policy plan.Policy
}

// service is what a Service wants of the maps, before it is decided where its
// backends stand and which numbers it has.
type service struct {
	// frontends are as in the plan; no key stands twice.
	frontends []wantedFrontend
	// pools are what those frontends forward to; no name stands twice.
	pools []wantedPool
	// clusterIPs are refused at ports that they do not have.
	clusterIPs []address
}

// wantedPool are the backends of a port by one policy, in order of address.
type wantedPool struct {
	name     poolKey
	backends []backend
}

// wantedFrontend is a frontend with its pools. There may be many, so keep it small.
type wantedFrontend struct {
	key  frontendKey
	kind plan.Kind
	port portKey
	// pools, as places in service.pools, and actions are by class; a pool counts
	// only with actionForward.
	pools    [2]uint16
	actions  [2]uint8
	affinity uint32
	// standsBy tells that there is another one at key.standby().
	standsBy bool
	// ownServer is as in the plan.
	ownServer bool
	// restricted lets in nobody but sources.
	restricted bool
	sources    []netip.Prefix
	// serving are the backends that connected UDP sockets may stay with.
	serving []netip.AddrPort
	// value is what the map frontends shall have for it, once that is decided.
	value frontend
}

// decide returns what the map frontends has for it, where its pools stand in rows.
func (w *wantedFrontend) decide(id, guard uint32, rows []row) frontend {
	f := frontend{ID: id, Guard: guard, Affinity: w.affinity, Actions: w.actions, Kind: uint8(w.kind)}
	if w.standsBy {
		f.Standby |= serverStandby
	}
	if w.ownServer {
		f.Standby |= serverOwn
	}
	for class, action := range w.actions {
		if action == actionForward {
			f.Pools[class] = rows[w.pools[class]].pool
		}
	}
	return f
}

// sourceKeys are its source ranges by a number.
func (w *wantedFrontend) sourceKeys(guard uint32) []sourceKey {
	out := make([]sourceKey, 0, len(w.sources))
	for _, p := range w.sources {
		out = append(out, sourceKeyOf(guard, p))
	}
	return out
}

// Takes reports whether the maps have a frontend at all: no program handles
// SCTP; the packet path beside does.
func Takes(f *plan.Frontend) bool { return f.Protocol != model.SCTP }

// compile returns what a Service wants.
func compile(s plan.Service) service {
	out := service{frontends: make([]wantedFrontend, 0, len(s.Frontends))}
	for i := range s.Frontends {
		f := &s.Frontends[i]
		if !Takes(f) {
			continue
		}
		w := wantedFrontend{
			key: frontendKeyOf(f), kind: f.Kind, port: portKey{f.ServicePort.Name, f.Protocol, f.Addr.Is6()},
			affinity: wholeSeconds(f.AffinityTimeout), standsBy: f.StandsBy(), ownServer: f.OwnServer, restricted: f.Restricted, sources: f.SourceRanges, serving: f.Serving,
		}
		if out.frontend(w.key) != nil {
			continue // an address that a Service has twice, say as external IP and as load balancer's
		}
		if f.Kind == plan.ClusterIP && !slices.Contains(out.clusterIPs, w.key.Addr) {
			out.clusterIPs = append(out.clusterIPs, w.key.Addr)
		}
		for class, p := range []*plan.Pool{inside: &f.Internal, outside: &f.External} {
			w.actions[class] = actionOf(p.Action)
			if p.Action == plan.Forward {
				w.pools[class] = out.pool(poolKey{w.port, p.Policy}, p.Backends)
			}
		}
		if f.StandsBy() {
			s := w
			s.key, s.standsBy, s.ownServer = w.key.standby(), false, false
			at := out.pool(poolKey{w.port, f.Standby.Policy}, f.Standby.Backends)
			s.actions, s.pools = [2]uint8{actionForward, actionForward}, [2]uint16{at, at}
			out.frontends = append(out.frontends, s)
		}
		out.frontends = append(out.frontends, w)
	}
	return out
}

// pool returns the place of the pool of that name, with these backends.
func (s *service) pool(name poolKey, backends []plan.Backend) uint16 {
	at := slices.IndexFunc(s.pools, func(p wantedPool) bool { return p.name == name })
	if at < 0 {
		at = len(s.pools)
		s.pools = append(s.pools, wantedPool{name, backendsOf(backends)})
	}
	return uint16(at)
}

// frontend returns the one with that key; nil if there is none.
func (s *service) frontend(key frontendKey) *wantedFrontend {
	for i := range s.frontends {
		if s.frontends[i].key == key {
			return &s.frontends[i]
		}
	}
	return nil
}

func backendsOf(list []plan.Backend) []backend {
	out := make([]backend, len(list))
	for i, b := range list {
		out[i] = backendOf(b)
	}
	return out
}

// wholeSeconds rounds up: what is less than a second is not nothing.
func wholeSeconds(d time.Duration) uint32 { return uint32((d + time.Second - 1) / time.Second) }

// contestMax is the size up to which the order of a pool does not matter to the
// choice for clients outside, CONTEST_MAX in bpf/ingress.c.
const contestMax = 512

// place returns backends in the order in which they shall stand, given how they
// stood: each stays in its place if it can, so that a client that remembers a
// place finds it there. Very many stand in order of address, as at all nodes.
func place(before, backends []backend) []backend {
	if len(before) == 0 || len(backends) > contestMax {
		return backends
	}
	wanted := make(map[netip.AddrPort]backend, len(backends))
	for _, b := range backends {
		wanted[b.addrPort()] = b
	}
	slots := make([]backend, len(backends))
	taken := make([]bool, len(backends))
	for i := 0; i < len(slots) && i < len(before); i++ {
		if b, ok := wanted[before[i].addrPort()]; ok {
			slots[i], taken[i] = b, true
			delete(wanted, b.addrPort())
		}
	}
	i := 0
	for _, b := range backends {
		if _, left := wanted[b.addrPort()]; !left {
			continue
		}
		for taken[i] {
			i++
		}
		slots[i], taken[i] = b, true
	}
	return slots
}

// nodeSettings is what the node wants of the maps.
type nodeSettings struct {
	addresses map[address]uint32
	ranges    map[rangeKey]uint32
	proxies   [2]backend // 0 IPv4, 1 IPv6
}

// compileNode returns the settings of a node that has addrs on its interfaces.
func compileNode(n dataplane.Node, addrs []netip.Addr) nodeSettings {
	out := nodeSettings{addresses: map[address]uint32{}, ranges: map[rangeKey]uint32{}}
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		flags := addressNode
		if servesNodePorts(n.NodePorts, a) {
			flags |= addressNodePorts
		}
		out.addresses[addressOf(a)] = flags
	}
	list := map[netip.Prefix]uint32{}
	for flag, prefixes := range map[uint32][]netip.Prefix{rangeServices: n.Services, rangeCluster: n.Cluster, rangeLocalPods: n.LocalPods} {
		for _, p := range prefixes {
			list[p.Masked()] |= flag
		}
	}
	// Only the longest match is seen, so each has what is around it.
	for p, flags := range list {
		for around, more := range list {
			if around.Bits() <= p.Bits() && around.Contains(p.Addr()) {
				flags |= more
			}
		}
		out.ranges[rangeKeyOf(p)] = flags
	}
	for _, a := range n.TLSProxy {
		out.proxies[familyOf(a.Addr())] = backend{Addr: addressOf(a.Addr()), Port: portOf(a.Port()), Flags: backendLocal}
	}
	return out
}

// familyOf is the place of an address family in the map proxies.
func familyOf(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// servesNodePorts reports whether NodePorts are served at an address of the
// node. Loopback ones serve the node itself only, see bpf/socket.c.
func servesNodePorts(only []netip.Prefix, a netip.Addr) bool {
	return len(only) == 0 || slices.ContainsFunc(only, func(p netip.Prefix) bool { return p.Contains(a) })
}
