package testenv

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// Authority signs certificates, as the tests of TLS need them.
type Authority struct {
	Cert *x509.Certificate
	// Chain is what it takes to get from a certificate of the authority's to its
	// root, without that: the authorities that another one has signed.
	Chain [][]byte
	key   *ecdsa.PrivateKey
}

// NewAuthority makes one that signs itself. Change may alter its certificate.
func NewAuthority(tb testing.TB, name string, change ...func(*x509.Certificate)) *Authority {
	tb.Helper()
	return newAuthority(tb, nil, name, change)
}

// Authority makes one that a has signed.
func (a *Authority) Authority(tb testing.TB, name string, change ...func(*x509.Certificate)) *Authority {
	tb.Helper()
	return newAuthority(tb, a, name, change)
}

func newAuthority(tb testing.TB, parent *Authority, name string, change []func(*x509.Certificate)) *Authority {
	tb.Helper()
	t := template(tb, name)
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	for _, f := range change {
		f(t)
	}
	a := &Authority{key: newKey(tb)}
	signer, by := t, a.key
	if parent != nil {
		signer, by = parent.Cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, signer, a.key.Public(), by)
	if err != nil {
		tb.Fatal(err)
	}
	if a.Cert, err = x509.ParseCertificate(der); err != nil {
		tb.Fatal(err)
	}
	if parent != nil {
		a.Chain = append([][]byte{der}, parent.Chain...)
	}
	return a
}

// Client makes a certificate for a client, with those of the authorities that
// stand between it and the root.
func (a *Authority) Client(tb testing.TB, name string, change ...func(*x509.Certificate)) tls.Certificate {
	tb.Helper()
	t := template(tb, name)
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, f := range change {
		f(t)
	}
	return a.sign(tb, t)
}

// Issue makes a certificate for names, which may be addresses, with those of the
// authorities that stand between it and the root. Change, which may be nil, may
// alter it.
func (a *Authority) Issue(tb testing.TB, change func(*x509.Certificate), names ...string) tls.Certificate {
	tb.Helper()
	t := template(tb, "leaf")
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	if change != nil {
		change(t)
	}
	return a.sign(tb, t)
}

func (a *Authority) sign(tb testing.TB, t *x509.Certificate) tls.Certificate {
	tb.Helper()
	key := newKey(tb)
	der, err := x509.CreateCertificate(rand.Reader, t, a.Cert, key.Public(), a.key)
	if err != nil {
		tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: append([][]byte{der}, a.Chain...), PrivateKey: key, Leaf: leaf}
}

// PEM returns the authority's certificate, as it stands in ca.crt.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Cert.Raw})
}

// Revoked returns a revocation list of the authority's in PEM, as it stands in
// ca.crl, made an hour ago and valid until the given time.
func (a *Authority) Revoked(tb testing.TB, until time.Time, list ...*x509.Certificate) []byte {
	tb.Helper()
	t := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: until}
	if until.Before(t.ThisUpdate) {
		t.ThisUpdate = until.Add(-time.Hour)
	}
	for _, c := range list {
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: t.ThisUpdate})
	}
	return a.SignList(tb, t)
}

// SignList returns a revocation list that the authority has signed, in PEM.
func (a *Authority) SignList(tb testing.TB, t *x509.RevocationList) []byte {
	tb.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, t, a.Cert, a.key)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

func template(tb testing.TB, name string) *x509.Certificate {
	tb.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		tb.Fatal(err)
	}
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}
