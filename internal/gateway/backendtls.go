package gateway

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/upstream"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// backendTLS makes what routes ask of TLS to backends into the settings of
// connections. What is the same for the same Service port is one, and its
// connections are shared.
type backendTLS struct {
	domain  string
	entries map[tlsKey]*tlsEntry
	secrets map[model.Key]*tlsSecret

	checked  map[upstream.Key]*upstream.TLS // what health checks speak by
	routes   state.Table[model.Ref, *model.Route]
	rows     state.Table[model.Key, *model.Certificate]
	services state.Table[model.Key, *model.Service]
	made     bool
}

// tlsKey is a Service port, and what is asked of TLS to it in text.
type tlsKey struct {
	pool upstream.Key
	spec string
}

func tlsKeyOf(b model.Backend) tlsKey {
	return tlsKey{poolKey(b, model.TCP), fmt.Sprintf("%+v", *b.TLS)}
}

type tlsEntry struct {
	spec *model.BackendTLS
	tls  *upstream.TLS
	from string // what the settings were made of
	used bool
}

// tlsSecret is what a Secret has for connections to backends.
type tlsSecret struct {
	row   *model.Certificate
	good  *model.Certificate // the last row that was; nil if there never was one
	pair  *tls.Certificate   // of good; nil if it has none
	roots *x509.CertPool     // of good; nil if it has none
	err   error              // what is wrong with row
	used  bool
}

func newBackendTLS(domain string) *backendTLS {
	return &backendTLS{domain: strings.TrimSuffix(domain, "."), entries: map[tlsKey]*tlsEntry{}, secrets: map[model.Key]*tlsSecret{}, checked: map[upstream.Key]*upstream.TLS{}}
}

// of returns what is asked of TLS to a backend of a route that was taken in; nil
// for nothing.
func (b *backendTLS) of(backend model.Backend) *upstream.TLS {
	if backend.TLS == nil {
		return nil
	}
	return b.entries[tlsKeyOf(backend)].tls
}

// sync brings all settings up to a snapshot. New connections go by them at once,
// and what was kept by others ends.
func (b *backendTLS) sync(snap *state.Snapshot, pools *upstream.Set) {
	if b.made && b.routes == snap.Routes && b.rows == snap.Certificates && b.services == snap.Services {
		return
	}
	again := !b.made || b.routes != snap.Routes
	b.made, b.routes, b.rows, b.services = true, snap.Routes, snap.Certificates, snap.Services
	var checked map[upstream.Key]*upstream.TLS
	if again {
		checked = b.collect(snap)
	}
	for _, s := range b.secrets {
		s.used = false
	}
	for key, e := range b.entries {
		if !e.used {
			e.tls.Set(nil)
			delete(b.entries, key)
		} else if !b.refresh(key, e, snap) {
			continue
		}
		if p := pools.Pool(key.pool); p != nil {
			p.Retire()
		}
	}
	for key, s := range b.secrets {
		if !s.used {
			delete(b.secrets, key)
		}
	}
	if !again {
		return
	}
	for key := range b.checked {
		if p := pools.Pool(key); p != nil && checked[key] == nil {
			p.CheckBy(nil)
		}
	}
	for key, t := range checked {
		pools.Pool(key).CheckBy(t)
	}
	b.checked = checked
}

