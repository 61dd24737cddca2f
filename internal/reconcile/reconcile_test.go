package reconcile

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// faulty holds strings and fails a share of all operations.
type faulty struct {
	rng     *rand.Rand
	share   float64
	held    map[string]string
	applies int
	prunes  int
	largest int
}

func (f *faulty) fails() bool { return f.rng != nil && f.rng.Float64() < f.share }

func (f *faulty) Apply(_ context.Context, changes []Change[string, string]) map[string]error {
	f.applies++
	f.largest = max(f.largest, len(changes))
	errs := map[string]error{}
	for _, c := range changes {
		if f.fails() {
			errs[c.Key] = errors.New("no luck")
			continue
		}
		if c.HasNew {
			f.held[c.Key] = c.New
		} else {
			delete(f.held, c.Key)
		}
	}
	return errs
}

func (f *faulty) Prune(_ context.Context, wanted iter.Seq2[string, string]) error {
	f.prunes++
	if f.fails() {
		return errors.New("no luck either")
	}
	keep := maps.Collect(wanted)
	for k := range f.held {
		if _, ok := keep[k]; !ok {
			delete(f.held, k)
		}
	}
	return nil
}

// pause lets d pass and everybody come to rest.
func pause(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func options(store *state.Store, target *faulty) LoopOptions[string, string] {
	return LoopOptions[string, string]{
		WatchOptions: WatchOptions{Store: store, Logger: slog.New(slog.DiscardHandler)},
		Name:         "test",
		Dirty: func(prev, next *state.Snapshot, mark func(string)) {
			for d := range state.Diff(prev.Nodes, next.Nodes) {
				mark(d.Key)
			}
		},
		Compile: func(s *state.Snapshot, k string) (string, bool) {
			n, ok := s.Nodes.Get(k)
			if !ok || n.Zone == "none" {
				return "", false
			}
			return n.Zone, true
		},
		Equal:   func(a, b string) bool { return a == b },
		Compare: cmp.Compare[string],
		Target:  target,
	}
}

func start(t *testing.T, o LoopOptions[string, string]) (*Loop[string, string], func()) {
	t.Helper()
	l, err := NewLoop(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	return l, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v after cancel", err)
		}
	}
}

// TestRandomWithFaultsAndRestarts changes random rows while a tenth of all
// operations fails and the loop is restarted now and then; in the end the
// target must hold just what a fresh compile of the last snapshot gives.
func TestRandomWithFaultsAndRestarts(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 3))
			store := state.New()
			target := &faulty{rng: rand.New(rand.NewPCG(seed, 4)), share: 0.1, held: map[string]string{"left over": "x"}}
			o := options(store, target)
			o.Batch = 7
			l, stop := start(t, o)
			for range 200 {
				store.Update(func(tx *state.Tx) {
					for range 1 + rng.IntN(20) {
						name := fmt.Sprint(rng.IntN(40))
						if rng.IntN(3) == 0 {
							tx.DeleteNode(name)
						} else {
							tx.PutNode(&model.Node{Name: name, Zone: []string{"a", "b", "none"}[rng.IntN(3)]})
						}
					}
				})
				pause(time.Duration(rng.IntN(400)) * time.Millisecond)
				if rng.IntN(50) == 0 {
					stop()
					l, stop = start(t, o)
				}
			}
			if l.Status().Ready {
				t.Error("ready before the sources have synced")
			}
			store.Update((*state.Tx).SetSynced)
			pause(5 * time.Minute)
			want := map[string]string{}
			for k := range store.Snapshot().Nodes.All() {
				if v, ok := o.Compile(store.Snapshot(), k); ok {
					want[k] = v
				}
			}
			if diff := gocmp.Diff(want, target.held); diff != "" {
				t.Errorf("seed %d: want -, held +\n%s", seed, diff)
			}
			if s := l.Status(); !s.Ready || s.Failing != 0 || s.Objects != len(want) || s.Revision != store.Snapshot().Revision {
				t.Errorf("seed %d: status %+v", seed, s)
			}
			if target.largest > 7 {
				t.Errorf("a batch of %d, want at most 7", target.largest)
			}
			stop()
		})
	}
}

func TestNothingIsPrunedBeforeSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, target := state.New(), &faulty{held: map[string]string{"before": "restart"}}
		_, stop := start(t, options(store, target))
		defer stop()
		store.Update(func(tx *state.Tx) { tx.PutNode(&model.Node{Name: "n", Zone: "a"}) })
		pause(time.Minute)
		if len(target.held) != 2 || target.prunes != 0 {
			t.Fatalf("held %v after %d prunes", target.held, target.prunes)
		}
		store.Update((*state.Tx).SetSynced)
		pause(time.Minute)
		if len(target.held) != 1 || target.prunes != 1 {
			t.Errorf("after sync: held %v after %d prunes", target.held, target.prunes)
		}
	})
}

