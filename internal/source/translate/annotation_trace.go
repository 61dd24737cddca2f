package translate

const (
	annotationTrace      = prefixNginx + "enable-opentelemetry"
	annotationTraceTrust = prefixNginx + "opentelemetry-trust-incoming-span"
)

var annotationsTrace = []string{annotationTrace, annotationTraceTrust}

// traceAnnotations reads whether requests are traced. Whether anything is
// traced at all, and what share of it, is up to the gateway.
func (in *ingress) traceAnnotations(s *settings) {
	s.filters.TraceOff = !in.boolean(annotationTrace, true)
	s.filters.TraceDistrust = !in.boolean(annotationTraceTrust, true)
	if _, ok := in.annotation(annotationTraceTrust); ok && s.filters.TraceOff {
		in.add(ReasonIneffective, annotationField(annotationTraceTrust), `has no effect beside %s: "false"; remove one of them`, annotationTrace)
		s.filters.TraceDistrust = false
	}
}
