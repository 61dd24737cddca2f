package request

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// ErrBadHost means that a Host header is not a name or address with an
// optional port.
var ErrBadHost = errors.New("host is not a valid name or address")

// maxHost is the length of the longest DNS name in text form (RFC 1035, 3.1).
const maxHost = 253

// ParseHost returns the normal form of a Host header or :authority: lower
// case, no final dot, IPv6 literals in brackets in their shortest form; and
// the port, 0 if there is none. An empty authority is an empty host: HTTP/1.0
// clients need not send one.
func ParseHost(authority string) (host string, port uint16, err error) {
	if authority == "" {
		return "", 0, nil
	}
	host, digits := authority, ""
	if authority[0] == '[' {
		end := strings.IndexByte(authority, ']')
		if end < 0 {
			return "", 0, ErrBadHost
		}
		addr, err := netip.ParseAddr(authority[1:end])
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", 0, ErrBadHost
		}
		host, digits = "["+addr.String()+"]", authority[end+1:]
		if digits != "" && digits[0] != ':' {
			return "", 0, ErrBadHost
		}
		digits = strings.TrimPrefix(digits, ":")
	} else {
		if i := strings.IndexByte(authority, ':'); i >= 0 {
			host, digits = authority[:i], authority[i+1:]
		}
		if host, err = parseName(host); err != nil {
			return "", 0, err
		}
	}
	if digits == "" {
		return host, 0, nil
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n == 0 || digits[0] == '+' {
		return "", 0, ErrBadHost
	}
	return host, uint16(n), nil
}

func parseName(name string) (string, error) {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > maxHost {
		return "", ErrBadHost
	}
	upper, label := false, 0
	for i := range len(name) {
		switch c := name[i]; {
		case 'A' <= c && c <= 'Z':
			upper = true
			label++
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			label++
		case c == '.' && label > 0:
			label = 0
		default:
			return "", ErrBadHost
		}
	}
	if label == 0 {
		return "", ErrBadHost
	}
	if upper {
		name = strings.ToLower(name)
	}
	return name, nil
}
