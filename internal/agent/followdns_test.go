package agent

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"

	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func TestFollowTellsOfOwnDNSObjectsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.New()
		service, own := follow(store, dnsService), follow(store, dnsOf("node-1"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go service.run(ctx)
		go own.run(ctx)
		slice := func(node string) *model.EndpointSlice {
			return &model.EndpointSlice{
				Key: model.Key{Namespace: "kube-system", Name: node}, Service: bootstrap.DNSService,
				Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("192.0.2.1"), Node: node}},
			}
		}
		for _, step := range []struct {
			what                   string
			do                     func(*state.Tx)
			wantService, wantSlice int
		}{
			{"before the first full list", func(tx *state.Tx) { tx.PutService(&model.Service{Key: bootstrap.DNSService, UID: "1"}) }, 0, 0},
			{"the first full list", func(tx *state.Tx) { tx.SetSynced() }, 1, 1},
			{"own slice", func(tx *state.Tx) { tx.PutSlice(slice("node-1")) }, 0, 1},
			{"another node's slice", func(tx *state.Tx) { tx.PutSlice(slice("node-2")) }, 0, 0},
			{"another Service", func(tx *state.Tx) { tx.PutService(&model.Service{Key: model.Key{Namespace: "default", Name: "web"}}) }, 0, 0},
			{"the Service deleted", func(tx *state.Tx) { tx.DeleteService(bootstrap.DNSService) }, 1, 1},
			{"and made anew", func(tx *state.Tx) { tx.PutService(&model.Service{Key: bootstrap.DNSService, UID: "2"}) }, 1, 1},
			{"at once", func(tx *state.Tx) { tx.PutService(&model.Service{Key: bootstrap.DNSService, UID: "3"}) }, 1, 1},
			{"own slice deleted", func(tx *state.Tx) { tx.DeleteSlice(slice("node-1").Key) }, 0, 1},
		} {
			store.Update(step.do)
			synctest.Wait()
			if a, b := len(service.changed), len(own.changed); a != step.wantService || b != step.wantSlice {
				t.Errorf("%s: told of the Service %d times, of own endpoints %d, want %d and %d", step.what, a, b, step.wantService, step.wantSlice)
			}
			for _, f := range []*followed{service, own} {
				select {
				case <-f.changed:
				default:
				}
			}
		}
	})
}
