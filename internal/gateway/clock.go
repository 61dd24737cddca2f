package gateway

import (
	"sync/atomic"
	"time"
)

// clock tells the time for less than time.Now, which asks the system for two
// times: that of the day is reckoned here from one asked for before. It may be
// late by maxReckoned where somebody sets the system's clock.
type clock struct{ base atomic.Pointer[time.Time] }

const maxReckoned = time.Second

func (c *clock) now() time.Time {
	if base := c.base.Load(); base != nil {
		if d := time.Since(*base); d < maxReckoned {
			return base.Add(d)
		}
	}
	now := time.Now()
	c.base.Store(&now)
	return now
}
