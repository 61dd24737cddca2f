package translate

import (
	"crypto/x509"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/model"
)

// CAKey is the key of a Secret that holds certificates of authorities, and CRLKey
// that of the lists of what they have revoked, as in ingress-nginx.
const (
	CAKey  = "ca.crt"
	CRLKey = "ca.crl"
)

// Secret keeps the TLS material of a Secret, and says what is wrong with it.
// Nothing else of a Secret goes further than here. Whether it is valid at the
// moment is for [CrossCheck] to say, for that changes without the Secret.
func Secret(o *corev1.Secret) *model.Certificate {
	c := &model.Certificate{
		Key:        keyOf(o),
		UID:        string(o.UID),
		Chain:      o.Data[corev1.TLSCertKey],
		PrivateKey: model.Secret(o.Data[corev1.TLSPrivateKeyKey]),
		CA:         o.Data[CAKey],
		CRL:        o.Data[CRLKey],
	}
	readCertificate(c)
	return c
}

// readCertificate fills in what follows from the material.
func readCertificate(c *model.Certificate) {
	cure := fmt.Sprintf("make it with: kubectl create secret tls %s -n %s --cert=FILE --key=FILE", c.Name, c.Namespace)
	if len(c.Chain) == 0 && len(c.PrivateKey) == 0 {
		c.Problem = "has neither tls.crt nor tls.key; " + cure
		return
	}
	parsed, err := certs.Parse(c)
	if err != nil {
		c.Problem = fmt.Sprintf("%v; %s", err, cure)
		return
	}
	c.Names = certs.Names(parsed)
	c.NotBefore, c.NotAfter = parsed.Leaf.NotBefore, parsed.Leaf.NotAfter
	c.RSA = parsed.Leaf.PublicKeyAlgorithm == x509.RSA
}
