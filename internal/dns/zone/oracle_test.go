package zone

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// oracle is the zone as it was before it wrote messages by itself: slow, plain,
// over the library's records. What it says is what the zone must say.
type oracle struct {
	domain, suffix string
	ttl            uint32
	ranges         []netip.Prefix
	dnsService     model.Key
	nameServers    []netip.Addr
	ix             *oracleIndex
}

func newOracle(z *Zone, snap *state.Snapshot) *oracle {
	return &oracle{domain: z.text, suffix: "." + z.text, ttl: z.TTL(), ranges: z.ranges, dnsService: z.dnsService, nameServers: z.nameServers, ix: &oracleIndex{snap}}
}

// oracleIndex looks at everything each time.
type oracleIndex struct{ snap *state.Snapshot }

func (ix *oracleIndex) hasNamespace(name string) bool {
	if _, ok := ix.snap.Namespaces.Get(name); ok {
		return true
	}
	for k := range ix.snap.Services.All() {
		if k.Namespace == name {
			return true
		}
	}
	return false
}

func (ix *oracleIndex) endpoints(key model.Key) []model.Endpoint {
	if set, ok := ix.snap.Endpoints.Get(key); ok {
		return set.Endpoints
	}
	return nil
}

func (ix *oracleIndex) at(a netip.Addr) []model.Key {
	var keys []model.Key
	for k := range ix.snap.Services.All() {
		if slices.Contains(addresses(ix.snap, k), a) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, model.Key.Compare)
	return keys
}

// hostnames returns the ready endpoints by hostname.
func hostnames(snap *state.Snapshot, key model.Key) map[string][]model.Endpoint {
	hosts := map[string][]model.Endpoint{}
	if set, ok := snap.Endpoints.Get(key); ok {
		for _, ep := range set.Endpoints {
			if ep.Ready && ep.Hostname != "" {
				h := strings.ToLower(ep.Hostname)
				hosts[h] = append(hosts[h], ep)
			}
		}
	}
	return hosts
}

// Answer answers q. It reports false where the name is not the zone's to
// answer, and then it should be asked of other servers. The class is not looked at.
func (z *oracle) Answer(q dns.Question) (Answer, bool) {
	ix := z.ix
	name := strings.ToLower(q.Name)
	if !z.contains(name) {
		return z.answerOutside(ix, q, name)
	}
	var chain []dns.RR
	for range maxChain + 1 {
		a, target := z.answerDomain(ix, q, name)
		a.Answer = append(chain, a.Answer...)
		if target == "" {
			return a, true
		}
		chain = a.Answer
		q.Name, name = target, strings.ToLower(target)
		if slices.ContainsFunc(chain, func(rr dns.RR) bool { return strings.EqualFold(rr.Header().Name, name) }) {
			break // in circles
		}
		if z.contains(name) {
			continue
		}
		if local, ok := z.answerOutside(ix, q, name); ok {
			local.Answer = append(chain, local.Answer...)
			return local, true
		}
		a.Target = target
		return a, true
	}
	return Answer{Rcode: dns.RcodeServerFailure, Answer: chain}, true
}

// contains reports whether the lower-case name is the domain or below.
func (z *oracle) contains(name string) bool {
	return name == z.domain || strings.HasSuffix(name, z.suffix)
}

// oracleNode is what stands at one name.
type oracleNode struct {
	// exists tells NODATA from NXDOMAIN; a name with names below it exists.
	exists bool
	// records are those of the type asked for.
	records, additional []dns.RR
	// cname is the target where the name is an alias.
	cname string
}

