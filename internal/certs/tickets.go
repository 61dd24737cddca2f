package certs

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
)

// ticketUse keeps what is made of a private key for tickets apart from anything
// else that may be made of it.
const ticketUse = "fairway.dev session tickets, TLS 1.3"

// tickets returns what seals the session tickets of a server name, for TLS 1.3
// only: a key made of the private key of the name's first certificate. So every
// server with that certificate, and this one after a restart, resumes sessions
// that another has begun, and nobody has to carry keys about. Whoever gets hold
// of the private key can still not read what was recorded, for a resumed
// connection agrees on a key anew (Go's server takes no other, and no data before
// that); in TLS 1.2 he could. A ticket is of no use at another certificate.
//
// It returns nil if there is no such key.
func (x *Index) tickets(name string) *tls.Config {
	cert := x.fallback
	if list := x.Find(name); len(list) > 0 {
		cert = list[0]
	}
	if cert == nil {
		return nil
	}
	if c, ok := x.sealers.Load(cert); ok {
		return c.(*tls.Config)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil // a key that is not in memory
	}
	key, err := hkdf.Key(sha256.New, secret, nil, ticketUse, 32)
	if err != nil {
		return nil
	}
	config := &tls.Config{}
	config.SetSessionTicketKeys([][32]byte{[32]byte(key)})
	c, _ := x.sealers.LoadOrStore(cert, config)
	return c.(*tls.Config)
}

// resume makes config seal session tickets by the index in use. Those of TLS 1.2
// and of servers without certificates are sealed by keys of this process, that
// change each day.
func (r *Resolver) resume(config *tls.Config) {
	own := &tls.Config{}
	sealer := func(cs *tls.ConnectionState) *tls.Config {
		if cs.Version == tls.VersionTLS13 {
			if c := r.index.Load().tickets(cs.ServerName); c != nil {
				return c
			}
		}
		return own
	}
	config.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
		return sealer(&cs).EncryptTicket(cs, s)
	}
	config.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		return sealer(&cs).DecryptTicket(ticket, cs)
	}
}
