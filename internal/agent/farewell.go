package agent

import (
	"context"
	"time"

	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// farewellTime bounds how long a role that was told to end goes on.
const farewellTime = 2 * time.Second

// lingering returns a context that outlives ctx by the farewell, which is
// called once ctx has ended and finds everything still at work.
func lingering(ctx context.Context, farewell func(context.Context)) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		defer cancel()
		limited, done := context.WithTimeout(late, farewellTime)
		defer done()
		farewell(limited)
	})
	return late, func() {
		stop()
		cancel()
	}
}

// handOverDNS leads this node's clients to the DNS servers of other nodes before
// its own ends: the packet rules that stay behind must not lead to nobody. It
// does nothing where there is no other.
func (n *node) handOverDNS(ctx context.Context, endpoints *bootstrap.DNSEndpoints, applied func() uint64) {
	if !dnsElsewhere(n.store.Snapshot(), n.NodeName) {
		return
	}
	if err := endpoints.Retire(ctx); err != nil {
		n.Logger.Warn("cannot hand DNS over to other nodes; names fail on this one until it is back", "error", err)
		return
	}
	for ctx.Err() == nil {
		if snap := n.store.Snapshot(); !dnsHere(snap, n.NodeName) && applied() >= snap.Revision {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	n.Logger.Warn("handing DNS over to other nodes takes long; names may fail on this one until it is back")
}

// dnsElsewhere reports whether a node other than this one serves DNS.
func dnsElsewhere(snap *state.Snapshot, node string) bool {
	return dnsServers(snap, func(e *model.Endpoint) bool { return e.Node != node })
}

func dnsHere(snap *state.Snapshot, node string) bool {
	return dnsServers(snap, func(e *model.Endpoint) bool { return e.Node == node })
}

func dnsServers(snap *state.Snapshot, where func(*model.Endpoint) bool) bool {
	set, ok := snap.Endpoints.Get(bootstrap.DNSService)
	if !ok {
		return false
	}
	for i := range set.Endpoints {
		if e := &set.Endpoints[i]; e.Ready && where(e) {
			return true
		}
	}
	return false
}

// runWhenReady runs a part once ready.
func runWhenReady(ready func() bool, run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for !ready() {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(20 * time.Millisecond):
			}
		}
		return run(ctx)
	}
}
