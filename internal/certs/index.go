package certs

import (
	"crypto/tls"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
)

// Index finds certificates by server name. It does not change once it is built;
// [Resolver] swaps one for another.
type Index struct {
	byName   map[string][]*tls.Certificate
	fallback *tls.Certificate
	sealers  sync.Map // of session tickets: *tls.Certificate -> *tls.Config, as they are needed
}

// NewIndex returns an empty index. fallback answers names that nothing else
// covers and clients that send none; with nil such handshakes fail.
func NewIndex(fallback *tls.Certificate) *Index {
	return &Index{byName: map[string][]*tls.Certificate{}, fallback: fallback}
}

// Add puts a certificate under a name, exact or "*.example.com", lower case.
// A name may have several, in the order of preference: a client gets the first
// that suits its signature algorithms, so ECDSA and RSA can stand side by side.
// Add must not be called once the index is in use.
func (x *Index) Add(name string, cert *tls.Certificate) {
	for _, c := range x.byName[name] {
		if c == cert {
			return
		}
	}
	x.byName[name] = append(x.byName[name], cert)
}

// Len returns the number of names.
func (x *Index) Len() int { return len(x.byName) }

// Find returns the certificates for a server name: those of the exact name,
// else those of the wildcard that replaces its first label (RFC 6125, 6.4.3),
// else nothing.
func (x *Index) Find(name string) []*tls.Certificate {
	name = ServerName(name)
	if list := x.byName[name]; len(list) > 0 {
		return list
	}
	if i := strings.IndexByte(name, '.'); i > 0 {
		return x.byName["*"+name[i:]]
	}
	return nil
}

// ErrNoCertificate means that there is no certificate for a server name.
var ErrNoCertificate = errors.New("no certificate for this server name")

// GetCertificate chooses the certificate for a handshake.
func (x *Index) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	list := x.Find(hello.ServerName)
	switch len(list) {
	case 0:
		if x.fallback == nil {
			return nil, ErrNoCertificate
		}
		return x.fallback, nil
	case 1:
		return list[0], nil
	}
	// The name was decided on already, and maybe against what the certificate
	// is made out for; only the algorithms are asked for here.
	anyName := *hello
	anyName.ServerName = ""
	for _, cert := range list {
		if anyName.SupportsCertificate(cert) == nil {
			return cert, nil
		}
	}
	return list[0], nil
}

// lower is strings.ToLower for names that mostly are lower case already.
func lower(s string) string {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' || c >= 0x80 {
			return strings.ToLower(s)
		}
	}
	return s
}

// Resolver serves the newest [Index] to TLS handshakes.
type Resolver struct {
	index atomic.Pointer[Index]
}

// NewResolver returns a resolver that starts with x.
func NewResolver(x *Index) *Resolver {
	r := &Resolver{}
	r.index.Store(x)
	return r
}

// Set makes x the index for all handshakes from now on.
func (r *Resolver) Set(x *Index) { r.index.Store(x) }

// Index returns the index in use.
func (r *Resolver) Index() *Index { return r.index.Load() }

// ServerConfig returns the TLS configuration of a server whose certificates
// come from r, for the given application protocols (ALPN), preferred first.
// TLS 1.2 is the oldest version, as RFC 9325 recommends. Sessions of TLS 1.3 are
// resumed by every server that has the certificate, of TLS 1.2 by this one.
func (r *Resolver) ServerConfig(protocols ...string) *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return r.index.Load().GetCertificate(hello)
		},
	}
	r.resume(config)
	return config
}
