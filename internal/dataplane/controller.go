package dataplane

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/state"
)

// Flows forgets what the kernel remembers of connections to backends that no
// longer serve. conntrack has the implementation.
type Flows interface {
	// Changed is called after changes have been programmed, also of Services that
	// do without a frontend that another one has ([TakenError]). After an error it
	// is called again, with no changes, until what failed is done.
	Changed(ctx context.Context, changes []reconcile.Change[model.Key, plan.Service]) error
}

// Options configure a [Controller].
type Options struct {
	// Store is followed. Required.
	Store *state.Store
	// Logger is required.
	Logger *slog.Logger
	// NodeName is the name of this node. Required.
	NodeName string
	// Dataplane is programmed. Required.
	Dataplane Dataplane
	// Flows, if set, is told of changes that have been programmed.
	Flows Flows
	// Plan configures the plan of every Service.
	Plan plan.Options
	// Settings are what is known of the node besides the state. Where empty,
	// LocalPods follows the Pod ranges of the Node, Cluster those of all Nodes,
	// and TLSProxy is the plan's. With LocalPods, Cluster is not used.
	Settings Node
	// VerifyEvery is how often the kernel is compared with what it should
	// hold; default one minute. A data path that is a [Glancer] is asked meanwhile
	// every GlanceEvery whether that is due at once; default 250 ms.
	VerifyEvery, GlanceEvery time.Duration
	// Failed is passed on to reconcile.LoopOptions.
	Failed func(map[model.Key]error)
	// Registerer gets the metrics. Optional.
	Registerer prometheus.Registerer
}

// Controller keeps a data path in step with the state.
type Controller struct {
	o    Options
	loop *reconcile.Loop[model.Key, plan.Service]

	loaded   chan struct{} // see Loaded
	loadOnce sync.Once

	mu      sync.Mutex
	applied *Node // settings of the node; nil before the first

	stale chan struct{} // told when Flows has failed
}

// NewController returns a controller that has programmed nothing yet.
func NewController(o Options) (*Controller, error) {
	if o.Store == nil || o.Logger == nil || o.NodeName == "" || o.Dataplane == nil {
		return nil, errors.New("dataplane: Store, Logger, NodeName and Dataplane are required")
	}
	if o.VerifyEvery == 0 {
		o.VerifyEvery = time.Minute
	}
	if o.GlanceEvery == 0 {
		o.GlanceEvery = 250 * time.Millisecond
	}
	if len(o.Settings.TLSProxy) == 0 {
		o.Settings.TLSProxy = o.Plan.TLSProxy
	}
	view := plan.View{Node: o.NodeName, Options: o.Plan}
	c := &Controller{o: o, loaded: make(chan struct{}), stale: make(chan struct{}, 1)}
	options := reconcile.LoopOptions[model.Key, plan.Service]{
		WatchOptions: reconcile.WatchOptions{Store: o.Store, Logger: o.Logger},
		Name:         "dataplane",
		Dirty:        view.Dirty,
		Compile:      view.Compile,
		Equal:        plan.Service.Equal,
		Compare:      model.Key.Compare,
		Target:       target{c},
		Failed:       o.Failed,
	}
	if o.Registerer != nil {
		m, err := newMetrics(o.Store, c.Status, o.Dataplane, o.Registerer)
		if err != nil {
			return nil, err
		}
		options.Begin, options.Done = m.begin, m.done
	}
	loop, err := reconcile.NewLoop(options)
	if err != nil {
		return nil, err
	}
	c.loop = loop
	return c, nil
}

// Status returns where the controller stands.
func (c *Controller) Status() reconcile.Status { return c.loop.Status() }

// Loaded returns what is closed once all that there was at first has been tried.
func (c *Controller) Loaded() <-chan struct{} { return c.loaded }

// Run keeps the data path in step until ctx ends. It leaves what is programmed
// as it is, so that connections go on without it.
func (c *Controller) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.loop.Run(ctx) })
	g.Go(func() error { return c.followNode(ctx) })
	g.Go(func() error { c.verify(ctx); return nil })
	g.Go(func() error { c.retryFlows(ctx); return nil })
	return g.Wait()
}

// followNode applies the node's settings when its Node changes.
func (c *Controller) followNode(ctx context.Context) error {
	o := reconcile.WatchOptions{Store: c.o.Store, Logger: c.o.Logger}
	return reconcile.Watch(ctx, o, func(ctx context.Context, prev, next *state.Snapshot) error {
		if next.Synced == prev.Synced && !nodesDiffer(prev, next) {
			return nil
		}
		return c.setNode(ctx, next)
	})
}