// collect finds what routes ask for, and for each pool what the oldest does.
func (b *backendTLS) collect(snap *state.Snapshot) map[upstream.Key]*upstream.TLS {
	for _, e := range b.entries {
		e.used = false
	}
	var list []*model.Route
	for _, r := range snap.Routes.All() {
		if slices.ContainsFunc(r.Rules, func(r model.RouteRule) bool {
			return slices.ContainsFunc(r.Backends, func(b model.WeightedBackend) bool { return b.TLS != nil })
		}) {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, byAge)
	checked := map[upstream.Key]*upstream.TLS{}
	for _, r := range list {
		for i := range r.Rules {
			for _, to := range r.Rules[i].Backends {
				if to.TLS == nil {
					continue
				}
				key := tlsKeyOf(to.Backend)
				e := b.entries[key]
				if e == nil {
					e = &tlsEntry{spec: to.TLS, tls: upstream.NewTLS(&upstream.TLSSettings{Err: errors.New("not read yet")})}
					b.entries[key] = e
				}
				e.used = true
				if checked[key.pool] == nil {
					checked[key.pool] = e.tls
				}
			}
		}
	}
	return checked
}

// refresh makes settings anew if what they are made of changed, and reports
// whether it did.
func (b *backendTLS) refresh(key tlsKey, e *tlsEntry, snap *state.Snapshot) bool {
	svc, _ := snap.Services.Get(key.pool.Service)
	names := b.names(key.pool.Service, svc, e.spec)
	from := fmt.Sprintf("%q", names)
	settings := &upstream.TLSSettings{
		Verify: e.spec.Verify, Depth: e.spec.Depth, Names: names,
		MinVersion: e.spec.MinVersion, MaxVersion: e.spec.MaxVersion, CipherSuites: e.spec.CipherSuites,
	}
	external := svc != nil && svc.Type == model.ExternalName
	if len(names) > 0 && (e.spec.ServerName == model.ServerNameOn || e.spec.ServerName == model.ServerNameAuto && external) {
		settings.ServerName = names[0]
	}
	fail := func(err error) {
		if settings.Err == nil {
			settings.Err = err
		}
	}
	if e.spec.Mistake != "" {
		fail(errors.New(e.spec.Mistake))
	}
	if !e.spec.Certificate.IsZero() {
		s, err := b.secret(e.spec.Certificate, snap)
		if err != nil {
			fail(err)
		} else {
			settings.Certificate = s.pair
		}
		from += fmt.Sprintf(" %p", s.good)
	}
	if e.spec.Verify {
		for i, ca := range e.spec.CA {
			s, err := b.secret(ca, snap)
			switch {
			case err != nil:
				fail(err)
			case s.roots == nil:
				fail(fmt.Errorf("secret %s has no ca.crt", ca))
			case i == 0:
				settings.Roots = s.roots
			default:
				settings.Roots = settings.Roots.Clone()
				settings.Roots.AppendCertsFromPEM(s.good.CA)
			}
			from += fmt.Sprintf(" %p", s.good)
		}
	}
	if from += fmt.Sprint(external, settings.Err); from == e.from {
		return false
	}
	e.from = from
	e.tls.Set(settings)
	return true
}

// names are those that the backend's certificate may be made out for.
func (b *backendTLS) names(key model.Key, svc *model.Service, spec *model.BackendTLS) []string {
	switch {
	case spec.Name != "":
		return []string{spec.Name}
	case svc != nil && svc.Type == model.ExternalName:
		return []string{strings.TrimSuffix(svc.ExternalName, ".")}
	}
	short := key.Name + "." + key.Namespace + ".svc"
	return []string{short + "." + b.domain, short}
}

// secret returns what a Secret has, or had last while it was good. One that is
// not there any more is of no use: somebody may have taken it back.
func (b *backendTLS) secret(key model.Key, snap *state.Snapshot) (*tlsSecret, error) {
	row, ok := snap.Certificates.Get(key)
	if !ok {
		return &tlsSecret{}, fmt.Errorf("secret %s does not exist", key)
	}
	s := b.secrets[key]
	if s == nil {
		s = &tlsSecret{}
		b.secrets[key] = s
	}
	s.used = true
	if s.row != row {
		s.read(row)
	}
	if s.good == nil {
		return s, fmt.Errorf("secret %s: %w", key, s.err)
	}
	return s, nil
}

func (s *tlsSecret) read(row *model.Certificate) {
	s.row, s.err = row, nil
	if g := s.good; g != nil && bytes.Equal(g.Chain, row.Chain) && bytes.Equal(g.PrivateKey, row.PrivateKey) && bytes.Equal(g.CA, row.CA) {
		return // a label has changed; connections stay
	}
	var pair *tls.Certificate
	var roots *x509.CertPool
	if len(row.Chain) > 0 || len(row.PrivateKey) > 0 {
		pair, s.err = certs.Parse(row)
	}
	if len(row.CA) > 0 && s.err == nil {
		roots, s.err = certs.Pool(row.CA)
	}
	switch {
	case s.err != nil:
	case pair == nil && roots == nil:
		s.err = errors.New("has neither tls.crt with tls.key nor ca.crt")
	default:
		s.good, s.pair, s.roots = row, pair, roots
	}
}

// describe says what is asked of TLS to a backend, for people.
func (b *backendTLS) describe(t *upstream.TLS) string {
	const nothing = "its certificate is not verified"
	for _, e := range b.entries {
		if e.tls != t {
			continue
		}
		text := nothing
		if s := t.Settings(); e.spec.Verify {
			by := "the system's authorities"
			if len(e.spec.CA) > 0 {
				by = fmt.Sprintf("ca.crt of Secret %s", e.spec.CA[0])
			}
			text = fmt.Sprintf("its certificate is verified by %s, for %s", by, strings.Join(s.Names, " or "))
		}
		if s := t.Settings(); s.ServerName != "" {
			text += fmt.Sprintf("; it is asked for %s (SNI)", s.ServerName)
		}
		if s := t.Settings(); s.Certificate != nil {
			text += fmt.Sprintf("; it is shown the certificate of Secret %s", e.spec.Certificate)
		}
		return text
	}
	return nothing
}

// ReasonBackendTLS is the reason of a problem that is seen only where a gateway
// connects to a backend: the two do not trust each other.
const ReasonBackendTLS = "BackendTLSFailed"

// failureLasts is how long TLS with a backend counts as failing after it did so
// last: with several endpoints it may go well in between.
const failureLasts = 10 * time.Minute

// tlsFailures are what TLS with backends came to nothing for.
type tlsFailures struct {
	news chan struct{} // is written to where there is another one

	mu   sync.Mutex
	seen map[failedTLS]*tlsFailure
}

// failedTLS is what failed: connections to a pool by the settings of the moment;
// nil for those of routes that ask for nothing.
type failedTLS struct {
	pool     upstream.Key
	settings *upstream.TLSSettings
}

type tlsFailure struct {
	first *upstream.TLSError
	last  time.Time
}

func newTLSFailures() *tlsFailures {
	return &tlsFailures{news: make(chan struct{}, 1), seen: map[failedTLS]*tlsFailure{}}
}

// any reports whether there is something to tell, or to forget.
func (f *tlsFailures) any() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.seen) > 0
}

