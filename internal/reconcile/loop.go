package reconcile

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/state"
)

// defaultBatch is the number of changes in one Apply: kernel transactions grow
// worse than linearly, so a first load goes in chunks.
const defaultBatch = 1000

// Change is what one object shall become. Old is what was applied last; it is
// missing at first and after a restart, when the target has to know by itself
// what it holds.
type Change[K comparable, D any] struct {
	Key            K
	Old, New       D
	HadOld, HasNew bool
}

// Target is what desired objects are applied to.
type Target[K comparable, D any] interface {
	// Apply makes the changes and returns an error for each key that failed.
	// It is idempotent: a change that already holds is not an error, and
	// neither is deleting what does not exist. A failed key comes again.
	Apply(ctx context.Context, changes []Change[K, D]) map[K]error
	// Prune removes everything of Fairway's that is not in wanted. It is
	// called once after all sources have synced and the first Apply, and
	// again after an error of its own.
	Prune(ctx context.Context, wanted iter.Seq2[K, D]) error
}

// LoopOptions configure a [Loop].
type LoopOptions[K comparable, D any] struct {
	WatchOptions
	// Name names the consumer in logs. Required.
	Name string
	// Dirty marks the keys whose desired object may differ between the
	// snapshots. Required.
	Dirty func(prev, next *state.Snapshot, mark func(K))
	// Compile returns the desired object of a key, or false for none. It must
	// be pure: it may be called while others are applied. Required.
	Compile func(s *state.Snapshot, key K) (D, bool)
	// Equal tells whether two desired objects are the same. Required.
	Equal func(a, b D) bool
	// Compare orders keys, so that runs are alike. Required.
	Compare func(a, b K) int
	// Target is applied to. Required.
	Target Target[K, D]
	// Batch is the number of changes in one Apply; default 1000.
	Batch int
	// Failed is called, if set, after a round with the error of each key that
	// failed in it, and with nil for each key that has recovered.
	Failed func(errs map[K]error)
	// Begin is called, if set, before a round that has changes to apply, and Done
	// after every round, for measuring.
	Begin func(started time.Time)
	Done  func(Round[K, D])
}

// Round is what one round has done.
type Round[K comparable, D any] struct {
	// Next is the snapshot that has been applied.
	Next *state.Snapshot
	// Changes were tried. Failed has the error of each key that failed, and nil
	// for keys that have recovered.
	Changes []Change[K, D]
	Failed  map[K]error
	Started time.Time
	Took    time.Duration
}

// Loop keeps a target equal to what the newest snapshot asks for.
type Loop[K comparable, D any] struct {
	o       LoopOptions[K, D]
	applied map[K]D
	failed  map[K]*failure[D]
	pruned  bool

	ready    atomic.Bool
	revision atomic.Uint64
	objects  atomic.Int64
	failing  atomic.Int64
	resync   atomic.Bool
}

// failure is a key that has to be tried again.
type failure[D any] struct {
	backoff Backoff
	due     time.Time
	want    D
	wanted  bool
	told    string // the error that was logged last
}

// NewLoop returns a loop that has applied nothing yet.
func NewLoop[K comparable, D any](o LoopOptions[K, D]) (*Loop[K, D], error) {
	if o.Store == nil || o.Logger == nil || o.Dirty == nil || o.Compile == nil || o.Equal == nil || o.Compare == nil || o.Target == nil || o.Name == "" {
		return nil, errors.New("reconcile: Store, Logger, Name, Dirty, Compile, Equal, Compare and Target are required")
	}
	o.setDefaults()
	if o.Batch == 0 {
		o.Batch = defaultBatch
	}
	o.Logger = o.Logger.With(slog.String("consumer", o.Name))
	return &Loop[K, D]{o: o, applied: map[K]D{}, failed: map[K]*failure[D]{}}, nil
}

// Status is where a loop stands.
type Status struct {
	// Ready is true once everything has been applied and pruned for the first time.
	Ready bool
	// Revision is the snapshot applied last.
	Revision uint64
	// Objects are applied, Failing are being tried again.
	Objects, Failing int
}

// Status returns where the loop stands.
func (l *Loop[K, D]) Status() Status {
	return Status{l.ready.Load(), l.revision.Load(), int(l.objects.Load()), int(l.failing.Load())}
}

// Resync makes the next round, which the caller provokes by a change of state
// or which comes with the next retry, compile and compare every object, for
// when something that Compile depends on besides the snapshot has changed.
func (l *Loop[K, D]) Resync() { l.resync.Store(true) }

// ErrRetry makes [Watch] come back for objects that failed, and hold nobody else up:
// one that cannot be applied may stay so for months.
var ErrRetry = errors.New("some objects are to be tried again")

// Run keeps the target in step until ctx ends; it then returns nil and leaves
// the target as it is.
func (l *Loop[K, D]) Run(ctx context.Context) error {
	prev := &state.Snapshot{}
	quiet := l.o.WatchOptions
	quiet.Logger = slog.New(slog.DiscardHandler) // keys log for themselves
	quiet.RetryMax = min(quiet.RetryMax, time.Second)
	return Watch(ctx, quiet, func(ctx context.Context, _, next *state.Snapshot) error {
		again := l.round(ctx, prev, next)
		prev = next
		if again {
			return ErrRetry
		}
		return nil
	})
}

