package gateway

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/listener"
	"fairway.dev/fairway/internal/gateway/router"
	"fairway.dev/fairway/internal/gateway/staple"
	"fairway.dev/fairway/internal/gateway/upstream"
)

// State is what a gateway does now, for people. Of certificates it has what
// every client can see, and no key.
type State struct {
	Version string    `json:"version,omitempty"`
	Time    time.Time `json:"time"`
	// Ready is whether routes are served, Draining whether the gateway ends, and
	// Shedding whether it turns requests away because memory is short.
	Ready    bool `json:"ready"`
	Draining bool `json:"draining,omitempty"`
	Shedding bool `json:"shedding,omitempty"`
	// Revision counts changes of the objects.
	Revision     uint64               `json:"revision"`
	Listeners    []listener.State     `json:"listeners,omitempty"`
	Routes       []RouteState         `json:"routes,omitempty"`
	Services     []upstream.PoolState `json:"services,omitempty"`
	Certificates []CertificateState   `json:"certificates,omitempty"`
	ClientAuth   []ClientAuthState    `json:"clientAuth,omitempty"`
	Problems     []string             `json:"problems,omitempty"`
}

// ClientAuthState is what clients of a host have to prove.
type ClientAuthState struct {
	Host string `json:"host,omitempty"` // none for all that is not named
	What string `json:"what"`
	// Secret has the authorities, whose names Authorities are.
	Secret      string   `json:"secret"`
	Authorities []string `json:"authorities,omitempty"`
	// Error is what is wrong with the Secret; the authorities are its last good ones then.
	Error string `json:"error,omitempty"`
}

// RouteState is a rule that can get requests.
type RouteState struct {
	Object   string         `json:"object"`
	Field    string         `json:"field"`
	Host     string         `json:"host,omitempty"` // none for every host
	Path     string         `json:"path,omitempty"`
	PathType string         `json:"pathType,omitempty"`
	Default  bool           `json:"default,omitempty"`
	Filters  []string       `json:"filters,omitempty"`
	Backends []BackendState `json:"backends,omitempty"`
	// Canaries are the rules that take a share of the requests.
	Canaries []string `json:"canaries,omitempty"`
}

// BackendState is a Service that a rule sends requests to.
type BackendState struct {
	Service string `json:"service"`
	Port    string `json:"port"`
	Weight  uint64 `json:"weight"`
}

// CertificateState is a certificate in use.
type CertificateState struct {
	Secret    string    `json:"secret"` // none for the gateway's own
	Names     []string  `json:"names"`
	Issuer    string    `json:"issuer,omitempty"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	// StapledUntil is when the proof expires that it is not revoked (OCSP).
	StapledUntil *time.Time `json:"stapledUntil,omitempty"`
	// StapleError is why the last question for one failed.
	StapleError string `json:"stapleError,omitempty"`
	// Error is what is wrong with the Secret; the certificate is its last good one then.
	Error string `json:"error,omitempty"`
}

// Parts of [State] that can be asked for by themselves, by their names in JSON.
var stateParts = []string{"listeners", "routes", "services", "certificates", "clientAuth", "problems"}

// State returns what the gateway does now. Parts limits it to some of its lists; none means all.
func (g *Gateway) State(parts ...string) *State {
	wanted := func(part string) bool { return len(parts) == 0 || slices.Contains(parts, part) }
	now := time.Now()
	s := &State{Version: g.options.Version, Time: now.UTC(), Ready: g.Ready(), Draining: g.draining.Load(), Shedding: g.shed.Active()}
	if wanted("listeners") {
		for _, h := range g.http {
			s.Listeners = append(s.Listeners, h.State()...)
		}
		s.Listeners = append(s.Listeners, g.streams.State()...)
	}
	if wanted("routes") {
		s.Routes = g.config.Load().state()
	}
	if wanted("services") {
		s.Services = g.pools.State(now)
	}
	if wanted("problems") {
		for _, p := range g.Problems() {
			s.Problems = append(s.Problems, p.String())
		}
	}
	g.syncMu.Lock()
	defer g.syncMu.Unlock()
	s.Revision = g.applied.Revision
	if wanted("certificates") {
		s.Certificates = g.certs.state(g.stapler)
	}
	if wanted("clientAuth") {
		s.ClientAuth = g.clients.state()
	}
	return s
}

func (c *config) state() []RouteState {
	if c == nil {
		return nil
	}
	name := func(r *router.Rule) string { return r.Ref().String() + " " + r.Spec.Field }
	list := make([]RouteState, 0, len(c.sites))
	for i, rule := range c.router.Rules() {
		spec := rule.Spec
		r := RouteState{Object: rule.Ref().String(), Field: spec.Field, Host: spec.Host, Default: spec.Default}
		if !spec.Default {
			r.Path, r.PathType = spec.Path.Value, spec.Path.Type.String()
		}
		for _, f := range c.sites[i].chain {
			r.Filters = append(r.Filters, f.String())
		}
		for _, b := range c.sites[i].backends {
			k := b.pool.Key()
			r.Backends = append(r.Backends, BackendState{k.Service.String(), k.PortText(), b.weight})
		}
		for _, canary := range rule.Canaries {
			r.Canaries = append(r.Canaries, name(canary))
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b RouteState) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Field, b.Field))
	})
	return list
}

func (c *certificates) state(proofs *staple.Stapler) []CertificateState {
	list := []CertificateState{}
	add := func(secret string, p *parsed) {
		s := CertificateState{Secret: secret}
		if p.err != nil {
			s.Error = p.err.Error()
		}
		if p.cert != nil {
			leaf := p.cert.Leaf
			s.Names, s.Issuer, s.NotBefore, s.NotAfter = certs.Names(p.cert), leaf.Issuer.CommonName, leaf.NotBefore.UTC(), leaf.NotAfter.UTC()
			until, err := proofs.State(p.cert)
			if !until.IsZero() {
				until = until.UTC()
				s.StapledUntil = &until
			}
			if err != nil {
				s.StapleError = err.Error()
			}
		}
		list = append(list, s)
	}
	for k, p := range c.parsed {
		add(k.String(), p)
	}
	slices.SortFunc(list, func(a, b CertificateState) int { return cmp.Compare(a.Secret, b.Secret) })
	add("", &parsed{cert: c.own})
	return list
}

// ServeState answers with [Gateway.State] as JSON: all of it, or the part that
// the request's path value "part" names. Who may ask is for the caller to decide.
func (g *Gateway) ServeState(w http.ResponseWriter, r *http.Request) {
	var parts []string
	if part := r.PathValue("part"); part != "" {
		if !slices.Contains(stateParts, part) {
			http.Error(w, "there is no such part: ask for listeners, routes, services, certificates, clientAuth or problems", http.StatusNotFound)
			return
		}
		parts = []string{part}
	}
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(g.State(parts...)) // the client may be gone
}
