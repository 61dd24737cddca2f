package translate

import (
	"fmt"
	"regexp"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"fairway.dev/fairway/internal/httppath"
	"fairway.dev/fairway/internal/model"
)

// IngressResult is what an Ingress asks for.
type IngressResult struct {
	// Route is its HTTP routing; nil where it asks for streams only.
	Route *model.Route
	// Streams are its TCP routes, and those of TLS that passes through.
	Streams []model.StreamRoute
}

// Ingress translates an Ingress that Fairway serves (see [Classes.Serves]).
func Ingress(o *networkingv1.Ingress) (IngressResult, model.Problems) {
	in := &ingress{report: newReport("Ingress", o), object: o}
	in.unknownAnnotations()
	if port, ok := in.streamPort(); ok {
		return IngressResult{Streams: in.streams(port)}, in.problems
	}
	if in.boolean(annotationPassthrough, false) {
		return in.passthrough(), in.problems
	}
	settings := in.settings()
	route := &model.Route{Ref: in.report.object, Created: o.CreationTimestamp.Time, TLS: in.tls()}
	if route.ClientAuth = in.clientAuth(); route.ClientAuth != nil {
		route.ClientAuthHosts = in.clientAuthHosts()
	}
	route.Rules = in.rules(settings)
	for i := range route.Rules {
		redirectHTTPS(&route.Rules[i], settings, route.TLS)
	}
	return IngressResult{Route: route}, in.problems
}

// ingress is one Ingress while it is translated.
type ingress struct {
	*report
	object *networkingv1.Ingress
}

// settings are what annotations ask for, for all rules of the Ingress.
type settings struct {
	filters  model.Filters
	canary   *model.Canary
	protocol model.BackendProtocol
	tls      *model.BackendTLS
	appRoot  string
	regex    bool
	redirect httpsRedirect
}

func (in *ingress) settings() settings {
	var s settings
	in.rewriteAnnotations(&s)
	in.redirectAnnotations(&s)
	in.canaryAnnotations(&s)
	in.backendAnnotations(&s)
	in.proxySSLAnnotations(&s)
	in.accessAnnotations(&s)
	in.bodyAnnotations(&s)
	in.timeoutAnnotations(&s)
	in.balanceAnnotations(&s)
	in.traceAnnotations(&s)
	return s
}

func (in *ingress) rules(s settings) []model.RouteRule {
	var out []model.RouteRule
	spec := &in.object.Spec
	rooted := map[string]bool{} // hosts
	if d := spec.DefaultBackend; d != nil {
		rule := in.rule("spec.defaultBackend", "", s)
		rule.Default = true
		rule.Path = model.PathMatch{Type: model.PathPrefix, Value: "/"}
		rule.Backends = in.backends("spec.defaultBackend", d, s)
		out = append(out, rule)
	} else if len(spec.Rules) == 0 {
		in.invalid("spec", "has neither rules nor defaultBackend, so it routes nothing; add one of them")
	}
	for i, r := range spec.Rules {
		field := fmt.Sprintf("spec.rules[%d]", i)
		host := normalHost(r.Host)
		if host != "" && !isHost(host) {
			in.invalid(field+".host", "%q is no host name; write a name such as www.example.com or *.example.com. The rule is left out", r.Host)
			continue
		}
		if s.appRoot != "" && s.canary == nil && !rooted[host] { // a canary takes requests of rules that there are, and adds none
			rooted[host] = true
			out = append(out, appRoot(in.rule(annotationField(annotationAppRoot), host, s), s.appRoot))
		}
		if r.HTTP == nil {
			out = append(out, in.hostOnlyRule(field, host, s)...)
			continue
		}
		for j := range r.HTTP.Paths {
			p := &r.HTTP.Paths[j]
			field := fmt.Sprintf("%s.http.paths[%d]", field, j)
			match, ok := in.path(field, p, s.regex)
			if !ok {
				continue
			}
			rule := in.rule(field, host, s)
			rule.Path = match
			rule.Backends = in.backends(field+".backend", &p.Backend, s)
			out = append(out, rule)
		}
	}
	return out
}

// hostOnlyRule is the rule of a host without paths: everything for it goes to
// the default backend of the Ingress (networking/v1 IngressRule).
func (in *ingress) hostOnlyRule(field, host string, s settings) []model.RouteRule {
	d := in.object.Spec.DefaultBackend
	if d == nil {
		in.invalid(field+".http", "is missing and there is no spec.defaultBackend, so the rule routes nothing; add one of them")
		return nil
	}
	rule := in.rule(field, host, s)
	rule.Path = model.PathMatch{Type: model.PathPrefix, Value: "/"}
	rule.Backends = in.backends("spec.defaultBackend", d, s)
	return []model.RouteRule{rule}
}

// rule returns a rule with the settings of the Ingress and no path yet.
func (in *ingress) rule(field, host string, s settings) model.RouteRule {
	return model.RouteRule{Field: field, Host: host, Filters: s.filters, Canary: s.canary}
}

