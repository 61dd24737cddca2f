package model

import "strings"

// BackendTLS is what an object says of the TLS that a backend is spoken to by:
// the proxy-ssl-* annotations of an Ingress, later a BackendTLSPolicy of Gateway
// API. It has no effect on a backend that is spoken to in plain. Never changed
// once it is part of a route.
type BackendTLS struct {
	// Verify has the backend's certificate verified: by ca.crt of the Secrets CA,
	// or where that names none, by the authorities that the gateway's system trusts.
	Verify bool
	CA     []Key
	// Depth is how many certificates may stand between the backend's own and a
	// trusted one; -1 for any number.
	Depth int
	// Name is what the certificate has to be made out for, a host name or an
	// address; empty for the names of the Service, or the external name of one that
	// stands for a name.
	Name string
	// ServerName is whether the backend is told that name (SNI).
	ServerName ServerName
	// Certificate names a Secret whose tls.crt and tls.key are shown to backends
	// that ask for a certificate, if it has them; zero for none.
	Certificate Key
	// MinVersion and MaxVersion are versions of TLS, in the numbers of crypto/tls;
	// 0 for the gateway's own. CipherSuites are those that TLS 1.2 may choose from;
	// nil for all that are safe.
	MinVersion, MaxVersion uint16
	CipherSuites           []uint16
	// Mistake is why no connection may be opened: what was asked for cannot be told
	// without leaving out a check that was meant. Empty for none.
	Mistake string
}

// ServerName is whether a backend is told which name it is asked for (SNI).
type ServerName uint8

// The answers.
const (
	// ServerNameAuto tells the names of Services that stand for a name.
	ServerNameAuto ServerName = iota
	ServerNameOn
	ServerNameOff
)

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
