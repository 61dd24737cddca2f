package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"fairway.dev/fairway/standalone/internal/atomicfile"
)

const (
	// lifetime of everything made here. Leaves live as long as their authority: they are renewed when a process
	// starts, and a cluster may run for years without a restart.
	lifetime = 10 * 365 * 24 * time.Hour
	// renewBefore is how long before its end a certificate is replaced at the next start.
	renewBefore = 90 * 24 * time.Hour
	// backdate tolerates clocks of other machines that are a little behind.
	backdate = time.Hour
)

// Options configure Open.
type Options struct {
	// Dir is the directory of the certificates; required. Open makes it with mode 0700.
	Dir string
	// ReadOnly makes Open fail with an error that wraps fs.ErrNotExist when the authorities do not exist yet,
	// instead of making them. Only one process of a cluster may be the one that makes them.
	ReadOnly bool
	// Now is the clock; optional, time.Now if nil.
	Now func() time.Time
}

// PKI is the set of authorities of one cluster. Its methods are not safe for use by several goroutines at once.
type PKI struct {
	dir        string
	now        func() time.Time
	cluster    *authority
	frontProxy *authority
}

// Open loads the authorities and the ServiceAccount key in the directory, making what does not exist.
func Open(opts Options) (*PKI, error) {
	p := &PKI{dir: opts.Dir, now: opts.Now}
	if p.now == nil {
		p.now = time.Now
	}
	if !opts.ReadOnly {
		if err := os.MkdirAll(p.dir, 0o700); err != nil {
			return nil, fmt.Errorf("make certificate directory: %w", err)
		}
	}
	var err error
	if p.cluster, err = p.openAuthority("ca", "fairway-ca", opts.ReadOnly); err != nil {
		return nil, err
	}
	if p.frontProxy, err = p.openAuthority("front-proxy-ca", "fairway-front-proxy-ca", opts.ReadOnly); err != nil {
		return nil, err
	}
	if err := p.openServiceAccountKey(opts.ReadOnly); err != nil {
		return nil, err
	}
	return p, nil
}

// CAFile is the path of the cluster authority's certificate, which both clients and servers are verified against.
func (p *PKI) CAFile() string { return p.path("ca.crt") }

// CAKeyFile is the path of the cluster authority's private key.
func (p *PKI) CAKeyFile() string { return p.path("ca.key") }

// CA is the cluster authority's certificate in PEM.
func (p *PKI) CA() []byte { return p.cluster.pem }

// FrontProxyCAFile is the path of the certificate of the authority that signs the aggregation layer's client
// certificate.
func (p *PKI) FrontProxyCAFile() string { return p.path("front-proxy-ca.crt") }

// ServiceAccountKeyFile is the path of the private key that signs ServiceAccount tokens.
func (p *PKI) ServiceAccountKeyFile() string { return p.path("service-account.key") }

// ServiceAccountPublicKeyFile is the path of the public key that ServiceAccount tokens are verified with.
func (p *PKI) ServiceAccountPublicKeyFile() string { return p.path("service-account.pub") }

func (p *PKI) path(name string) string { return filepath.Join(p.dir, name) }

// openAuthority loads or makes the authority in name.crt and name.key. One that is about to expire is replaced, which
// makes every certificate it issued be replaced as well.
func (p *PKI) openAuthority(name, commonName string, readOnly bool) (*authority, error) {
	a, err := loadAuthority(p.path(name+".crt"), p.path(name+".key"))
	switch {
	case errors.Is(err, fs.ErrNotExist) && !readOnly:
		return p.makeAuthority(name, commonName)
	case err != nil:
		return nil, fmt.Errorf("certificate authority %s: %w", p.path(name+".crt"), err)
	}
	now := p.now()
	if now.Before(a.cert.NotBefore) {
		return nil, fmt.Errorf("certificate authority %s is only valid from %s but the machine's clock says %s: set the clock, "+
			"or remove %s to start with new certificates", p.path(name+".crt"),
			a.cert.NotBefore.Format(time.RFC3339), now.Format(time.RFC3339), p.dir)
	}
	if now.After(a.cert.NotAfter.Add(-renewBefore)) && !readOnly {
		return p.makeAuthority(name, commonName)
	}
	return a, nil
}

func (p *PKI) makeAuthority(name, commonName string) (*authority, error) {
	a, key, err := newAuthority(commonName, p.now())
	if err != nil {
		return nil, fmt.Errorf("make certificate authority %s: %w", name, err)
	}
	// The key goes first: a certificate without its key would stop the next start.
	if err := atomicfile.Write(p.path(name+".key"), key, 0o600); err != nil {
		return nil, err
	}
	if err := atomicfile.Write(p.path(name+".crt"), a.pem, 0o600); err != nil {
		return nil, err
	}
	return a, nil
}

// openServiceAccountKey makes the ServiceAccount key if it does not exist. It is never replaced: every token in every
// running Pod depends on it.
func (p *PKI) openServiceAccountKey(readOnly bool) error {
	data, err := os.ReadFile(p.ServiceAccountKeyFile())
	var key *ecdsa.PrivateKey
	switch {
	case errors.Is(err, fs.ErrNotExist) && !readOnly:
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return fmt.Errorf("make ServiceAccount key: %w", err)
		}
		if data, err = encodeKey(key); err != nil {
			return fmt.Errorf("make ServiceAccount key: %w", err)
		}
		if err := atomicfile.Write(p.ServiceAccountKeyFile(), data, 0o600); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("read ServiceAccount key: %w", err)
	default:
		if key, err = decodeKey(data); err != nil {
			return fmt.Errorf("ServiceAccount key %s: %w", p.ServiceAccountKeyFile(), err)
		}
	}
	if _, err := os.Stat(p.ServiceAccountPublicKeyFile()); err == nil || readOnly {
		return nil
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode ServiceAccount public key: %w", err)
	}
	return atomicfile.Write(p.ServiceAccountPublicKeyFile(),
		pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o600)
}

// encodeKey encodes in SEC 1, the form that every Kubernetes component reads.
func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func decodeKey(data []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "EC PRIVATE KEY" {
		return nil, errors.New("not a PEM encoded EC private key")
	}
	return x509.ParseECPrivateKey(block.Bytes)
}

func decodeCertificate(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("not a PEM encoded certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// authority is a certificate with the key that signs others in its name.
type authority struct {
	cert *x509.Certificate
	pem  []byte
	key  crypto.Signer
}