// answerDomain answers a name of the domain; a CNAME's target, which is not
// looked up, is returned beside it.
func (z *oracle) answerDomain(ix *oracleIndex, q dns.Question, name string) (Answer, string) {
	labels := dns.SplitDomainName(strings.TrimSuffix(strings.TrimSuffix(name, z.domain), "."))
	if !ix.snap.Synced && !z.static(labels) {
		return Answer{Rcode: dns.RcodeServerFailure}, ""
	}
	n := z.find(ix, q, labels)
	switch {
	case n.cname != "" && q.Qtype != dns.TypeANY:
		alias := &dns.CNAME{Hdr: z.header(q.Name, dns.TypeCNAME), Target: n.cname}
		a := Answer{Answer: []dns.RR{alias}}
		if q.Qtype == dns.TypeCNAME {
			return a, ""
		}
		return a, n.cname
	case n.exists && q.Qtype == dns.TypeANY:
		return Answer{Answer: []dns.RR{z.minimalAny(q.Name)}}, ""
	case len(n.records) > 0:
		return Answer{Answer: n.records, Additional: n.additional}, ""
	case n.exists:
		return Answer{Authority: []dns.RR{z.soa(ix, z.domain)}}, ""
	}
	return Answer{Rcode: dns.RcodeNameError, Authority: []dns.RR{z.soa(ix, z.domain)}}, ""
}

// static reports whether a name is known without the API server.
func (z *oracle) static(labels []string) bool {
	return len(labels) == 0 || len(labels) == 1 && labels[0] == "dns-version"
}

// find returns what stands at the labels left of the domain.
func (z *oracle) find(ix *oracleIndex, q dns.Question, labels []string) oracleNode {
	switch n := len(labels); {
	case n == 0:
		return z.apex(ix, q)
	case labels[n-1] == "svc":
		return z.findService(ix, q, labels[:n-1])
	case labels[n-1] == "pod":
		return z.findPod(ix, q, labels[:n-1])
	case n == 1 && labels[0] == "dns-version":
		return z.version(q)
	case labels[n-1] == "dns":
		return z.findNameServer(ix, q, labels[:n-1])
	}
	return oracleNode{}
}

// apex is the domain itself.
func (z *oracle) apex(ix *oracleIndex, q dns.Question) oracleNode {
	n := oracleNode{exists: true}
	switch q.Qtype {
	case dns.TypeSOA:
		soa := z.soa(ix, z.domain)
		soa.Hdr.Name = q.Name
		n.records = []dns.RR{soa}
	case dns.TypeNS:
		n.records = []dns.RR{&dns.NS{Hdr: z.header(q.Name, dns.TypeNS), Ns: z.nameServer()}}
		n.additional = z.addressRecords(z.nameServer(), z.serverAddrs(ix))
	}
	return n
}

// version is dns-version (specification section 2.2).
func (z *oracle) version(q dns.Question) oracleNode {
	n := oracleNode{exists: true}
	if q.Qtype == dns.TypeTXT {
		n.records = []dns.RR{&dns.TXT{Hdr: z.header(q.Name, dns.TypeTXT), Txt: []string{SpecVersion}}}
	}
	return n
}

// findNameServer is dns.<domain> and ns.dns.<domain>, the name in NS and SOA.
func (z *oracle) findNameServer(ix *oracleIndex, q dns.Question, labels []string) oracleNode {
	switch {
	case len(labels) == 0:
		return oracleNode{exists: true}
	case len(labels) == 1 && labels[0] == "ns":
		return oracleNode{exists: true, records: z.addressesOf(q, z.serverAddrs(ix))}
	}
	return oracleNode{}
}

func (z *oracle) nameServer() string { return "ns.dns." + z.domain }

func (z *oracle) serverAddrs(ix *oracleIndex) []netip.Addr {
	if svc, ok := ix.snap.Services.Get(z.dnsService); ok && len(svc.ClusterIPs) > 0 {
		return svc.ClusterIPs
	}
	return z.nameServers
}

// findPod is <address with dashes>.<namespace>.pod: an answer for every
// address, as CoreDNS' "pods insecure".
func (z *oracle) findPod(ix *oracleIndex, q dns.Question, labels []string) oracleNode {
	switch len(labels) {
	case 0:
		return oracleNode{exists: true}
	case 1:
		return oracleNode{exists: ix.hasNamespace(labels[0])}
	case 2:
		addr, ok := oracleParseDashed(labels[0])
		if !ok || !ix.hasNamespace(labels[1]) {
			return oracleNode{}
		}
		return oracleNode{exists: true, records: z.addressesOf(q, []netip.Addr{addr})}
	}
	return oracleNode{}
}

