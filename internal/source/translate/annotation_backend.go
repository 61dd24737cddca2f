package translate

import (
	"strings"

	"fairway.dev/fairway/internal/model"
)

const annotationBackendProtocol = prefixNginx + "backend-protocol"

var annotationsBackend = []string{annotationBackendProtocol}

// backendAnnotations reads how to speak to the backend. Without annotation the
// appProtocol of the Service port tells.
func (in *ingress) backendAnnotations(s *settings) {
	v, ok := in.annotation(annotationBackendProtocol)
	if !ok {
		return
	}
	switch strings.ToUpper(v) {
	case "HTTP":
		s.protocol = model.BackendHTTP
	case "HTTPS":
		s.protocol = model.BackendHTTPS
	case "GRPC":
		s.protocol = model.BackendGRPC
	case "GRPCS":
		s.protocol = model.BackendGRPCS
	case "AUTO_HTTP", "FCGI":
		in.add(ReasonUnsupported, annotationField(annotationBackendProtocol), "%s is not supported; use HTTP, HTTPS, GRPC or GRPCS. The Service port's appProtocol is followed, and HTTP without it", v)
	default:
		in.invalid(annotationField(annotationBackendProtocol), "%q is no protocol; use HTTP, HTTPS, GRPC or GRPCS. The Service port's appProtocol is followed, and HTTP without it", v)
	}
}
