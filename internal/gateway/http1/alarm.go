package http1

import (
	"context"
	"net"
	"sync/atomic"
	"time"
)

const (
	// tick is how often the janitor looks at all connections.
	tick = 250 * time.Millisecond
	// exact is below which a limit is worth a timer of its own.
	exact = 4 * time.Second
	// fired stands in an alarm whose time was up.
	fired = -1
)

// past makes a connection's next read or write fail, and the one under way.
var past = time.Unix(1, 0)

// clock is the time as of the last tick, in nanoseconds. Reading it costs
// nothing, which is why no connection has timers of its own.
type clock struct{ atomic.Int64 }

// Clock is a clock that another engine's janitor sets: see [Question.Sweep].
type Clock = clock

// Run has the clock go on from where it is, and calls f four times a second
// with the time, until ctx ends. That somebody sets the machine's clock is no
// time that passes: no limit ends by it.
func (c *clock) Run(ctx context.Context, f func(now int64)) {
	from, begun := c.Load(), time.Now()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			c.Store(from + int64(now.Sub(begun)))
			f(c.Load())
		}
	}
}

// alarm is a limit on one read or write. Its owner sets and clears it; the
// janitor makes it ring, by a deadline in the past. Short limits get a deadline
// of their own.
type alarm struct {
	at    atomic.Int64
	armed bool // a deadline of its own is set; the owner's alone
}

// set starts the limit; none if d is not positive. Without a clock nobody rings.
func (a *alarm) set(t *clock, d time.Duration, deadline func(time.Time) error) {
	switch {
	case d <= 0:
	case d < exact, t == nil:
		a.armed = deadline(time.Now().Add(d)) == nil
	default:
		a.at.Store(t.Load() + int64(d+tick))
	}
}

// clear ends the limit and reports whether it has rung: the connection then
// may have a deadline in the past.
func (a *alarm) clear(deadline func(time.Time) error) (rang bool) {
	if a.armed {
		a.armed = false
		_ = deadline(time.Time{})
	}
	return a.at.Load() != 0 && a.at.Swap(0) == fired
}

// paced is ring for what a client has to take at some pace.
func (a *alarm) paced(now int64, limit time.Duration, p *Pace, s *Socket) bool {
	at := a.at.Load()
	p.Look(at, s)
	if next := now + int64(limit); at > 0 && now > at && p.Kept(next, limit, s) {
		a.at.CompareAndSwap(at, next)
		return false
	}
	return a.ring(now)
}

// ring fires the alarm if its time is up.
func (a *alarm) ring(now int64) bool {
	at := a.at.Load()
	return at > 0 && now > at && a.at.CompareAndSwap(at, fired)
}

// closeWrite tells the other end that nothing more comes.
func closeWrite(c net.Conn) {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}