// findService is what stands below svc.<domain>; labels are those left of "svc".
func (z *oracle) findService(ix *oracleIndex, q dns.Question, labels []string) oracleNode {
	n := len(labels)
	switch n {
	case 0:
		return oracleNode{exists: true}
	case 1:
		return oracleNode{exists: ix.hasNamespace(labels[0])}
	}
	svc, ok := ix.snap.Services.Get(model.Key{Namespace: labels[n-1], Name: labels[n-2]})
	if !ok {
		return oracleNode{}
	}
	if svc.Type == model.ExternalName {
		if n > 2 {
			return oracleNode{}
		}
		return oracleNode{exists: true, cname: dns.Fqdn(svc.ExternalName)} // section 2.5
	}
	switch n {
	case 2:
		return z.serviceNode(ix, q, svc)
	case 3:
		if proto, ok := strings.CutPrefix(labels[0], "_"); ok {
			return oracleNode{exists: hasPort(ix, svc, func(p servicePort) bool { return p.name != "" && p.proto == proto })}
		}
		return z.endpointNode(ix, q, svc, labels[0])
	case 4:
		port, ok1 := strings.CutPrefix(labels[0], "_")
		proto, ok2 := strings.CutPrefix(labels[1], "_")
		if !ok1 || !ok2 || port == "" {
			return oracleNode{}
		}
		want := func(p servicePort) bool { return p.name == port && p.proto == proto }
		if !hasPort(ix, svc, want) {
			return oracleNode{}
		}
		found := oracleNode{exists: true}
		if q.Qtype == dns.TypeSRV {
			found.records, found.additional = z.srv(ix, q, svc, want)
		}
		return found
	}
	return oracleNode{}
}

// serviceNode is the name of a Service: sections 2.3.1 and 2.4.1. Type SRV
// there lists all ports, also those without a name, as CoreDNS does.
func (z *oracle) serviceNode(ix *oracleIndex, q dns.Question, svc *model.Service) oracleNode {
	addrs := svc.ClusterIPs
	if svc.Headless {
		addrs = readyAddrs(ix.endpoints(svc.Key))
	}
	if len(addrs) == 0 {
		return oracleNode{} // section 2.4.1: no ready endpoint, no name
	}
	if q.Qtype == dns.TypeSRV {
		n := oracleNode{exists: true}
		n.records, n.additional = z.srv(ix, q, svc, func(servicePort) bool { return true })
		return n
	}
	return oracleNode{exists: true, records: z.addressesOf(q, addrs)}
}

// endpointNode is <hostname>.<service>, or the address with dashes in place of
// a hostname (section 2.4.1). As in CoreDNS, Services with a cluster IP have
// these names too.
func (z *oracle) endpointNode(ix *oracleIndex, q dns.Question, svc *model.Service, label string) oracleNode {
	found := hostnames(ix.snap, svc.Key)[label]
	if len(found) == 0 {
		if a, ok := oracleParseDashed(label); ok {
			for _, e := range endpointsAt(ix.endpoints(svc.Key), a) {
				if e.Ready && e.Hostname == "" {
					found = append(found, e)
				}
			}
		}
	}
	if len(found) == 0 {
		return oracleNode{}
	}
	return oracleNode{exists: true, records: z.addressesOf(q, readyAddrs(found))}
}

func readyAddrs(list []model.Endpoint) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(list))
	for i := range list {
		if list[i].Ready {
			addrs = append(addrs, list[i].Addr)
		}
	}
	return addrs
}

// servicePort is a port as SRV names it: lower-case protocol.
type servicePort struct{ name, proto string }

