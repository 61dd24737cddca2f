package dataplane_test

import (
	"context"
	"errors"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// noted is a data path that notes what it is told, in a list shared with others.
type noted struct {
	name  string
	calls *[]string
	fail  error
}

func (n noted) note(what string) { *n.calls = append(*n.calls, n.name+" "+what) }

func (n noted) Apply(_ context.Context, changes []reconcile.Change[model.Key, plan.Service]) map[model.Key]error {
	n.note("apply")
	if n.fail == nil {
		return nil
	}
	return map[model.Key]error{changes[0].Key: n.fail}
}

func (n noted) Prune(_ context.Context, wanted iter.Seq2[model.Key, plan.Service]) error {
	for k := range wanted {
		n.note("prune " + k.Name)
	}
	return n.fail
}

func (n noted) SetNode(context.Context, dataplane.Node) error { n.note("node"); return n.fail }
func (n noted) Verify(context.Context) error                  { n.note("verify"); return n.fail }

func (n noted) Pulse(time.Duration, []uint64, []netip.AddrPort) error { n.note("pulse"); return n.fail }

func TestStack(t *testing.T) {
	var calls []string
	full := errors.New("full")
	s := dataplane.Stack{noted{"sockets", &calls, nil}, noted{"packets", &calls, full}}
	ctx, key := t.Context(), model.Key{Name: "web"}
	changes := []reconcile.Change[model.Key, plan.Service]{{Key: key, HasNew: true}}
	all := func(yield func(model.Key, plan.Service) bool) { yield(key, plan.Service{}) }
	if failed := s.Apply(ctx, changes); !errors.Is(failed[key], full) {
		t.Errorf("failures %v", failed)
	}
	for _, err := range []error{s.Prune(ctx, all), s.SetNode(ctx, dataplane.Node{}), s.Verify(ctx), s.Pulse(time.Second, nil, nil)} {
		if !errors.Is(err, full) {
			t.Errorf("got %v", err)
		}
	}
	want := "packets apply, sockets apply, packets prune web, packets node, sockets node, packets verify, sockets verify, packets pulse, sockets pulse"
	if got := strings.Join(calls, ", "); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	calls = nil
	rest := dataplane.Part{Dataplane: noted{"rest", &calls, nil}, Takes: func(*plan.Frontend) bool { return false }}
	s = dataplane.Stack{noted{"sockets", &calls, nil}, noted{"packets", &calls, nil}, rest}
	if err := s.Prune(ctx, all); err != nil {
		t.Error(err)
	}
	// What another one has served before is served by packets before it ceases
	// to, and the rest forgets nothing that is not served yet.
	if got, want := strings.Join(calls, ", "), "packets prune web, sockets prune web"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	same := dataplane.Stack{noted{"a", &calls, full}, noted{"b", &calls, full}}.Apply(ctx, changes)[key]
	if same.Error() != "full" {
		t.Errorf("the same failure of both is told as %q", same)
	}
}

// TestSuccessor checks that the data path of before stays until all is served.
func TestSuccessor(t *testing.T) {
	var calls []string
	err := errors.New("not now")
	none := func(func(model.Key, plan.Service) bool) {}
	removals := 0
	s := &dataplane.Successor{Dataplane: noted{"new", &calls, err}, Remove: func() error { removals++; return err }}
	if got := s.Prune(t.Context(), none); !errors.Is(got, err) || removals != 0 {
		t.Errorf("removed %d times after %v", removals, got)
	}
	s.Dataplane = noted{"new", &calls, nil}
	if got := s.Prune(t.Context(), none); !errors.Is(got, err) {
		t.Errorf("a removal that failed is told as %v", got)
	}
	s.Remove = func() error { removals++; return nil }
	for range 2 {
		if got := s.Prune(t.Context(), none); got != nil {
			t.Error(got)
		}
	}
	if removals != 2 || slices.Contains(calls, "old") {
		t.Errorf("removed %d times", removals)
	}
}
