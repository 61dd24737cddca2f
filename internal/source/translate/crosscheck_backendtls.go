package translate

import (
	"slices"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/model"
)

// backendTLS reports what is wrong with what a route asks of TLS to a backend:
// it has no effect, or a Secret is of no use.
func (c *crossCheck) backendTLS(ref model.Ref, b model.Backend) {
	if s, ok := c.snap.Services.Get(b.Service); ok && !b.Protocol.Secure(appProtocolOf(s, b.Port)) {
		c.add(ref, ReasonIneffective, "metadata.annotations", "the annotations proxy-ssl-* have no effect on Service %s, which is spoken to in plain; set %s: HTTPS or GRPCS, or appProtocol: https at the Service's port, or remove them",
			b.Service, annotationBackendProtocol)
		return
	}
	const effect = closedUntil + ", unless a gateway still knows what it was before"
	field := annotationField(annotationProxySSLSecret)
	t := b.TLS
	if t.Certificate.IsZero() {
		return
	}
	row, ok := c.snap.Certificates.Get(t.Certificate)
	hasPair := ok && len(row.Chain)+len(row.PrivateKey) > 0
	switch {
	case !ok:
		c.add(ref, ReasonSecretMissing, field, "Secret %s does not exist; create it with: kubectl create secret generic %s -n %s --from-file=%s=FILE, and with --from-file=tls.crt=FILE --from-file=tls.key=FILE for a certificate to show. %s",
			t.Certificate, t.Certificate.Name, t.Certificate.Namespace, CAKey, closedUntil)
	case !hasPair && len(row.CA) == 0:
		c.add(ref, ReasonSecretInvalid, field, "Secret %s has neither %s nor tls.crt with tls.key; put the certificate of the authority, or one to show with its key, into it. %s", t.Certificate, CAKey, effect)
	case hasPair && row.Problem != "":
		c.add(ref, ReasonSecretInvalid, field, "Secret %s: %s. %s", t.Certificate, row.Problem, effect)
	case t.Verify && len(row.CA) == 0:
		c.add(ref, ReasonSecretInvalid, field, "Secret %s has no %s to verify the backend with; put the certificate of the authority into it. %s", t.Certificate, CAKey, closedUntil)
	case !t.Verify && !hasPair:
		c.add(ref, ReasonIneffective, field, `Secret %s has no tls.crt to show to the backend, and its %s has no effect without %s: "on", so that the backend's certificate is not verified`, t.Certificate, CAKey, annotationProxySSLVerify)
	case hasPair && c.now.After(row.NotAfter):
		c.add(ref, ReasonCertificateTime, field, "the certificate in Secret %s, which is shown to the backend, expired on %s; renew it", t.Certificate, row.NotAfter.UTC().Format(time.RFC3339))
	case hasPair && c.now.Before(row.NotBefore):
		c.add(ref, ReasonCertificateTime, field, "the certificate in Secret %s, which is shown to the backend, is valid from %s only; check it and the clock", t.Certificate, row.NotBefore.UTC().Format(time.RFC3339))
	}
	if !ok || len(row.CA) == 0 {
		return
	}
	if _, err := certs.Pool(row.CA); err != nil {
		c.add(ref, ReasonSecretInvalid, field, "Secret %s: %v; put the certificate of the authority into it as PEM. %s", t.Certificate, err, effect)
	}
}

// canaryTLS reports a canary by which requests go to a backend that nobody
// verifies, where those that stay do not. In ingress-nginx it would go by the main
// Ingress' annotations.
func (c *crossCheck) canaryTLS(r *model.Route, rule *model.RouteRule, owner model.Ref, owned claim) {
	main, ok := c.snap.Routes.Get(owner)
	if !ok || verifies(rule) {
		return
	}
	for i := range main.Rules {
		if claimOf(&main.Rules[i]) == owned && verifies(&main.Rules[i]) {
			c.add(r.Ref, ReasonCanaryNotVerified, "metadata.annotations", "the backends of %s are verified, and those of this canary are not, for each goes by its own annotations; give it the same %s and proxy-ssl-*", owner, annotationBackendProtocol)
			return
		}
	}
}

// verifies reports whether all backends of a rule have to show who they are.
func verifies(rule *model.RouteRule) bool {
	return !slices.ContainsFunc(rule.Backends, func(b model.WeightedBackend) bool { return b.TLS == nil || !b.TLS.Verify })
}

// appProtocolOf returns that of a Service's port, "" where it has no such port.
func appProtocolOf(s *model.Service, port model.PortRef) string {
	p, _ := s.Port(port)
	return p.AppProtocol
}
