package agent

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/state"
)

// planReview plans every Service as a node would, only to know what is wrong
// with them: every node finds the same, so that one process tells it for all.
type planReview struct {
	store   *state.Store
	logger  *slog.Logger
	domain  string // of the cluster
	changed chan struct{}

	mu    sync.Mutex
	found model.Problems
}

// problems returns what is wrong now.
func (r *planReview) problems() model.Problems {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.found
}

func (r *planReview) run(ctx context.Context) error {
	var review plan.Review
	var aliases model.Problems
	// What a node leaves out by its flags or for its kernel, that node tells.
	view := plan.View{Options: plan.Options{ExternalIPs: true, SCTP: true}}
	options := reconcile.WatchOptions{Store: r.store, Logger: r.logger}
	return reconcile.Watch(ctx, options, func(_ context.Context, prev, next *state.Snapshot) error {
		review.Follow(view, prev, next)
		if aliasesDiffer(prev, next) {
			aliases = astray(next, r.domain)
		}
		found := slices.Concat(review.Problems(), aliases)
		r.mu.Lock()
		defer r.mu.Unlock()
		if slices.Equal(found, r.found) {
			return nil
		}
		r.found = found
		select {
		case r.changed <- struct{}{}:
		default:
		}
		return nil
	})
}
