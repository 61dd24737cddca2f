package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
)

// cursorKey is a family in a pool.
type cursorKey struct {
	pool model.Key
	v4   bool
}

// cursor is the next address to look at. Addresses before it are in use:
// within a round none becomes free.
type cursor struct {
	rangeIndex int
	addr       netip.Addr // zero for the start of the range
}

// mayUse reports whether Services of the namespace may have addresses of p.
func mayUse(p *model.Pool, namespace string) bool {
	return len(p.Namespaces) == 0 || slices.Contains(p.Namespaces, namespace)
}

// inPool reports whether addr is one that p gives.
func inPool(p *model.Pool, addr netip.Addr) bool {
	return !skips(p, addr) &&
		slices.ContainsFunc(p.Ranges, func(r model.AddrRange) bool { return r.Contains(addr) })
}

// skips reports whether p does not give addr though it is in its ranges.
func skips(p *model.Pool, addr netip.Addr) bool { return p.AvoidBuggy && buggy(addr) }

// buggy reports whether some clients take addr for that of a network or for a
// broadcast address.
func buggy(addr netip.Addr) bool {
	if !addr.Is4() {
		return false
	}
	last := addr.As4()[3]
	return last == 0 || last == 255
}

// anycast reports whether addr, of a network that a pool has the whole of, is the
// subnet-router anycast address of its /64 (RFC 4291 section 2.6.1): every router
// there, and every Linux machine that forwards, answers for it. It is not given
// unasked; a Service that names it, or has it, gets it.
func anycast(rng model.AddrRange, addr netip.Addr) bool {
	if addr != rng.First || !addr.Is6() || [8]byte(addr.AsSlice()[8:]) != [8]byte{} || addr == rng.Last || addr.Next() == rng.Last {
		return false // one address, or the two of a link between routers, which has none (RFC 6164)
	}
	first, last := rng.First.As16(), rng.Last.As16()
	ended := false // what the network leaves open has begun
	for i := range first {
		open := first[i] ^ last[i]
		if first[i]&open != 0 || open&(open+1) != 0 || ended && open != 0xff {
			return false // a range, which names its first address
		}
		ended = ended || open != 0
	}
	return true
}

// poolOf returns a pool with addr that the Service may use.
func (r *round) poolOf(s *model.Service, addr netip.Addr) *model.Pool {
	for _, p := range r.pools {
		if s.LoadBalancer.Pool != "" && s.LoadBalancer.Pool != p.Name {
			continue
		}
		if mayUse(p, s.Namespace) && inPool(p, addr) {
			return p
		}
	}
	return nil
}

func (r *round) inAnyPool(addr netip.Addr) bool {
	return slices.ContainsFunc(r.pools, func(p *model.Pool) bool { return inPool(p, addr) })
}

// candidates are the pools to try for a Service: the one it names, else those
// for its namespace and then those for all, by priority.
func (r *round) candidates(s *model.Service) []*model.Pool {
	var own, all []*model.Pool
	for _, p := range r.pools {
		switch {
		case s.LoadBalancer.Pool != "":
			if p.Name == s.LoadBalancer.Pool && mayUse(p, s.Namespace) {
				own = append(own, p)
			}
		case !p.AutoAssign || !mayUse(p, s.Namespace):
		case len(p.Namespaces) > 0:
			own = append(own, p)
		default:
			all = append(all, p)
		}
	}
	return append(own, all...)
}

// givePools gives an address of each family from the first pool that has one.
// A family that no pool has is left out, as long as the Service has the other.
func (r *round) givePools(s *model.Service) {
	pools := r.candidates(s)
	if len(pools) == 0 {
		r.noPool(s)
		return
	}
	var lacking []string
	for _, v4 := range []bool{true, false} {
		if !hasFamily(s, v4) || r.has(s, v4) {
			continue
		}
		tried := ofFamily(pools, v4)
		if len(tried) == 0 {
			lacking = append(lacking, familyName(v4))
			continue
		}
		if !r.giveFrom(s, tried, v4) {
			r.problem(s, ReasonPoolExhausted, "no %s address is free in %s; add addresses to it, or delete a Service of type LoadBalancer", familyName(v4), names(tried))
		}
	}
	if len(lacking) > 0 && len(r.result.Addrs[s.Key]) == 0 && len(r.result.Problems[model.Ref{Kind: "Service", Key: s.Key}]) == 0 {
		r.problem(s, ReasonPoolExhausted, "%s has no %s addresses; add some to it, or change spec.ipFamilies", names(pools), strings.Join(lacking, " and no "))
	}
}

