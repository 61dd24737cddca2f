package dns

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	limiterShards = 64
	limiterSets   = 64 // of each shard
	limiterWays   = 8
)

// limiter bounds how often each client asks: by so many queries a second, of
// which one second's worth may come at once. It remembers the 32768 clients or
// so that are nearest to their limit, in memory that does not grow; one that is
// forgotten starts afresh.
type limiter struct {
	interval time.Duration // between queries
	start    time.Time
	assigned []netip.Prefix // see shareOf
	seed     maphash.Seed
	shards   [limiterShards]struct {
		mu    sync.Mutex
		slots [limiterSets][limiterWays]limitedClient
	}
}

// limitedClient is one client's account, by the generic cell rate algorithm:
// until is when, since the limiter's start, all that it asked is paid off.
type limitedClient struct {
	share [16]byte
	until time.Duration
}

// newLimiter returns nil, which allows everything, for rate 0.
func newLimiter(rate int, assigned []netip.Prefix) *limiter {
	if rate == 0 {
		return nil
	}
	return &limiter{
		interval: time.Second / time.Duration(rate), start: time.Now().Add(-time.Hour), assigned: assigned, seed: maphash.MakeSeed(),
	}
}

// allows reports whether the client may ask now, and takes that into account.
func (l *limiter) allows(client netip.Addr, at time.Time) bool {
	if l == nil {
		return true
	}
	share := shareOf(client, l.assigned).Addr().As16()
	h := maphash.Comparable(l.seed, share)
	shard := &l.shards[h%limiterShards]
	now := at.Sub(l.start)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	set := &shard.slots[h/limiterShards%limiterSets]
	found := &set[0]
	for i := range set {
		if set[i].share == share {
			found = &set[i]
			break
		}
		if set[i].until < found.until {
			found = &set[i]
		}
	}
	if found.share != share {
		*found = limitedClient{share: share}
	}
	until := max(found.until, now)
	if until+l.interval > now+time.Second {
		return false
	}
	found.until = until + l.interval
	return true
}