func nodesDiffer(prev, next *state.Snapshot) bool {
	for range state.Diff(prev.Nodes, next.Nodes) {
		return true
	}
	return false
}

func (c *Controller) setNode(ctx context.Context, s *state.Snapshot) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	want, known := c.settings(s)
	if !known && !s.Synced || c.applied != nil && c.applied.Equal(want) {
		return nil
	}
	if err := c.o.Dataplane.SetNode(ctx, want); err != nil {
		return err
	}
	c.applied = &want
	return nil
}

// settings completes the configured settings by what the state knows.
func (c *Controller) settings(s *state.Snapshot) (Node, bool) {
	n := c.o.Settings
	node, ok := s.Nodes.Get(c.o.NodeName)
	if ok && len(n.LocalPods) == 0 {
		n.LocalPods = append([]netip.Prefix{}, node.PodCIDRs...)
	}
	switch {
	case len(n.LocalPods) > 0:
		// A Pod that comes through another node's NodePort is a client from
		// outside there, as with kube-proxy (kubernetes/kubernetes#123622).
		n.Cluster = nil
	case len(n.Cluster) == 0:
		for _, node := range s.Nodes.All() {
			n.Cluster = append(n.Cluster, node.PodCIDRs...)
		}
		slices.SortFunc(n.Cluster, netip.Prefix.Compare)
	}
	return n, ok
}

func (c *Controller) verify(ctx context.Context) {
	tick := time.NewTicker(c.o.VerifyEvery)
	defer tick.Stop()
	var glance <-chan time.Time
	path, glances := c.o.Dataplane.(Glancer)
	if glances {
		t := time.NewTicker(c.o.GlanceEvery)
		defer t.Stop()
		glance = t.C
	}
	told := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-glance:
			disturbed, err := path.Disturbed()
			if err == nil {
				told = ""
			} else if err.Error() != told {
				told = err.Error()
				c.o.Logger.Warn("cannot tell whether somebody else changes the data path; it is repaired once a minute", "error", err)
			}
			if !disturbed {
				continue
			}
		}
		if err := c.o.Dataplane.Verify(ctx); err != nil {
			c.o.Logger.Warn("data path could not be verified", "error", err)
		}
	}
}

// retryFlows calls Flows again after it has failed: the next change may be hours
// away, and clients send to endpoints that have gone for as long.
func (c *Controller) retryFlows(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.stale:
		}
		told := ""
		for backoff := reconcile.NewBackoff(); ; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(backoff.Next()):
			}
			err := c.o.Flows.Changed(ctx, nil)
			if err == nil {
				break
			}
			if err.Error() != told && ctx.Err() == nil {
				told = err.Error()
				c.o.Logger.Warn("stale connections could still not be removed; it is tried again", "error", err)
			}
		}
		c.o.Logger.Info("stale connections are removed after all")
	}
}

// target is the data path with what has to come before and after.
type target struct{ c *Controller }

// Apply tells Flows of what has been programmed.
func (t target) Apply(ctx context.Context, changes []reconcile.Change[model.Key, plan.Service]) map[model.Key]error {
	o := t.c.o
	failed := o.Dataplane.Apply(ctx, changes)
	if o.Flows == nil {
		return failed
	}
	done := make([]reconcile.Change[model.Key, plan.Service], 0, len(changes))
	for _, c := range changes {
		if Refusal(failed[c.Key]) == nil {
			done = append(done, c)
		}
	}
	if len(done) == 0 {
		return failed
	}
	if err := o.Flows.Changed(ctx, done); err != nil && ctx.Err() == nil {
		o.Logger.Warn("stale connections could not be removed; it is tried again", "error", err)
		select {
		case t.c.stale <- struct{}{}:
		default:
		}
	}
	return failed
}

// Prune sees to it that the node's settings are known, which would else count
// as left over from an earlier process.
func (t target) Prune(ctx context.Context, wanted iter.Seq2[model.Key, plan.Service]) error {
	defer t.c.loadOnce.Do(func() { close(t.c.loaded) })
	if err := t.c.setNode(ctx, t.c.o.Store.Snapshot()); err != nil {
		return err
	}
	return t.c.o.Dataplane.Prune(ctx, wanted)
}
