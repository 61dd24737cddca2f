package translate

import (
	"fmt"
	"slices"
	"strconv"

	networkingv1 "k8s.io/api/networking/v1"

	"fairway.dev/fairway/internal/model"
)

// AnnotationTCPPort on an Ingress makes its backends reachable by TCP at that
// port of the gateway, in place of HTTP. Clients that speak TLS are told apart
// by the rules' hosts, which they send as SNI; TLS passes through.
const AnnotationTCPPort = "fairway.dev/tcp-port"

var annotationsStream = []string{AnnotationTCPPort}

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

func (in *ingress) streams(port uint16) []model.StreamRoute {
	if port == 0 {
		return nil
	}
	for _, name := range sortedKeys(in.object.Annotations) {
		if name != AnnotationTCPPort && slices.Contains(ingressAnnotations, name) {
			in.add(ReasonIneffective, annotationField(name), "has no effect beside %s: it is for HTTP", AnnotationTCPPort)
		}
	}
	if len(in.object.Spec.TLS) > 0 {
		in.add(ReasonIneffective, "spec.tls", "has no effect beside %s: TLS passes through to the backend; remove one of them", AnnotationTCPPort)
	}
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
