package state

import (
	"reflect"
	"sync"
	"sync/atomic"

	"fairway.dev/fairway/internal/model"
)

// Store holds the newest snapshot and tells subscribers that there is a newer one.
type Store struct {
	current atomic.Pointer[Snapshot]

	mu     sync.Mutex // held by the writer
	slices *sliceIndex

	subMu       sync.Mutex
	subscribers map[*Subscription]struct{}
}

// New returns a store with an empty, unsynced snapshot.
func New() *Store {
	s := &Store{slices: newSliceIndex(), subscribers: map[*Subscription]struct{}{}}
	s.current.Store(&Snapshot{})
	return s
}

// Snapshot returns the newest snapshot.
func (s *Store) Snapshot() *Snapshot { return s.current.Load() }

// Update runs fn with a transaction and commits what it set as one new
// snapshot, then wakes the subscribers. A transaction that changes nothing
// commits nothing. fn must not keep tx and must not call Update.
func (s *Store) Update(fn func(tx *Tx)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	prev := s.current.Load()
	tx := &Tx{snap: *prev, edit: &edit{}, index: s.slices, touched: map[model.Key]struct{}{}}
	fn(tx)
	tx.mergeTouched()
	if !tx.changed {
		return
	}
	tx.snap.Revision = prev.Revision + 1
	s.current.Store(&tx.snap)
	s.subMu.Lock()
	defer s.subMu.Unlock()
	for sub := range s.subscribers {
		sub.wake()
	}
}

// Subscription tells that there is a newer snapshot.
type Subscription struct {
	store *Store
	c     chan struct{}
}

// Subscribe returns a subscription; it fires once at the start. Close it when done.
func (s *Store) Subscribe() *Subscription {
	sub := &Subscription{store: s, c: make(chan struct{}, 1)}
	sub.wake()
	s.subMu.Lock()
	defer s.subMu.Unlock()
	s.subscribers[sub] = struct{}{}
	return sub
}

// C fires after one or more commits since it fired last.
func (s *Subscription) C() <-chan struct{} { return s.c }

// Close ends the subscription.
func (s *Subscription) Close() {
	s.store.subMu.Lock()
	defer s.store.subMu.Unlock()
	delete(s.store.subscribers, s)
}

func (s *Subscription) wake() {
	select {
	case s.c <- struct{}{}:
	default:
	}
}

// Tx is one transaction. Setting a row to a value that is deeply equal to the
// present one changes nothing, so that resyncs wake nobody.
type Tx struct {
	snap    Snapshot
	edit    *edit
	changed bool

	index   *sliceIndex
	touched map[model.Key]struct{}
}

// Snapshot returns the state as of now in the transaction, except that
// EndpointSets follow at its end.
func (tx *Tx) Snapshot() *Snapshot {
	s := tx.snap
	tx.edit = &edit{} // what s shares is no longer ours to change in place
	return &s
}

func put[K comparable, V any](tx *Tx, t *Table[K, V], key K, value V) {
	if old, ok := t.Get(key); ok && reflect.DeepEqual(old, value) {
		return
	}
	*t = t.set(tx.edit, key, value)
	tx.changed = true
}

func remove[K comparable, V any](tx *Tx, t *Table[K, V], key K) {
	if _, ok := t.Get(key); ok {
		*t = t.delete(tx.edit, key)
		tx.changed = true
	}
}

// PutService adds or replaces a Service.
func (tx *Tx) PutService(s *model.Service) { put(tx, &tx.snap.Services, s.Key, s) }

// DeleteService removes a Service; its endpoints go with their slices.
func (tx *Tx) DeleteService(k model.Key) { remove(tx, &tx.snap.Services, k) }

// PutNode adds or replaces a node.
func (tx *Tx) PutNode(n *model.Node) { put(tx, &tx.snap.Nodes, n.Name, n) }

// DeleteNode removes a node.
func (tx *Tx) DeleteNode(name string) { remove(tx, &tx.snap.Nodes, name) }

// PutNamespace adds a namespace.
func (tx *Tx) PutNamespace(n *model.Namespace) { put(tx, &tx.snap.Namespaces, n.Name, n) }

// DeleteNamespace removes a namespace.
func (tx *Tx) DeleteNamespace(name string) { remove(tx, &tx.snap.Namespaces, name) }

// PutRoute adds or replaces the routing of an object.
func (tx *Tx) PutRoute(r *model.Route) { put(tx, &tx.snap.Routes, rowKey(r.Ref), r) }

// DeleteRoute removes the routing of an object.
func (tx *Tx) DeleteRoute(ref model.Ref) { remove(tx, &tx.snap.Routes, rowKey(ref)) }

// PutStreams replaces all stream routes of an object; none removes the row.
func (tx *Tx) PutStreams(ref model.Ref, routes []model.StreamRoute) {
	if len(routes) == 0 {
		remove(tx, &tx.snap.Streams, rowKey(ref))
		return
	}
	put(tx, &tx.snap.Streams, rowKey(ref), routes)
}

// PutCertificate adds or replaces the TLS material of a Secret.
func (tx *Tx) PutCertificate(c *model.Certificate) { put(tx, &tx.snap.Certificates, c.Key, c) }

// DeleteCertificate removes the TLS material of a Secret.
func (tx *Tx) DeleteCertificate(k model.Key) { remove(tx, &tx.snap.Certificates, k) }

// PutPool adds or replaces an address pool.
func (tx *Tx) PutPool(p *model.Pool) { put(tx, &tx.snap.Pools, p.Key, p) }

// DeletePool removes an address pool.
func (tx *Tx) DeletePool(k model.Key) { remove(tx, &tx.snap.Pools, k) }

// SetDNS replaces the configuration of cluster DNS; nil removes it.
func (tx *Tx) SetDNS(c *model.DNSConfig) {
	if !reflect.DeepEqual(tx.snap.DNS, c) {
		tx.snap.DNS, tx.changed = c, true
	}
}

// PutProblems replaces what is known to be wrong with an object; none removes the row.
func (tx *Tx) PutProblems(ref model.Ref, p model.Problems) {
	if len(p) == 0 {
		remove(tx, &tx.snap.Problems, rowKey(ref))
		return
	}
	put(tx, &tx.snap.Problems, rowKey(ref), p)
}

// SetSynced says that every source has delivered its first full list.
func (tx *Tx) SetSynced() {
	if !tx.snap.Synced {
		tx.snap.Synced, tx.changed = true, true
	}
}

// rowKey drops the UID: an object made again under the same name is the same row.
func rowKey(r model.Ref) model.Ref { r.UID = ""; return r }

// PutSlice adds or replaces an EndpointSlice; the EndpointSet of its Service
// follows at commit. A slice may move to another Service.
func (tx *Tx) PutSlice(s *model.EndpointSlice) {
	if old := tx.index.put(s); old != nil {
		tx.touched[old.Service] = struct{}{}
	}
	tx.touched[s.Service] = struct{}{}
}

// DeleteSlice removes an EndpointSlice.
func (tx *Tx) DeleteSlice(k model.Key) {
	if old := tx.index.delete(k); old != nil {
		tx.touched[old.Service] = struct{}{}
	}
}

func (tx *Tx) mergeTouched() {
	for svc := range tx.touched {
		list := tx.index.of(svc)
		if len(list) == 0 {
			remove(tx, &tx.snap.Endpoints, svc)
			continue
		}
		put(tx, &tx.snap.Endpoints, svc, Merge(svc, list))
	}
}
