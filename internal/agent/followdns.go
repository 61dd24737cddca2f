package agent

import (
	"context"
	"reflect"

	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// followed tells when what somebody looks at of the state is another than before,
// such as an object of Fairway's own that was taken away.
type followed struct {
	store   *state.Store
	look    func(*state.Snapshot) any // never nil
	changed chan struct{}
}

func follow(store *state.Store, look func(*state.Snapshot) any) *followed {
	return &followed{store: store, look: look, changed: make(chan struct{}, 1)}
}

// run tells of the first full list and of every change after it, until ctx ends.
func (f *followed) run(ctx context.Context) error {
	sub := f.store.Subscribe()
	defer sub.Close()
	var known any
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sub.C():
		}
		snap := f.store.Snapshot()
		if !snap.Synced {
			continue
		}
		now := f.look(snap)
		if reflect.DeepEqual(known, now) {
			continue
		}
		known = now
		select {
		case f.changed <- struct{}{}:
		default:
		}
	}
}

// dnsService is the DNS Service, nil for none; one that was made anew has another UID.
func dnsService(s *state.Snapshot) any {
	service, _ := s.Services.Get(bootstrap.DNSService)
	return service
}

// dnsOf returns how to look at what leads to the DNS server of a node: its
// endpoints, and the Service, which may have become somebody else's.
func dnsOf(node string) func(*state.Snapshot) any {
	type look struct {
		service   any
		endpoints []model.Endpoint
	}
	return func(s *state.Snapshot) any {
		out := look{service: dnsService(s)}
		if set, ok := s.Endpoints.Get(bootstrap.DNSService); ok {
			for _, e := range set.Endpoints {
				if e.Node == node {
					out.endpoints = append(out.endpoints, e)
				}
			}
		}
		return out
	}
}
