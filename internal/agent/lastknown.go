package agent

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/lastknown"
)

const (
	// outagePatience is how long a node that starts waits for an API that has
	// refused it or says nothing; listPatience, for one that is slow to list.
	outagePatience = time.Second
	listPatience   = 5 * time.Second
)

// recall waits a moment for the API. Where it does not answer and the state of
// an earlier run is on disk, that state and this machine's Node in it are what
// the node starts with.
func (n *node) recall(ctx context.Context) error {
	if n.StateDir == "" {
		return nil
	}
	last, err := n.lastKnown()
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		n.Logger.Warn("the last known state on disk cannot be used, and will be written anew once the API has told everything", "error", err)
		return nil
	}
	self, ok := last.Snapshot.Nodes.Get(n.NodeName)
	if !ok || len(self.Addrs) == 0 || n.answers(ctx) {
		return nil
	}
	n.Logger.Warn("Kubernetes API does not answer, names are served from the last known state", "directory", n.StateDir, "trueAt", last.At)
	n.last, n.self = last, self
	return nil
}

// answers reports whether the API tells all there is in time.
func (n *node) answers(ctx context.Context) bool {
	start := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !n.source.Synced() {
		_, heard := n.store.Snapshot().Nodes.Get(n.NodeName)
		if time.Since(start) > patience(heard, !n.source.Outage().IsZero()) {
			return false
		}
		select {
		case <-ctx.Done():
			return true
		case <-tick.C:
		}
	}
	return true
}

// patience is how long a node that starts waits for all there is. Only an API
// that has told of this machine's Node is worth a longer wait: from one that
// hangs nothing comes, as from one that refuses.
func patience(heard, outage bool) time.Duration {
	if heard && !outage {
		return listPatience
	}
	return outagePatience
}

// wireLastKnown keeps the state on disk for the next start.
func (n *node) wireLastKnown(registry prometheus.Registerer) error {
	if n.StateDir == "" {
		return nil
	}
	keeper, err := lastknown.New(lastknown.Options{
		Dir: n.StateDir, Node: n.NodeName, Cluster: n.config.Host, Store: n.store, Logger: n.Logger,
		Outage: n.source.Outage, Registerer: registry,
	})
	if err != nil {
		return err
	}
	n.stateFailing = keeper.Failing
	n.parts = append(n.parts, part{"last known state", keeper.Run})
	return nil
}

// staleSince is since when the API has not confirmed the state that names are
// answered from; zero while it does.
func (n *node) staleSince() time.Time {
	if n.last != nil && !n.source.Synced() {
		return n.last.At
	}
	return n.source.Outage()
}

// staleAge is how long ago that is, in seconds. A state on disk may be of a time that
// the machine's clock has not reached: one that starts without the network has only
// what its hardware remembers.
func staleAge(since, now time.Time) float64 {
	if since.IsZero() {
		return 0
	}
	return max(0, now.Sub(since).Seconds())
}

// registerStale adds metrics that say how old the answers of DNS are.
func (n *node) registerStale(registry prometheus.Registerer) {
	registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fairway_dns_stale", Help: "1 while names of the cluster are answered from the last known state, for the API does not answer.",
		}, func() float64 {
			if n.staleSince().IsZero() {
				return 0
			}
			return 1
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fairway_dns_state_age_seconds", Help: "Time since the API last confirmed the state that names of the cluster are answered from, as far as is known; 0 while it answers.",
		}, func() float64 {
			return staleAge(n.staleSince(), time.Now())
		}),
	)
}
