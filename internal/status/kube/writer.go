package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/lb/ipam"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/source/translate"
	"fairway.dev/fairway/internal/state"
)

// FieldManager owns the fields of status that are written here.
const FieldManager = "fairway-status"

// writers is the number of writes under way at a time.
const writers = 8

// recheck is how often everything is looked at without a change: certificates
// expire, and Events of problems that last are renewed.
const recheck = 10 * time.Minute

// Options configure a [Writer].
type Options struct {
	// Config reaches the API. Required, unless Client is given.
	Config *rest.Config
	// Client replaces Config.
	Client kubernetes.Interface
	// Store is where everything is read from. Required.
	Store *state.Store
	// Logger is required.
	Logger *slog.Logger

	// Lease is the Lease by which the leader is elected, for example
	// kube-system/fairway-controller. Required.
	Lease model.Key
	// Identity tells this process from all others that want to lead. Required.
	Identity string
	// LeaseDuration is how long a leader that died blocks others; default 8 s.
	LeaseDuration time.Duration

	// Events writes an Event for every problem that translation, the cross
	// check and the allocator find.
	Events bool
	// Settle is how long a problem is there before its Event, default 3 s: objects
	// that are applied together come one after the other, an Ingress before its
	// Services.
	Settle time.Duration
	// Problems returns what else is wrong with objects, to be written as Events
	// as well, and ProblemsChanged fires when that has changed. Optional.
	Problems        func() model.Problems
	ProblemsChanged <-chan struct{}
	// Addresses gives addresses to Services of type LoadBalancer; nil leaves
	// them to others.
	Addresses *ipam.Options
	// Publish are the addresses at which the gateway serves, written to the
	// status of Ingresses; none leaves them alone.
	Publish []netip.Addr
	// PublishService names a Service of type LoadBalancer whose addresses are
	// written to the status of Ingresses in place of Publish. Optional.
	PublishService model.Key

	// Now tells the time; default time.Now.
	Now func() time.Time
}

// Writer writes results back to the API while it leads.
type Writer struct {
	Options
	leading atomic.Bool

	mu   sync.Mutex
	term *term // nil until the first sync of a term

	// problems hands the newest problems to the goroutine that writes Events,
	// so that addresses need not wait for many of them.
	problems chan map[model.Ref]model.Problems
}

// term is what a leader knows during one term of office.
type term struct {
	allocator *ipam.Allocator // nil where addresses are not ours to give
	ingresses *ingressStatus  // nil where their status is not ours to write
}

// New returns a writer; nothing is written before Run.
func New(o Options) (*Writer, error) {
	if o.Store == nil || o.Logger == nil || o.Lease.Name == "" || o.Identity == "" {
		return nil, errors.New("status: Store, Logger, Lease and Identity are required")
	}
	if o.Client == nil {
		if o.Config == nil {
			return nil, errors.New("status: Config or Client is required")
		}
		var err error
		if o.Client, err = kubernetes.NewForConfig(o.Config); err != nil {
			return nil, fmt.Errorf("status: %w", err)
		}
	}
	if o.Addresses != nil && o.Addresses.Mode == ipam.Off {
		o.Addresses = nil
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.LeaseDuration = cmp.Or(o.LeaseDuration, 8*time.Second)
	o.Settle = cmp.Or(o.Settle, 3*time.Second)
	return &Writer{Options: o}, nil
}

// Leading reports whether this process is the one that writes.
func (w *Writer) Leading() bool { return w.leading.Load() }

// Run writes whenever this process leads, until ctx ends; it then gives up the
// lead and returns nil.
func (w *Writer) Run(ctx context.Context) error { return w.elect(ctx, w.lead) }

// lead writes until ctx ends, which it does when the lead is lost.
func (w *Writer) lead(ctx context.Context) {
	w.leading.Store(true)
	defer w.leading.Store(false)
	w.mu.Lock()
	w.term = nil
	w.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	if w.Events || w.Problems != nil {
		problems := make(chan map[model.Ref]model.Problems, 1)
		w.problems = problems // before the first sync, which recheck may be
		wg.Go(func() { newEvents(w.Client, w.Logger, w.Now, w.Settle).run(ctx, problems) })
	}
	wg.Go(func() { w.recheck(ctx) })
	options := reconcile.WatchOptions{Store: w.Store, Logger: w.Logger}
	_ = reconcile.Watch(ctx, options, func(ctx context.Context, prev, next *state.Snapshot) error {
		if !w.concerns(prev, next) {
			return nil
		}
		return w.sync(ctx, next)
	})
}

func (w *Writer) recheck(ctx context.Context) {
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.ProblemsChanged:
		case <-tick.C:
		}
		if ctx.Err() == nil {
			if err := w.sync(ctx, w.Store.Snapshot()); err != nil && ctx.Err() == nil {
				w.Logger.Warn("cannot write status", "error", err)
			}
		}
	}
}

