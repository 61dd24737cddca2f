package nft

import (
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the name of our table in each family.
const tableName = "fairway"

// layoutChain names the version of the shape: it changes with every change of
// sets, of base chains or of what a picking chain does.
const layoutChain = "layout-3"

// ownSuffix is added to it where the tables are for the node's own packets only.
const ownSuffix = "-own"

// family is what differs between IPv4 and IPv6.
type family struct {
	table *nftables.Table
	// bytes is the length of an address, words the registers it takes.
	bytes, words uint32
	addrType     nftables.SetDatatype
	saddr, daddr uint32     // offsets in the network header
	ctDst        expr.CtKey // the destination address that conntrack knows
	unreachable  uint8      // ICMP code for port unreachable
	own          bool       // only the node's own packets, see Options.OwnPackets
}

// fam selects a family.
type fam uint8

const (
	v4 fam = iota
	v6
)

// layout is the name of the chain that tells the shape.
func (f *family) layout() string {
	if f.own {
		return layoutChain + ownSuffix
	}
	return layoutChain
}

func families(own bool) [2]*family {
	table := func(f nftables.TableFamily) *nftables.Table { return &nftables.Table{Name: tableName, Family: f} }
	return [2]*family{
		v4: {table: table(nftables.TableFamilyIPv4), bytes: 4, words: 1, addrType: nftables.TypeIPAddr, saddr: 12, daddr: 16, ctDst: ctDstIP, unreachable: 3, own: own},
		v6: {table: table(nftables.TableFamilyIPv6), bytes: 16, words: 4, addrType: nftables.TypeIP6Addr, saddr: 8, daddr: 24, ctDst: ctDstIP6, unreachable: 4, own: own},
	}
}

// setID names a set or map of the layout.
type setID uint8

const (
	ownServer setID = iota // the node's own server, where endpoints are those that stand by; see pulse
	frontends
	frontendsExternal
	endpoints
	endpointsExternal
	forwarded        // which frontends have endpoints
	memories         // which frontends have affinity, and for how long
	sticky           // which endpoints of such a frontend are current
	stickyExternal   // the same for clients outside the cluster
	affinity         // which endpoint a client of such a frontend has; written by packets
	affinityExternal // the same for clients outside the cluster
	guarded          // which frontends have source ranges
	sourceRanges
	clusterIPs
	localEndpoints
	hairpin
	insideClients
	localPods
	serviceCIDRs
	nodePortAddresses
	podInterfaces
	tlsProxy
	setCount
)

var setNames = [setCount]string{
	ownServer: "own-server", frontends: "frontends", frontendsExternal: "frontends-external", endpoints: "endpoints", endpointsExternal: "endpoints-external",
	forwarded: "forwarded", memories: "memories", sticky: "sticky", stickyExternal: "sticky-external",
	affinity: "affinity", affinityExternal: "affinity-external", guarded: "guarded", sourceRanges: "source-ranges",
	clusterIPs: "cluster-ips", localEndpoints: "local-endpoints", hairpin: "hairpin", insideClients: "inside-clients",
	localPods: "local-pods", serviceCIDRs: "service-cidrs", nodePortAddresses: "nodeport-addresses",
	podInterfaces: "pod-interfaces", tlsProxy: "tls-proxy",
}

func (s setID) String() string { return setNames[s] }

// affinitySize bounds the clients remembered in each map; when it is
// reached further ones are served without affinity.
const affinitySize = 1 << 20

// verdicts reports whether the map's values are verdicts.
func (s setID) verdicts() bool { return s == frontends || s == frontendsExternal || s == memories }

// ofFrontend reports whether keys begin with a frontend.
func (s setID) ofFrontend() bool { return s <= sourceRanges }

// packets reports whether packets write the elements.
func (s setID) packets() bool { return s == affinity || s == affinityExternal }

// settings reports whether the set holds settings of the node.
func (s setID) settings() bool { return s >= insideClients }

// intervals reports whether the set holds ranges.
func (s setID) intervals() bool {
	switch s {
	case sourceRanges, insideClients, localPods, serviceCIDRs, nodePortAddresses, podInterfaces:
		return true
	}
	return false
}

// set returns the definition of a set. Slots have type mark: four bytes in the
// order of the machine, as the random number is.
func (f *family) set(id setID) *nftables.Set {
	addr, port, proto, word := f.addrType, nftables.TypeInetService, nftables.TypeInetProto, nftables.TypeMark
	s := &nftables.Set{Table: f.table, Name: id.String(), Interval: id.intervals()}
	key := func(types ...nftables.SetDatatype) {
		s.KeyType, s.Concatenation = nftables.MustConcatSetType(types...), len(types) > 1
	}
	value := func(types ...nftables.SetDatatype) {
		s.IsMap, s.DataType = true, nftables.MustConcatSetType(types...)
	}
	switch id {
	case frontends, frontendsExternal, memories:
		key(addr, proto, port)
		s.IsMap, s.DataType = true, nftables.TypeVerdict
	case ownServer:
		key(addr, proto, port)
		value(addr, port)
	case forwarded, guarded:
		key(addr, proto, port)
	case endpoints, endpointsExternal:
		key(addr, proto, port, word)
		value(addr, port)
	case sticky, stickyExternal:
		key(addr, proto, port, addr, port)
	case affinity, affinityExternal:
		key(addr, proto, port, addr)
		value(addr, port)
		s.Dynamic, s.HasTimeout, s.Size = true, true, affinitySize
	case sourceRanges:
		// One long integer, not a concatenation: ranges of concatenations are
		// rebuilt as a whole by the kernel on each change, trees are not.
		s.KeyType = nftables.TypeInteger
		s.KeyType.Bytes = 2*f.bytes + 8
	case hairpin:
		key(addr, addr)
	case podInterfaces:
		s.KeyType = nftables.TypeIFName
	case tlsProxy:
		s.KeyType = proto
		value(addr, port)
	default:
		s.KeyType = addr
	}
	return s
}

// The fixed chains that elements and rules refer to. Their names are no words
// of nft's language, so that it can be asked about them.
const (
	chainInside     = "inside"  // how clients are served
	chainOutside    = "outside" // how those outside the cluster are, where it differs
	chainUnclaimed  = "unclaimed"
	chainReject     = "refuse"
	chainTLS        = "tls"
	chainMasquerade = "masquerading"
	chainPrerouting = "prerouting"
	chainForward    = "forward"
	verdictDrop     = "drop" // no chain: the verdict itself
)

// pick describes a picking chain: what it does follows from its name.
type pick struct {
	nodePort bool // keyed by port only
	external bool // reads endpoints-external
	sticky   bool // has affinity
	n        int
}

const (
	nodePortPrefix = "nodeport-"
	externalPrefix = "external-"
	pickPrefix     = "to-"
	stickySuffix   = "-sticky"
	memoryPrefix   = "remember-"
)

// name is the chain's name, for example "nodeport-external-to-3-sticky".
func (p pick) name() string {
	var b strings.Builder
	if p.nodePort {
		b.WriteString(nodePortPrefix)
	}
	if p.external {
		b.WriteString(externalPrefix)
	}
	b.WriteString(pickPrefix)
	b.WriteString(strconv.Itoa(p.n))
	if p.sticky {
		b.WriteString(stickySuffix)
	}
	return b.String()
}

// parsePick is the inverse of name.
func parsePick(name string) (p pick, ok bool) {
	rest := name
	rest, p.nodePort = strings.CutPrefix(rest, nodePortPrefix)
	rest, p.external = strings.CutPrefix(rest, externalPrefix)
	if rest, ok = strings.CutPrefix(rest, pickPrefix); !ok {
		return p, false
	}
	rest, p.sticky = strings.CutSuffix(rest, stickySuffix)
	n, err := strconv.Atoi(rest)
	p.n = n
	return p, err == nil && n > 0
}

// memory describes a chain that remembers which endpoint a client has.
type memory struct {
	nodePort bool // keyed by port only
	seconds  int
}

// name is the chain's name, for example "remember-10800s".
func (m memory) name() string {
	name := memoryPrefix + strconv.Itoa(m.seconds) + "s"
	if m.nodePort {
		return nodePortPrefix + name
	}
	return name
}

// parseMemory is the inverse of name.
func parseMemory(name string) (m memory, ok bool) {
	rest := name
	rest, m.nodePort = strings.CutPrefix(rest, nodePortPrefix)
	if rest, ok = strings.CutPrefix(rest, memoryPrefix); !ok {
		return m, false
	}
	rest, ok = strings.CutSuffix(rest, "s")
	seconds, err := strconv.Atoi(rest)
	m.seconds = seconds
	return m, ok && err == nil && seconds > 0
}

// made reports whether a name is of a chain that is made when it is needed.
func made(name string) bool {
	_, isPick := parsePick(name)
	_, isMemory := parseMemory(name)
	return isPick || isMemory
}

// needed returns a chain that is made when it is needed.
func (f *family) needed(name string) chain {
	def := nftables.Chain{Name: name, Table: f.table}
	if m, ok := parseMemory(name); ok {
		return chain{def, f.remembering(m)}
	}
	p, _ := parsePick(name)
	return chain{def, f.picking(p)}
}

// chain is a chain with its rules.
type chain struct {
	def   nftables.Chain
	rules [][]expr.Any
}

// fixed returns the chains of the layout in an order in which each is defined
// before it is used. There are few ways that lead to the rules with frontends:
// with each new frontend the kernel checks all frontends' chains once per way.
func (f *family) fixed() []chain {
	base := func(name string, kind nftables.ChainType, hook nftables.ChainHook, prio nftables.ChainPriority, rules ...[]expr.Any) chain {
		return chain{nftables.Chain{Name: name, Table: f.table, Type: kind, Hooknum: &hook, Priority: &prio}, rules}
	}
	plain := func(name string, rules ...[]expr.Any) chain {
		return chain{nftables.Chain{Name: name, Table: f.table}, rules}
	}
	const dstnat, srcnat, filter = -100, 100, 0
	nat, flt := nftables.ChainTypeNAT, nftables.ChainTypeFilter
	all := []chain{
		plain(f.layout()),
		plain(chainReject,
			f.rule(f.isTCP(), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}),
			f.rule(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: f.unreachable})),
		plain(chainTLS,
			f.rule(f.meta(expr.MetaKeyL4PROTO, 0), lookup(tlsProxy, 0, 1), f.dnat(1)),
			f.rule(jump(chainReject))),
		plain(chainUnclaimed,
			f.rule(f.dst(0), contains(clusterIPs, 0), jump(chainReject)),
			f.rule(f.dst(0), contains(serviceCIDRs, 0), jump(chainReject))),
		plain(chainInside,
			f.rule(f.destination(0), dispatch(frontends)),
			f.rule(f.toNode(), f.nodePort(0), dispatch(frontends)),
			f.rule(jump(chainUnclaimed))),
		plain(chainOutside,
			f.rule(f.src(0), contains(insideClients, 0), verdict(expr.VerdictReturn)),
			f.rule(f.meta(expr.MetaKeyIIFNAME, 0), contains(podInterfaces, 0), verdict(expr.VerdictReturn)),
			f.rule(isLocal(true), verdict(expr.VerdictReturn)),
			f.rule(f.destination(0), dispatch(frontendsExternal)),
			f.rule(f.toNode(), f.nodePort(0), dispatch(frontendsExternal))),
		base(chainPrerouting, nat, *nftables.ChainHookPrerouting, dstnat,
			f.guard(),
			f.rule(&expr.Verdict{Kind: expr.VerdictJump, Chain: chainOutside}),
			f.rule(jump(chainInside))),
		base("output", nat, *nftables.ChainHookOutput, dstnat,
			f.guard(),
			f.rule(jump(chainInside))),
		plain(chainMasquerade,
			f.rule(f.src(0), f.dst(f.words), contains(hairpin, 0), masquerade()),
			f.rule(f.src(0), contains(localPods, 0), verdict(expr.VerdictReturn)),
			f.rule(f.meta(expr.MetaKeyIIFNAME, 0), contains(podInterfaces, 0), verdict(expr.VerdictReturn)),
			f.rule(f.dst(0), contains(localEndpoints, 0), verdict(expr.VerdictReturn)),
			f.rule(masquerade())),
		base("input", nat, *nftables.ChainHookInput, srcnat,
			f.rule(notTranslated(), verdict(expr.VerdictReturn)),
			f.rule(f.originalDestination(0), dispatch(memories)),
			f.rule(f.nodePortOriginal(0), dispatch(memories))),
		base("postrouting", nat, *nftables.ChainHookPostrouting, srcnat,
			f.rule(notTranslated(), verdict(expr.VerdictReturn)),
			f.rule(f.originalDestination(0), dispatch(memories)),
			f.rule(f.nodePortOriginal(0), dispatch(memories)),
			f.rule(f.originalDestination(0), contains(forwarded, 0), jump(chainMasquerade)),
			f.rule(f.nodePortOriginal(0), contains(forwarded, 0), jump(chainMasquerade))),
		base(chainForward, flt, *nftables.ChainHookForward, filter,
			f.rule(invalid(), verdict(expr.VerdictDrop))),
		base("filter-output", flt, *nftables.ChainHookOutput, filter,
			f.rule(invalid(), f.dst(0), contains(serviceCIDRs, 0), verdict(expr.VerdictDrop))),
	}
	if f.own { // each packet that passes would go through these for nothing
		all = slices.DeleteFunc(all, func(c chain) bool { return c.def.Name == chainPrerouting || c.def.Name == chainForward })
	}
	return all
}
