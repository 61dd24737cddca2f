package gateway

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// rsaSecret is like secret with a key of RSA.
func rsaSecret(t *testing.T, name, host string) *model.Certificate {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return &model.Certificate{Key: key(name), Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		PrivateKey: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)})}
}

// TestRSAStandsBack: a client that can use a certificate without RSA gets it,
// also where an older Ingress of the namespace has one with; but only if nobody
// would refuse it, and not from another namespace.
func TestRSAStandsBack(t *testing.T) {
	old, other := rsaSecret(t, "old", "a.test"), secret(t, "other", "a.test")
	other.Namespace = "other"
	young, alien := secret(t, "young", "a.test"), secret(t, "alien", "b.test")
	store := state.New()
	store.Update(func(tx *state.Tx) {
		for _, c := range []*model.Certificate{old, other, young, alien} {
			tx.PutCertificate(c)
		}
	})
	put := func(age int, secret *model.Certificate) {
		r := withTLS(ingress(secret.Name), secret.Name, "a.test")
		r.Namespace, r.Created = secret.Namespace, time.Now().Add(time.Duration(-age)*time.Hour)
		r.TLS[0].Secret = secret.Key
		store.Update(func(tx *state.Tx) { tx.PutRoute(r) })
	}
	c := newCertificates(nil, model.Key{})
	presented := func(schemes ...tls.SignatureScheme) string {
		t.Helper()
		c.sync(store.Snapshot())
		got, err := c.index.GetCertificate(&tls.ClientHelloInfo{ServerName: "a.test", SupportedVersions: []uint16{tls.VersionTLS13},
			SupportedCurves: []tls.CurveID{tls.CurveP256}, SignatureSchemes: schemes})
		if err != nil {
			t.Fatal(err)
		}
		return got.Leaf.Subject.CommonName
	}
	both := []tls.SignatureScheme{tls.PSSWithSHA256, tls.ECDSAWithP256AndSHA256}
	put(9, old)
	put(8, alien)
	put(7, other)
	if got := presented(both...); got != "old" {
		t.Errorf("%s goes before the oldest", got)
	}
	put(1, young)
	if got := presented(both...); got != "young" {
		t.Errorf("who can use ECDSA gets %s", got)
	}
	if got := presented(tls.PSSWithSHA256); got != "old" {
		t.Errorf("who can use RSA alone gets %s", got)
	}
}
