package filter

import (
	"net/http"
	"net/netip"
	"strings"

	"fairway.dev/fairway/internal/model"
)

// allowFrom refuses clients by address with 403 (allowlist-source-range of
// ingress-nginx).
type allowFrom []netip.Prefix

func newAllowFrom(f *model.Filters, _ Environment) Filter {
	if len(f.AllowFrom) == 0 {
		return nil
	}
	return allowFrom(f.AllowFrom)
}

// String implements fmt.Stringer.
func (list allowFrom) String() string {
	ranges := make([]string, len(list))
	for i, p := range list {
		ranges[i] = p.String()
	}
	return "lets in clients from " + strings.Join(ranges, ", ") + " only"
}

func (list allowFrom) Apply(x *Exchange) *Answer {
	client := x.View.Client.Unmap()
	for _, p := range list {
		if p.Contains(client) {
			return nil
		}
	}
	return &Answer{Status: http.StatusForbidden, Reason: "clients from this address are not allowed here"}
}
