package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"fairway.dev/fairway/standalone/internal/atomicfile"
)

// Pair is a certificate with its private key.
type Pair struct {
	// CertFile and KeyFile are the paths of the PEM files.
	CertFile, KeyFile string
	// Cert and Key are their contents.
	Cert, Key []byte
}

// Identity is what a certificate says about its holder.
type Identity struct {
	// CommonName is the user name in a client certificate; required.
	CommonName string
	// Groups are the user's groups in a client certificate; optional.
	Groups []string
	// DNSNames and Addresses are what a server is reached by (its subject alternative names); empty for clients.
	DNSNames  []string
	Addresses []netip.Addr
}

// Server returns the certificate that a server identifies itself with, in the files name.crt and name.key. It is
// re-issued, with a new key, when id differs from what the present certificate says.
func (p *PKI) Server(name string, id Identity) (Pair, error) {
	return p.leaf(p.cluster, p.path(name), id, x509.ExtKeyUsageServerAuth)
}

// Client returns the certificate that a user of the API identifies itself with, in the files name.crt and name.key.
func (p *PKI) Client(name string, id Identity) (Pair, error) {
	return p.leaf(p.cluster, p.path(name), id, x509.ExtKeyUsageClientAuth)
}

// FrontProxyClient returns the certificate that the API server identifies itself with to aggregated API servers.
func (p *PKI) FrontProxyClient(name string, id Identity) (Pair, error) {
	return p.leaf(p.frontProxy, p.path(name), id, x509.ExtKeyUsageClientAuth)
}

// leaf returns the certificate in base.crt and base.key if it still says what it must, and makes a new one if not.
func (p *PKI) leaf(ca *authority, base string, id Identity, usage x509.ExtKeyUsage) (Pair, error) {
	if id.CommonName == "" {
		return Pair{}, fmt.Errorf("certificate %s: no common name given", base)
	}
	pair := Pair{CertFile: base + ".crt", KeyFile: base + ".key"}
	want := p.template(id, usage)
	if p.reuse(ca, &pair, want) {
		return pair, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("certificate %s: %w", base, err)
	}
	if want.NotAfter.After(ca.cert.NotAfter) {
		want.NotAfter = ca.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, want, ca.cert, key.Public(), ca.key)
	if err != nil {
		return Pair{}, fmt.Errorf("sign certificate %s: %w", base, err)
	}
	pair.Cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if pair.Key, err = encodeKey(key); err != nil {
		return Pair{}, fmt.Errorf("certificate %s: %w", base, err)
	}
	if err := os.MkdirAll(filepath.Dir(base), 0o700); err != nil {
		return Pair{}, fmt.Errorf("certificate %s: %w", base, err)
	}
	if err := atomicfile.Write(pair.KeyFile, pair.Key, 0o600); err != nil {
		return Pair{}, err
	}
	if err := atomicfile.Write(pair.CertFile, pair.Cert, 0o600); err != nil {
		return Pair{}, err
	}
	return pair, nil
}

// reuse fills pair from its files and reports whether they are a certificate that says what want says, made by ca,
// with its own key, and not about to expire. Anything unreadable is simply not reused.
func (p *PKI) reuse(ca *authority, pair *Pair, want *x509.Certificate) bool {
	var err error
	if pair.Cert, err = os.ReadFile(pair.CertFile); err != nil {
		return false
	}
	if pair.Key, err = os.ReadFile(pair.KeyFile); err != nil {
		return false
	}
	have, err := decodeCertificate(pair.Cert)
	if err != nil {
		return false
	}
	key, err := decodeKey(pair.Key)
	if err != nil || !key.PublicKey.Equal(have.PublicKey) {
		return false
	}
	now := p.now()
	return have.CheckSignatureFrom(ca.cert) == nil &&
		now.After(have.NotBefore) && now.Before(have.NotAfter.Add(-renewBefore)) &&
		slices.Equal(have.ExtKeyUsage, want.ExtKeyUsage) &&
		have.Subject.CommonName == want.Subject.CommonName &&
		slices.Equal(have.Subject.Organization, want.Subject.Organization) &&
		slices.Equal(have.DNSNames, want.DNSNames) &&
		slices.EqualFunc(have.IPAddresses, want.IPAddresses, net.IP.Equal)
}

// template is the certificate to be signed for id, names sorted so that their order never makes a difference.
func (p *PKI) template(id Identity, usage x509.ExtKeyUsage) *x509.Certificate {
	now := p.now()
	names := slices.Clone(id.DNSNames)
	slices.Sort(names)
	groups := slices.Clone(id.Groups)
	slices.Sort(groups)
	addrs := make([]netip.Addr, 0, len(id.Addresses))
	for _, addr := range id.Addresses {
		addrs = append(addrs, addr.Unmap().WithZone(""))
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	var ips []net.IP
	for _, addr := range slices.Compact(addrs) {
		ips = append(ips, addr.AsSlice())
	}
	return &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: id.CommonName, Organization: slices.Compact(groups)},
		DNSNames:     slices.Compact(names),
		IPAddresses:  ips,
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{usage},
	}
}

func newAuthority(commonName string, now time.Time) (*authority, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return &authority{cert: cert, pem: certPEM, key: key}, keyPEM, nil
}

func loadAuthority(certFile, keyFile string) (*authority, error) {
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	cert, err := decodeCertificate(certPEM)
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		// %v and not %w: a certificate whose key is lost must stop the start, not be replaced in silence.
		return nil, fmt.Errorf("its key cannot be read: %v", err)
	}
	key, err := decodeKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("its key %s: %w", keyFile, err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("its key %s belongs to another certificate", keyFile)
	}
	return &authority{cert: cert, pem: bytes.Clone(certPEM), key: key}, nil
}

// serial is a random number of 127 bits: RFC 5280, section 4.1.2.2, asks for a positive one of at most 20 octets that
// is unique for the authority.
func serial() *big.Int {
	raw := make([]byte, 16)
	rand.Read(raw) // never fails: see crypto/rand.Read
	raw[0] &= 0x7f
	raw[0] |= 0x40
	return new(big.Int).SetBytes(raw)
}
