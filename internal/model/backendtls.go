package model

import "strings"

// Or returns how a backend is spoken to: as was asked for, or else as the
// Service port's appProtocol says, by the names of KEP-3726 and those in common
// use. It is one of BackendHTTP, BackendHTTPS, BackendH2C and BackendGRPCS.
func (p BackendProtocol) Or(appProtocol string) BackendProtocol {
	switch p {
	case BackendHTTP, BackendHTTPS, BackendH2C, BackendGRPCS:
		return p
	case BackendGRPC:
		return BackendH2C
	}
	switch strings.ToLower(appProtocol) {
	case "kubernetes.io/h2c", "h2c", "http2", "grpc", "kubernetes.io/grpc":
		return BackendH2C
	case "grpcs":
		return BackendGRPCS
	case "https", "kubernetes.io/wss", "wss":
		return BackendHTTPS
	}
	return BackendHTTP
}

// Secure reports whether [BackendProtocol.Or] speaks TLS.
func (p BackendProtocol) Secure(appProtocol string) bool {
	p = p.Or(appProtocol)
	return p == BackendHTTPS || p == BackendGRPCS
}
