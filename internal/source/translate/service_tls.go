package translate

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/model"
)

// The annotations that ask for TLS on a Service.
const (
	AnnotationTLSSecret     = "fairway.dev/tls-secret"
	AnnotationTLSHosts      = "fairway.dev/tls-hosts"
	AnnotationTLSPorts      = "fairway.dev/tls-ports"
	AnnotationTLSMode       = "fairway.dev/tls-mode"
	AnnotationTLSCASecret   = "fairway.dev/tls-ca-secret"
	AnnotationTLSServerName = "fairway.dev/tls-server-name"
)

var annotationsTLS = []string{
	AnnotationTLSSecret, AnnotationTLSHosts, AnnotationTLSPorts,
	AnnotationTLSMode, AnnotationTLSCASecret, AnnotationTLSServerName,
}

// serviceTLS reads the TLS annotations. A mistake must not turn encryption off
// or leave a check out: then no certificate is left, which refuses connections
// to the TLS ports until the mistake is cured.
func serviceTLS(r *report, o *corev1.Service, s *model.Service) *model.ServiceTLS {
	secrets, ok := o.Annotations[AnnotationTLSSecret]
	if !ok {
		for _, name := range annotationsTLS[1:] {
			if _, ok := o.Annotations[name]; ok {
				r.add(ReasonIneffective, annotationField(name), "has no effect without annotation %s; add that with the name of a TLS Secret", AnnotationTLSSecret)
			}
		}
		return nil
	}
	if s.Type == model.ExternalName || s.Headless {
		r.add(ReasonIneffective, annotationField(AnnotationTLSSecret),
			"has no effect: the Service has no address of its own at which TLS could end. Use type ClusterIP, NodePort or LoadBalancer")
		return nil
	}
	t := &model.ServiceTLS{
		Certificates: tlsSecrets(r, s.Namespace, secrets),
		Hosts:        tlsHosts(r, o.Annotations[AnnotationTLSHosts]),
		Ports:        tlsPorts(r, o.Annotations[AnnotationTLSPorts], s),
	}
	usable := tlsBackend(r, o, t)
	hasTCP := slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return p.Protocol == model.TCP })
	if len(t.Ports) > 0 && hasTCP && !slices.ContainsFunc(s.Ports, t.Covers) {
		// What was meant cannot be told, so every TCP port could be it.
		r.invalid(annotationField(AnnotationTLSPorts), "names no TCP port of the Service, so connections to all its TCP ports are refused; correct it, or remove it for TLS on all of them")
		t.Ports, usable = nil, false
	}
	if !usable {
		t.Certificates = nil
	}
	if !hasTCP && len(t.Ports) == 0 {
		r.add(ReasonIneffective, annotationField(AnnotationTLSSecret), "has no effect: the Service has no TCP port")
	}
	return t
}

func tlsSecrets(r *report, namespace, value string) []model.Key {
	field := annotationField(AnnotationTLSSecret)
	var out []model.Key
	for _, name := range commaList(value) {
		if !isDNSName(name) {
			r.invalid(field, "%q is no name of a Secret; name Secrets of namespace %s, separated by commas", name, namespace)
			continue
		}
		out = append(out, model.Key{Namespace: namespace, Name: name})
	}
	if len(out) == 0 {
		r.invalid(field, "names no Secret, so connections to the TLS ports are refused; name one, or remove the annotation to go without TLS")
	}
	return out
}

func tlsHosts(r *report, value string) []string {
	var out []string
	for _, h := range commaList(value) {
		n := normalHost(h)
		if !isHost(n) {
			r.invalid(annotationField(AnnotationTLSHosts), "%q is no host name; write names such as www.example.com or *.example.com", h)
			// Kept all the same: no client can ask for it, and without it
			// an empty list would let in every name.
		}
		out = append(out, n)
	}
	return out
}