// concerns reports whether what changed can change a status. Endpoints, which
// change most, do so only where addresses follow them.
func (w *Writer) concerns(prev, next *state.Snapshot) bool {
	if !prev.Synced || w.Addresses != nil && w.Addresses.Mode == ipam.FromNodes {
		return true
	}
	return differ(prev.Services, next.Services) || differ(prev.Routes, next.Routes) || differ(prev.Streams, next.Streams) ||
		differ(prev.Certificates, next.Certificates) || differ(prev.Pools, next.Pools) || differ(prev.Problems, next.Problems) ||
		differ(prev.Nodes, next.Nodes)
}

func differ[K comparable, V any](prev, next state.Table[K, V]) bool {
	for range state.Diff(prev, next) {
		return true
	}
	return false
}

// sync brings the API up to date with a snapshot: addresses at once, for
// traffic waits for them, Events in their own time. Objects that the API does not
// take, such as for a webhook, are tried again and keep no others waiting.
func (w *Writer) sync(ctx context.Context, snap *state.Snapshot) error {
	if !snap.Synced {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.term == nil {
		t, err := w.newTerm(ctx)
		if err != nil {
			return err
		}
		w.term = t
	}
	problems := map[model.Ref]model.Problems{}
	var errs []error
	if w.term.allocator != nil {
		result := w.term.allocator.Sync(snap)
		merge(problems, result.Problems)
		errs = append(errs, w.writeServices(ctx, snap, result.Addrs))
	}
	if w.term.ingresses != nil {
		errs = append(errs, w.writeIngresses(ctx, snap))
	}
	if w.Events {
		for ref, p := range snap.Problems.All() {
			problems[ref] = append(problems[ref], p...)
		}
		merge(problems, translate.CrossCheck(snap, w.Now()))
	}
	if w.Problems != nil {
		for _, p := range w.Problems() {
			problems[p.Object] = append(problems[p.Object], p)
		}
	}
	if w.problems != nil {
		handOver(w.problems, problems)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", reconcile.ErrRetry, err)
	}
	return nil
}

func (w *Writer) newTerm(ctx context.Context) (*term, error) {
	t := &term{}
	var err error
	if w.Addresses != nil {
		if t.allocator, err = w.newAllocator(ctx); err != nil {
			return nil, err
		}
	}
	if len(w.Publish) > 0 || !w.PublishService.IsZero() {
		if t.ingresses, err = w.newIngressStatus(ctx); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// handOver puts v into c in place of what may still lie there.
func handOver[T any](c chan T, v T) {
	select {
	case <-c:
	default:
	}
	c <- v // there is room: only the holder of mu sends
}

func merge(into, from map[model.Ref]model.Problems) {
	for ref, p := range from {
		into[ref] = append(into[ref], p...)
	}
}

// parallel calls f for each item, some at a time, and returns what failed.
func parallel[T any](items []T, f func(T) error) error {
	errs := make([]error, len(items))
	var wg sync.WaitGroup
	slots := make(chan struct{}, writers)
	for i, item := range items {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(item)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