func (r *round) noPool(s *model.Service) {
	name := s.LoadBalancer.Pool
	switch {
	case name == "":
		r.problem(s, ReasonPoolMissing, "there is no pool of addresses for namespace %s; start the controller with --lb-pool, or create an IPAddressPool", s.Namespace)
	case slices.ContainsFunc(r.pools, func(p *model.Pool) bool { return p.Name == name }):
		r.problem(s, ReasonPoolRefused, "pool %q is not for namespace %s; add the namespace to its serviceAllocation.namespaces, or use another pool", name, s.Namespace)
	default:
		r.problem(s, ReasonPoolMissing, "pool %q does not exist; use one of: %s", name, r.poolText())
	}
}

func ofFamily(pools []*model.Pool, v4 bool) []*model.Pool {
	var out []*model.Pool
	for _, p := range pools {
		if slices.ContainsFunc(p.Ranges, func(r model.AddrRange) bool { return r.First.Is4() == v4 }) {
			out = append(out, p)
		}
	}
	return out
}

func names(pools []*model.Pool) string {
	out := make([]string, 0, len(pools))
	for _, p := range pools {
		out = append(out, fmt.Sprintf("%q", p.Name))
	}
	if len(out) == 1 {
		return "pool " + out[0]
	}
	return "pools " + strings.Join(out, ", ")
}

// giveFrom gives an address of the first pool that has one: with a sharing key
// one that others with that key have, else a free one.
func (r *round) giveFrom(s *model.Service, pools []*model.Pool, v4 bool) bool {
	if s.LoadBalancer.SharingKey != "" {
		if addr, ok := r.shared(s, pools, v4); ok {
			r.give(s, addr)
			return true
		}
	}
	for _, p := range pools {
		if addr, ok := r.free(p, v4); ok {
			r.give(s, addr)
			return true
		}
	}
	return false
}

// shared returns the lowest address that others with the Service's key let it share.
func (r *round) shared(s *model.Service, pools []*model.Pool, v4 bool) (netip.Addr, bool) {
	var best netip.Addr
	for addr, owners := range r.used {
		if addr.Is4() != v4 || len(owners) == 0 || best.IsValid() && best.Compare(addr) < 0 {
			continue
		}
		if owners[0].LoadBalancer.SharingKey != s.LoadBalancer.SharingKey || r.conflict(s, addr) != "" {
			continue
		}
		if slices.ContainsFunc(pools, func(p *model.Pool) bool { return inPool(p, addr) }) {
			best = addr
		}
	}
	return best, best.IsValid()
}

// free returns the first address of p that nobody has.
func (r *round) free(p *model.Pool, v4 bool) (netip.Addr, bool) {
	key := cursorKey{p.Key, v4}
	if r.exhausted[key] {
		return netip.Addr{}, false
	}
	c := r.cursors[key]
	for ; c.rangeIndex < len(p.Ranges); c = (cursor{rangeIndex: c.rangeIndex + 1}) {
		rng := p.Ranges[c.rangeIndex]
		if rng.First.Is4() != v4 {
			continue
		}
		if !c.addr.IsValid() {
			c.addr = rng.First
		}
		for ; c.addr.IsValid() && c.addr.Compare(rng.Last) <= 0; c.addr = c.addr.Next() {
			if found, ok := r.reserved.of(c.addr); ok {
				c.addr = found.Last // may be far: not one by one
				continue
			}
			if len(r.used[c.addr]) == 0 && !skips(p, c.addr) && !anycast(rng, c.addr) {
				r.cursors[key] = c
				return c.addr, true
			}
		}
	}
	r.exhausted[key] = true
	return netip.Addr{}, false
}