// tlsPorts reads names or numbers of ports. A port that the Service does not
// have stays in the list, for an empty list means all ports.
func tlsPorts(r *report, value string, s *model.Service) []model.PortRef {
	var out []model.PortRef
	for _, p := range commaList(value) {
		ref := portRef(p)
		sp, ok := s.Port(ref)
		switch {
		case !ok:
			r.invalid(annotationField(AnnotationTLSPorts), "the Service has no port %s; use the name or number of one of its ports: %s", p, portNames(s))
		case sp.Protocol != model.TCP:
			r.add(ReasonIneffective, annotationField(AnnotationTLSPorts), "port %s is %s; TLS is for TCP ports", p, sp.Protocol)
		}
		out = append(out, ref)
	}
	return out
}

// portRef reads a number as a number and anything else as a name.
func portRef(s string) model.PortRef {
	if n, err := strconv.ParseUint(s, 10, 16); err == nil && n > 0 {
		return model.PortRef{Number: uint16(n)}
	}
	return model.PortRef{Name: s}
}

func portNames(s *model.Service) string {
	var out []string
	for _, p := range s.Ports {
		n := strconv.Itoa(int(p.Port))
		if p.Name != "" {
			n = p.Name + " (" + n + ")"
		}
		out = append(out, n)
	}
	if len(out) == 0 {
		return "it has none"
	}
	return strings.Join(out, ", ")
}

// tlsBackend reads how the endpoint is spoken to. It returns false when that
// cannot be told without risking more than the user meant to.
func tlsBackend(r *report, o *corev1.Service, t *model.ServiceTLS) bool {
	usable := true
	mode, hasMode := o.Annotations[AnnotationTLSMode]
	switch strings.ToLower(strings.TrimSpace(mode)) {
	case "", "terminate":
		if hasMode && strings.TrimSpace(mode) == "" {
			r.invalid(annotationField(AnnotationTLSMode), "is empty; use terminate or reencrypt. It is taken as terminate")
		}
	case "reencrypt":
		t.Mode = model.TLSReencrypt
	default:
		r.invalid(annotationField(AnnotationTLSMode), "%q is no TLS mode; use terminate or reencrypt. Connections to the TLS ports are refused until then", mode)
		return false
	}
	if name, ok := o.Annotations[AnnotationTLSCASecret]; ok {
		name = strings.TrimSpace(name)
		switch {
		case !isDNSName(name):
			r.invalid(annotationField(AnnotationTLSCASecret), "%q is no name of a Secret; name a Secret with ca.crt. Connections to the TLS ports are refused until then", name)
			usable = false
		default:
			t.CA = model.Key{Namespace: o.Namespace, Name: name}
		}
	}
	if name, ok := o.Annotations[AnnotationTLSServerName]; ok {
		n := normalHost(name)
		if isDNSName(n) {
			t.ServerName = n
		} else {
			r.invalid(annotationField(AnnotationTLSServerName), "%q is no host name; write the name in the endpoint's certificate. Connections to the TLS ports are refused until then", name)
			usable = false
		}
	}
	if t.Mode == model.TLSTerminate {
		for _, name := range []string{AnnotationTLSCASecret, AnnotationTLSServerName} {
			if _, ok := o.Annotations[name]; ok {
				r.add(ReasonIneffective, annotationField(name), "has no effect with TLS mode terminate; set %s: reencrypt, or remove it", AnnotationTLSMode)
			}
		}
	}
	return usable
}

// unknownServiceAnnotations reports annotations in Fairway's name that it does
// not know, and those on Services for which they mean nothing.
func unknownServiceAnnotations(r *report, o *corev1.Service, s *model.Service) {
	lb := slices.Concat(annotationsLoadBalancerIPs, annotationsAddressPool, annotationsSharedIP)
	for _, name := range sortedKeys(o.Annotations) {
		switch {
		case slices.Contains(annotationsTLS, name), slices.Contains(annotationsUpstream, name):
		case slices.Contains(lb, name):
			if s.Type != model.LoadBalancer && strings.HasPrefix(name, "fairway.dev/") {
				r.add(ReasonIneffective, annotationField(name), "has no effect on a Service of type %s; use type LoadBalancer", s.Type)
			}
		case strings.HasPrefix(name, "fairway.dev/"):
			r.add(ReasonUnsupported, annotationField(name), "is not known for a Service; check its spelling, or remove it")
		}
	}
}
