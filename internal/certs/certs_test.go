package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
)

var testNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func newKey(t *testing.T, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ecdsa":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certificate(t *testing.T, key crypto.Signer, names ...string) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names, Subject: pkix.Name{CommonName: "test"},
		NotBefore: testNow.Add(-time.Hour), NotAfter: testNow.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func pkcs8(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestParseKeys(t *testing.T) {
	ec := newKey(t, "ecdsa").(*ecdsa.PrivateKey)
	ecDER, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	sec1 := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: ecDER})
	params := pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}})
	r := newKey(t, "rsa").(*rsa.PrivateKey)
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(r)})
	ed := newKey(t, "ed25519")
	tests := []struct {
		name string
		key  crypto.Signer
		pem  []byte
	}{
		{"rsa pkcs1", r, pkcs1},
		{"rsa pkcs8", r, pkcs8(t, r)},
		{"ecdsa sec1", ec, sec1},
		{"ecdsa sec1 after parameters", ec, append(params, sec1...)},
		{"ecdsa pkcs8", ec, pkcs8(t, ec)},
		{"ed25519 pkcs8", ed, pkcs8(t, ed)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := &model.Certificate{Chain: certificate(t, tt.key, "a.example"), PrivateKey: tt.pem}
			if err := Check(c, testNow); err != nil {
				t.Fatal(err)
			}
			cert, err := Parse(c)
			if err != nil {
				t.Fatal(err)
			}
			if name, err := handshake(cert, "a.example", nil); err != nil || name != "a.example" {
				t.Errorf("handshake got a certificate for %q, %v", name, err)
			}
		})
	}
}

func TestCheckSaysWhatIsWrong(t *testing.T) {
	key, other := newKey(t, "ecdsa"), newKey(t, "ecdsa")
	chain, otherChain := certificate(t, key, "a.example"), certificate(t, other, "b.example")
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})
	legacy := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: []byte("x")})
	tests := []struct {
		name       string
		chain, key []byte
		now        time.Time
		want       string
		is         error
	}{
		{"no chain", nil, pkcs8(t, key), testNow, "tls.crt is empty", ErrNoChain},
		{"no key", chain, []byte("\n"), testNow, "tls.key is empty", ErrNoKey},
		{"chain not PEM", []byte("hello"), pkcs8(t, key), testNow, "tls.crt is not PEM", ErrChainNotPEM},
		{"key not PEM", chain, []byte("hello"), testNow, "tls.key is not PEM", ErrKeyNotPEM},
		{"certificate as key", chain, chain, testNow, "tls.key is not PEM", ErrKeyNotPEM},
		{"encrypted key", chain, encrypted, testNow, "tls.key is encrypted", ErrKeyEncrypted},
		{"encrypted key, old form", chain, legacy, testNow, "tls.key is encrypted", ErrKeyEncrypted},
		{"wrong key", chain, pkcs8(t, other), testNow, "tls.key does not belong to tls.crt", ErrMismatch},
		{"wrong order", append(append([]byte{}, otherChain...), chain...), pkcs8(t, key), testNow, "put the server's certificate first", nil},
		{"damaged certificate", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), pkcs8(t, key), testNow, "certificate 1 is damaged", nil},
		{"damaged key", chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), testNow, "tls.key is damaged", nil},
		{"expired", chain, pkcs8(t, key), testNow.Add(48 * time.Hour), "has expired", ErrExpired},
		{"not yet valid", chain, pkcs8(t, key), testNow.Add(-48 * time.Hour), "not valid yet", ErrNotYetValid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Check(&model.Certificate{Chain: tt.chain, PrivateKey: tt.key}, tt.now)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got error %v, want one that says %q", err, tt.want)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v is not %v", err, tt.is)
			}
		})
	}
}

// handshake runs a TLS handshake against get and returns the first DNS name of
// the certificate that the client was shown.
func handshake(fixed *tls.Certificate, serverName string, x *Index) (string, error) {
	if x == nil {
		x = NewIndex(fixed)
	}
	return handshakeWith(NewResolver(x), &tls.Config{ServerName: serverName, InsecureSkipVerify: true})
}

func handshakeWith(r *Resolver, client *tls.Config) (string, error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() { _ = tls.Server(a, r.ServerConfig("h2", "http/1.1")).Handshake() }()
	c := tls.Client(b, client)
	if err := c.Handshake(); err != nil {
		return "", err
	}
	leaf := c.ConnectionState().PeerCertificates[0]
	if len(leaf.DNSNames) == 0 {
		return leaf.Subject.CommonName, nil
	}
	return leaf.DNSNames[0], nil
}

