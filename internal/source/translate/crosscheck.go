package translate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// The reasons of problems between objects, as they stand in Events.
const (
	// ReasonServiceMissing is a backend whose Service does not exist.
	ReasonServiceMissing = "ServiceMissing"
	// ReasonPortMissing is a backend whose Service has no such port.
	ReasonPortMissing = "PortMissing"
	// ReasonSecretMissing is a Secret that is named but does not exist.
	ReasonSecretMissing = "SecretMissing"
	// ReasonSecretInvalid is a Secret without usable TLS material.
	ReasonSecretInvalid = "SecretInvalid"
	// ReasonCertificateTime is a certificate that has expired or is not valid yet.
	ReasonCertificateTime = "CertificateNotValid"
	// ReasonCertificateName is a certificate made out for other names.
	ReasonCertificateName = "CertificateNameMismatch"
	// ReasonDuplicate is a host and path, or a port, that another object claims as well.
	ReasonDuplicate = "Duplicate"
	// ReasonExpensiveKey is a certificate by which connections cost several times
	// what they could.
	ReasonExpensiveKey = "ExpensiveKey"
	// ReasonClientAuthConflict is a host of which an older object asks something else
	// of clients.
	ReasonClientAuthConflict = "ClientAuthConflict"
	// ReasonCanaryNotVerified is a canary whose backends are not verified, of a rule
	// whose backends are.
	ReasonCanaryNotVerified = "CanaryNotVerified"
	// ReasonNoCanaryTarget is a canary without a rule that it could take requests of.
	ReasonNoCanaryTarget = "NoCanaryTarget"
)

// CrossCheck returns what is wrong between the objects of a snapshot, by
// object (without UID), as translation of a single object cannot see it. now
// decides whether certificates are valid.
func CrossCheck(snap *state.Snapshot, now time.Time) map[model.Ref]model.Problems {
	c := &crossCheck{snap: snap, now: now, found: map[model.Ref]model.Problems{}}
	for key, s := range snap.Services.All() {
		if s.TLS != nil {
			c.serviceTLS(model.Ref{Kind: "Service", Key: key, UID: s.UID}, s)
		}
	}
	c.routes()
	c.streams()
	return c.found
}

type crossCheck struct {
	snap  *state.Snapshot
	now   time.Time
	found map[model.Ref]model.Problems
}

// add records a problem once, however many rules have it.
func (c *crossCheck) add(object model.Ref, reason, field, format string, args ...any) {
	c.put(model.Problem{Object: object, Reason: reason, Field: field, Message: fmt.Sprintf(format, args...)})
}

func (c *crossCheck) put(p model.Problem) {
	row := p.Object
	row.UID = ""
	if !slices.Contains(c.found[row], p) {
		c.found[row] = append(c.found[row], p)
	}
}

func (c *crossCheck) serviceTLS(ref model.Ref, s *model.Service) {
	field := annotationField(AnnotationTLSSecret)
	const effect = "Connections to the TLS ports are refused until then"
	var usable []*model.Certificate
	for _, key := range s.TLS.Certificates {
		if cert := c.certificate(ref, field, key, effect); cert != nil {
			usable = append(usable, cert)
		}
	}
	if len(usable) > 0 {
		for _, host := range s.TLS.Hosts {
			c.hostName(ref, annotationField(AnnotationTLSHosts), host, usable)
		}
	}
	if s.TLS.CA.IsZero() {
		return
	}
	field = annotationField(AnnotationTLSCASecret)
	ca, ok := c.snap.Certificates.Get(s.TLS.CA)
	switch {
	case !ok:
		c.add(ref, ReasonSecretMissing, field, "Secret %s does not exist; create it with: kubectl create secret generic %s -n %s --from-file=%s=FILE. %s",
			s.TLS.CA, s.TLS.CA.Name, s.TLS.CA.Namespace, CAKey, effect)
	case len(ca.CA) == 0:
		c.add(ref, ReasonSecretInvalid, field, "Secret %s has no %s; put the certificate of the authority into it. %s", s.TLS.CA, CAKey, effect)
	default:
		if _, err := certs.Pool(ca.CA); err != nil {
			c.add(ref, ReasonSecretInvalid, field, "Secret %s: %v; put the certificate of the authority into it. %s", s.TLS.CA, err, effect)
		}
	}
}

