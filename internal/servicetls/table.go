package servicetls

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/state"
)

// table has the Services with TLS as of the newest snapshot.
type table struct {
	view   plan.View
	domain string
	log    *slog.Logger

	mu       sync.RWMutex
	plans    plan.Index
	services map[model.Key]*service
	nodes    []netip.Addr // of this node
	synced   bool
	revision uint64 // of the snapshot that all this is from
}

// service is the TLS of one Service.
type service struct {
	material material
	ports    map[uint16]portTLS
	err      error // why connections are refused
}

// route is where a connection goes.
type route struct {
	service  model.Key
	frontend plan.Frontend
	tls      portTLS
}

var (
	errUnknown    = errors.New("no Service with TLS has this address and port")
	errPlainPort  = errors.New("this port of the Service has no TLS")
	errNoEndpoint = errors.New("no endpoint serves the port")
)

// find returns the route of a connection to dst.
func (t *table) find(dst netip.AddrPort) (route, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	s, f, ok := t.plans.Find(dst, model.TCP)
	if !ok {
		return route{}, errUnknown
	}
	svc := t.services[s.Key]
	if svc.err != nil {
		return route{}, svc.err
	}
	port, ok := svc.ports[f.ServicePort.Port]
	if !ok {
		return route{}, errPlainPort
	}
	return route{service: s.Key, frontend: f, tls: port}, nil
}

// isNode reports whether a is an address of this node, as its Node object has it.
func (t *table) isNode(a netip.Addr) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Contains(t.nodes, a)
}

func (t *table) isSynced() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.synced
}

// sync brings the table from prev to next. Connections that are open stay
// with what they were opened with.
func (t *table) sync(_ context.Context, prev, next *state.Snapshot) error {
	dirty := map[model.Key]struct{}{}
	mark := func(k model.Key) {
		// Nearly all Services have no TLS, and never had.
		if _, had := t.services[k]; !had {
			if svc, ok := next.Services.Get(k); !ok || svc.TLS == nil {
				return
			}
		}
		dirty[k] = struct{}{}
	}
	t.view.Dirty(prev, next, mark)
	changed := map[model.Key]bool{}
	for d := range state.Diff(prev.Certificates, next.Certificates) {
		changed[d.Key] = true
	}
	if len(changed) > 0 {
		for key, svc := range t.services { // written by this goroutine only
			if changed[svc.material.tls.CA] {
				mark(key)
			}
		}
	}
	updates := map[model.Key]update{}
	for key := range dirty {
		updates[key] = t.compile(next, key)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, u := range updates {
		if u.service == nil {
			delete(t.services, key)
			t.plans.Delete(key)
			continue
		}
		t.services[key] = u.service
		t.plans.Put(u.plan)
	}
	if node, ok := next.Nodes.Get(t.view.Node); ok {
		t.nodes = node.Addrs
	}
	t.synced, t.revision = next.Synced, next.Revision
	return nil
}

// update is what becomes of a Service; a nil service goes.
type update struct {
	service *service
	plan    plan.Service
}

func (t *table) compile(snap *state.Snapshot, key model.Key) update {
	svc, ok := snap.Services.Get(key)
	if !ok || svc.TLS == nil {
		return update{}
	}
	p, ok := t.view.Compile(snap, key)
	if !ok {
		return update{}
	}
	m := materialOf(snap, svc)
	if old := t.services[key]; old != nil && old.material.equal(m) {
		return update{old, p} // keeps its session tickets
	}
	s := &service{material: m}
	if s.ports, s.err = compile(svc, m, t.domain); s.err != nil {
		t.log.Debug("TLS connections to a Service are refused", "service", key, "err", s.err)
	}
	return update{s, p}
}
