package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
)

// element names one element of a set: the key, in the kernel's form.
type element struct {
	fam fam
	set setID
	// end is true for the exclusive end of a range.
	end bool
	key string
}

// String shows the element to people.
func (e element) String() string {
	name := [...]string{v4: "ip", v6: "ip6"}[e.fam]
	return fmt.Sprintf("%s %s { %x }", name, e.set, e.key)
}

// elements are elements with their values: a chain name or "drop" in maps of
// verdicts, bytes in other maps, empty in sets.
type elements map[element]string

// frontend returns the frontend that the element is about; false if it is
// about none.
func (e element) frontend() (element, bool) {
	if !e.set.ofFrontend() {
		return element{}, false
	}
	key := e.key
	if e.end {
		// The last key within the range belongs to the frontend for certain.
		last := []byte(key)
		for i := len(last) - 1; i >= 0; i-- {
			last[i]--
			if last[i] != 0xff {
				break
			}
		}
		key = string(last)
	}
	n := 4 + 8
	if e.fam == v6 {
		n = 16 + 8
	}
	return element{fam: e.fam, set: frontends, key: key[:n]}, true
}

// subject is the frontend whose key e has.
func (e element) subject() element { return element{fam: e.fam, set: frontends, key: e.key} }

func famOf(a netip.Addr) fam {
	if a.Is4() {
		return v4
	}
	return v6
}

// word pads a port to a register.
func portWord(port uint16) string { return string([]byte{byte(port >> 8), byte(port), 0, 0}) }

func protocolWord(p model.Protocol) string { return string([]byte{byte(p), 0, 0, 0}) }

func addrBytes(a netip.Addr) string { return string(appendAddr(make([]byte, 0, 16), a)) }

func appendAddr(b []byte, a netip.Addr) []byte {
	switch {
	case !a.IsValid():
		return b
	case a.Is4():
		four := a.As4()
		return append(b, four[:]...)
	}
	sixteen := a.As16()
	return append(b, sixteen[:]...)
}

// addrPort is made for each endpoint, and so are slotWord and frontendKey for each
// frontend: of memory they take no more than the result.
func addrPort(a netip.AddrPort) string {
	b := appendAddr(make([]byte, 0, 20), a.Addr())
	return string(append(b, byte(a.Port()>>8), byte(a.Port()), 0, 0))
}

// parseAddrPort is the inverse of addrPort.
func parseAddrPort(s string) (netip.AddrPort, bool) {
	if len(s) < 8 {
		return netip.AddrPort{}, false
	}
	n := len(s) - 4
	a, ok := netip.AddrFromSlice([]byte(s[:n]))
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(s[n:n+2]))), ok
}

// slotWord is the place of an endpoint as numgen makes it.
func slotWord(slot int) string {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(slot))
	return string(b[:])
}

// frontendKey is the key of a frontend in its maps.
func frontendKey(a netip.Addr, p model.Protocol, port uint16) string {
	b := appendAddr(make([]byte, 0, 24), a)
	return string(append(b, byte(p), 0, 0, 0, byte(port>>8), byte(port), 0, 0))
}

// addRange adds an address range to a set, its keys after a prefix. A range up
// to the very last key has no end.
func (m elements) addRange(f fam, set setID, prefix string, p netip.Prefix) {
	first := p.Masked().Addr().AsSlice()
	last := slices.Clone(first)
	for bit := p.Bits(); bit < len(last)*8; bit++ {
		last[bit/8] |= 1 << (7 - bit%8)
	}
	m.addKeys(f, set, prefix+string(first), prefix+string(last))
}

// addKeys adds all keys from first to last.
func (m elements) addKeys(f fam, set setID, first, last string) {
	m[element{fam: f, set: set, key: first}] = ""
	end := []byte(last)
	for i := len(end) - 1; i >= 0; i-- {
		end[i]++
		if end[i] != 0 {
			m[element{fam: f, set: set, end: true, key: string(end)}] = ""
			return
		}
	}
}

// disjoint returns prefixes that cover the same addresses, each once, ordered.
func disjoint(list []netip.Prefix) []netip.Prefix {
	all := make([]netip.Prefix, 0, len(list))
	for _, p := range list {
		if p.IsValid() {
			all = append(all, p.Masked())
		}
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	out := all[:0]
	for _, p := range all {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// addPrefixes adds prefixes of both families to their sets.
func (m elements) addPrefixes(set setID, list []netip.Prefix) {
	for _, p := range disjoint(list) {
		m.addRange(famOf(p.Addr()), set, "", p)
	}
}

// addInterfaces adds interfaces by prefix of their name.
func (m elements) addInterfaces(prefixes []string) {
	const size = 16 // IFNAMSIZ
	sorted := slices.Sorted(slices.Values(prefixes))
	last := ""
	for _, p := range sorted {
		if p == "" || len(p) >= size || last != "" && strings.HasPrefix(p, last) {
			continue
		}
		last = p
		pad := size - len(p)
		for _, f := range []fam{v4, v6} {
			m.addKeys(f, podInterfaces, p+strings.Repeat("\x00", pad), p+strings.Repeat("\xff", pad))
		}
	}
}
