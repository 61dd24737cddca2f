package request

import (
	"errors"
	"strings"

	"fairway.dev/fairway/internal/httppath"
)

// ErrAmbiguousPath means that a backend could read a path differently than the
// gateway does.
var ErrAmbiguousPath = errors.New("path could be read in two ways")

// ParsePath returns the normal form of the escaped path of a request (see
// [httppath.Normalize]). It refuses paths that are known to be read in two
// ways: dot segments that only appear when "%2F" or "%5C" is decoded or when
// path parameters (";...") are dropped, and NUL.
func ParsePath(escaped string) (string, error) {
	path, err := httppath.Normalize(escaped)
	if err != nil {
		return "", err
	}
	if hidesDots(path) || strings.Contains(path, "%00") {
		return "", ErrAmbiguousPath
	}
	return path, nil
}

// WithoutParameters returns a normal path as backends read it that leave out
// what stands behind ";" in each element, be that escaped or not; false if
// there is no such thing.
func WithoutParameters(path string) (string, bool) {
	if !strings.Contains(path, ";") && !strings.Contains(path, "%3B") {
		return "", false
	}
	var bare strings.Builder
	for element := range strings.SplitSeq(path[1:], "/") {
		element, _, _ = strings.Cut(element, "%3B")
		element, _, _ = strings.Cut(element, ";")
		bare.WriteString("/" + element)
	}
	out, err := httppath.Normalize(bare.String())
	return out, err == nil
}

// ParseRewritten returns the normal form of a path that a rewrite made. A dot
// segment in it is an error and not resolved: it was pieced together behind
// the back of the rule that matched, to leave the directory that the rewrite
// meant (the class of CVE-2026-67309).
func ParseRewritten(escaped string) (string, error) {
	if escaped == "" || escaped[0] != '/' {
		escaped = "/" + escaped
	}
	for rest := escaped[1:]; ; {
		segment, more, ok := strings.Cut(rest, "/")
		if isDots(decodeDots(segment)) {
			return "", ErrAmbiguousPath
		}
		if !ok {
			return ParsePath(escaped)
		}
		rest = more
	}
}

// ParseQuery returns the query with those bytes escaped that no URI has in it, such
// as those beyond ASCII, which backends read in different ways or refuse: space
// and "#" would end it. The rest stays as it is.
func ParseQuery(raw string) string {
	more := 0
	for i := range len(raw) {
		if !inQuery(raw[i]) {
			more += 2
		}
	}
	if more == 0 {
		return raw
	}
	const hex = "0123456789ABCDEF"
	out := make([]byte, 0, len(raw)+more)
	for i := range len(raw) {
		if c := raw[i]; !inQuery(c) {
			out = append(out, '%', hex[c>>4], hex[c&15])
		} else {
			out = append(out, c)
		}
	}
	return string(out)
}

func inQuery(c byte) bool { return c > ' ' && c < 0x7f && c != '#' }

// hidesDots reports whether a segment of a normal path would hold a dot
// segment once its escaped separators or parameters are taken for such.
func hidesDots(path string) bool {
	if !strings.Contains(path, "..") && !strings.Contains(path, "/.;") && !strings.Contains(path, "%") {
		return false
	}
	for rest := path; rest != ""; {
		var piece string
		piece, rest = cutPiece(rest)
		if name, _, _ := strings.Cut(piece, ";"); isDots(name) {
			return true
		}
	}
	return false
}

// cutPiece splits at the next "/", "%2F" or "%5C".
func cutPiece(s string) (piece, rest string) {
	for i := range len(s) {
		if s[i] == '/' {
			return s[:i], s[i+1:]
		}
		if s[i] == '%' && len(s) >= i+3 && (s[i:i+3] == "%2F" || s[i:i+3] == "%5C") {
			return s[:i], s[i+3:]
		}
	}
	return s, ""
}

func isDots(s string) bool { return s == "." || s == ".." }

func decodeDots(s string) string {
	if !strings.Contains(s, "%2") {
		return s
	}
	return strings.NewReplacer("%2e", ".", "%2E", ".").Replace(s)
}
