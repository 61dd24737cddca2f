package zone

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/model"
)

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

// outside answers names outside of the domain: localhost and the reverse names
// of the cluster's addresses. It reports false where the name is not ours.
func (w *writer) outside(name *wire.Name, at int) bool {
	labels := name.Labels()
	if labels > 0 && name.Label(labels-1) == "localhost" {
		w.localhost(at, at+name.Offset(labels-1))
		return true
	}
	prefix, ok := parseReverse(name)
	if !ok {
		return false
	}
	zone, ours := w.z.reverseZone(prefix)
	owner := at // of the SOA
	if ours {
		owner = at + name.Offset(labels-zone)
	}
	if prefix.IsSingleIP() && w.pointers(prefix.Addr(), at, owner) {
		return true
	}
	switch {
	case !ours:
		return false
	case !w.ix.snap.Synced:
		w.fail()
	case prefix.IsSingleIP():
		w.b.Rcode = dns.RcodeNameError
		w.soa(wire.Authority, owner)
	case zone == labels && w.qtype == dns.TypeSOA:
		w.soa(wire.Answer, at)
	case zone == labels && w.qtype == dns.TypeNS:
		w.ns(at)
	default:
		w.soa(wire.Authority, owner)
	}
	return true
}

// localhost never leaves the node (RFC 6761 section 6.3).
func (w *writer) localhost(at, zone int) {
	w.found.Kind = KindLocalhost
	switch w.qtype {
	case dns.TypeA:
		w.b.Address(at, w.ttl, loopback4)
	case dns.TypeAAAA:
		w.b.Address(at, w.ttl, loopback6)
	case dns.TypeANY:
		w.minimalAny(at)
	default:
		w.soa(wire.Authority, zone)
	}
}

// pointers answers the reverse name of an address that has names: a cluster
// IP its Service's (section 2.3.3), a ready endpoint one per Service (2.4.3).
// It reports false where there are none. A cluster IP has its Service's name alone:
// anybody may write an EndpointSlice with that address and a hostname.
func (w *writer) pointers(addr netip.Addr, at, owner int) bool {
	holders := w.ix.byAddr.of(addr)
	clusterIP := false
	for _, h := range holders {
		if w.hasClusterIP(*h.service, addr) {
			clusterIP = true
			w.found.service = h.service
			break
		}
	}
	local := addr == loopback4 || addr == loopback6
	if len(holders) == 0 && !local {
		return false
	}
	w.found.Kind = KindReverse
	if len(holders) > 0 && !clusterIP {
		w.found.service = holders[0].service
	}
	switch w.qtype {
	case dns.TypePTR:
	case dns.TypeANY:
		w.minimalAny(at)
		return true
	default:
		w.soa(wire.Authority, owner)
		return true
	}
	if local {
		w.openPTR(at)
		w.b.Text("localhost")
		w.b.Close()
	}
	for _, h := range holders {
		key := *h.service
		if w.b.Full() {
			break
		}
		if clusterIP && !w.hasClusterIP(key, addr) {
			continue
		}
		w.pointersOf(key, addr, at)
	}
	return true
}

func (w *writer) hasClusterIP(key model.Key, addr netip.Addr) bool {
	svc, ok := w.ix.snap.Services.Get(key)
	return ok && slices.Contains(svc.ClusterIPs, addr)
}

func (w *writer) pointersOf(key model.Key, addr netip.Addr, at int) {
	if w.hasClusterIP(key, addr) {
		w.openPTR(at)
		w.serviceLabels(key)
		w.domain()
		w.b.Close()
		return
	}
	list := endpointsAt(w.ix.endpoints(key), addr)
	for i := range list {
		if !list[i].Ready || repeated(list[:i], list[i].Hostname) {
			continue
		}
		w.openPTR(at)
		if list[i].Hostname != "" {
			w.b.Label(list[i].Hostname)
		} else {
			w.dashedLabel(addr)
		}
		w.serviceLabels(key)
		w.domain()
		w.b.Close()
	}
}

// repeated reports whether a ready endpoint before has the hostname.
func repeated(before []model.Endpoint, hostname string) bool {
	for i := range before {
		if before[i].Ready && strings.EqualFold(before[i].Hostname, hostname) {
			return true
		}
	}
	return false
}

func (w *writer) openPTR(at int) {
	w.b.Open()
	w.b.Pointer(at)
	w.b.Head(dns.TypePTR, w.ttl)
}

// reverseZone returns the number of labels of the zone of ours that the prefix
// lies in. Where a range ends within a label, each of the labels that it covers
// is a zone (as RFC 2317 section 2 has it for ranges of /24 and less specific).
func (z *Zone) reverseZone(p netip.Prefix) (labels int, ours bool) {
	for _, r := range z.ranges {
		if r.Addr().Is4() != p.Addr().Is4() || p.Bits() < r.Bits() || !r.Contains(p.Addr()) {
			continue
		}
		step := labelBits(p.Addr())
		n := (r.Bits() + step - 1) / step
		if p.Bits() < n*step {
			continue
		}
		return n + len([...]string{"in-addr", "arpa"}), true
	}
	return 0, false
}

// labelBits is the number of address bits in one label of a reverse name.
func labelBits(a netip.Addr) int {
	if a.Is4() {
		return 8
	}
	return 4
}

// parseReverse reads a reverse name, whole or with labels missing on the left.
func parseReverse(name *wire.Name) (netip.Prefix, bool) {
	n := name.Labels() - 2
	if n < 1 || name.Label(n+1) != "arpa" {
		return netip.Prefix{}, false
	}
	switch name.Label(n) {
	case "in-addr":
		var b [4]byte
		if n > len(b) {
			break
		}
		for i := range n {
			v, ok := decimal(name.Label(n - 1 - i))
			if !ok {
				return netip.Prefix{}, false
			}
			b[i] = v
		}
		return netip.PrefixFrom(netip.AddrFrom4(b), 8*n), true
	case "ip6":
		var b [16]byte
		if n > 2*len(b) {
			break
		}
		for i := range n {
			l := name.Label(n - 1 - i)
			v, ok := hexDigit(l[0])
			if !ok || len(l) != 1 {
				return netip.Prefix{}, false
			}
			b[i/2] |= v << (4 * (1 - i%2))
		}
		return netip.PrefixFrom(netip.AddrFrom16(b), 4*n), true
	}
	return netip.Prefix{}, false
}
