package translate

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestSecretKeepsAuthorities: a Secret of authorities has no pair, which is no
// reason to leave it out; nothing but TLS material is kept.
func TestSecretKeepsAuthorities(t *testing.T) {
	c := Secret(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "ca"},
		Data: map[string][]byte{"ca.crt": []byte("roots"), "ca.crl": []byte("revoked"), "password": []byte("x")}})
	if string(c.CA) != "roots" || string(c.CRL) != "revoked" || c.Chain != nil || c.PrivateKey != nil {
		t.Errorf("got CA %q, CRL %q, chain %q", c.CA, c.CRL, c.Chain)
	}
}
