package dataplane

import (
	"context"
	"iter"
	"slices"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// Part is a data path that is to serve a part of the frontends only, where
// another one of a [Stack] serves the rest.
type Part struct {
	Dataplane
	// Takes reports whether it serves a frontend. Required.
	Takes func(*plan.Frontend) bool
}

// cut returns what a Service is to the data path; false if nothing.
func (p Part) cut(s plan.Service) (plan.Service, bool) {
	var kept []plan.Frontend
	for i := range s.Frontends {
		if p.Takes(&s.Frontends[i]) {
			kept = append(kept, s.Frontends[i])
		}
	}
	if len(kept) < len(s.Frontends) {
		s.Frontends = slices.Clip(kept)
	}
	return s, len(kept) > 0
}

// Apply implements reconcile.Target.
func (p Part) Apply(ctx context.Context, changes []reconcile.Change[model.Key, plan.Service]) map[model.Key]error {
	cut := make([]reconcile.Change[model.Key, plan.Service], len(changes))
	for i, c := range changes {
		cut[i] = reconcile.Change[model.Key, plan.Service]{Key: c.Key}
		if c.HadOld {
			cut[i].Old, cut[i].HadOld = p.cut(c.Old)
		}
		if c.HasNew {
			cut[i].New, cut[i].HasNew = p.cut(c.New)
		}
	}
	return p.Dataplane.Apply(ctx, cut)
}

// Prune implements reconcile.Target.
func (p Part) Prune(ctx context.Context, wanted iter.Seq2[model.Key, plan.Service]) error {
	return p.Dataplane.Prune(ctx, func(yield func(model.Key, plan.Service) bool) {
		for key, s := range wanted {
			if s, ok := p.cut(s); ok && !yield(key, s) {
				return
			}
		}
	})
}
