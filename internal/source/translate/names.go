package translate

import (
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// isDNSName reports whether s can be the name of an object: a lower-case DNS
// subdomain (RFC 1123).
func isDNSName(s string) bool { return len(validation.IsDNS1123Subdomain(s)) == 0 }

// isHost reports whether s, in lower case, is a host name or a wildcard
// "*.example.com".
func isHost(s string) bool {
	return isDNSName(strings.TrimPrefix(s, "*."))
}

// normalHost is the form in which hosts are compared: lower case, no final dot.
func normalHost(s string) string {
	return strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s)), ".")
}

// commaList splits at commas, without spaces and empty parts.
func commaList(s string) []string {
	var out []string
	for p := range strings.SplitSeq(s, ",") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