func portOf(name string, p model.Protocol) servicePort {
	return servicePort{strings.ToLower(name), strings.ToLower(p.String())}
}

// hasPort reports whether the Service has such a port now: a headless Service
// has the ports of its ready endpoints.
func hasPort(ix *oracleIndex, svc *model.Service, want func(servicePort) bool) bool {
	if !svc.Headless {
		for _, p := range svc.Ports {
			if want(portOf(p.Name, p.Protocol)) {
				return true
			}
		}
		return false
	}
	for _, e := range ix.endpoints(svc.Key) {
		for _, p := range e.Ports {
			if e.Ready && want(portOf(p.Name, p.Protocol)) {
				return true
			}
		}
	}
	return false
}

// srv returns the SRV records of the wanted ports and the addresses of their
// targets: sections 2.3.2 and 2.4.2.
func (z *oracle) srv(ix *oracleIndex, q dns.Question, svc *model.Service, want func(servicePort) bool) (records, additional []dns.RR) {
	name := z.serviceName(svc.Key)
	if !svc.Headless {
		for i, p := range svc.Ports {
			same := func(o model.ServicePort) bool { return o.Port == p.Port && want(portOf(o.Name, o.Protocol)) }
			if want(portOf(p.Name, p.Protocol)) && !slices.ContainsFunc(svc.Ports[:i], same) {
				records = append(records, &dns.SRV{Hdr: z.header(q.Name, dns.TypeSRV), Port: p.Port, Target: name})
			}
		}
		setWeights(records)
		return records, z.addressRecords(name, svc.ClusterIPs)
	}
	type target struct {
		name string
		port uint16
	}
	type address struct {
		name string
		addr netip.Addr
	}
	targets, addrs := map[target]struct{}{}, map[address]struct{}{}
	for _, e := range ix.endpoints(svc.Key) {
		if !e.Ready {
			continue
		}
		host := endpointLabel(&e) + "." + name
		for _, p := range e.Ports {
			if !want(portOf(p.Name, p.Protocol)) {
				continue
			}
			if _, dup := targets[target{host, p.Port}]; !dup {
				targets[target{host, p.Port}] = struct{}{}
				records = append(records, &dns.SRV{Hdr: z.header(q.Name, dns.TypeSRV), Port: p.Port, Target: host})
			}
			same := []model.Endpoint{e}
			if e.Hostname != "" {
				same = hostnames(ix.snap, svc.Key)[strings.ToLower(e.Hostname)]
			}
			for _, e := range same {
				if _, dup := addrs[address{host, e.Addr}]; !dup {
					addrs[address{host, e.Addr}] = struct{}{}
					additional = append(additional, z.addressRecord(host, e.Addr))
				}
			}
		}
	}
	setWeights(records)
	shuffle(records)
	return records, additional
}

// setWeights shares 100 among the records, as CoreDNS does.
func setWeights(records []dns.RR) {
	for _, rr := range records {
		rr.(*dns.SRV).Weight = uint16(max(1, 100/len(records)))
	}
}

func (z *oracle) serviceName(key model.Key) string {
	return key.Name + "." + key.Namespace + ".svc." + z.domain
}

// endpointLabel is the left-most label of an endpoint's name: its hostname, or
// its address with dashes.
func endpointLabel(e *model.Endpoint) string {
	if e.Hostname != "" {
		return strings.ToLower(e.Hostname)
	}
	return dashed(e.Addr)
}

func (z *oracle) header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: z.ttl}
}

// soa is the SOA of the domain or of one of its reverse zones. Its minimum
// bounds negative caching (RFC 2308 section 5).
func (z *oracle) soa(ix *oracleIndex, owner string) *dns.SOA {
	return &dns.SOA{
		Hdr: z.header(owner, dns.TypeSOA),
		Ns:  z.nameServer(), Mbox: "hostmaster." + z.domain,
		Serial: uint32(ix.snap.Revision), Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: z.ttl,
	}
}

