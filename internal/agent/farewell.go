package agent

import (
	"context"
	"net/netip"
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

// answersTime is how long queries that are under way have for their answers
// before the kernel forgets where they went.
const answersTime = 100 * time.Millisecond

// leadsTime is how long the kernel goes on to lead clients to a server that it was told
// of that it ends.
const leadsTime = 100 * time.Millisecond

// handOverDNS leads this node's clients to the DNS servers of other nodes before
// its own ends: the packet rules that stay behind must not lead to nobody. First
// new flows go elsewhere, by end and whether the API answers or not, then
// those that there are: while an endpoint serves, the
// kernel keeps them, and a client that asks again from the same port would ask
// a server that has ended. It does nothing where there is no other.
func (n *node) handOverDNS(ctx context.Context, end func() error, endpoints *bootstrap.DNSEndpoints, applied func() uint64) {
	if !dnsElsewhere(n.store.Snapshot(), n.NodeName) {
		return
	}
	if err := end(); err != nil {
		n.Logger.Warn("cannot tell the data path that DNS on this node ends", "error", err)
	}
	ended := time.Now()
	defer func() { wait(ctx, time.Until(ended.Add(leadsTime+answersTime))) }()
	// within waits until the data path has a state.
	within := func(state func(*state.Snapshot) bool) bool {
		for ctx.Err() == nil {
			if snap := n.store.Snapshot(); state(snap) && applied() >= snap.Revision {
				return true
			}
			wait(ctx, 10*time.Millisecond)
		}
		n.Logger.Warn("handing DNS over to other nodes takes long; names may fail on this one until it is back")
		return false
	}
	failed := func(err error) bool {
		if err != nil {
			n.Logger.Warn("cannot hand DNS over to other nodes; names fail on this one until it is back", "error", err)
		}
		return err != nil
	}
	if failed(endpoints.Retire(ctx)) || !within(func(s *state.Snapshot) bool { return !dnsHere(s, n.NodeName) }) {
		return
	}
	wait(ctx, answersTime)
	if !dnsElsewhere(n.store.Snapshot(), n.NodeName) { // they end too: a late answer is better than none
		return
	}
	if !failed(endpoints.Leave(ctx)) {
		within(func(s *state.Snapshot) bool { return !dnsServes(s, n.NodeName) })
	}
}

// wait returns after a time, or once ctx has ended.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// dnsElsewhere reports whether a node other than this one serves DNS.
func dnsElsewhere(snap *state.Snapshot, node string) bool {
	return dnsServers(snap, func(e *model.Endpoint) bool { return e.Ready && e.Node != node })
}

func dnsHere(snap *state.Snapshot, node string) bool {
	return dnsServers(snap, func(e *model.Endpoint) bool { return e.Ready && e.Node == node })
}

// dnsServes reports whether flows to the node's server may live on.
func dnsServes(snap *state.Snapshot, node string) bool {
	return dnsServers(snap, func(e *model.Endpoint) bool { return e.Serving && e.Node == node })
}

func dnsServers(snap *state.Snapshot, where func(*model.Endpoint) bool) bool {
	set, ok := snap.Endpoints.Get(bootstrap.DNSService)
	if !ok {
		return false
	}
	for i := range set.Endpoints {
		if e := &set.Endpoints[i]; where(e) {
			return true
		}
	}
	return false
}

// dnsServersOf returns where a node serves DNS.
func dnsServersOf(snap *state.Snapshot, node string) (out []netip.AddrPort) {
	set, ok := snap.Endpoints.Get(bootstrap.DNSService)
	if !ok {
		return nil
	}
	for i := range set.Endpoints {
		e := &set.Endpoints[i]
		if e.Node != node {
			continue
		}
		for _, p := range e.Ports {
			out = append(out, netip.AddrPortFrom(e.Addr.Unmap(), p.Port))
		}
	}
	return out
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