// round applies the difference between the snapshots and what is due again; it
// reports whether something is left to do without a further change.
func (l *Loop[K, D]) round(ctx context.Context, prev, next *state.Snapshot) bool {
	first := 0 // a map that grows to what a first load marks is copied again and again
	if next.Synced && !prev.Synced {
		first = next.Services.Len()
	}
	dirty := make(map[K]struct{}, first)
	mark := func(k K) { dirty[k] = struct{}{} }
	if l.resync.Swap(false) {
		prev = &state.Snapshot{}
		for k := range l.applied {
			mark(k)
		}
	}
	l.o.Dirty(prev, next, mark)
	now := time.Now()
	for k, f := range l.failed {
		if _, ok := dirty[k]; !ok && !f.due.After(now) {
			mark(k)
		}
	}
	// Keys are sorted, not changes, which are large.
	keys := slices.SortedFunc(maps.Keys(dirty), l.o.Compare)
	changes := make([]Change[K, D], 0, len(keys))
	errs := map[K]error{}
	done := 0
	apply := func(n int) bool {
		if ctx.Err() != nil {
			return false
		}
		if done == 0 && l.o.Begin != nil {
			l.o.Begin(now)
		}
		batch := changes[done : done+n : done+n]
		l.settle(batch, l.o.Target.Apply(ctx, batch), errs)
		done += n
		return true
	}
	for part := range l.compile(next, keys) {
		for i := range part {
			if c, ok := l.change(&part[i]); ok {
				changes = append(changes, c)
			}
		}
		for len(changes)-done >= l.o.Batch {
			if !apply(l.o.Batch) {
				return true
			}
		}
	}
	if len(changes) > done && !apply(len(changes)-done) {
		return true
	}
	if l.o.Failed != nil && len(errs) > 0 {
		l.o.Failed(errs)
	}
	if next.Synced && !l.pruned {
		l.prune(ctx)
	}
	if l.o.Done != nil {
		l.o.Done(Round[K, D]{next, changes, errs, now, time.Since(now)})
	}
	l.revision.Store(next.Revision)
	l.objects.Store(int64(len(l.applied)))
	l.failing.Store(int64(len(l.failed)))
	if l.pruned {
		l.ready.Store(true)
	}
	return len(l.failed) > 0 || next.Synced && !l.pruned
}

// desired is what an object shall be.
type desired[K comparable, D any] struct {
	key    K
	object D
	wanted bool
}

// compile yields what the objects of keys shall be, in their order. Where there
// are many, some are compiled while those before are applied.
func (l *Loop[K, D]) compile(next *state.Snapshot, keys []K) iter.Seq[[]desired[K, D]] {
	some := func(keys []K) []desired[K, D] {
		out := make([]desired[K, D], len(keys))
		for i, k := range keys {
			out[i].key = k
			out[i].object, out[i].wanted = l.o.Compile(next, k)
		}
		return out
	}
	return func(yield func([]desired[K, D]) bool) {
		if len(keys) <= l.o.Batch {
			yield(some(keys))
			return
		}
		parts, stop := make(chan []desired[K, D], 1), make(chan struct{})
		defer close(stop)
		go func() {
			defer close(parts)
			for part := range slices.Chunk(keys, l.o.Batch) {
				select {
				case parts <- some(part):
				case <-stop:
					return
				}
			}
		}()
		for part := range parts {
			if !yield(part) {
				return
			}
		}
	}
}

// change is what makes an object what it shall be; false where it is.
func (l *Loop[K, D]) change(want *desired[K, D]) (Change[K, D], bool) {
	c := Change[K, D]{Key: want.key, New: want.object, HasNew: want.wanted}
	c.Old, c.HadOld = l.applied[c.Key]
	if _, failed := l.failed[c.Key]; failed {
		return c, true
	}
	if !c.HadOld && !c.HasNew || c.HadOld && c.HasNew && l.o.Equal(c.Old, c.New) {
		return c, false
	}
	return c, true
}

// settle books the outcome of a batch.
func (l *Loop[K, D]) settle(batch []Change[K, D], failed map[K]error, errs map[K]error) {
	for _, c := range batch {
		if err := failed[c.Key]; err != nil {
			f := l.failed[c.Key]
			if f == nil {
				f = &failure[D]{backoff: Backoff{Min: l.o.RetryMin, Max: l.o.RetryMax}}
				l.failed[c.Key] = f
			}
			delay := f.backoff.Next()
			f.due = time.Now().Add(delay)
			f.want, f.wanted = c.New, c.HasNew
			errs[c.Key] = err
			level := slog.LevelWarn
			if err.Error() == f.told {
				level = slog.LevelDebug // it may stay so for months
			}
			f.told = err.Error()
			l.o.Logger.Log(context.Background(), level, "object failed", "object", fmt.Sprint(c.Key), "error", err, "retryIn", delay)
			continue
		}
		if _, had := l.failed[c.Key]; had {
			delete(l.failed, c.Key)
			errs[c.Key] = nil
		}
		if c.HasNew {
			l.applied[c.Key] = c.New
		} else {
			delete(l.applied, c.Key)
		}
	}
}

func (l *Loop[K, D]) prune(ctx context.Context) {
	// What failed counts as wanted: an object that served before a restart
	// goes on as it is until its new shape can be applied.
	wanted := func(yield func(K, D) bool) {
		for k, d := range l.applied {
			if _, failed := l.failed[k]; !failed && !yield(k, d) {
				return
			}
		}
		for k, f := range l.failed {
			if f.wanted && !yield(k, f.want) {
				return
			}
		}
	}
	if err := l.o.Target.Prune(ctx, wanted); err != nil {
		l.o.Logger.Warn("prune failed", "error", err)
		return
	}
	l.pruned = true
}
