package state

import (
	"reflect"
	"slices"
	"time"

	"fairway.dev/fairway/internal/model"
)

// sliceIndex knows the EndpointSlices of each Service. Only the writer uses it.
type sliceIndex struct {
	bySlice   map[model.Key]*model.EndpointSlice
	byService map[model.Key][]*model.EndpointSlice // nearly always one
}

func newSliceIndex() *sliceIndex {
	return &sliceIndex{
		bySlice:   map[model.Key]*model.EndpointSlice{},
		byService: map[model.Key][]*model.EndpointSlice{},
	}
}

// put stores s and returns the slice that it replaces, if any.
func (x *sliceIndex) put(s *model.EndpointSlice) *model.EndpointSlice {
	old := x.delete(s.Key)
	x.bySlice[s.Key] = s
	x.byService[s.Service] = append(x.byService[s.Service], s)
	return old
}

// delete removes a slice and returns it, if it was there.
func (x *sliceIndex) delete(k model.Key) *model.EndpointSlice {
	old := x.bySlice[k]
	if old == nil {
		return nil
	}
	delete(x.bySlice, k)
	of := slices.DeleteFunc(x.byService[old.Service], func(s *model.EndpointSlice) bool { return s == old })
	if x.byService[old.Service] = of; len(of) == 0 {
		delete(x.byService, old.Service)
	}
	return old
}

// of returns the slices of a Service.
func (x *sliceIndex) of(svc model.Key) []*model.EndpointSlice {
	return slices.Clone(x.byService[svc])
}

// Merge makes the EndpointSet of a Service from its slices. The result does
// not depend on their order. While an endpoint moves from one slice to another
// it may stand in both (EndpointSlice API, "Duplicate endpoints"): it then
// counts once, as the fitter of the two; but not where service proxies are to
// take it from one slice and not from the other. The set shares the endpoints of a
// slice that is the only one and in order already.
func Merge(svc model.Key, list []*model.EndpointSlice) *model.EndpointSet {
	slices.SortFunc(list, func(a, b *model.EndpointSlice) int { return a.Key.Compare(b.Key) })
	n := 0
	var triggered time.Time
	for _, s := range list {
		n += len(s.Endpoints)
		if s.Triggered.After(triggered) {
			triggered = s.Triggered
		}
	}
	if len(list) == 1 && inOrder(list[0].Endpoints) {
		return &model.EndpointSet{Key: svc, Endpoints: slices.Clip(list[0].Endpoints), Triggered: triggered}
	}
	all := make([]model.Endpoint, 0, n)
	for _, s := range list {
		all = append(all, s.Endpoints...)
	}
	slices.SortStableFunc(all, func(a, b model.Endpoint) int { return a.Addr.Compare(b.Addr) })
	merged := all[:0]
	for _, e := range all {
		if i := sameEndpoint(merged, &e); i >= 0 {
			if fitness(&e) > fitness(&merged[i]) {
				merged[i] = e
			}
			continue
		}
		merged = append(merged, e)
	}
	return &model.EndpointSet{Key: svc, Endpoints: slices.Clip(merged), Triggered: triggered}
}

// inOrder reports whether the endpoints are ordered by address, each address once.
func inOrder(list []model.Endpoint) bool {
	for i := range list[min(1, len(list)):] {
		if list[i].Addr.Compare(list[i+1].Addr) >= 0 {
			return false
		}
	}
	return true
}

// sameEndpoint finds e among the last of the sorted endpoints.
func sameEndpoint(sorted []model.Endpoint, e *model.Endpoint) int {
	for i := len(sorted) - 1; i >= 0 && sorted[i].Addr == e.Addr; i-- {
		if sorted[i].NotProxied == e.NotProxied && reflect.DeepEqual(sorted[i].Ports, e.Ports) {
			return i
		}
	}
	return -1
}

func fitness(e *model.Endpoint) int {
	n := 0
	if e.Ready {
		n += 4
	}
	if e.Serving {
		n += 2
	}
	if !e.Terminating {
		n++
	}
	return n
}