// certificate returns the certificate of a Secret if it can be served, and
// reports what is wrong with it.
func (c *crossCheck) certificate(ref model.Ref, field string, key model.Key, effect string) *model.Certificate {
	cert, ok := c.snap.Certificates.Get(key)
	switch {
	case !ok:
		c.add(ref, ReasonSecretMissing, field, "Secret %s does not exist; create it with: kubectl create secret tls %s -n %s --cert=FILE --key=FILE. %s",
			key, key.Name, key.Namespace, effect)
		return nil
	case cert.Problem != "":
		c.add(ref, ReasonSecretInvalid, field, "Secret %s: %s. %s", key, cert.Problem, effect)
		return nil
	case c.now.After(cert.NotAfter):
		c.add(ref, ReasonCertificateTime, field, "the certificate in Secret %s expired on %s, so clients refuse it; renew it", key, cert.NotAfter.UTC().Format(time.RFC3339))
	case c.now.Before(cert.NotBefore):
		c.add(ref, ReasonCertificateTime, field, "the certificate in Secret %s is valid from %s only, so clients refuse it; check it and the clock", key, cert.NotBefore.UTC().Format(time.RFC3339))
	}
	return cert
}

// hostName reports a host that none of the certificates is made out for.
func (c *crossCheck) hostName(ref model.Ref, field, host string, certificates []*model.Certificate) {
	var names, secrets []string
	for _, cert := range certificates {
		for _, name := range cert.Names {
			if hostCovers(name, host) {
				return
			}
		}
		names = append(names, cert.Names...)
		secrets = append(secrets, cert.Key.String())
	}
	c.add(ref, ReasonCertificateName, field, "the certificate in Secret %s is made out for %s and not for %s, so clients refuse it; issue it with that name",
		strings.Join(secrets, ", "), strings.Join(names, ", "), host)
}

// claim is what only one rule can have.
type claim struct {
	host      string
	path      model.PathMatch
	isDefault bool
}

func (c *crossCheck) routes() {
	routes := make([]*model.Route, 0, c.snap.Routes.Len())
	for _, r := range c.snap.Routes.All() {
		routes = append(routes, r)
	}
	// The older object wins; the names decide between objects of one second.
	slices.SortFunc(routes, func(a, b *model.Route) int {
		if n := a.Created.Compare(b.Created); n != 0 {
			return n
		}
		return a.Ref.Compare(b.Ref)
	})
	owners := map[claim]model.Ref{}
	for _, r := range routes {
		for i := range r.Rules {
			c.rule(r, &r.Rules[i], owners)
		}
		c.routeTLS(r)
	}
	c.expensiveKeys(routes)
	c.clientAuth(routes)
	for _, r := range routes {
		for i := range r.Rules {
			c.canary(r, &r.Rules[i], owners)
		}
	}
}

func claimOf(rule *model.RouteRule) claim { return claim{rule.Host, rule.Path, rule.Default} }

func (c *crossCheck) rule(r *model.Route, rule *model.RouteRule, owners map[claim]model.Ref) {
	for _, b := range rule.Backends {
		c.backend(r.Ref, rule.Field, b.Backend, model.TCP, "Requests for it are answered with 503")
		if b.TLS != nil {
			c.backendTLS(r.Ref, b.Backend)
		}
	}
	if rule.Canary != nil || len(rule.Methods)+len(rule.Headers)+len(rule.Query) > 0 {
		return
	}
	owner, taken := owners[claimOf(rule)]
	if !taken {
		owners[claimOf(rule)] = r.Ref
		return
	}
	if rule.Default && len(r.Rules) > 1 {
		return // it still takes what the object's own hosts leave over
	}
	what := fmt.Sprintf("host %q with path %s (%s)", rule.Host, rule.Path.Value, rule.Path.Type)
	if rule.Default {
		what = "a default backend"
	}
	if owner == r.Ref {
		c.add(r.Ref, ReasonDuplicate, rule.Field, "%s stands in this object already; the first one counts, remove the other", what)
		return
	}
	c.add(r.Ref, ReasonDuplicate, rule.Field, "%s is claimed by the older %s, which gets the requests; change or remove one of them", what, owner)
}

// canary reports a canary without a rule for the same host and path in its
// namespace. The path
// type may differ: a rewrite-target makes one of the two a regular expression.
func (c *crossCheck) canary(r *model.Route, rule *model.RouteRule, owners map[claim]model.Ref) {
	if rule.Canary == nil {
		return
	}
	for owned, owner := range owners {
		if owner.Namespace == r.Namespace && owned.host == rule.Host && owned.isDefault == rule.Default && samePath(owned.path, rule.Path) {
			c.canaryTLS(r, rule, owner, owned)
			return
		}
	}
	c.add(r.Ref, ReasonNoCanaryTarget, rule.Field, "no Ingress of namespace %s without the canary annotation has host %q with path %s, so there are no requests for the canary; give both the same host and path, in one namespace",
		r.Namespace, rule.Host, rule.Path.Value)
}

