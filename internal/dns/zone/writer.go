package zone

import (
	"net/netip"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/model"
)

// writer writes one answer. A place is where in the message a name stands.
type writer struct {
	z     *Zone
	ix    *Index
	b     *wire.Builder
	qtype uint16

	ttl    uint32
	noPods bool

	// zoneAt is the place of the domain in the name that is being answered.
	zoneAt int
	// domainAt is a place of the domain in lower case; 0 while there is none.
	domainAt int
	found    Result
	alias    *model.Service // whose name was answered last
}

// node is what stands at one name, beside the records that were written.
type node struct {
	// exists tells NODATA from NXDOMAIN; a name with names below it exists.
	exists bool
	// target is where the name leads that is an alias, without a final dot.
	target string
}

// inside answers a name of the domain, which stands at the place at. Where that
// is an alias it returns what else is to be answered, and the place of that.
func (w *writer) inside(name *wire.Name, at int) (target string, targetAt int) {
	left := name.Labels() - w.z.domain.Labels()
	if !w.ix.snap.Synced && !static(name, left) {
		w.fail()
		return "", 0
	}
	before := w.b.Count(wire.Answer)
	n := w.find(name, left, at)
	switch {
	case n.target != "" && w.qtype != dns.TypeANY:
		w.b.Open()
		w.b.Pointer(at)
		w.b.Head(dns.TypeCNAME, w.ttl)
		targetAt = w.b.Len()
		if !w.b.Text(n.target) {
			w.b.Undo()
			w.fail()
			return "", 0
		}
		if w.b.Close() && w.qtype != dns.TypeCNAME {
			return n.target, targetAt
		}
	case n.exists && w.qtype == dns.TypeANY:
		w.minimalAny(at)
	case w.b.Count(wire.Answer) > before, w.b.Truncated():
	default:
		if !n.exists {
			w.b.Rcode = dns.RcodeNameError
		}
		w.soa(wire.Authority, w.zoneAt)
	}
	return "", 0
}

// fail answers SERVFAIL, beside the aliases that led here.
func (w *writer) fail() { w.b.Rcode, w.b.Authoritative = dns.RcodeServerFailure, false }

// static reports whether a name with that many labels left of the domain is
// known without the API server.
func static(name *wire.Name, left int) bool {
	return left == 0 || left == 1 && name.Label(0) == "dns-version"
}

// find writes the records of the type asked for that stand at the labels left
// of the domain.
func (w *writer) find(name *wire.Name, left, at int) node {
	if left == 0 {
		w.found.Kind = KindZone
		return w.apex(at)
	}
	switch name.Label(left - 1) {
	case "svc":
		return w.findService(name, left-1, at)
	case "pod":
		return w.findPod(name, left-1, at)
	case "dns":
		return w.findNameServer(name, left-1, at)
	case "dns-version":
		if left == 1 {
			w.found.Kind = KindZone
			return w.version(at)
		}
	}
	return node{}
}

// apex is the domain itself.
func (w *writer) apex(at int) node {
	switch w.qtype {
	case dns.TypeSOA:
		w.soa(wire.Answer, at)
	case dns.TypeNS:
		server := w.ns(at)
		w.b.Begin(wire.Additional)
		for _, a := range w.serverAddrs() {
			w.b.Address(server, w.ttl, a)
		}
	}
	return node{exists: true}
}

// version is dns-version (specification section 2.2).
func (w *writer) version(at int) node {
	if w.qtype == dns.TypeTXT {
		w.b.Open()
		w.b.Pointer(at)
		w.b.Head(dns.TypeTXT, w.ttl)
		w.b.String(SpecVersion)
		w.b.Close()
	}
	return node{exists: true}
}

// findNameServer is dns.<domain> and ns.dns.<domain>, the name in NS and SOA.
func (w *writer) findNameServer(name *wire.Name, left, at int) node {
	switch {
	case left == 0:
	case left == 1 && name.Label(0) == "ns":
		w.addresses(at, w.serverAddrs())
	default:
		return node{}
	}
	w.found.Kind = KindZone
	return node{exists: true}
}

