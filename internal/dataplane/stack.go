package dataplane

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// Stack is several data paths as one, each of which serves the clients that
// those before it leave: sockets on packets, for example. Every one gets every
// change; the last first, so that nobody is left to one that does not know yet.
type Stack []Dataplane

var _ Dataplane = Stack(nil)

// each calls fn for the data paths, the last first.
func (s Stack) each(fn func(Dataplane) error) error {
	var errs []error
	for i := len(s) - 1; i >= 0; i-- {
		errs = append(errs, fn(s[i]))
	}
	return errors.Join(errs...)
}

// Apply implements reconcile.Target. A Service has failed if it has with one.
func (s Stack) Apply(ctx context.Context, changes []reconcile.Change[model.Key, plan.Service]) map[model.Key]error {
	failed := map[model.Key]error{}
	_ = s.each(func(d Dataplane) error {
		for key, err := range d.Apply(ctx, changes) {
			if failed[key] == nil {
				failed[key] = err
			} else if failed[key].Error() != err.Error() {
				failed[key] = errors.Join(failed[key], err)
			}
		}
		return nil
	})
	return failed
}

// Prune implements reconcile.Target. The last goes first, for one before it may
// cease to serve what it has served in a process before; but a [Part] goes when
// those before it have begun to serve, for it forgets what is left to them.
func (s Stack) Prune(ctx context.Context, wanted iter.Seq2[model.Key, plan.Service]) error {
	all := map[model.Key]plan.Service{}
	maps.Insert(all, wanted)
	var order []Dataplane
	for _, d := range s {
		if _, part := d.(Part); part {
			order = append(order, d)
		} else {
			order = slices.Insert(order, 0, d)
		}
	}
	for _, d := range order {
		if err := d.Prune(ctx, maps.All(all)); err != nil {
			return err
		}
	}
	return nil
}

// SetNode implements Dataplane.
func (s Stack) SetNode(ctx context.Context, n Node) error {
	return s.each(func(d Dataplane) error { return d.SetNode(ctx, n) })
}

// Verify implements Dataplane.
func (s Stack) Verify(ctx context.Context) error {
	return s.each(func(d Dataplane) error { return d.Verify(ctx) })
}

// Pulse implements Dataplane.
func (s Stack) Pulse(valid time.Duration, sockets []uint64, direct []netip.AddrPort) error {
	return s.each(func(d Dataplane) error { return d.Pulse(valid, sockets, direct) })
}

// Successor is a data path that takes over from others: what they have in the
// kernel goes once everything is served by it.
type Successor struct {
	Dataplane
	// Remove removes what the others have. It is called after the first Prune
	// that succeeded, until it succeeds.
	Remove func() error

	removed bool
}

// Prune implements reconcile.Target.
func (s *Successor) Prune(ctx context.Context, wanted iter.Seq2[model.Key, plan.Service]) error {
	if err := s.Dataplane.Prune(ctx, wanted); err != nil || s.removed {
		return err
	}
	if err := s.Remove(); err != nil {
		return fmt.Errorf("remove the data path of before: %w", err)
	}
	s.removed = true
	return nil
}
