package reconcile

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	"fairway.dev/fairway/internal/state"
)

// The pace of propagation: a first change goes out at once, further ones are
// collected until there is a pause of defaultQuiet, but no longer than defaultMaxDelay.
const (
	defaultQuiet    = 20 * time.Millisecond
	defaultMaxDelay = 250 * time.Millisecond
	defaultRetryMin = 100 * time.Millisecond
	defaultRetryMax = 30 * time.Second
)

// WatchOptions configure [Watch].
type WatchOptions struct {
	// Store is watched. Required.
	Store *state.Store
	// Logger gets failures. Required.
	Logger *slog.Logger
	// Quiet is the pause in changes that is waited for after the first one,
	// and MaxDelay the longest wait for it; default 20 ms and 250 ms.
	Quiet, MaxDelay time.Duration
	// RetryMin and RetryMax bound the back-off after an error; default 100 ms and 30 s.
	RetryMin, RetryMax time.Duration
}

func (o *WatchOptions) setDefaults() {
	o.Quiet = cmp.Or(o.Quiet, defaultQuiet)
	o.MaxDelay = cmp.Or(o.MaxDelay, defaultMaxDelay)
	o.RetryMin = cmp.Or(o.RetryMin, defaultRetryMin)
	o.RetryMax = cmp.Or(o.RetryMax, defaultRetryMax)
}

// Watch calls sync with the snapshot of the last call that succeeded (an empty
// one at first) and the newest one, until ctx ends; it then returns nil. When
// sync fails it is called again after a back-off or on the next change,
// whichever comes later, with the same prev. After [ErrRetry] changes do not wait.
func Watch(ctx context.Context, o WatchOptions, sync func(ctx context.Context, prev, next *state.Snapshot) error) error {
	o.setDefaults()
	sub := o.Store.Subscribe()
	defer sub.Close()
	prev := &state.Snapshot{}
	pace := pacer{quiet: o.Quiet, max: o.MaxDelay}
	backoff := Backoff{Min: o.RetryMin, Max: o.RetryMax}
	var retry <-chan time.Time
	patient := false // changes wait for retry
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry:
		case <-sub.C():
			if retry != nil && patient && !wait(ctx, retry) {
				return nil
			}
			// With the last of a first load there is nothing more to wait for.
			complete := func() bool { return !prev.Synced && o.Store.Snapshot().Synced }
			if !pace.settle(ctx, sub.C(), complete) {
				return nil
			}
		}
		retry = nil
		next := o.Store.Snapshot()
		if err := sync(ctx, prev, next); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			delay := backoff.Next()
			if patient = !errors.Is(err, ErrRetry); !patient {
				pace.done() // all but some objects is done
			}
			o.Logger.Warn("sync failed", "error", err, "retryIn", delay)
			retry = time.After(delay)
			continue
		}
		backoff.Reset()
		prev = next
		pace.done()
	}
}

func wait(ctx context.Context, c <-chan time.Time) bool {
	select {
	case <-ctx.Done():
		return false
	case <-c:
		return true
	}
}

// pacer decides how long to collect changes.
type pacer struct {
	quiet, max time.Duration
	last       time.Time // end of the last sync
}

func (p *pacer) done() { p.last = time.Now() }

// settle returns at once when the last sync is longer ago than the quiet time;
// else it waits for changes to pause, or to be complete. It returns false when ctx ended.
func (p *pacer) settle(ctx context.Context, changes <-chan struct{}, complete func() bool) bool {
	if time.Since(p.last) >= p.quiet || complete() {
		return true
	}
	deadline := time.NewTimer(p.max)
	defer deadline.Stop()
	for {
		quiet := time.NewTimer(p.quiet)
		select {
		case <-ctx.Done():
			quiet.Stop()
			return false
		case <-deadline.C:
			quiet.Stop()
			return true
		case <-quiet.C:
			return true
		case <-changes:
			quiet.Stop()
			if complete() {
				return true
			}
		}
	}
}

// Backoff is how long to wait before the next try: Min after the first failure,
// then twice as long each time, at most Max.
type Backoff struct {
	Min, Max time.Duration
	current  time.Duration
}

// NewBackoff returns one with the bounds that [WatchOptions] have by default.
func NewBackoff() Backoff { return Backoff{Min: defaultRetryMin, Max: defaultRetryMax} }

// Next returns the next wait.
func (b *Backoff) Next() time.Duration {
	b.current = min(max(b.current*2, b.Min), b.Max)
	return b.current
}

// Reset is called after a success.
func (b *Backoff) Reset() { b.current = 0 }