func (w *writer) serverAddrs() []netip.Addr {
	if svc, ok := w.ix.snap.Services.Get(w.z.dnsService); ok && len(svc.ClusterIPs) > 0 {
		return svc.ClusterIPs
	}
	return w.z.nameServers
}

// findPod is <address with dashes>.<namespace>.pod: an answer for every
// address, as CoreDNS' "pods insecure".
func (w *writer) findPod(name *wire.Name, left, at int) node {
	if w.noPods && left > 0 {
		return node{}
	}
	switch left {
	case 0:
		w.found.Kind = KindZone
		return node{exists: true}
	case 1:
		return w.namespace(name.Label(0))
	case 2:
		addr, ok := parseDashed(name.Label(0))
		if !ok || !w.ix.hasNamespace(name.Label(1)) {
			return node{}
		}
		w.found.Kind = KindPod
		if (w.qtype == dns.TypeA) == addr.Is4() && w.asksAddress() {
			w.b.Address(at, w.ttl, addr)
		}
		return node{exists: true}
	}
	return node{}
}

func (w *writer) namespace(name string) node {
	if !w.ix.hasNamespace(name) {
		return node{}
	}
	w.found.Kind = KindNamespace
	return node{exists: true}
}

func (w *writer) asksAddress() bool { return w.qtype == dns.TypeA || w.qtype == dns.TypeAAAA }

// addresses writes those of the family that is asked for, in any order, so that
// clients that take the first spread over all. Each stands in addrs once.
func (w *writer) addresses(at int, addrs []netip.Addr) {
	if !w.asksAddress() {
		return
	}
	for o := anyOrder(len(addrs)); o.left > 0 && !w.b.Full(); {
		if a := addrs[o.next()]; a.Is4() == (w.qtype == dns.TypeA) {
			w.b.Address(at, w.ttl, a)
		}
	}
}

// soa writes the SOA of the domain or of one of its reverse zones, whose name
// stands at owner. Its minimum bounds negative caching (RFC 2308 section 5).
func (w *writer) soa(section wire.Section, owner int) {
	w.b.Begin(section)
	w.b.Open()
	w.b.Pointer(owner)
	w.b.Head(dns.TypeSOA, w.ttl)
	w.nameServer()
	w.b.Label("hostmaster")
	w.domain()
	w.b.Uint32(uint32(w.ix.snap.Revision))
	w.b.Uint32(7200)
	w.b.Uint32(1800)
	w.b.Uint32(86400)
	w.b.Uint32(w.ttl)
	w.b.Close()
}

// ns writes the NS record of the zone at owner, and returns the name server's place.
func (w *writer) ns(owner int) int {
	w.b.Open()
	w.b.Pointer(owner)
	w.b.Head(dns.TypeNS, w.ttl)
	place := w.b.Len()
	w.nameServer()
	w.b.Close()
	return place
}

func (w *writer) nameServer() {
	w.b.Label("ns")
	w.b.Label("dns")
	w.domain()
}

// minimalAny is the answer to type ANY that RFC 8482 section 4.2 recommends.
func (w *writer) minimalAny(at int) {
	w.b.Open()
	w.b.Pointer(at)
	w.b.Head(dns.TypeHINFO, w.ttl)
	w.b.String("RFC8482")
	w.b.String("")
	w.b.Close()
}

// domain ends a name with the domain: with a pointer where it stands in the
// message already.
func (w *writer) domain() {
	if w.domainAt > 0 {
		w.b.NameAt(w.domainAt, &w.z.domain)
		return
	}
	w.wholeDomain()
}

func (w *writer) wholeDomain() {
	if w.domainAt == 0 && wire.CanPoint(w.b.Len()) {
		w.domainAt = w.b.Len()
	}
	w.b.Name(&w.z.domain)
}

// serviceLabels writes the name of a Service without the domain.
func (w *writer) serviceLabels(key model.Key) {
	w.b.Label(key.Name)
	w.b.Label(key.Namespace)
	w.b.Label("svc")
}