func TestFailedObjectIsNotPruned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, target := state.New(), &faulty{held: map[string]string{"n": "old"}}
		o := options(store, target)
		o.Target = failing{target, "n"}
		var seen []error
		o.Failed = func(errs map[string]error) { seen = append(seen, errs["n"]) }
		l, stop := start(t, o)
		defer stop()
		store.Update(func(tx *state.Tx) { tx.PutNode(&model.Node{Name: "n", Zone: "new"}); tx.SetSynced() })
		pause(time.Second)
		if target.held["n"] != "old" || l.Status().Failing != 1 {
			t.Errorf("held %v, status %+v", target.held, l.Status())
		}
		if len(seen) == 0 || seen[0] == nil {
			t.Error("the failure was not reported")
		}
	})
}

// TestFailedObjectKeepsNobodyWaiting checks that changes of others are applied at
// once while an object fails again and again.
func TestFailedObjectKeepsNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, target := state.New(), &faulty{held: map[string]string{}}
		o := options(store, target)
		o.Target = failing{target, "bad"}
		var log bytes.Buffer
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		var failures atomic.Int64
		o.Failed = func(map[string]error) { failures.Add(1) }
		_, stop := start(t, o)
		defer stop()
		store.Update(func(tx *state.Tx) { tx.PutNode(&model.Node{Name: "bad", Zone: "x"}); tx.SetSynced() })
		for i := range 20 {
			pause(time.Duration(1000+37*i) * time.Millisecond)
			zone := fmt.Sprint(i)
			store.Update(func(tx *state.Tx) { tx.PutNode(&model.Node{Name: "good", Zone: zone}) })
			pause(defaultMaxDelay)
			if target.held["good"] != zone {
				t.Errorf("change %d waits for an object that fails", i)
			}
		}
		before := failures.Load()
		pause(5 * time.Minute)
		if failures.Load() < before+5 {
			t.Errorf("the object that fails was tried %d times in 5 minutes", failures.Load()-before)
		}
		if n := strings.Count(log.String(), "object failed"); n != 1 {
			t.Errorf("the same failure is logged %d times:\n%s", n, &log)
		}
	})
}

type failing struct {
	*faulty
	key string
}

func (f failing) Apply(ctx context.Context, changes []Change[string, string]) map[string]error {
	errs := map[string]error{}
	for _, c := range changes {
		if c.Key == f.key {
			errs[c.Key] = errors.New("never")
		} else if c.HasNew {
			f.held[c.Key] = c.New
		}
	}
	return errs
}

func TestFirstChangeAtOnceThenCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, target := state.New(), &faulty{held: map[string]string{}}
		_, stop := start(t, options(store, target))
		defer stop()
		pause(time.Second)
		put := func(i int) {
			store.Update(func(tx *state.Tx) { tx.PutNode(&model.Node{Name: "n", Zone: fmt.Sprint(i)}) })
		}
		put(0)
		synctest.Wait()
		if target.applies != 1 {
			t.Fatalf("%d applies at once, want 1", target.applies)
		}
		for i := range 100 { // a change each 10 ms for one second never pauses for 20 ms
			put(i + 1)
			pause(10 * time.Millisecond)
		}
		pause(time.Second)
		if target.held["n"] != "100" || target.applies < 4 || target.applies > 8 {
			t.Errorf("held %v after %d applies, want 100 after about 5", target.held, target.applies)
		}
	})
}

func TestResync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, target := state.New(), &faulty{held: map[string]string{}}
		o := options(store, target)
		var suffix atomic.Int64
		plain := o.Compile
		o.Compile = func(s *state.Snapshot, k string) (string, bool) {
			v, ok := plain(s, k)
			return fmt.Sprint(v, suffix.Load()), ok
		}
		l, stop := start(t, o)
		defer stop()
		store.Update(func(tx *state.Tx) { tx.PutNode(&model.Node{Name: "n", Zone: "a"}) })
		pause(time.Second)
		suffix.Store(2)
		l.Resync()
		store.Update((*state.Tx).SetSynced)
		pause(time.Second)
		if target.held["n"] != "a2" {
			t.Errorf("held %v", target.held)
		}
	})
}

