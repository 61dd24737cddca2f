package http1

import "strings"

// trailerAllowed is false for plain fields that must not stand in trailers.
func trailerAllowed(name string) bool {
	switch {
	case strings.EqualFold(name, "Authorization"), strings.EqualFold(name, "Cookie"), strings.EqualFold(name, "Set-Cookie"),
		strings.EqualFold(name, "Content-Type"), strings.EqualFold(name, "Content-Encoding"), strings.EqualFold(name, "Content-Range"),
		strings.EqualFold(name, "Max-Forwards"), strings.EqualFold(name, "Cache-Control"), strings.EqualFold(name, "Range"):
		return false
	}
	return !(len(name) > 12 && strings.EqualFold(name[:12], "X-Forwarded-")) && !strings.EqualFold(name, "X-Real-Ip")
}

// TrailerGoes reports whether a client's trailer may go on to a backend: it may
// not be one that belongs in a header, nor one that the gateway drops there.
func TrailerGoes(name string) bool {
	k := kindOf(name)
	return (k == plainField || k == dateField) && trailerAllowed(name) && !Claims(name)
}

// Claims reports whether a field, however it is spelled, would tell a backend
// who asked, by what, or how the request is framed. Some backends (CGI, WSGI)
// do not tell "_" from "-".
func Claims(name string) bool {
	is := func(plain string) bool { return len(name) == len(plain) && begins(name, plain) }
	switch {
	case begins(name, "x-forwarded-"), begins(name, "x-original-forwarded"), begins(name, "ssl-client-"):
		return true
	}
	switch len(name) {
	case 5:
		return is("proxy")
	case 8:
		return is("x-scheme")
	case 9:
		return is("x-real-ip") || is("forwarded")
	case 12:
		return is("x-request-id")
	case 14:
		return is("content-length")
	case 17:
		return is("transfer-encoding")
	}
	return false
}

// begins reports whether name begins with prefix, which is in lower case; "_"
// is taken for "-".
func begins(name, prefix string) bool {
	if len(name) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		c := name[i]
		switch {
		case c == '_':
			c = '-'
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		}
		if c != prefix[i] {
			return false
		}
	}
	return true
}
