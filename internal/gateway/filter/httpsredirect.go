package filter

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/model"
)

// httpsRedirect sends plain HTTP requests to https (ssl-redirect and
// force-ssl-redirect of ingress-nginx).
type httpsRedirect struct {
	status int
	force  bool
	env    Environment
}

func newHTTPSRedirect(f *model.Filters, env Environment) Filter {
	if f.HTTPSRedirect == nil {
		return nil
	}
	status := f.HTTPSRedirect.Status
	if status == 0 {
		status = http.StatusPermanentRedirect
	}
	return &httpsRedirect{status, f.HTTPSRedirect.Force, env}
}

// String implements fmt.Stringer.
func (r *httpsRedirect) String() string {
	if r.force {
		return fmt.Sprintf("redirects plain http to https with %d, with or without a certificate", r.status)
	}
	return fmt.Sprintf("redirects plain http to https with %d where the host has TLS", r.status)
}

func (r *httpsRedirect) Apply(x *Exchange) *Answer {
	v := x.View
	if v.Scheme == "https" || v.Host == "" || !r.force && !r.env.HasTLS(v.Host) {
		return nil
	}
	return &Answer{Status: r.status, Location: "https://" + r.authority(v) + requestTarget(v)}
}

// authority leaves the port out, unless the client came straight to a port of
// the gateway and https is not at 443 either.
func (r *httpsRedirect) authority(v *request.View) string {
	if r.env.HTTPSPort == 0 || r.env.HTTPSPort == 443 || !hasPort(v.Authority) {
		return v.Host
	}
	return v.Host + ":" + strconv.Itoa(int(r.env.HTTPSPort))
}

func hasPort(authority string) bool {
	return strings.LastIndexByte(authority, ':') > strings.LastIndexByte(authority, ']')
}

// requestTarget is the path and query that the client asked for.
func requestTarget(v *request.View) string {
	if v.Query == "" {
		return v.Path
	}
	return v.Path + "?" + v.Query
}
