package ipam

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// reservation is a range that no Service is given.
type reservation struct {
	model.AddrRange
	// what each address of it is, as in "address 127.0.0.1 is a loopback address".
	what string
	// all names the whole that it belongs to, where a pool has to stay clear of
	// more than the range; else empty.
	all string
}

// special are ranges that are nobody's on any network (RFC 6890).
func special() []reservation {
	var out []reservation
	for _, r := range []struct{ prefix, what string }{
		{"0.0.0.0/8", "an unspecified address"},
		{"127.0.0.0/8", "a loopback address"},
		{"169.254.0.0/16", "a link-local address"},
		{"224.0.0.0/4", "a multicast address"},
		{"255.255.255.255/32", "the broadcast address"},
		{"::/128", "the unspecified address"},
		{"::1/128", "the loopback address"},
		{"::ffff:0:0/96", "an IPv4-mapped address"},
		{"fe80::/10", "a link-local address"},
		{"ff00::/8", "a multicast address"},
	} {
		out = append(out, reservation{AddrRange: model.RangeOf(netip.MustParsePrefix(r.prefix)), what: r.what})
	}
	return out
}

// reservations answers whether an address is one that no Service is given.
// A Service with it would take connections away from what has it already: the
// data path of every node looks for Services before anything else.
type reservations struct {
	list []reservation // by first address
	// widest[i] is the index of the one among list[:i+1] that reaches furthest.
	widest []int
}

// apiServer is the Service whose endpoints are those of the Kubernetes API.
var apiServer = model.Key{Namespace: "default", Name: "kubernetes"}

func reservationsOf(snap *state.Snapshot) reservations {
	list := special()
	one := func(a netip.Addr, what string) {
		list = append(list, reservation{AddrRange: model.AddrRange{First: a, Last: a}, what: what})
	}
	for name, n := range snap.Nodes.All() {
		for _, a := range n.Addrs {
			one(a, "the address of node "+name)
		}
		for _, p := range n.PodCIDRs {
			list = append(list, reservation{model.RangeOf(p), "an address for Pods on node " + name, "the range of Pods"})
		}
		for _, p := range n.Networks {
			if p.Addr().Is4() && p.Bits() < 31 {
				one(model.RangeOf(p).Last, fmt.Sprintf("the broadcast address of network %s of node %s", p.Masked(), name))
			}
		}
	}
	for key, s := range snap.Services.All() {
		for _, a := range s.ClusterIPs {
			list = append(list, reservation{model.AddrRange{First: a, Last: a}, "the cluster IP of Service " + key.String(), "the range of cluster IPs"})
		}
	}
	// Not those of other Services: anybody may make endpoints with an address
	// that a Service of somebody else has.
	if set, ok := snap.Endpoints.Get(apiServer); ok {
		for i := range set.Endpoints {
			one(set.Endpoints[i].Addr, "the address of a Kubernetes API server")
		}
	}
	return newReservations(list)
}

func newReservations(list []reservation) reservations {
	slices.SortFunc(list, func(x, y reservation) int {
		return cmp.Or(x.First.Compare(y.First), y.Last.Compare(x.Last), strings.Compare(x.what, y.what))
	})
	widest := make([]int, len(list))
	for i := range list {
		widest[i] = i
		if i > 0 && list[widest[i-1]].Last.Compare(list[i].Last) >= 0 {
			widest[i] = widest[i-1]
		}
	}
	return reservations{list: list, widest: widest}
}

// of returns the reservation that addr is in.
func (r reservations) of(addr netip.Addr) (reservation, bool) {
	found, ok := r.next(addr)
	return found, ok && found.First.Compare(addr) <= 0
}

// next returns the reservation that addr is in, or else the first one after it.
func (r reservations) next(addr netip.Addr) (reservation, bool) {
	after, _ := slices.BinarySearchFunc(r.list, addr, func(x reservation, a netip.Addr) int {
		if x.First.Compare(a) <= 0 {
			return -1
		}
		return 1
	})
	if after > 0 {
		if w := r.list[r.widest[after-1]]; w.Last.Compare(addr) >= 0 {
			return w, true
		}
	}
	if after < len(r.list) {
		return r.list[after], true
	}
	return reservation{}, false
}

// within returns what p would give of a range although it is reserved: the
// first such part of it.
func (r reservations) within(p *model.Pool, rng model.AddrRange) (reservation, bool) {
	for at := rng.First; at.IsValid(); {
		found, ok := r.next(at)
		if !ok || found.First.Compare(rng.Last) > 0 {
			break
		}
		part := reservation{intersection(rng, found.AddrRange), found.what, found.all}
		if part.First != part.Last || !skips(p, part.First) {
			return part, true
		}
		at = part.Last.Next()
	}
	return reservation{}, false
}

func intersection(x, y model.AddrRange) model.AddrRange {
	if x.First.Less(y.First) {
		x.First = y.First
	}
	if y.Last.Less(x.Last) {
		x.Last = y.Last
	}
	return x
}

func rangeText(r model.AddrRange) string {
	if r.First == r.Last {
		return r.First.String()
	}
	return fmt.Sprintf("%s-%s", r.First, r.Last)
}
