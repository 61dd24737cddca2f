package translate

import (
	"fmt"
	"runtime"
	"sync"
	"weak"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/model"
)

// clientAuth reports Secrets of authorities that are of no use, and hosts of
// which several routes, the oldest first, ask different things of clients.
func (c *crossCheck) clientAuth(routes []*model.Route) {
	owners := model.ClientAuthOwners(routes)
	for _, r := range routes {
		a := r.ClientAuth
		if a == nil {
			continue
		}
		for _, host := range r.ClientAuthHosts {
			what := fmt.Sprintf("host %q", host)
			if host == "" {
				what = "hosts that no rule names"
			}
			switch owner := owners[host]; {
			case owner.First.Namespace != r.Namespace:
				c.add(r.Ref, ReasonClientAuthConflict, a.Field, "%s of another namespace is older and serves %s as well, so its namespace decides what clients are asked for there; those who come for rules of this one need what both ask for. Choose another host, or have the auth-tls annotations there", owner.First.Ref, what)
			case owner.Decides != r && *owner.Decides.ClientAuth != *a:
				c.add(r.Ref, ReasonClientAuthConflict, a.Field, "the older %s asks something else of the clients of %s, and that counts for all of it; make the auth-tls annotations of both alike, or leave them to one of them", owner.Decides.Ref, what)
			}
		}
		if a.Refused == "" {
			c.authorities(r.Ref, a)
		}
	}
}

// authorities reports what is wrong with a Secret of authorities.
func (c *crossCheck) authorities(ref model.Ref, a *model.ClientAuth) {
	key := a.Secret
	effect := "Until then requests for the hosts of the Ingress are answered with 503"
	if !a.Asks() {
		effect = "It is not needed while clients are asked for nothing"
	}
	cert, ok := c.snap.Certificates.Get(key)
	if !ok {
		c.add(ref, ReasonSecretMissing, a.Field, "Secret %s does not exist; create it with: kubectl create secret generic %s -n %s --from-file=%s=FILE. %s",
			key, key.Name, key.Namespace, CAKey, effect)
		return
	}
	known, err := authoritiesOf(cert)
	if err != nil {
		if a.Asks() {
			effect = "A gateway that has had good ones goes on with them; others answer requests for the hosts of the Ingress with 503"
		}
		c.add(ref, ReasonSecretInvalid, a.Field, "Secret %s: %v. %s", key, err, effect)
		return
	}
	for _, text := range known.Check(c.now) {
		c.add(ref, ReasonCertificateTime, a.Field, "Secret %s: %s", key, text)
	}
}

// readAuthorities are those of Secrets, by their rows, as long as there are those. A
// check of all objects follows each change of any, and a list of what is revoked
// may have 25000 entries and take 80 ms to read: for each Ingress that names it.
var readAuthorities sync.Map // of func() (*certs.Authorities, error), by weak.Pointer[model.Certificate]

func authoritiesOf(row *model.Certificate) (*certs.Authorities, error) {
	key := weak.Make(row)
	read, known := readAuthorities.Load(key)
	if !known {
		ca, crl := row.CA, row.CRL // not the row, which would stay for ever
		var other bool
		read, other = readAuthorities.LoadOrStore(key, sync.OnceValues(func() (*certs.Authorities, error) { return certs.ParseAuthorities(ca, crl) }))
		if !other {
			runtime.AddCleanup(row, func(key weak.Pointer[model.Certificate]) { readAuthorities.Delete(key) }, key)
		}
	}
	return read.(func() (*certs.Authorities, error))()
}
