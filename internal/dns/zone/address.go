package zone

import (
	"net/netip"
	"strings"
)

// appendDashed appends the label of an address: 10-0-0-1, fd00--1.
func appendDashed(b []byte, a netip.Addr) []byte {
	from := len(b)
	b = a.WithZone("").AppendTo(b)
	for i := from; i < len(b); i++ {
		if b[i] == '.' || b[i] == ':' {
			b[i] = '-'
		}
	}
	return b
}

// parseDashed is the inverse of appendDashed; any way to write an IPv6 address
// in lower case will do. The library's parser would take memory to say no.
func parseDashed(label string) (netip.Addr, bool) {
	if a, ok := parseDashed4(label); ok {
		return a, true
	}
	return parseDashed6(label)
}

func parseDashed4(label string) (netip.Addr, bool) {
	var b [4]byte
	for i := range b {
		part, rest, more := strings.Cut(label, "-")
		v, ok := decimal(part)
		if !ok || more != (i < 3) {
			return netip.Addr{}, false
		}
		b[i], label = v, rest
	}
	return netip.AddrFrom4(b), true
}

func parseDashed6(label string) (netip.Addr, bool) {
	var b [16]byte
	n, gap := 0, -1 // bytes read, and where of them the zeros left out belong
	if strings.HasPrefix(label, "--") {
		gap, label = 0, label[2:]
	}
	for label != "" {
		digits, v := 0, 0
		for digits < len(label) && label[digits] != '-' {
			d, ok := hexDigit(label[digits])
			if !ok || digits == 4 {
				return netip.Addr{}, false
			}
			v = v<<4 | int(d)
			digits++
		}
		if digits == 0 || n == 16 {
			return netip.Addr{}, false
		}
		b[n], b[n+1] = byte(v>>8), byte(v)
		n += 2
		switch label = label[digits:]; {
		case label == "":
		case strings.HasPrefix(label, "--"):
			if gap >= 0 {
				return netip.Addr{}, false
			}
			gap, label = n, label[2:]
		case len(label) == 1:
			return netip.Addr{}, false
		default:
			label = label[1:]
		}
	}
	switch {
	case gap < 0 && n < 16, gap >= 0 && n == 16:
		return netip.Addr{}, false
	case gap >= 0:
		copy(b[16-(n-gap):], b[gap:n])
		clear(b[gap : 16-(n-gap)])
	}
	return netip.AddrFrom16(b), true
}

// decimal reads one number of an IPv4 address, without leading zeros.
func decimal(s string) (byte, bool) {
	if len(s) == 0 || len(s) > 3 || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	v := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		v = 10*v + int(s[i]-'0')
	}
	return byte(v), v < 256
}

// hexDigit reads a digit in lower case.
func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
