package filter

import (
	"fmt"
	"net/http"
	"strings"

	"fairway.dev/fairway/internal/model"
)

// redirect answers every request with a redirect (permanent-redirect,
// temporal-redirect and app-root of ingress-nginx).
type redirect model.Redirect

func newRedirect(f *model.Filters, _ Environment) Filter {
	if f.Redirect == nil {
		return nil
	}
	r := redirect(*f.Redirect)
	if r.Status == 0 {
		r.Status = http.StatusFound
	}
	return &r
}

// String implements fmt.Stringer.
func (r *redirect) String() string {
	return fmt.Sprintf("redirects every request to %s with %d", r.Location, r.Status)
}

func (r *redirect) Apply(x *Exchange) *Answer {
	location := r.Location
	if strings.HasPrefix(location, "/") && !strings.HasPrefix(location, "//") && x.View.Host != "" {
		location = x.View.Scheme + "://" + x.View.Authority + location
	}
	return &Answer{Status: r.Status, Location: location}
}