// add notes a failure. The first one is told until it is over, however many
// follow, and of whichever endpoint.
func (f *tlsFailures) add(pool upstream.Key, by *upstream.TLSSettings, err *upstream.TLSError) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := failedTLS{pool, by}
	if known := f.seen[key]; known != nil {
		known.last = time.Now()
		return
	}
	f.seen[key] = &tlsFailure{err, time.Now()}
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// problems tells routes of what fails, and forgets what does not any more: their
// settings have changed, or long nothing was seen of it.
func (f *tlsFailures) problems(snap *state.Snapshot, b *backendTLS, now time.Time) []model.Problem {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.seen) == 0 {
		return nil
	}
	var out []model.Problem
	present := map[failedTLS]bool{}
	for _, route := range snap.Routes.All() {
		for i := range route.Rules {
			for _, to := range route.Rules[i].Backends {
				key := failedTLS{pool: poolKey(to.Backend, model.TCP)}
				if t := b.of(to.Backend); t != nil {
					key.settings = t.Settings()
				}
				if failed := f.seen[key]; failed != nil && now.Sub(failed.last) < failureLasts {
					present[key] = true
					out = append(out, model.Problem{Object: route.Ref, Reason: ReasonBackendTLS, Field: route.Rules[i].Field,
						Message: fmt.Sprintf("TLS with an endpoint of Service %s came to nothing: %v. %s. Requests that no other endpoint takes get 502", to.Service, failed.first.Err, cure(failed.first.Fault, to.TLS))})
				}
			}
		}
	}
	for key := range f.seen {
		if !present[key] {
			delete(f.seen, key)
		}
	}
	return out
}

// cure says what helps, in the terms of an Ingress.
func cure(fault upstream.TLSFault, spec *model.BackendTLS) string {
	const prefix = "nginx.ingress.kubernetes.io/"
	switch fault {
	case upstream.FaultName:
		return "Set " + prefix + "proxy-ssl-name to the name that is meant, or issue the certificate with it as subject alternative name"
	case upstream.FaultTime:
		return "Renew it, or set the clock right"
	case upstream.FaultAuthority:
		if spec != nil && len(spec.CA) > 0 {
			return fmt.Sprintf("Put the certificate of the authority that signs it into ca.crt of Secret %s, and what stands between into the endpoint's chain", spec.CA[0])
		}
		return "Name a Secret with the authority's certificate as ca.crt in " + prefix + "proxy-ssl-secret"
	case upstream.FaultDepth:
		return "Set " + prefix + "proxy-ssl-verify-depth to that number, or put the last of them into ca.crt"
	case upstream.FaultUnshown:
		return "Name a Secret with tls.crt and tls.key that it trusts in " + prefix + "proxy-ssl-secret"
	case upstream.FaultRefused:
		if spec != nil && !spec.Certificate.IsZero() {
			return fmt.Sprintf("Have the certificate in Secret %s signed by an authority that it trusts; its log says more", spec.Certificate)
		}
		return "Its log says more"
	}
	return "Issue it anew"
}
