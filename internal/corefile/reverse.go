package corefile

import (
	"net/netip"

	"github.com/miekg/dns"
)

// reverseZones returns the zones of the reverse names of a range of addresses,
// as CoreDNS does: several, where it does not end between two labels.
func reverseZones(cidr string) ([]string, bool) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return nil, false
	}
	p = p.Masked()
	step, labels, total := 8, p.Addr().Is4(), 4
	if !labels {
		step, total = 4, 32
	}
	bits := (p.Bits() + step - 1) / step * step // up to the end of the label
	var zones []string
	addr := p.Addr().AsSlice()
	for i := range 1 << (bits - p.Bits()) {
		one := append([]byte(nil), addr...)
		if bits > p.Bits() {
			last := (bits - 1) / 8
			shift := 8*(last+1) - bits
			one[last] |= byte(i << shift)
		}
		a, _ := netip.AddrFromSlice(one)
		name, err := dns.ReverseAddr(a.String())
		if err != nil {
			return nil, false
		}
		at := dns.Split(name)
		zones = append(zones, name[at[total-bits/step]:])
	}
	return zones, true
}
