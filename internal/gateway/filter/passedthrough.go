package filter

import (
	"net/http"

	"fairway.dev/fairway/internal/model"
)

// passedThrough answers requests for a host whose TLS is the backend's, and that
// come by a connection for another host all the same: because both have one address
// and a certificate for both, say. Clients ask again by a connection of their own
// for it then (421, RFC 9110, 15.5.20).
type passedThrough struct{}

func newPassedThrough(f *model.Filters, _ Environment) Filter {
	if !f.PassedThrough {
		return nil
	}
	return passedThrough{}
}

// String implements fmt.Stringer.
func (passedThrough) String() string {
	return "has no requests of its own: TLS for the host passes through to the backend, other requests get 421"
}

// Apply implements Filter.
func (passedThrough) Apply(*Exchange) *Answer {
	return &Answer{Status: http.StatusMisdirectedRequest, Reason: "TLS for this host passes through to its backend: ask for it by a connection of its own"}
}
