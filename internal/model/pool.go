package model

import "net/netip"

// Pool is a range of addresses to hand out to Services of type LoadBalancer
// (the --lb-pool flag, or a MetalLB IPAddressPool).
type Pool struct {
	Key
	UID string
	// Ranges are the addresses, first to last inclusive.
	Ranges []AddrRange
	// AutoAssign lets Services that ask for no pool take from this one.
	AutoAssign bool
	// AvoidBuggy skips addresses that end in .0 and .255.
	AvoidBuggy bool
	// Priority orders pools for Services that may use several: lower first.
	Priority int
	// Namespaces that may use it; empty means all.
	Namespaces []string
}

// AddrRange is First to Last, both inclusive and of the same family.
type AddrRange struct {
	First, Last netip.Addr
}

// Contains reports whether a is in the range.
func (r AddrRange) Contains(a netip.Addr) bool {
	return r.First.Is4() == a.Is4() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// RangeOf returns the addresses of a prefix, its first and last one included.
func RangeOf(p netip.Prefix) AddrRange {
	p = p.Masked()
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	l, _ := netip.AddrFromSlice(last)
	return AddrRange{First: p.Addr(), Last: l}
}
