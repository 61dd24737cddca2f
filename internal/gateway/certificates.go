package gateway

import (
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// The reasons of problems with certificates.
const (
	ReasonSecretNotFound = "SecretNotFound"
	ReasonBadCertificate = "CertificateInvalid"
	ReasonExpired        = "CertificateExpired"
	ReasonNameMismatch   = "CertificateNameMismatch"
)

// hostSet is a set of host names, exact and "*." wildcards.
type hostSet map[string]struct{}

func (s hostSet) has(host string) bool {
	if _, ok := s[host]; ok {
		return true
	}
	if i := strings.IndexByte(host, '.'); i > 0 {
		_, ok := s["*"+host[i:]]
		return ok
	}
	return false
}

// certificates turns the certificates that routes name into an SNI index. It
// keeps what it parsed, so that a change costs what changed.
type certificates struct {
	own      *tls.Certificate // the gateway's
	standard model.Key        // the Secret that is to take its place; zero for none
	fallback *tls.Certificate // the one of the two that is in use
	index    *certs.Index
	parsed   map[model.Key]*parsed
	routes   state.Table[model.Ref, *model.Route]
	rows     state.Table[model.Key, *model.Certificate]
	hosts    *hostSet
	problems []model.Problem
	checked  time.Time
}

// recheckCertificates is how often certificates are looked at for expiry.
const recheckCertificates = time.Hour

// due tells that it is time to sync even without a change.
func (c *certificates) due(now time.Time) bool { return now.Sub(c.checked) >= recheckCertificates }

// parsed is a certificate with the row that it was last read from.
type parsed struct {
	row  *model.Certificate
	cert *tls.Certificate // the last good one; nil if there never was one
	err  error            // what is wrong with row
	used bool
}

func newCertificates(own *tls.Certificate, standard model.Key) *certificates {
	return &certificates{own: own, standard: standard, fallback: own, index: certs.NewIndex(own), parsed: map[model.Key]*parsed{}, hosts: &hostSet{}}
}

// sync makes the index anew if routes or Secrets changed, and returns the
// hosts that have TLS and what is wrong.
func (c *certificates) sync(snap *state.Snapshot) (*hostSet, []model.Problem) {
	now := time.Now()
	if c.routes == snap.Routes && c.rows == snap.Certificates && !c.due(now) {
		return c.hosts, c.problems
	}
	for _, p := range c.parsed {
		p.used = false
	}
	b := &indexBuilder{certificates: c, snap: snap, offers: map[string][]offer{}, hosts: hostSet{}, now: now}
	c.fallback = b.standardOr(c.own)
	b.index = certs.NewIndex(c.fallback)
	for _, route := range oldestFirst(snap, func(r *model.Route) bool { return len(r.TLS) > 0 }) {
		for i := range route.TLS {
			b.add(route, i)
		}
	}
	b.fill()
	for k, p := range c.parsed {
		if !p.used {
			delete(c.parsed, k)
		}
	}
	c.index, c.hosts, c.problems = b.index, &b.hosts, b.problems
	c.routes, c.rows, c.checked = snap.Routes, snap.Certificates, now
	return c.hosts, c.problems
}

// standardOr returns the certificate of the Secret that is to be the default, or
// own where there is none that can be used.
func (b *indexBuilder) standardOr(own *tls.Certificate) *tls.Certificate {
	if b.standard.IsZero() {
		return own
	}
	report := func(reason, format string, args ...any) {
		b.problems = append(b.problems, model.Problem{Object: model.Ref{Kind: "Secret", Key: b.standard}, Reason: reason, Field: "--default-certificate", Message: fmt.Sprintf(format, args...)})
	}
	row, ok := b.snap.Certificates.Get(b.standard)
	if !ok {
		report(ReasonSecretNotFound, "Secret %s does not exist: create it (kubectl create secret tls); until then clients of hosts without a certificate see one that nobody trusts", b.standard)
		return own
	}
	p := b.get(row)
	switch {
	case p.err != nil && p.cert != nil:
		report(ReasonBadCertificate, "Secret %s: %v; its last good certificate is still the default", b.standard, p.err)
	case p.err != nil:
		report(ReasonBadCertificate, "Secret %s: %v; until then clients of hosts without a certificate see one that nobody trusts", b.standard, p.err)
		return own
	}
	if err := certs.CheckValidity(p.cert, b.now); err != nil {
		report(ReasonExpired, "Secret %s: %v; it is served all the same", b.standard, err)
	}
	return p.cert
}

// inUse returns the certificates that routes name.
func (c *certificates) inUse() []*tls.Certificate {
	var list []*tls.Certificate
	for _, p := range c.parsed {
		if p.cert != nil {
			list = append(list, p.cert)
		}
	}
	return list
}

func oldestFirst(snap *state.Snapshot, chosen func(*model.Route) bool) []*model.Route {
	var list []*model.Route
	for _, r := range snap.Routes.All() {
		if chosen(r) {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, byAge)
	return list
}

func byAge(a, b *model.Route) int {
	if c := a.Created.Compare(b.Created); c != 0 {
		return c
	}
	return a.Ref.Compare(b.Ref)
}

// get returns the parsed certificate of a Secret. A Secret that was good and
// is no longer keeps its last good certificate: nothing already serving is lost.
func (c *certificates) get(row *model.Certificate) *parsed {
	p := c.parsed[row.Key]
	if p == nil {
		p = &parsed{}
		c.parsed[row.Key] = p
	}
	p.used = true
	if p.row != row {
		p.row = row
		cert, err := certs.Parse(row)
		if p.err = err; err == nil {
			p.cert = cert
		}
	}
	return p
}

type indexBuilder struct {
	*certificates
	snap     *state.Snapshot
	index    *certs.Index
	offers   map[string][]offer // by name, those of the oldest route first
	hosts    hostSet
	now      time.Time
	problems []model.Problem
}

// offer is a certificate that a route names for a host.
type offer struct {
	cert      *tls.Certificate
	namespace string
	sound     bool // clients have no reason to refuse it
}

// fill puts what routes offer into the index. The oldest goes first, but a
// signature by RSA costs about four times as much as all else of a connection:
// a sound certificate of the same namespace that needs none goes before it, for
// the clients that can use it. One of another namespace does not: nobody is to
// take a host over by the kind of a key.
func (b *indexBuilder) fill() {
	for name, list := range b.offers {
		for _, cheap := range []bool{true, false} {
			for _, o := range list {
				if cheap == (o.sound && o.namespace == list[0].namespace && !usesRSA(o.cert)) {
					b.index.Add(name, o.cert)
				}
			}
		}
	}
}

func usesRSA(cert *tls.Certificate) bool {
	_, ok := cert.Leaf.PublicKey.(*rsa.PublicKey)
	return ok
}

func (b *indexBuilder) add(route *model.Route, i int) {
	binding := &route.TLS[i]
	for _, h := range binding.Hosts {
		b.hosts[h] = struct{}{}
	}
	if binding.Secret.IsZero() {
		return
	}
	field := fmt.Sprintf("spec.tls[%d]", i)
	report := func(reason, format string, args ...any) {
		b.problems = append(b.problems, model.Problem{Object: route.Ref, Reason: reason, Field: field, Message: fmt.Sprintf(format, args...)})
	}
	row, ok := b.snap.Certificates.Get(binding.Secret)
	if !ok {
		report(ReasonSecretNotFound, "Secret %s does not exist: create it (kubectl create secret tls); until then the default certificate is served", binding.Secret)
		return
	}
	p := b.get(row)
	switch {
	case p.err != nil && p.cert != nil:
		report(ReasonBadCertificate, "Secret %s: %v; its last good certificate is still served", binding.Secret, p.err)
	case p.err != nil:
		report(ReasonBadCertificate, "Secret %s: %v; until then the default certificate is served", binding.Secret, p.err)
		return
	}
	expired := certs.CheckValidity(p.cert, b.now)
	if err := expired; err != nil {
		report(ReasonExpired, "Secret %s: %v; it is served all the same", binding.Secret, err)
	}
	names := binding.Hosts
	if len(names) == 0 {
		names = certs.Names(p.cert)
	}
	for _, name := range names {
		b.hosts[name] = struct{}{}
		mismatch := certs.CheckHost(p.cert, name)
		b.offers[name] = append(b.offers[name], offer{p.cert, route.Namespace, expired == nil && mismatch == nil})
		if err := mismatch; err != nil {
			report(ReasonNameMismatch, "Secret %s: %v and not for %s: clients will refuse it; get a certificate with that name", binding.Secret, err, name)
		}
	}
}
