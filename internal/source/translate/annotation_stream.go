package translate

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"

	networkingv1 "k8s.io/api/networking/v1"

	"fairway.dev/fairway/internal/model"
)

// AnnotationTCPPort on an Ingress makes its backends reachable by TCP at that
// port of the gateway, in place of HTTP. Clients that speak TLS are told apart
// by the rules' hosts, which they send as SNI; TLS passes through.
const AnnotationTCPPort = "fairway.dev/tcp-port"

// annotationPassthrough on an Ingress has TLS for its hosts pass through to its
// backends, by the name that clients ask for (SNI).
const annotationPassthrough = prefixNginx + "ssl-passthrough"

var annotationsStream = []string{AnnotationTCPPort, annotationPassthrough}

// streamPort returns the TCP port that the Ingress asks for, and whether it
// asks for one; 0 is a port that could not be read.
func (in *ingress) streamPort() (uint16, bool) {
	v, ok := in.annotation(AnnotationTCPPort)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 {
		in.invalid(annotationField(AnnotationTCPPort), "%q is no port number; use 1 to 65535. The Ingress routes nothing until then", v)
		return 0, true
	}
	return uint16(n), true
}

// onlyStreams reports what has no effect beside the annotation that asks for
// streams; except are others without effect of which nothing need be said.
func (in *ingress) onlyStreams(asks string, except ...string) {
	for _, name := range sortedKeys(in.object.Annotations) {
		if name != asks && slices.Contains(ingressAnnotations, name) && !slices.Contains(except, name) {
			in.add(ReasonIneffective, annotationField(name), "has no effect beside %s: it is for HTTP", asks)
		}
	}
	if len(in.object.Spec.TLS) > 0 {
		in.add(ReasonIneffective, "spec.tls", "has no effect beside %s: TLS passes through to the backend; remove one of them", asks)
	}
}

// passthrough returns, of an Ingress whose TLS passes through, the streams by host,
// and rules by which plain HTTP for the hosts is sent to https.
func (in *ingress) passthrough() IngressResult {
	// Those are what goes with it in manifests, and say what happens anyway.
	in.onlyStreams(annotationPassthrough, annotationSSLRedirect, annotationForceSSLRedirect, annotationBackendProtocol)
	out := IngressResult{Route: &model.Route{Ref: in.report.object, Created: in.object.CreationTimestamp.Time}}
	add := func(field, backendField, host string, b *networkingv1.IngressBackend) {
		backend, ok := in.backend(backendField, b)
		if !ok {
			return
		}
		out.Streams = append(out.Streams, model.StreamRoute{
			Ref: in.report.object, Created: in.object.CreationTimestamp.Time, Field: field, Protocol: model.TCP, Hosts: []string{host}, Backend: backend,
		})
		out.Route.Rules = append(out.Route.Rules, model.RouteRule{
			Field: field, Host: host, Path: model.PathMatch{Type: model.PathPrefix, Value: "/"},
			Filters: model.Filters{PassedThrough: true, HTTPSRedirect: &model.HTTPSRedirect{Status: http.StatusPermanentRedirect, Force: true}},
		})
	}
	spec := &in.object.Spec
	for i, r := range spec.Rules {
		field := fmt.Sprintf("spec.rules[%d]", i)
		host := normalHost(r.Host)
		switch {
		case host == "":
			in.invalid(field+".host", "is missing, and TLS passes through by the name that clients ask for; name a host. The rule is left out")
			continue
		case !isHost(host):
			in.invalid(field+".host", "%q is no host name; write a name such as www.example.com or *.example.com. The rule is left out", r.Host)
			continue
		case r.HTTP == nil && spec.DefaultBackend == nil:
			in.invalid(field+".http", "is missing and there is no spec.defaultBackend, so the rule routes nothing; add one of them")
			continue
		case r.HTTP == nil:
			add(field, "spec.defaultBackend", host, spec.DefaultBackend)
			continue
		}
		for j := range r.HTTP.Paths {
			path := fmt.Sprintf("%s.http.paths[%d]", field, j)
			if j > 0 {
				in.add(ReasonIneffective, path, "has no effect: TLS that passes through has no paths, so only the first path of a host counts; remove it")
				continue
			}
			if p := r.HTTP.Paths[j].Path; p != "" && p != "/" {
				in.add(ReasonIneffective, path+".path", "%q has no effect: TLS that passes through has no paths, and everything for the host goes to this backend; write /", p)
			}
			add(path, path+".backend", host, &r.HTTP.Paths[j].Backend)
		}
	}
	if len(spec.Rules) == 0 {
		in.invalid("spec.rules", "is empty, and TLS passes through by the name that clients ask for; add a rule with a host")
	}
	return out
}

func (in *ingress) streams(port uint16) []model.StreamRoute {
	if port == 0 {
		return nil
	}
	in.onlyStreams(AnnotationTCPPort)
	var out []model.StreamRoute
	add := func(field string, hosts []string, b *networkingv1.IngressBackend) {
		if backend, ok := in.backend(field, b); ok {
			out = append(out, model.StreamRoute{
				Ref: in.report.object, Created: in.object.CreationTimestamp.Time, Field: field,
				Protocol: model.TCP, Port: port, Hosts: hosts, Backend: backend,
			})
		}
	}
	for i, r := range in.object.Spec.Rules {
		field := fmt.Sprintf("spec.rules[%d]", i)
		var hosts []string
		if h := normalHost(r.Host); h != "" {
			if !isHost(h) {
				in.invalid(field+".host", "%q is no host name; write a name such as db.example.com or *.example.com. The rule is left out", r.Host)
				continue
			}
			hosts = []string{h}
		}
		if r.HTTP == nil {
			if d := in.object.Spec.DefaultBackend; d != nil {
				add("spec.defaultBackend", hosts, d)
			} else {
				in.invalid(field+".http", "is missing and there is no spec.defaultBackend, so the rule routes nothing; add one of them")
			}
			continue
		}
		for j := range r.HTTP.Paths {
			field := fmt.Sprintf("%s.http.paths[%d]", field, j)
			if j > 0 {
				in.add(ReasonIneffective, field, "has no effect: TCP has no paths, so only the first path of a host counts; remove it")
				continue
			}
			add(field+".backend", hosts, &r.HTTP.Paths[j].Backend)
		}
	}
	if d := in.object.Spec.DefaultBackend; d != nil {
		add("spec.defaultBackend", nil, d)
	}
	if len(out) == 0 && len(in.problems) == 0 {
		in.invalid("spec", "has neither rules nor defaultBackend, so it routes nothing; add one of them")
	}
	return out
}
