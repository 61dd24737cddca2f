package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/ocsp"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// TestStapling: a certificate that names a responder is shown with its proof,
// also after it is renewed.
func TestStapling(t *testing.T) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	sign := func(template *x509.Certificate) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, authority, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	root := sign(authority)
	authority, _ = x509.ParseCertificate(root)
	backendServer(t, "10.99.81.1:80", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		q, err := ocsp.ParseRequest(body)
		if err != nil {
			t.Error(err)
			return
		}
		raw, err := ocsp.CreateResponse(authority, authority, ocsp.Response{Status: ocsp.Good, SerialNumber: q.SerialNumber,
			ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(100 * time.Hour)}, key)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(raw)
	})
	registry := prometheus.NewRegistry()
	w := newWorld(t, func(o *Options) { o.Registerer = registry })
	w.service("a", "", "10.99.81.2:80")
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	put := func(serial int64) *x509.Certificate {
		leaf := sign(&x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{"a.test"}, OCSPServer: []string{"http://10.99.81.1"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)})
		keyDER, _ := x509.MarshalPKCS8PrivateKey(key)
		w.update(func(tx *state.Tx) {
			tx.PutCertificate(&model.Certificate{Key: gatewaytest.Key("pair"), Chain: append(block("CERTIFICATE", leaf), block("CERTIFICATE", root)...), PrivateKey: block("PRIVATE KEY", keyDER)})
		})
		c, _ := x509.ParseCertificate(leaf)
		return c
	}
	first := put(2)
	w.route(withTLS(ingress("main", rule("a.test", "/", "a")), "pair", "a.test"))
	proven := func(leaf *x509.Certificate) func() bool {
		return func() bool {
			c, err := tls.Dial("tcp", w.g.HTTPSAddr().String(), &tls.Config{ServerName: "a.test", InsecureSkipVerify: true})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			staple := c.ConnectionState().OCSPResponse
			if len(staple) == 0 {
				return false
			}
			answer, err := ocsp.ParseResponseForCert(staple, leaf, authority)
			if err != nil || answer.Status != ocsp.Good || c.ConnectionState().PeerCertificates[0].SerialNumber.Cmp(leaf.SerialNumber) != 0 {
				t.Fatalf("%+v, %v", answer, err)
			}
			return true
		}
	}
	w.eventually("the certificate is stapled", proven(first))
	second := put(3)
	w.eventually("the new certificate is stapled", proven(second))
	s := w.g.State("certificates").Certificates
	if s[0].StapledUntil == nil || !s[0].StapledUntil.After(time.Now().Add(time.Hour)) || s[1].StapledUntil != nil {
		t.Errorf("%+v", s)
	}
	if n := metric(t, registry, "fairway_gateway_ocsp_fetches_total")["result=ok"]; n != 2 {
		t.Errorf("%v questions were counted", n)
	}
}
