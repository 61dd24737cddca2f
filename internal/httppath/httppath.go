package httppath

import (
	"errors"
	"strings"
)

// The reasons why a path has no normal form.
var (
	ErrNotAbsolute = errors.New(`path does not begin with "/"`)
	ErrBadEscape   = errors.New(`path has a "%" that is not followed by two hexadecimal digits`)
)

const upperHex = "0123456789ABCDEF"

// Normalize returns the normal form of an escaped path (RFC 3986, 6.2.2):
// escapes of unreserved characters decoded, all other escapes in upper case,
// what may not stand in a path escaped, empty and "." segments dropped, ".."
// resolved without leaving the root. A final "/" stays. "%2F" stays escaped,
// for it is no separator. A path in normal form is returned as it is, without
// allocation.
func Normalize(path string) (string, error) {
	if path == "" || path[0] != '/' {
		return "", ErrNotAbsolute
	}
	if isNormal(path) {
		return path, nil
	}
	escaped, err := normalizeEscapes(path)
	if err != nil {
		return "", err
	}
	return resolveSegments(escaped), nil
}

// isNormal reports whether an absolute path needs no work.
func isNormal(path string) bool {
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '%':
			if !normalEscape(path[i:]) {
				return false
			}
			i += 2
		case c == '/':
			if rest := path[i+1:]; strings.HasPrefix(rest, "/") || dotSegment(rest) {
				return false
			}
		case !pathByte[c]:
			return false
		}
	}
	return true
}

// normalEscape reports whether s begins with an escape as Normalize writes it.
func normalEscape(s string) bool {
	if len(s) < 3 || strings.IndexByte(upperHex, s[1]) < 0 || strings.IndexByte(upperHex, s[2]) < 0 {
		return false
	}
	return !unreserved(unhex(s[1])<<4 | unhex(s[2]))
}

// dotSegment reports whether the first segment of s is "." or "..".
func dotSegment(s string) bool {
	if s == "" || s[0] != '.' {
		return false
	}
	s = s[1:]
	if s != "" && s[0] == '.' {
		s = s[1:]
	}
	return s == "" || s[0] == '/'
}

func normalizeEscapes(path string) (string, error) {
	var b strings.Builder
	b.Grow(len(path) + 8)
	escape := func(c byte) {
		b.WriteByte('%')
		b.WriteByte(upperHex[c>>4])
		b.WriteByte(upperHex[c&15])
	}
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch {
		case c == '%':
			if i+2 >= len(path) || !isHex(path[i+1]) || !isHex(path[i+2]) {
				return "", ErrBadEscape
			}
			c = unhex(path[i+1])<<4 | unhex(path[i+2])
			i += 2
			if unreserved(c) {
				b.WriteByte(c)
			} else {
				escape(c)
			}
		case pathByte[c]:
			b.WriteByte(c)
		default:
			escape(c)
		}
	}
	return b.String(), nil
}

// resolveSegments drops empty and dot segments of an absolute path.
func resolveSegments(path string) string {
	var kept []string
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		switch s {
		case "", ".":
		case "..":
			if len(kept) > 0 {
				kept = kept[:len(kept)-1]
			}
		default:
			kept = append(kept, s)
			continue
		}
		if last && len(kept) > 0 {
			kept = append(kept, "") // the final "/" stays
		}
	}
	return "/" + strings.Join(kept, "/")
}

// pathByte are the bytes that may stand unescaped in a path: pchar of RFC 3986
// and the separator.
var pathByte = func() (t [256]bool) {
	for c := range 256 {
		t[c] = unreserved(byte(c))
	}
	for _, c := range []byte("!$&'()*+,;=:@/") {
		t[c] = true
	}
	return t
}()

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}
