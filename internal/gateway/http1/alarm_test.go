package http1

import (
	"context"
	"testing"
	"time"
)

// TestClockGoesOn: the clock is the time that passes, whatever time it is.
func TestClockGoesOn(t *testing.T) {
	var c Clock
	c.Store(int64(time.Hour))
	ctx, cancel := context.WithCancel(t.Context())
	var seen []int64
	c.Run(ctx, func(now int64) {
		if seen = append(seen, now); len(seen) == 2 {
			cancel()
		}
	})
	if seen[0] <= int64(time.Hour) || seen[0] > int64(2*time.Hour) || seen[1] <= seen[0] || c.Load() != seen[len(seen)-1] {
		t.Errorf("an hour after the beginning it is %v", seen)
	}
}
