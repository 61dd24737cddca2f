package translate

import (
	"net/url"
	"strings"

	"fairway.dev/fairway/internal/model"
)

const (
	annotationRewriteTarget = prefixNginx + "rewrite-target"
	annotationUseRegex      = prefixNginx + "use-regex"
)

var annotationsRewrite = []string{annotationRewriteTarget, annotationUseRegex}

// rewriteAnnotations reads rewrite-target and use-regex. A rewrite-target
// makes all paths of the Ingress regular expressions, as in ingress-nginx, but
// not those of other Ingresses for the same host. A target with a scheme sends
// the client there.
func (in *ingress) rewriteAnnotations(s *settings) {
	s.regex = in.boolean(annotationUseRegex, false)
	target, ok := in.place(annotationRewriteTarget)
	if !ok {
		return
	}
	switch {
	case target == "":
		in.invalid(annotationField(annotationRewriteTarget), "is empty; write the path that the backend is to see, such as / or /$1")
	case isURL(target):
		if strings.Contains(target, "$") {
			in.add(ReasonUnsupported, annotationField(annotationRewriteTarget), "captures are not supported in a redirect to another site; use a path, or %s", annotationPermanentRedirect)
			return
		}
		s.regex = true
		s.filters.Redirect = &model.Redirect{Location: target, Status: 302}
	default:
		if !strings.HasPrefix(target, "/") {
			target = "/" + target
		}
		s.regex = true
		s.filters.Rewrite = &model.Rewrite{Target: target}
	}
}

// isURL reports whether s is an absolute http or https URL.
func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}
