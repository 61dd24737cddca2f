package lastknown

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/state"
)

const (
	// minPause is the least time between two writes.
	minPause = 10 * time.Second
	// maxRate bounds what is written in the long run, bytes per second: a large
	// cluster that never rests must not wear out the node's disk.
	maxRate = 64 << 10
	// confirmEvery is how often an unchanged state is written with a new time.
	confirmEvery = 10 * time.Minute
	// retryEvery is how often it is tried to write what could not be written.
	retryEvery = 20 * time.Second
)

// Options configure a [Keeper].
type Options struct {
	// Dir is the state directory, of this node alone. It is made where it is
	// missing. Required.
	Dir string
	// Node is the name of the node, Cluster the address of the API. Required.
	Node, Cluster string
	// Store has the state. Required.
	Store *state.Store
	// Outage is since when the API does not confirm what Store has; zero while it
	// does. Required.
	Outage func() time.Time
	// Logger is told when the file cannot be written. Required.
	Logger *slog.Logger
	// Registerer gets the metrics. Optional.
	Registerer prometheus.Registerer
}

// Keeper writes the state to disk as it changes.
type Keeper struct {
	o       Options
	written *state.Snapshot // nil for none
	at      time.Time       // of written
	size    int
	failing atomic.Pointer[Failure]
}

// Failure is why the state cannot be written.
type Failure struct {
	Err   error
	Since time.Time
}

// New returns a keeper; nothing is written before Run.
func New(o Options) (*Keeper, error) {
	if o.Dir == "" || o.Node == "" || o.Cluster == "" || o.Store == nil || o.Outage == nil || o.Logger == nil {
		return nil, errors.New("lastknown: Dir, Node, Cluster, Store, Outage and Logger are required")
	}
	k := &Keeper{o: o}
	if o.Registerer == nil {
		return k, nil
	}
	err := o.Registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "fairway_last_known_state_failing",
		Help: "1 while what the node last knew cannot be written to --state-dir, for a start while the API is away.",
	}, func() float64 {
		if k.Failing() != nil {
			return 1
		}
		return 0
	}))
	if err != nil {
		return nil, fmt.Errorf("lastknown: %w", err)
	}
	return k, nil
}

// Failing returns why the state cannot be written now; nil if it can.
func (k *Keeper) Failing() *Failure { return k.failing.Load() }

// Run writes the state once it is synced, soon after it has changed, every few
// minutes while the API confirms it, and at last when ctx ends, with the time until
// which it was confirmed; it then returns nil. A file that cannot be written is
// logged and tried again: it must not keep the node from its work.
func (k *Keeper) Run(ctx context.Context) error {
	sub := k.o.Store.Subscribe()
	defer sub.Close()
	confirm := time.NewTicker(confirmEvery)
	defer confirm.Stop()
	for {
		again := false
		var retry <-chan time.Time
		if k.Failing() != nil { // the next change may be hours away
			retry = time.After(retryEvery)
		}
		select {
		case <-ctx.Done():
			k.save(true)
			return nil
		case <-retry:
			again = true
		case <-sub.C():
		case <-confirm.C:
			again = true
		}
		if !k.save(again) {
			continue
		}
		select {
		case <-ctx.Done():
			k.save(true)
			return nil
		case <-time.After(k.pause()):
		}
	}
}

func (k *Keeper) pause() time.Duration {
	return max(minPause, time.Duration(k.size)*time.Second/maxRate)
}

// save writes the state where it is another than what was written, or where it was
// confirmed since and again is true. It reports whether it has tried to.
func (k *Keeper) save(again bool) bool {
	snap := k.o.Store.Snapshot()
	if !snap.Synced {
		return false
	}
	at := k.o.Outage()
	if at.IsZero() {
		at = time.Now()
	}
	if !k.changed(snap) && !(again && at.After(k.at)) {
		return false
	}
	data, err := encode(snap, k.o.Node, k.o.Cluster, at)
	if err == nil {
		err = write(k.o.Dir, data)
	}
	switch {
	case err != nil && k.Failing() == nil:
		k.failing.Store(&Failure{err, time.Now()})
		k.o.Logger.Warn("cannot write the last known state; a restart while the API is away would know nothing", "directory", k.o.Dir, "error", err)
	case err == nil && k.Failing() != nil:
		k.failing.Store(nil)
		k.o.Logger.Info("the last known state is written again", "directory", k.o.Dir)
	}
	k.size = len(data)
	if err == nil {
		k.written, k.at = snap, at
	}
	return true
}

// changed reports whether a row of the kinds that are written differs.
func (k *Keeper) changed(s *state.Snapshot) bool {
	w := k.written
	return w == nil || differ(w.Services, s.Services) || differ(w.Endpoints, s.Endpoints) || differ(w.Nodes, s.Nodes) || differ(w.Namespaces, s.Namespaces) || w.DNS != s.DNS
}

func differ[K comparable, V any](a, b state.Table[K, V]) bool {
	for range state.Diff(a, b) {
		return true
	}
	return false
}