func samePath(a, b model.PathMatch) bool {
	return strings.TrimSuffix(a.Value, "/") == strings.TrimSuffix(b.Value, "/")
}

func (c *crossCheck) routeTLS(r *model.Route) {
	for _, t := range r.TLS {
		if t.Secret.IsZero() {
			continue
		}
		cert := c.certificate(r.Ref, "spec.tls", t.Secret, "Clients get a self-signed certificate until then")
		if cert == nil {
			continue
		}
		for _, host := range t.Hosts {
			c.hostName(r.Ref, "spec.tls", host, []*model.Certificate{cert})
		}
	}
}

// expensiveKeys advises who serves a host by a certificate of RSA, and by none
// beside it in the same namespace that most clients would get instead.
func (c *crossCheck) expensiveKeys(routes []*model.Route) {
	type site struct{ namespace, host string }
	each := func(rsa bool, do func(site, *model.Certificate)) {
		for _, r := range routes {
			for _, t := range r.TLS {
				cert, ok := c.snap.Certificates.Get(t.Secret)
				if !ok || cert.Problem != "" || cert.RSA != rsa {
					continue
				}
				hosts := t.Hosts
				if len(hosts) == 0 {
					hosts = cert.Names
				}
				for _, host := range hosts {
					do(site{r.Namespace, host}, cert)
				}
			}
		}
	}
	cheap := map[site]bool{}
	each(false, func(s site, _ *model.Certificate) { cheap[s] = true })
	each(true, func(s site, cert *model.Certificate) {
		if !cheap[s] {
			c.put(model.Problem{Object: model.Ref{Kind: "Secret", Key: cert.Key, UID: cert.UID}, Reason: ReasonExpensiveKey, Severity: model.Advice,
				Message: "the certificate has a key of RSA, whose signature makes a new TLS connection several times as expensive as one of ECDSA would; issue one with a key of ECDSA (cert-manager: privateKey.algorithm), and where old clients need RSA name both Secrets in the Ingress"})
		}
	})
}

// backend reports a backend without Service or port.
func (c *crossCheck) backend(ref model.Ref, field string, b model.Backend, protocol model.Protocol, effect string) {
	s, ok := c.snap.Services.Get(b.Service)
	if !ok {
		c.add(ref, ReasonServiceMissing, field, "Service %s does not exist; create it, or correct the name. %s until then", b.Service, effect)
		return
	}
	if s.Type == model.ExternalName && b.Port.Name == "" {
		return // such a Service need not list its ports
	}
	for _, p := range s.Ports {
		if p.Protocol == protocol && (b.Port.Name != "" && p.Name == b.Port.Name || b.Port.Name == "" && p.Port == b.Port.Number) {
			return
		}
	}
	port := b.Port.Name
	if port == "" {
		port = fmt.Sprint(b.Port.Number)
	}
	c.add(ref, ReasonPortMissing, field, "Service %s has no %s port %s; its ports are: %s. %s until then", b.Service, protocol, port, portNames(s), effect)
}

// streams finds stream routes that want the same port for the same host.
func (c *crossCheck) streams() {
	type port struct {
		model.Protocol
		number uint16
		host   string
	}
	var all []model.StreamRoute
	for _, list := range c.snap.Streams.All() {
		all = append(all, list...)
	}
	slices.SortStableFunc(all, func(a, b model.StreamRoute) int {
		if n := a.Created.Compare(b.Created); n != 0 {
			return n
		}
		return a.Ref.Compare(b.Ref)
	})
	owners := map[port]model.Ref{}
	for _, s := range all {
		c.backend(s.Ref, s.Field, s.Backend, s.Protocol, "Connections to it are closed")
		hosts := s.Hosts
		if len(hosts) == 0 {
			hosts = []string{""}
		}
		for _, host := range hosts {
			p := port{s.Protocol, s.Port, host}
			owner, taken := owners[p]
			if !taken {
				owners[p] = s.Ref
				continue
			}
			c.add(s.Ref, ReasonDuplicate, s.Field, "gateway port %d/%s%s is claimed by %s already, which gets the connections; choose another port or host",
				s.Port, s.Protocol, forHost(host), owner)
		}
	}
}

func forHost(host string) string {
	if host == "" {
		return ""
	}
	return fmt.Sprintf(" for host %q", host)
}
