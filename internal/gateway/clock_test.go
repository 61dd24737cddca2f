package gateway

import (
	"testing"
	"time"
)

// TestClock has a clock go forward, beside the system's, also when it was asked
// last long ago.
func TestClock(t *testing.T) {
	var c clock
	last := time.Now()
	for i := range 1000 {
		if i == 500 {
			old := time.Now().Add(-2 * maxReckoned)
			c.base.Store(&old)
		}
		before := time.Now()
		now := c.now()
		if now.Before(last) || now.Before(before) || now.After(time.Now()) {
			t.Fatalf("%v after %v, the system's clock says %v", now, last, before)
		}
		last = now
	}
	if time.Since(*c.base.Load()) >= 2*maxReckoned {
		t.Error("it has not asked the system again")
	}
}
