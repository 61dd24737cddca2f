package gateway

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/gateway/filter"
	"fairway.dev/fairway/internal/gateway/listener"
	"fairway.dev/fairway/internal/gateway/router"
	"fairway.dev/fairway/internal/gateway/upstream"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// config is all routes, compiled. It never changes: requests keep the one that
// they began with.
type config struct {
	router *router.Router
	// sites stand beside the router's rules, by their ID.
	sites []site
	// clients is what clients have to prove; nil in it for nothing.
	clients atomic.Pointer[filter.ClientTable]
	// live are the routes that there are: series of others are not counted up.
	live map[model.Key]struct{}
}

// site is what a rule does with its requests.
type site struct {
	chain    filter.Chain
	canaries *filter.Canaries
	backends []backend
	total    uint64 // of the weights
	series   series
}

type backend struct {
	pool     *upstream.Pool
	protocol model.BackendProtocol
	tls      *upstream.TLS // nil where nothing is asked of it
	weight   uint64
}

// pick chooses a backend by weight; nil if there is none.
func (s *site) pick() *backend {
	switch {
	case s.total == 0:
		return nil
	case len(s.backends) == 1:
		return &s.backends[0]
	}
	at := rand.Uint64N(s.total)
	for i := range s.backends {
		if b := &s.backends[i]; at < b.weight {
			return b
		} else {
			at -= b.weight
		}
	}
	return nil
}

// has reports whether a session is with one of the site's backends.
func (s *site) has(session *upstream.Session) bool {
	return slices.ContainsFunc(s.backends, func(b backend) bool { return b.pool.Has(session) })
}

func poolKey(b model.Backend, p model.Protocol) upstream.Key {
	return upstream.Key{Service: b.Service, Port: b.Port, Protocol: p}
}

// poolKeys returns the pools that routes and streams need.
func poolKeys(snap *state.Snapshot) map[upstream.Key]struct{} {
	keys := map[upstream.Key]struct{}{}
	for _, route := range snap.Routes.All() {
		for i := range route.Rules {
			for _, b := range route.Rules[i].Backends {
				keys[poolKey(b.Backend, model.TCP)] = struct{}{}
			}
		}
	}
	for _, streams := range snap.Streams.All() {
		for i := range streams {
			keys[poolKey(streams[i].Backend, streams[i].Protocol)] = struct{}{}
		}
	}
	return keys
}

// newConfig compiles routes. The pools that they need must be there, and what
// they ask of TLS to them.
func newConfig(routes []*model.Route, pools *upstream.Set, tls *backendTLS, env filter.Environment, clients *filter.ClientTable) *config {
	c := &config{router: router.Compile(routes), live: make(map[model.Key]struct{}, len(routes))}
	c.clients.Store(clients)
	for _, r := range routes {
		c.live[r.Key] = struct{}{}
	}
	rules := c.router.Rules()
	c.sites = make([]site, len(rules))
	for i, rule := range rules {
		s := &c.sites[i]
		env.Clients = guard(rule, &c.clients)
		s.chain = filter.Compile(&rule.Spec.Filters, env)
		s.canaries = filter.NewCanaries(rule)
		for _, b := range rule.Spec.Backends {
			if b.Weight == 0 {
				continue
			}
			s.backends = append(s.backends, backend{pools.Pool(poolKey(b.Backend, model.TCP)), b.Protocol, tls.of(b.Backend), uint64(b.Weight)})
			s.total += uint64(b.Weight)
		}
	}
	return c
}

// sync takes a snapshot in. Nothing can fail as a whole: what is wrong with
// one object becomes its problem.
func (g *Gateway) sync(ctx context.Context, next *state.Snapshot) {
	g.syncMu.Lock()
	defer g.syncMu.Unlock()
	g.syncLocked(ctx, next)
}

func (g *Gateway) syncLocked(ctx context.Context, next *state.Snapshot) {
	if !next.Synced {
		return // before that, absence means nothing
	}
	prev := g.applied
	first := g.config.Load() == nil
	if first || prev.Routes != next.Routes || prev.Streams != next.Streams {
		g.wanted = poolKeys(next)
		g.pools.Want(g.wanted, next)
	}
	// Certificates go first: a route must not redirect to https before its
	// certificate is there.
	index := g.certs.index
	hosts, problems := g.certs.sync(next)
	g.resolver.Set(g.certs.index)
	if g.certs.index != index {
		g.stapler.Use(g.certs.inUse())
	}
	g.tlsHosts.Store(hosts)
	// So does what clients have to prove: a route is not served to connections
	// that were asked for nothing.
	clientProblems := g.clients.sync(next)
	g.backendTLS.sync(next, g.pools)
	if first || prev.Routes != next.Routes {
		routes := make([]*model.Route, 0, next.Routes.Len())
		for _, r := range next.Routes.All() {
			routes = append(routes, r)
		}
		c := newConfig(routes, g.pools, g.backendTLS, g.env, g.clients.table.Load())
		g.config.Store(c)
		g.metrics.reloaded(len(c.router.Rules()))
		g.logger.Debug("routes taken in", "revision", next.Revision, "routes", len(routes), "rules", len(c.router.Rules()))
	} else {
		g.config.Load().clients.Store(g.clients.table.Load())
	}
	if first || prev.Routes != next.Routes || prev.Streams != next.Streams {
		g.streamList, g.streamProblems = g.streamsOf(next)
	}
	streamProblems := slices.Concat(g.streamProblems, g.streams.Sync(ctx, g.streamList))
	g.pools.Sync(g.wanted, next) // last, for it drops the pools that nobody uses any more
	g.pending = slices.ContainsFunc(streamProblems, func(p model.Problem) bool { return p.Reason == listener.ReasonPortInUse })
	if first || prev.Routes != next.Routes || prev.Streams != next.Streams || prev.Services != next.Services {
		g.backendProblems = backendProblems(next)
	}
	g.found = slices.Concat(problems, clientProblems, streamProblems, g.config.Load().router.Problems(), g.backendProblems)
	g.metrics.forget(prev, next)
	g.applied = next
	g.tellProblems()
	if first {
		close(g.started)
	}
}