func testCert(t *testing.T, kind, name string) *tls.Certificate {
	t.Helper()
	key := newKey(t, kind)
	cert, err := Parse(&model.Certificate{Chain: certificate(t, key, name), PrivateKey: pkcs8(t, key)})
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestIndexBySNI(t *testing.T) {
	fallback, err := SelfSigned("Fairway default certificate", testNow)
	if err != nil {
		t.Fatal(err)
	}
	x := NewIndex(fallback)
	for _, name := range []string{"a.example", "*.example", "*.b.example"} {
		x.Add(name, testCert(t, "ecdsa", name))
	}
	shared := testCert(t, "ecdsa", "many.example")
	for i := range 5000 {
		x.Add(fmt.Sprintf("host-%d.many.example", i), shared)
	}
	if got := NewResolver(x).Index().Len(); got != 5003 {
		t.Errorf("%d names, want 5003", got)
	}
	tests := []struct{ name, serverName, want string }{
		{"exact", "a.example", "a.example"},
		{"exact, upper case", "A.Example", "a.example"},
		{"wildcard", "c.example", "*.example"},
		{"deeper wildcard", "x.b.example", "*.b.example"},
		{"wildcard is one label", "y.x.b.example", "Fairway default certificate"},
		{"wildcard is not the domain itself", "example", "Fairway default certificate"},
		{"unknown", "other.test", "Fairway default certificate"},
		{"no name", "", "Fairway default certificate"},
		{"one of thousands", "host-4321.many.example", "many.example"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := handshake(nil, tt.serverName, x)
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("got the certificate of %q, want %q", got, tt.want)
			}
		})
	}
}

func TestIndexChoosesKeyTypeByClient(t *testing.T) {
	x := NewIndex(nil)
	x.Add("a.example", testCert(t, "ecdsa", "ecdsa.a.example"))
	x.Add("a.example", testCert(t, "rsa", "rsa.a.example"))
	r := NewResolver(x)
	rsaOnly := &tls.Config{
		ServerName: "a.example", InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12,
		CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256},
	}
	for want, cfg := range map[string]*tls.Config{
		"ecdsa.a.example": {ServerName: "a.example", InsecureSkipVerify: true},
		"rsa.a.example":   rsaOnly,
	} {
		if got, err := handshakeWith(r, cfg); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}

func TestServerConfigRefusesOldTLSAndSwaps(t *testing.T) {
	x := NewIndex(nil)
	x.Add("a.example", testCert(t, "ecdsa", "a.example"))
	r := NewResolver(x)
	old := &tls.Config{ServerName: "a.example", InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	if _, err := handshakeWith(r, old); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	if _, err := handshakeWith(r, &tls.Config{ServerName: "b.example", InsecureSkipVerify: true}); err == nil {
		t.Error("a name without certificate was accepted with no fallback")
	}
	y := NewIndex(nil)
	y.Add("a.example", testCert(t, "ecdsa", "second.a.example"))
	r.Set(y)
	if got, err := handshakeWith(r, &tls.Config{ServerName: "a.example", InsecureSkipVerify: true}); err != nil || got != "second.a.example" {
		t.Errorf("after the swap got %q, %v", got, err)
	}
}

func TestCheckHost(t *testing.T) {
	cert := testCert(t, "ecdsa", "*.foo.example")
	for host, ok := range map[string]bool{
		"a.foo.example": true, "*.foo.example": true, "foo.example": false, "a.b.foo.example": false, "*.example": false,
	} {
		err := CheckHost(cert, host)
		if (err == nil) != ok {
			t.Errorf("CheckHost(%q) = %v, want ok %v", host, err, ok)
		}
		if err != nil && !strings.Contains(err.Error(), "*.foo.example") {
			t.Errorf("error %v does not say which names there are", err)
		}
	}
}

func TestPool(t *testing.T) {
	if _, err := Pool([]byte("nothing")); err == nil {
		t.Error("no error for ca.crt without certificates")
	}
	chain := certificate(t, newKey(t, "ecdsa"), "ca")
	if _, err := Pool(bytes.Clone(chain)); err != nil {
		t.Error(err)
	}
}
