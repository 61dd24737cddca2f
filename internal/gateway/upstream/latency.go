package upstream

import (
	"math"
	"sync"
	"time"

	"fairway.dev/fairway/internal/model"
)

// latencyDecay is how long a measurement counts: after that time a third of it
// is left. It is that of ingress-nginx.
const latencyDecay = 10 * time.Second

// latency is the time that an endpoint's answers have taken to begin: a mean
// that forgets, but believes a rise at once ("peak EWMA", as in Finagle).
type latency struct {
	mu   sync.Mutex
	mean float64 // in seconds
	at   time.Time
}

func (l *latency) add(took time.Duration, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := took.Seconds()
	if l.at.IsZero() || x > l.mean {
		l.mean = x
	} else {
		w := weight(now.Sub(l.at))
		l.mean = l.mean*w + x*(1-w)
	}
	l.at = now
}

// get returns the mean, which fades without new measurements: an endpoint that
// was slow is tried again. False means that there is none.
func (l *latency) get(now time.Time) (float64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at.IsZero() {
		return 0, false
	}
	return l.mean * weight(now.Sub(l.at)), true
}

func weight(age time.Duration) float64 {
	return math.Exp(-max(age, 0).Seconds() / latencyDecay.Seconds())
}

// measure notes how long an attempt that has begun at start took, if requests
// are shared by that.
func (e *endpoint) measure(c *Call, start time.Time) {
	if c.Choice.Balance == model.BalanceEWMA && !c.Streamed {
		now := time.Now()
		e.self().latency.add(now.Sub(start), now)
	}
}

// faster reports whether a promises an answer sooner than b. One that was never
// measured counts as no slower and no faster than the other: a new endpoint gets
// its share and not everything.
func faster(a, b *endpoint, now time.Time) bool {
	x, okX := a.latency.get(now)
	y, okY := b.latency.get(now)
	if !okX || !okY {
		x, y = 1, 1
	}
	return x*float64(a.inflight.Load()+1) < y*float64(b.inflight.Load()+1)
}
