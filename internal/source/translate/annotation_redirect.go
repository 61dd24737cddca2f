package translate

import (
	"net/http"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
)

const (
	annotationSSLRedirect           = prefixNginx + "ssl-redirect"
	annotationForceSSLRedirect      = prefixNginx + "force-ssl-redirect"
	annotationPermanentRedirect     = prefixNginx + "permanent-redirect"
	annotationPermanentRedirectCode = prefixNginx + "permanent-redirect-code"
	annotationTemporalRedirect      = prefixNginx + "temporal-redirect"
	annotationTemporalRedirectCode  = prefixNginx + "temporal-redirect-code"
	annotationAppRoot               = prefixNginx + "app-root"
)

var annotationsRedirect = []string{
	annotationSSLRedirect, annotationForceSSLRedirect, annotationPermanentRedirect,
	annotationPermanentRedirectCode, annotationTemporalRedirect, annotationTemporalRedirectCode,
	annotationAppRoot,
}

// httpsRedirect is what an Ingress wants for plain HTTP.
type httpsRedirect struct {
	// off is ssl-redirect: "false"; force is force-ssl-redirect.
	off, force bool
}

func (in *ingress) redirectAnnotations(s *settings) {
	s.redirect.off = !in.boolean(annotationSSLRedirect, true)
	s.redirect.force = in.boolean(annotationForceSSLRedirect, false)
	permanent := in.redirect(annotationPermanentRedirect, annotationPermanentRedirectCode, http.StatusMovedPermanently)
	temporal := in.redirect(annotationTemporalRedirect, annotationTemporalRedirectCode, http.StatusFound)
	if permanent != nil {
		s.filters.Redirect = permanent
	}
	if temporal != nil {
		s.filters.Redirect = temporal // wins, as in ingress-nginx
	}
	if root, ok := in.place(annotationAppRoot); ok {
		if !strings.HasPrefix(root, "/") {
			in.invalid(annotationField(annotationAppRoot), "%q is no path; write a path that begins with /", root)
			return
		}
		s.appRoot = root
	}
}

// redirect reads a redirect annotation and that of its status code.
func (in *ingress) redirect(name, codeName string, status int) *model.Redirect {
	code, hasCode := in.number(codeName, 300, 308)
	if hasCode {
		switch code {
		case 301, 302, 303, 307, 308:
			status = int(code)
		default:
			in.invalid(annotationField(codeName), "%d is no redirect; use 301, 302, 303, 307 or 308. %d is used", code, status)
		}
	}
	target, ok := in.place(name)
	if !ok {
		if _, lone := in.annotation(codeName); lone {
			in.add(ReasonIneffective, annotationField(codeName), "has no effect without annotation %s", name)
		}
		return nil
	}
	if !isURL(target) && !strings.HasPrefix(target, "/") {
		in.invalid(annotationField(name), "%q is no place to send clients to; write a URL such as https://www.example.com, or a path", target)
		return nil
	}
	return &model.Redirect{Location: target, Status: status}
}

// appRoot makes rule send "/" to the application's root.
func appRoot(rule model.RouteRule, root string) model.RouteRule {
	rule.Path = model.PathMatch{Type: model.PathExact, Value: "/"}
	rule.Filters.Redirect = &model.Redirect{Location: root, Status: http.StatusFound}
	rule.Filters.Rewrite = nil
	return rule
}

// redirectHTTPS lets a rule whose host has TLS redirect plain HTTP, unless
// annotations say otherwise. The status keeps the method, as in ingress-nginx.
func redirectHTTPS(rule *model.RouteRule, s settings, tls []model.RouteTLS) {
	if s.redirect.force || !s.redirect.off && hasTLS(rule.Host, tls) {
		rule.Filters.HTTPSRedirect = &model.HTTPSRedirect{Status: http.StatusPermanentRedirect, Force: s.redirect.force}
	}
}

// hasTLS reports whether the Ingress has a TLS entry for host.
func hasTLS(host string, tls []model.RouteTLS) bool {
	return slices.ContainsFunc(tls, func(t model.RouteTLS) bool {
		return len(t.Hosts) == 0 || slices.ContainsFunc(t.Hosts, func(name string) bool { return hostCovers(name, host) })
	})
}

// hostCovers reports whether name, which may be a wildcard for one label,
// stands for host.
func hostCovers(name, host string) bool {
	if name == host {
		return true
	}
	suffix, wild := strings.CutPrefix(name, "*")
	label, ok := strings.CutSuffix(host, suffix)
	return wild && ok && label != "" && !strings.Contains(label, ".")
}
