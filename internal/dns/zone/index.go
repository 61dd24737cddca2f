package zone

import (
	"net/netip"
	"slices"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// Index is a snapshot with what its rows alone cannot answer: which Services
// have an address, which addresses have a hostname, which namespaces have
// Services. It never changes.
type Index struct {
	snap *state.Snapshot
	// byAddr are the Services that have the address as cluster IP or as that
	// of a ready endpoint.
	byAddr addressTable
	// byService are the hosts of Services that are headless or have endpoints
	// with hostnames.
	byService state.Table[model.Key, *hosts]
	// byName are all Services whose names are not too long for it.
	byName state.Table[shortKey, entry]
	// population is the number of Services in a namespace: a source without
	// Namespace objects has namespaces as well.
	population state.Table[string, int]
}

// NewIndex returns the index of nothing.
func NewIndex() *Index { return &Index{snap: &state.Snapshot{}} }

// Next returns the index of snap. Its cost follows the number of rows that
// differ from the snapshot of ix.
func (ix *Index) Next(snap *state.Snapshot) *Index {
	e := indexEditor{
		prev: ix.snap, next: snap,
		byAddr: ix.byAddr.edit(), byService: ix.byService.Edit(), byName: ix.byName.Edit(), population: ix.population.Edit(),
	}
	touched := map[model.Key]struct{}{}
	for d := range state.Diff(ix.snap.Services, snap.Services) {
		touched[d.Key] = struct{}{}
		e.name(d.Key, d.New)
		switch {
		case !d.HadOld:
			e.populate(d.Key.Namespace, 1)
		case !d.HasNew:
			e.populate(d.Key.Namespace, -1)
		}
	}
	for d := range state.Diff(ix.snap.Endpoints, snap.Endpoints) {
		touched[d.Key] = struct{}{}
	}
	for key := range touched {
		e.update(key)
	}
	return &Index{
		snap: snap, byAddr: e.byAddr.done(), byService: e.byService.Table(), byName: e.byName.Table(), population: e.population.Table(),
	}
}

// hasNamespace reports whether the namespace exists.
func (ix *Index) hasNamespace(name string) bool {
	if _, ok := ix.snap.Namespaces.Get(name); ok {
		return true
	}
	_, ok := ix.population.Get(name)
	return ok
}

// endpoints returns the endpoints of a Service, ready or not, ordered by address.
func (ix *Index) endpoints(key model.Key) []model.Endpoint {
	set, ok := ix.snap.Endpoints.Get(key)
	if !ok {
		return nil
	}
	return set.Endpoints
}

// hosts returns those of a Service; never nil.
func (ix *Index) hosts(key model.Key) *hosts {
	if h, ok := ix.byService.Get(key); ok {
		return h
	}
	return &noHosts
}

type indexEditor struct {
	prev, next *state.Snapshot
	byAddr     *addressEditor
	byService  *state.Editor[model.Key, *hosts]
	byName     *state.Editor[shortKey, entry]
	population *state.Editor[string, int]
}

func (e *indexEditor) populate(namespace string, delta int) {
	n, _ := e.population.Get(namespace)
	if n+delta == 0 {
		e.population.Delete(namespace)
		return
	}
	e.population.Set(namespace, n+delta)
}

// update brings what concerns one Service from prev to next.
func (e *indexEditor) update(key model.Key) {
	before, after := addresses(e.prev, key), addresses(e.next, key)
	for _, a := range before {
		if _, still := slices.BinarySearchFunc(after, a, netip.Addr.Compare); !still {
			e.byAddr.remove(a, &key)
		}
	}
	for _, a := range after {
		if _, had := slices.BinarySearchFunc(before, a, netip.Addr.Compare); !had {
			e.byAddr.add(a, &key)
		}
	}
	if h := hostsOf(e.next, key); h != nil {
		e.byService.Set(key, h)
	} else {
		e.byService.Delete(key)
	}
}

// addresses returns the cluster IPs and ready endpoint addresses of a Service, sorted.
func addresses(snap *state.Snapshot, key model.Key) []netip.Addr {
	svc, ok := snap.Services.Get(key)
	if !ok || svc.Type == model.ExternalName {
		return nil
	}
	set, _ := snap.Endpoints.Get(key)
	if set == nil {
		set = &model.EndpointSet{}
	}
	list := append(make([]netip.Addr, 0, len(svc.ClusterIPs)+len(set.Endpoints)), svc.ClusterIPs...)
	for i := range set.Endpoints {
		if set.Endpoints[i].Ready {
			list = append(list, set.Endpoints[i].Addr)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// endpointsAt returns the endpoints with address a, ready or not; list is
// ordered by address.
func endpointsAt(list []model.Endpoint, a netip.Addr) []model.Endpoint {
	i, _ := slices.BinarySearchFunc(list, a, func(e model.Endpoint, a netip.Addr) int { return e.Addr.Compare(a) })
	end := i
	for end < len(list) && list[end].Addr == a {
		end++
	}
	return list[i:end]
}