// tellProblems makes what is wrong with objects, and what was seen of the TLS of
// backends, the problems.
func (g *Gateway) tellProblems() {
	g.setProblems(slices.Concat(g.found, g.tlsFailures.problems(g.applied, g.backendTLS, time.Now())))
}

// streamsOf returns the routes of TCP and UDP ports, and of those at the HTTPS ports
// the hosts that are theirs to have.
func (g *Gateway) streamsOf(snap *state.Snapshot) (list []listener.Stream, problems []model.Problem) {
	var served *servedHosts
	for _, routes := range snap.Streams.All() {
		for _, r := range routes {
			var except []string
			if r.Port == 0 {
				if served == nil {
					served = newServedHosts(snap)
				}
				var owner *model.Route
				if r.Hosts, owner = served.withoutForeign(&r); owner != nil {
					problems = append(problems, model.Problem{Object: r.Ref, Reason: listener.ReasonPortConflict, Field: r.Field,
						Message: fmt.Sprintf("the host is served by %s of another namespace, which is older, so TLS for it does not pass through: choose another host, or remove it there", owner.Ref)})
				}
				if len(r.Hosts) == 0 {
					continue
				}
				for _, h := range r.Hosts {
					except = append(except, served.ended[h]...)
				}
			}
			list = append(list, listener.Stream{StreamRoute: r, Pool: g.pools.Pool(poolKey(r.Backend, r.Protocol)), Except: except})
		}
	}
	return list, problems
}

// servedHosts are the hosts that routes have rules or certificates for.
type servedHosts struct {
	routes map[string][]*model.Route
	// ended are by wildcard the hosts below it whose TLS is ended at the gateway: the
	// exact name goes first, as for requests and certificates.
	ended map[string][]string
}

func newServedHosts(snap *state.Snapshot) *servedHosts {
	s := &servedHosts{routes: map[string][]*model.Route{}, ended: map[string][]string{}}
	for _, r := range snap.Routes.All() {
		add := func(host string, ended bool) {
			if list := s.routes[host]; len(list) == 0 || list[len(list)-1] != r {
				s.routes[host] = append(list, r)
			}
			if i := strings.IndexByte(host, '.'); ended && i > 0 && host[0] != '*' {
				s.ended["*"+host[i:]] = append(s.ended["*"+host[i:]], host)
			}
		}
		for i := range r.Rules {
			add(r.Rules[i].Host, !r.Rules[i].Filters.PassedThrough)
		}
		for i := range r.TLS {
			for _, host := range r.TLS[i].Hosts {
				add(host, true)
			}
		}
	}
	return s
}

// withoutForeign returns the hosts of a route at the HTTPS ports that are not served
// by an older route of another namespace, and such a route if there is one. Within a
// namespace passing through goes first, as in ingress-nginx; nobody is to take over
// what is another's by that.
func (s *servedHosts) withoutForeign(r *model.StreamRoute) (hosts []string, owner *model.Route) {
	for _, h := range r.Hosts {
		i := slices.IndexFunc(s.routes[h], func(other *model.Route) bool {
			older := other.Created.Before(r.Created) || other.Created.Equal(r.Created) && other.Ref.Compare(r.Ref) < 0
			return older && other.Namespace != r.Namespace
		})
		if i >= 0 {
			owner = s.routes[h][i]
		} else {
			hosts = append(hosts, h)
		}
	}
	return hosts, owner
}

// backendProblems tells routes about Services and ports that are not there.
func backendProblems(snap *state.Snapshot) []model.Problem {
	var list []model.Problem
	known := map[upstream.Key][2]string{}
	check := func(ref model.Ref, field string, k upstream.Key) {
		text, ok := known[k]
		if !ok {
			text[0], text[1] = upstream.Explain(k, snap)
			known[k] = text
		}
		if text[0] != "" {
			list = append(list, model.Problem{Object: ref, Reason: text[0], Field: field, Message: text[1]})
		}
	}
	for _, route := range snap.Routes.All() {
		for i := range route.Rules {
			for _, b := range route.Rules[i].Backends {
				check(route.Ref, route.Rules[i].Field, poolKey(b.Backend, model.TCP))
			}
		}
	}
	for _, streams := range snap.Streams.All() {
		for i := range streams {
			check(streams[i].Ref, streams[i].Field, poolKey(streams[i].Backend, streams[i].Protocol))
		}
	}
	return list
}

func (g *Gateway) setProblems(list model.Problems) {
	slices.SortFunc(list, func(a, b model.Problem) int {
		return cmp.Or(a.Object.Compare(b.Object), strings.Compare(a.Field, b.Field), strings.Compare(a.Message, b.Message))
	})
	list = slices.CompactFunc(list, func(a, b model.Problem) bool { return a == b })
	g.problemsMu.Lock()
	defer g.problemsMu.Unlock()
	if reflect.DeepEqual(g.problems, list) {
		return
	}
	g.problems = list
	select {
	case g.changed <- struct{}{}:
	default:
	}
}