// path translates path and pathType. ImplementationSpecific means a prefix, or
// a glob where it has a "*".
//
// With regex every path is a regular expression that matches at the start,
// ignoring case, whatever its pathType: that is what ingress-nginx makes of an
// Ingress with use-regex or rewrite-target. Exact alone keeps its meaning here:
// there it lets in paths that the user did not ask for.
func (in *ingress) path(field string, p *networkingv1.HTTPIngressPath, regex bool) (model.PathMatch, bool) {
	pathType := networkingv1.PathTypeImplementationSpecific
	if p.PathType != nil {
		pathType = *p.PathType
	}
	value := p.Path
	if value == "" {
		value = "/"
	}
	if regex && pathType != networkingv1.PathTypeExact {
		return in.regexPath(field, value)
	}
	normal, err := httppath.Normalize(value)
	if err != nil {
		in.invalid(field+".path", "%q cannot be matched: %v. The path is left out", p.Path, err)
		return model.PathMatch{}, false
	}
	match := model.PathMatch{Value: normal}
	switch pathType {
	case networkingv1.PathTypeExact:
		match.Type = model.PathExact
		in.literalStar(field, value, pathType)
	case networkingv1.PathTypePrefix:
		match.Type = model.PathPrefix
		in.literalStar(field, value, pathType)
	case networkingv1.PathTypeImplementationSpecific:
		if strings.Contains(normal, "*") {
			match.Type = model.PathGlob
		}
	default:
		in.invalid(field+".pathType", "%q is not known; use Prefix, Exact or ImplementationSpecific. The path is left out", pathType)
		return model.PathMatch{}, false
	}
	if match.Type == model.PathPrefix && len(match.Value) > 1 {
		// A prefix ends with an element, with or without the final "/".
		match.Value = strings.TrimSuffix(match.Value, "/")
	}
	return match, true
}

func (in *ingress) literalStar(field, value string, t networkingv1.PathType) {
	if strings.HasSuffix(value, "/*") {
		in.add(ReasonIneffective, field+".path", `the "*" in %q is taken literally with pathType %s; use pathType ImplementationSpecific for a glob, or leave "/*" off`, value, t)
	}
}

func (in *ingress) regexPath(field, value string) (model.PathMatch, bool) {
	if !strings.HasPrefix(value, "/") {
		value = "/" + value
	}
	if _, err := regexp.Compile("(?i)^" + value); err != nil {
		in.invalid(field+".path", "%q is no regular expression: %v (Go syntax: no look-around, no back-references). The path is left out", value, err)
		return model.PathMatch{}, false
	}
	return model.PathMatch{Type: model.PathRegex, Value: value}, true
}

// backends returns the one backend, or none where it cannot be used, which
// makes the rule answer 503.
func (in *ingress) backends(field string, b *networkingv1.IngressBackend, s settings) []model.WeightedBackend {
	backend, ok := in.backend(field, b)
	if !ok {
		return nil
	}
	backend.Protocol, backend.TLS = s.protocol, s.tls
	return []model.WeightedBackend{{Backend: backend, Weight: 1}}
}

func (in *ingress) backend(field string, b *networkingv1.IngressBackend) (model.Backend, bool) {
	switch {
	case b.Service == nil && b.Resource != nil:
		in.add(ReasonUnsupported, field+".resource", "%s %q as a backend is not supported; use a Service. Requests for it are answered with 503", b.Resource.Kind, b.Resource.Name)
	case b.Service == nil:
		in.invalid(field+".service", "is missing; name a Service and its port. Requests for it are answered with 503")
	case b.Service.Port.Name == "" && (b.Service.Port.Number < 1 || b.Service.Port.Number > 65535):
		in.invalid(field+".service.port", "has neither a name nor a number from 1 to 65535; give one of them. Requests for it are answered with 503")
	default:
		return model.Backend{
			Service: model.Key{Namespace: in.object.Namespace, Name: b.Service.Name},
			Port:    ingressPort(b.Service.Port),
		}, true
	}
	return model.Backend{}, false
}

func ingressPort(p networkingv1.ServiceBackendPort) model.PortRef {
	if p.Name != "" {
		return model.PortRef{Name: p.Name}
	}
	return model.PortRef{Number: uint16(p.Number)}
}

func (in *ingress) tls() []model.RouteTLS {
	var out []model.RouteTLS
	for i, t := range in.object.Spec.TLS {
		field := fmt.Sprintf("spec.tls[%d]", i)
		var row model.RouteTLS
		bad := 0
		for j, h := range t.Hosts {
			n := normalHost(h)
			if !isHost(n) {
				in.invalid(fmt.Sprintf("%s.hosts[%d]", field, j), "%q is no host name; write a name such as www.example.com or *.example.com", h)
				bad++
				continue
			}
			row.Hosts = append(row.Hosts, n)
		}
		if bad > 0 && len(row.Hosts) == 0 {
			continue // without hosts it would mean all names in the certificate
		}
		if t.SecretName != "" {
			row.Secret = model.Key{Namespace: in.object.Namespace, Name: t.SecretName}
		}
		out = append(out, row)
	}
	return out
}
