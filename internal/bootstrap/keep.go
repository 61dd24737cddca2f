package bootstrap

import (
	"context"
	"log/slog"
	"time"
)

// soonest bounds how often news have the objects looked after: who takes them away
// again and again must not become a load on the API.
const soonest = time.Second

// keep calls f now, every few minutes, soon after news, and sooner after an error,
// until ctx ends; it then returns nil. news may be nil.
func keep(ctx context.Context, logger *slog.Logger, failure string, news <-chan struct{}, f func(context.Context) error) error {
	delay := retryMin
	for {
		select { // f finds what has been told until now
		case <-news:
		default:
		}
		began := time.Now()
		next := began.Add(repeat)
		if err := f(ctx); err != nil && ctx.Err() == nil {
			logger.Warn(failure, "error", err, "retryIn", delay)
			next, delay = time.Now().Add(delay), min(delay*2, retryMax)
		} else {
			delay = retryMin
		}
		for wait := true; wait; {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Until(next)):
				wait = false
			case <-news:
				if soon := began.Add(soonest); soon.Before(next) {
					next = soon
				}
			}
		}
	}
}
