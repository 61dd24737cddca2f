package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/proxyproto"
	"fairway.dev/fairway/internal/gateway/shed"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/state"
)

// DefaultConnectTimeout limits opening a connection where nothing else does.
const DefaultConnectTimeout = 5 * time.Second

// Options configure a [Set].
type Options struct {
	// NodeName is the node that the gateway runs on, for topology hints.
	// Optional.
	NodeName string
	// ConnectTimeout limits opening a connection; default 5 s.
	ConnectTimeout time.Duration
	// OnFailure is told of each endpoint that could not be connected to ("connect"), and of each that is left out for a
	// while since it did not answer requests ("ejected"). Optional.
	OnFailure func(pool Key, why, endpoint string)
	// OnTLS is told of each time that TLS with an endpoint has come to nothing, by
	// what a route asks of it, nil for nothing. Optional.
	OnTLS func(pool Key, by *TLSSettings, err *TLSError)
	// OnCheck is told of each health check, and what it found wrong. Optional.
	OnCheck func(pool Key, endpoint string, err error)
	// OnHealth is told when health checks leave an endpoint out, with the reason, and when it is back, with nil. Optional.
	OnHealth func(pool Key, endpoint string, err error)
	// Held counts what of answers waits for clients. Optional.
	Held *shed.Held
}

// Set holds all pools.
type Set struct {
	options Options
	dial    dialFunc
	checks  *checks

	mu    sync.RWMutex
	pools map[Key]*entry
}

// entry is a pool with the rows that its endpoints were made from.
type entry struct {
	pool    *Pool
	made    bool
	service *model.Service
	set     *model.EndpointSet
	node    *model.Node
	checks  map[*endpoint]*check
}

// NewSet returns a set without pools. Close it.
func NewSet(o Options) *Set {
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = DefaultConnectTimeout
	}
	return &Set{options: o, dial: dialer(o.ConnectTimeout), checks: newChecks(&o), pools: map[Key]*entry{}}
}

// asSocket is what a dialFunc gets as the network for a TCP connection whose
// bytes are only passed on: an [http1.Socket], which costs less, unless its
// address is yet to be looked up.
const asSocket = "tcp socket"

// dialer opens connections to endpoints.
func dialer(timeout time.Duration) dialFunc {
	d := &net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if network != asSocket {
			return d.DialContext(ctx, network, addr)
		}
		to, err := netip.ParseAddrPort(addr)
		if err != nil {
			return d.DialContext(ctx, "tcp", addr) // it has a name
		}
		sock, err := http1.Dial(ctx, to, timeout)
		if err != nil {
			return nil, err
		}
		return sock, nil
	}
}

// Close ends all health checks. Pools can be used on.
func (s *Set) Close() { s.checks.stop() }

// Pool returns a pool that [Set.Sync] was asked for; nil if it was not.
func (s *Set) Pool(k Key) *Pool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.pools[k]; e != nil {
		return e.pool
	}
	return nil
}

// Out is how many endpoints of a pool get no requests, and why.
type Out struct{ Ejected, Unhealthy int }

// Out tells of the pools that have such endpoints.
func (s *Set) Out() map[Key]Out {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := map[Key]Out{}
	for k, entry := range s.pools {
		var out Out
		for _, e := range entry.pool.members.Load().endpoints {
			switch {
			case e.down.Load():
				out.Unhealthy++
			case e.ejected.Load() != 0:
				out.Ejected++
			}
		}
		if out != (Out{}) {
			all[k] = out
		}
	}
	return all
}

// Want adds pools for keys that have none yet, as of a snapshot.
func (s *Set) Want(keys map[Key]struct{}, snap *state.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range keys {
		if s.pools[k] == nil {
			s.pools[k] = &entry{pool: &Pool{key: k, onFailure: s.options.OnFailure, onTLS: s.options.OnTLS, held: s.options.Held}}
			s.refresh(s.pools[k], snap)
		}
	}
}

// Sync brings all pools up to a snapshot and drops those that are not among
// keys; what is under way in them finishes, and so does what is on its way there.
func (s *Set) Sync(keys map[Key]struct{}, snap *state.Snapshot) {
	s.Want(keys, snap)
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, e := range s.pools {
		if _, wanted := keys[k]; !wanted {
			e.pool.drop()
			e.service = nil
			s.watch(e)
			delete(s.pools, k)
			continue
		}
		s.refresh(e, snap)
	}
}

