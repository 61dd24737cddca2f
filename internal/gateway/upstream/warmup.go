package upstream

import (
	"math"
	"math/rand/v2"
	"time"
)

// coldest is the share of an endpoint that has just begun to warm up: with
// less it would have nothing to warm up by.
const coldest = 0.1

// warmth is how much of its share an endpoint is to get, 1 for all. It grows
// steadily from when the endpoint began to serve.
func (m *members) warmth(e *endpoint, now time.Time) float64 {
	if m.slowStart == 0 {
		return 1
	}
	since := e.since.Load()
	if since == 0 {
		return 1
	}
	return min(max(float64(now.UnixNano()-since)/float64(m.slowStart), coldest), 1)
}

// holdsBack says by chance whether a request should go to another endpoint, since e warms up.
func (m *members) holdsBack(e *endpoint, now time.Time) bool {
	w := m.warmth(e, now)
	return w < 1 && rand.Float64() >= w
}

// keeps reports whether an endpoint has a key for which it drew the highest
// number. One that warms up has a share of them which only grows: each key moves
// to it once.
func (m *members) keeps(e *endpoint, key uint64, now time.Time) bool {
	w := m.warmth(e, now)
	return w == 1 || float64(mix(^(e.seed^key))) < w*math.MaxUint64
}