// minimalAny is the answer to type ANY that RFC 8482 section 4.2 recommends.
func (z *oracle) minimalAny(name string) dns.RR {
	return &dns.HINFO{Hdr: z.header(name, dns.TypeHINFO), Cpu: "RFC8482"}
}

// addressRecord is the A or AAAA of one address.
func (z *oracle) addressRecord(name string, a netip.Addr) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: z.header(name, dns.TypeA), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: z.header(name, dns.TypeAAAA), AAAA: a.AsSlice()}
}

// addressRecords are the A and AAAA of all addresses.
func (z *oracle) addressRecords(name string, addrs []netip.Addr) []dns.RR {
	rrs := make([]dns.RR, 0, len(addrs))
	for _, a := range addrs {
		rrs = append(rrs, z.addressRecord(name, a))
	}
	return rrs
}

// addressesOf are the addresses of the family that q asks for, each once, in
// random order so that clients that take the first spread over all.
func (z *oracle) addressesOf(q dns.Question, addrs []netip.Addr) []dns.RR {
	if q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA {
		return nil
	}
	var rrs []dns.RR
	seen := make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		if a.Is4() != (q.Qtype == dns.TypeA) {
			continue
		}
		if _, dup := seen[a]; dup {
			continue
		}
		seen[a] = struct{}{}
		rrs = append(rrs, z.addressRecord(q.Name, a))
	}
	shuffle(rrs)
	return rrs
}

func shuffle(rrs []dns.RR) {
	rand.Shuffle(len(rrs), func(i, j int) { rrs[i], rrs[j] = rrs[j], rrs[i] })
}

// dashed is the label of an address: 10-0-0-1, fd00--1.
func dashed(a netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.WithZone("").String())
}

// parseDashed is the inverse of dashed; any way to write an IPv6 address will do.
func oracleParseDashed(label string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ".")); err == nil && a.Is4() {
		return a, true
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	return a, err == nil && a.Is6() && a.Zone() == ""
}

// answerOutside answers names outside of the domain: localhost and the reverse
// names of the cluster's addresses. name is q's in lower case.
func (z *oracle) answerOutside(ix *oracleIndex, q dns.Question, name string) (Answer, bool) {
	if name == "localhost." || strings.HasSuffix(name, ".localhost.") {
		return z.localhost(ix, q), true
	}
	prefix, ok := oracleParseReverse(name)
	if !ok {
		return Answer{}, false
	}
	if prefix.IsSingleIP() {
		if a, ok := z.pointers(ix, q, prefix.Addr()); ok {
			return a, true
		}
	}
	zone, ours := z.reverseZone(prefix)
	switch {
	case !ours:
		return Answer{}, false
	case !ix.snap.Synced:
		return Answer{Rcode: dns.RcodeServerFailure}, true
	case prefix.IsSingleIP():
		return Answer{Rcode: dns.RcodeNameError, Authority: []dns.RR{z.soa(ix, zone)}}, true
	case name == zone && q.Qtype == dns.TypeSOA:
		return Answer{Answer: []dns.RR{z.soa(ix, q.Name)}}, true
	case name == zone && q.Qtype == dns.TypeNS:
		return Answer{Answer: []dns.RR{&dns.NS{Hdr: z.header(q.Name, dns.TypeNS), Ns: z.nameServer()}}}, true
	}
	return Answer{Authority: []dns.RR{z.soa(ix, zone)}}, true
}

// localhost never leaves the node (RFC 6761 section 6.3).
func (z *oracle) localhost(ix *oracleIndex, q dns.Question) Answer {
	loopback := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	if q.Qtype == dns.TypeANY {
		return Answer{Answer: []dns.RR{z.minimalAny(q.Name)}}
	}
	if rrs := z.addressesOf(q, loopback); len(rrs) > 0 {
		return Answer{Answer: rrs}
	}
	return Answer{Authority: []dns.RR{z.soa(ix, "localhost.")}}
}