// refresh makes a pool's endpoints anew if the rows behind them changed.
func (s *Set) refresh(e *entry, snap *state.Snapshot) {
	svc, _ := snap.Services.Get(e.pool.key.Service)
	set, _ := snap.Endpoints.Get(e.pool.key.Service)
	var node *model.Node
	if s.options.NodeName != "" {
		node, _ = snap.Nodes.Get(s.options.NodeName)
	}
	if e.made && e.service == svc && e.set == set && e.node == node {
		return
	}
	e.made, e.service, e.set, e.node = true, svc, set, node
	old := map[string]*endpoint{}
	if m := e.pool.members.Load(); m != nil && (svc == nil || m.uid == svc.UID) {
		for ep := range m.all() {
			old[ep.addr] = ep
		}
	}
	e.pool.update(s.members(e.pool.key, svc, set, node, old))
	s.watch(e)
}

func (s *Set) members(k Key, svc *model.Service, set *model.EndpointSet, node *model.Node, old map[string]*endpoint) *members {
	if svc == nil {
		return &members{err: fmt.Errorf("service %s: %w", k.Service, ErrNoService)}
	}
	port, ok := findPort(svc, k)
	if !ok {
		return &members{err: fmt.Errorf("service %s: %w", k.Service, ErrNoPort)}
	}
	m := &members{appProtocol: port.AppProtocol, uid: svc.UID, tag: tagOf(svc.UID, k.Service, port.Port)}
	if u := svc.Upstream; u != nil {
		m.slowStart, m.limits, m.proxy, m.idle = u.SlowStart, u.Limits, proxyproto.Version(u.Proxy), u.Idle
	}
	if svc.Type == model.ExternalName {
		// The system's resolver answers, at each connection.
		m.endpoints = []*endpoint{s.endpoint(svc, net.JoinHostPort(svc.ExternalName, strconv.Itoa(int(port.Port))), old, false)}
		return m
	}
	chosen := plan.Upstreams(svc, port, set, node)
	if len(chosen) == 0 {
		m.err = fmt.Errorf("service %s: %w", k.Service, ErrNoEndpoints)
		return m
	}
	for _, a := range chosen {
		m.endpoints = append(m.endpoints, s.endpoint(svc, a.String(), old, false))
	}
	for _, a := range plan.Others(port, set, chosen) {
		e := s.endpoint(svc, a.String(), old, a.Draining)
		m.others = append(m.others, e)
		if a.Draining {
			m.draining = append(m.draining, e)
		}
	}
	return m
}

// endpoint returns the endpoint at an address, the old one if it can go on. One
// that drains keeps no connections, and when it is back it is another one.
func (s *Set) endpoint(svc *model.Service, addr string, old map[string]*endpoint, draining bool) *endpoint {
	if e := old[addr]; e != nil && (draining || !e.removed.Load()) {
		return e
	}
	e := newEndpoint(addr, s.dial, markOf(svc.UID, addr))
	e.patience = s.options.ConnectTimeout
	e.removed.Store(draining)
	if len(old) > 0 { // else all are new, and share alike
		e.since.Store(time.Now().UnixNano())
	}
	return e
}

// findPort returns the port that k names. An ExternalName Service need not
// list its ports: there a number stands for itself.
func findPort(svc *model.Service, k Key) (model.ServicePort, bool) {
	for _, p := range svc.Ports {
		if p.Protocol == k.Protocol && (k.Port.Name != "" && p.Name == k.Port.Name || k.Port.Name == "" && p.Port == k.Port.Number) {
			return p, true
		}
	}
	if svc.Type == model.ExternalName && k.Port.Name == "" && k.Port.Number != 0 {
		return model.ServicePort{Port: k.Port.Number, Protocol: k.Protocol}, true
	}
	return model.ServicePort{}, false
}

// Explain says in words what is wrong with the Service that k names, with the
// cure; "" if nothing is.
func Explain(k Key, snap *state.Snapshot) (reason, message string) {
	svc, ok := snap.Services.Get(k.Service)
	if !ok {
		return "ServiceNotFound", fmt.Sprintf("Service %s does not exist: create it or correct the name; until then clients get 503", k.Service)
	}
	if _, ok := findPort(svc, k); ok {
		return "", ""
	}
	var have []string
	for _, p := range svc.Ports {
		text := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.Name != "" {
			text += fmt.Sprintf(" (%s)", p.Name)
		}
		have = append(have, text)
	}
	want := k.Port.Name
	if want == "" {
		want = strconv.Itoa(int(k.Port.Number))
	}
	return "ServicePortNotFound", fmt.Sprintf("Service %s has no port %s/%s, it has %s: correct the port; until then clients get 503",
		k.Service, want, k.Protocol, strings.Join(append(have, "no others")[:max(len(have), 1)], ", "))
}