// TestCompilesWhileApplying has some of many objects compiled while those before
// are applied, in order and in whole batches, and nothing left at an early end.
func TestCompilesWhileApplying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, target := state.New(), &slow{faulty: &faulty{held: map[string]string{}}}
		o := options(store, target.faulty)
		o.Target, o.Batch = target, 2
		var compiled atomic.Int64
		plain := o.Compile
		o.Compile = func(s *state.Snapshot, k string) (string, bool) {
			compiled.Add(1)
			return plain(s, k)
		}
		begun := 0
		o.Begin = func(time.Time) { begun++ }
		put := func(zone string, of ...int) {
			store.Update(func(tx *state.Tx) {
				for _, i := range of {
					tx.PutNode(&model.Node{Name: fmt.Sprint(i), Zone: zone})
				}
				tx.SetSynced()
			})
		}
		put("a", 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
		l, stop := start(t, o)
		pause(time.Second / 2)
		if n := compiled.Load(); n <= 2 || n == 10 {
			t.Errorf("%d of 10 are compiled while the first two are applied", n)
		}
		pause(time.Minute)
		want := [][]string{{"0", "1"}, {"2", "3"}, {"4", "5"}, {"6", "7"}, {"8", "9"}}
		if diff := gocmp.Diff(want, target.batches); diff != "" || begun != 1 {
			t.Errorf("begun %d times, batches (-want +got):\n%s", begun, diff)
		}
		target.batches = nil
		l.Resync()
		put("b", 1, 5, 8)
		pause(time.Minute)
		want = [][]string{{"1", "5"}, {"8"}}
		if diff := gocmp.Diff(want, target.batches); diff != "" || begun != 2 {
			t.Errorf("where few of many have changed: begun %d times, batches (-want +got):\n%s", begun, diff)
		}
		target.batches = nil
		put("c", 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
		pause(time.Second / 2)
		stop()
		if n := len(target.batches); n != 1 {
			t.Errorf("%d batches though the end came in the first", n)
		}
	})
}

// slow takes a second for each batch.
type slow struct {
	*faulty
	batches [][]string
}

func (s *slow) Apply(ctx context.Context, changes []Change[string, string]) map[string]error {
	var keys []string
	for _, c := range changes {
		keys = append(keys, c.Key)
	}
	s.batches = append(s.batches, keys)
	time.Sleep(time.Second)
	return s.faulty.Apply(ctx, changes)
}

func TestWatchRetriesWithTheSamePrevious(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.New()
		ctx, cancel := context.WithCancel(t.Context())
		var prevs, nexts []uint64
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = Watch(ctx, WatchOptions{Store: store, Logger: slog.New(slog.DiscardHandler)}, func(_ context.Context, prev, next *state.Snapshot) error {
				prevs, nexts = append(prevs, prev.Revision), append(nexts, next.Revision)
				if next.Revision == 1 {
					return errors.New("not yet")
				}
				return nil
			})
		}()
		synctest.Wait()
		store.Update((*state.Tx).SetSynced)
		pause(90 * time.Millisecond)
		store.Update(func(tx *state.Tx) { tx.PutNamespace(&model.Namespace{Name: "a"}) })
		pause(time.Second)
		cancel()
		<-done
		if want := []uint64{0, 0, 0}; !gocmp.Equal(prevs, want) {
			t.Errorf("previous revisions %v, want %v", prevs, want)
		}
		if want := []uint64{0, 1, 2}; !gocmp.Equal(nexts, want) {
			t.Errorf("revisions %v, want %v", nexts, want)
		}
	})
}

// TestWatchOfAFirstLoad takes the first complete snapshot at once, though there was
// one just before, and collects what comes after it.
func TestWatchOfAFirstLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.New()
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var synced []bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = Watch(ctx, WatchOptions{Store: store, Logger: slog.New(slog.DiscardHandler)}, func(_ context.Context, _, next *state.Snapshot) error {
				mu.Lock()
				defer mu.Unlock()
				synced = append(synced, next.Synced)
				return nil
			})
		}()
		put := func(name string) {
			store.Update(func(tx *state.Tx) { tx.PutNamespace(&model.Namespace{Name: name}) })
			synctest.Wait()
		}
		expect := func(when string, want ...bool) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !gocmp.Equal(synced, want) {
				t.Errorf("%s: taken were snapshots with synced %v, want %v", when, synced, want)
			}
		}
		synctest.Wait()
		put("a")
		expect("a change right after a snapshot", false)
		store.Update((*state.Tx).SetSynced)
		expect("the first load is complete", false, true)
		put("b")
		expect("a change right after that", false, true)
		pause(time.Second)
		expect("a second later", false, true, true)
		cancel()
		<-done
	})
}

func TestOptionsAreChecked(t *testing.T) {
	if _, err := NewLoop(LoopOptions[string, string]{}); err == nil {
		t.Error("no error for missing options")
	}
}