// pointers answers the reverse name of an address that has names: a cluster
// IP its Service's (section 2.3.3), a ready endpoint one per Service (2.4.3).
func (z *oracle) pointers(ix *oracleIndex, q dns.Question, addr netip.Addr) (Answer, bool) {
	var names, services []string
	if addr == netip.AddrFrom4([4]byte{127, 0, 0, 1}) || addr == netip.IPv6Loopback() {
		names = append(names, "localhost.")
	}
	keys := ix.at(addr)
	for _, key := range keys {
		name := z.serviceName(key)
		if svc, ok := ix.snap.Services.Get(key); ok && slices.Contains(svc.ClusterIPs, addr) {
			services = append(services, name)
			continue
		}
		for _, e := range endpointsAt(ix.endpoints(key), addr) {
			if !e.Ready {
				continue
			}
			if n := endpointLabel(&e) + "." + name; !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	if len(services) > 0 {
		names = services
	}
	var a Answer
	switch {
	case len(names) == 0:
		return a, false
	case q.Qtype == dns.TypeANY:
		a.Answer = []dns.RR{z.minimalAny(q.Name)}
	case q.Qtype == dns.TypePTR:
		for _, n := range names {
			a.Answer = append(a.Answer, &dns.PTR{Hdr: z.header(q.Name, dns.TypePTR), Ptr: n})
		}
	default:
		owner, ours := z.reverseZone(netip.PrefixFrom(addr, addr.BitLen()))
		if !ours {
			owner = strings.ToLower(q.Name)
		}
		a.Authority = []dns.RR{z.soa(ix, owner)}
	}
	return a, true
}

// reverseZone returns the zone of ours that the prefix lies in. Where a range
// ends within a label, each of the labels that it covers is a zone (as RFC
// 2317 section 2 has it for ranges of /24 and less specific).
func (z *oracle) reverseZone(p netip.Prefix) (string, bool) {
	for _, r := range z.ranges {
		if r.Addr().Is4() != p.Addr().Is4() || p.Bits() < r.Bits() || !r.Contains(p.Addr()) {
			continue
		}
		step := oracleLabelBits(p.Addr())
		bits := (r.Bits() + step - 1) / step * step
		if p.Bits() < bits {
			continue
		}
		return reverseName(netip.PrefixFrom(p.Addr(), bits)), true
	}
	return "", false
}

// labelBits is the number of address bits in one label of a reverse name.
func oracleLabelBits(a netip.Addr) int {
	if a.Is4() {
		return 8
	}
	return 4
}

// reverseName is the reverse name of a prefix that ends at a label.
func reverseName(p netip.Prefix) string {
	full, err := dns.ReverseAddr(p.Addr().String())
	if err != nil {
		return "."
	}
	for range (p.Addr().BitLen() - p.Bits()) / oracleLabelBits(p.Addr()) {
		_, full, _ = strings.Cut(full, ".")
	}
	return full
}

// parseReverse reads a lower-case reverse name, whole or with labels missing
// on the left.
func oracleParseReverse(name string) (netip.Prefix, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(rest, ".")
		var b [4]byte
		if len(labels) > len(b) {
			return netip.Prefix{}, false
		}
		slices.Reverse(labels)
		for i, l := range labels {
			v, err := strconv.ParseUint(l, 10, 8)
			if err != nil || strconv.Itoa(int(v)) != l {
				return netip.Prefix{}, false
			}
			b[i] = byte(v)
		}
		return netip.PrefixFrom(netip.AddrFrom4(b), 8*len(labels)), true
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok {
		return netip.Prefix{}, false
	}
	labels := strings.Split(rest, ".")
	var b [16]byte
	if len(labels) > 2*len(b) {
		return netip.Prefix{}, false
	}
	slices.Reverse(labels)
	for i, l := range labels {
		v, err := strconv.ParseUint(l, 16, 4)
		if err != nil || len(l) != 1 {
			return netip.Prefix{}, false
		}
		b[i/2] |= byte(v) << (4 * (1 - i%2))
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 4*len(labels)), true
}
