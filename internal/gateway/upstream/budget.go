package upstream

import (
	"sync"
	"time"
)

// What requests may be sent a second time: a share of all requests, a number each second where there are few, and
// budgetMax at once. Without a limit, clients of a Service that is overloaded would be answered by three times the load.
const (
	budgetShare     = 0.2
	budgetPerSecond = 10
	budgetMax       = 100
)

// budget bounds repetitions of requests that were sent already. Where nothing was sent, since no connection could be
// opened, another endpoint is tried at no cost to any. The zero budget is full.
type budget struct {
	mu       sync.Mutex
	spent    float64
	requests int64
	last     time.Time
}

// take takes one repetition out; false if there is none left. Requests is how many requests there have been so far.
func (b *budget) take(requests int64, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.last.IsZero() {
		b.spent -= float64(requests-b.requests)*budgetShare + now.Sub(b.last).Seconds()*budgetPerSecond
	}
	b.spent = max(b.spent, 0)
	b.requests, b.last = requests, now
	if b.spent+1 > budgetMax {
		return false
	}
	b.spent++
	return true
}

// mayRepeat takes a repetition out of the pool's budget, to which repetitions
// themselves add nothing.
func (p *Pool) mayRepeat() bool { return p.budget.take(int64(p.requests()), time.Now()) }

// requests returns how many requests and connections the pool has had.
func (p *Pool) requests() uint64 {
	again := p.again.Load() // first: each of these is among turn's
	return p.turn.Load() - again
}
