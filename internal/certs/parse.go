package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"fairway.dev/fairway/internal/model"
)

// The reasons why TLS material is of no use, or of little: a pair that is
// expired or not yet valid can still be served, and clients then say so.
var (
	ErrNoChain      = errors.New("tls.crt is empty: put the certificate chain into it as PEM, the server's certificate first")
	ErrNoKey        = errors.New("tls.key is empty: put the private key into it as PEM")
	ErrChainNotPEM  = errors.New(`tls.crt is not PEM: it must begin with "-----BEGIN CERTIFICATE-----"`)
	ErrKeyNotPEM    = errors.New(`tls.key is not PEM: it must hold a "PRIVATE KEY" block (PKCS #8, PKCS #1 or SEC 1)`)
	ErrKeyEncrypted = errors.New(`tls.key is encrypted: decrypt it first, for example with "openssl pkey -in tls.key"`)
	ErrMismatch     = errors.New("tls.key does not belong to tls.crt: the first certificate has another public key")
	ErrExpired      = errors.New("the certificate has expired: renew it")
	ErrNotYetValid  = errors.New("the certificate is not valid yet: check its notBefore and the clock")
)

// Parse returns the certificate of c. Keys may be RSA, ECDSA or Ed25519, as
// PKCS #8, PKCS #1 or SEC 1. Validity in time is not looked at; see [Check].
// Errors name the field of the Secret and the cure.
func Parse(c *model.Certificate) (*tls.Certificate, error) {
	chain, leaf, err := parseChain(c.Chain)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(c.PrivateKey)
	if err != nil {
		return nil, err
	}
	if !samePublicKey(leaf.PublicKey, key.Public()) {
		if belongsToLater(chain, key) {
			return nil, errors.New("tls.crt begins with another certificate than that of tls.key: put the server's certificate first, then the ones that signed it")
		}
		return nil, ErrMismatch
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}

// Check returns nil if c is a usable pair that is valid at that time, else an
// error fit for people. [ErrExpired] and [ErrNotYetValid] tell that the pair
// itself is sound.
func Check(c *model.Certificate, now time.Time) error {
	cert, err := Parse(c)
	if err != nil {
		return err
	}
	return CheckValidity(cert, now)
}

// CheckValidity tells whether the certificate is valid at that time.
func CheckValidity(cert *tls.Certificate, now time.Time) error {
	switch leaf := cert.Leaf; {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("%w (it was valid until %s)", ErrExpired, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("%w (it is valid from %s)", ErrNotYetValid, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// CheckHost tells whether the certificate is made out for a host name; host
// may be a wildcard "*.example.com", which needs that very name.
func CheckHost(cert *tls.Certificate, host string) error {
	if rest, ok := strings.CutPrefix(host, "*."); ok {
		host = "wildcard-label." + rest
	}
	if err := cert.Leaf.VerifyHostname(host); err != nil {
		return fmt.Errorf("the certificate is made out for %s", strings.Join(Names(cert), ", "))
	}
	return nil
}

// Names returns the DNS names and addresses that the certificate is made out
// for; the common name where it has no such names.
func Names(cert *tls.Certificate) []string {
	names := make([]string, 0, len(cert.Leaf.DNSNames)+len(cert.Leaf.IPAddresses))
	for _, n := range cert.Leaf.DNSNames {
		names = append(names, strings.ToLower(n))
	}
	for _, ip := range cert.Leaf.IPAddresses {
		names = append(names, ip.String())
	}
	if cn := cert.Leaf.Subject.CommonName; len(names) == 0 && cn != "" {
		names = append(names, strings.ToLower(cn))
	}
	return names
}

// Pool returns the certificates of ca.crt as roots to verify peers with.
func Pool(ca []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("ca.crt holds no PEM certificate")
	}
	return pool, nil
}

func parseChain(data []byte) (chain [][]byte, leaf *x509.Certificate, err error) {
	if len(strings.TrimSpace(string(data))) == 0 {
		return nil, nil, ErrNoChain
	}
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue // a key in the same file, as some tools write
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("tls.crt: certificate %d is damaged: %w", len(chain)+1, err)
		}
		if leaf == nil {
			leaf = cert
		}
		chain = append(chain, block.Bytes)
	}
	if leaf == nil {
		return nil, nil, ErrChainNotPEM
	}
	return chain, leaf, nil
}

// signer is what every private key type of the standard library is.
type signer interface {
	crypto.Signer
	Equal(crypto.PrivateKey) bool
}

func parseKey(data []byte) (signer, error) {
	if len(strings.TrimSpace(string(data))) == 0 {
		return nil, ErrNoKey
	}
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		switch {
		case block == nil:
			return nil, ErrKeyNotPEM
		case block.Type == "ENCRYPTED PRIVATE KEY", strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return nil, ErrKeyEncrypted
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			return parseKeyDER(block.Bytes)
		}
		// "EC PARAMETERS" and certificates may stand before the key.
	}
}

// parseKeyDER goes by the content and not by the PEM label, as OpenSSL does.
func parseKeyDER(der []byte) (signer, error) {
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key, nil
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("tls.key is damaged: %w", err)
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return key, nil
	case *ecdsa.PrivateKey:
		return key, nil
	case ed25519.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("tls.key is of type %T: use RSA, ECDSA or Ed25519", key)
}

func samePublicKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

func belongsToLater(chain [][]byte, key signer) bool {
	for _, der := range chain[1:] {
		if cert, err := x509.ParseCertificate(der); err == nil && samePublicKey(cert.PublicKey, key.Public()) {
			return true
		}
	}
	return false
}
