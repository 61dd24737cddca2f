package upstream

import (
	"math/rand/v2"
	"slices"
	"time"

	"fairway.dev/fairway/internal/model"
)

// Choice is how the endpoint for a request is chosen: by its session, else by
// its hash, else by Balance. The zero Choice takes endpoints in turns.
type Choice struct {
	Balance model.Balance
	// Hash sends requests with the same hash to the same endpoint, if Hashed.
	Hashed bool
	Hash   uint64
	// Repeatable tells that the request can be sent to another endpoint if it
	// fails: an endpoint that was ejected gets such a one first.
	Repeatable bool
	// Session is the client's session; nil if it has none. What the client is
	// to be told about it is there once the request was sent.
	Session *Session
	// Ends are told to endpoints that expect a PROXY header.
	Ends Ends
	// TLS is what the route asks of TLS to the endpoint; nil for nothing.
	TLS *TLS
}

// pick chooses the endpoint for the next request, in this one place for all
// protocols. nil means that every endpoint was tried.
func (p *Pool) pick(c *Choice, tried []*endpoint, now time.Time) (*endpoint, error) {
	m := p.members.Load()
	if m.err != nil {
		return nil, m.err
	}
	turn := p.turn.Add(1)
	if len(tried) > 0 {
		p.again.Add(1)
	}
	if c.TLS != nil {
		return p.pickSecure(m, c, turn, tried, now), nil
	}
	if m.proxy != 0 {
		e := m.choose(c, turn, selves(tried), now)
		if e == nil || c.Ends == (Ends{}) {
			return e, nil
		}
		return e.owned(m.proxy, c.Ends, now), nil
	}
	return m.choose(c, turn, tried, now), nil
}

// selves returns the endpoints that are everybody's.
func selves(list []*endpoint) []*endpoint {
	out := make([]*endpoint, len(list))
	for i, e := range list {
		out[i] = e.self()
	}
	return out
}

func (m *members) choose(c *Choice, turn uint64, tried []*endpoint, now time.Time) *endpoint {
	var e *endpoint
	switch {
	case c.Session != nil:
		e = m.bySession(c, turn, tried, now)
	case c.Hashed:
		e = m.byHash(c.Hash, false, c, tried, now)
	}
	if e == nil {
		e = m.inTurns(turn, c, tried, now)
	}
	return e
}

// inTurns takes the endpoints in turns, but with another at random it compares
// which has fewer requests under way, or costs less time (the power of two
// choices). Ejected endpoints wait, and so do those that health checks found
// unwell. If all do, everything is better than
// nothing: those that could be connected to get their turns, and if there are
// none, the one that has waited longest.
func (m *members) inTurns(turn uint64, c *Choice, tried []*endpoint, now time.Time) *endpoint {
	n := len(m.endpoints)
	start := int(turn % uint64(n))
	at, coldAt := 0, 0
	var best, cold, last *endpoint
	for i := range n {
		at = (start + i) % n
		e := m.endpoints[at]
		if slices.Contains(tried, e) {
			continue
		}
		if m.holdsBack(e, now) && e.due(now, c.Repeatable) {
			if cold == nil {
				cold, coldAt = e, at
			}
			continue
		}
		if e.admits(now, c.Repeatable) {
			best = e
			break
		}
		if last == nil || last.lost() && (!e.lost() || e.ejected.Load() < last.ejected.Load()) {
			last = e
		}
	}
	if best == nil && cold != nil && cold.admits(now, c.Repeatable) {
		best, at = cold, coldAt // nobody else is there
	}
	switch {
	case best != nil:
	case last != nil:
		return last
	default:
		return cold // another request has just been its trial; nil if all were tried
	}
	if n < 2 || !best.healthy() {
		return best
	}
	if n == 2 && c.Balance == model.BalanceTurns {
		return best
	}
	other := m.endpoints[(at+1+rand.IntN(n-1))%n]
	if other.healthy() && !slices.Contains(tried, other) && other.before(best, c.Balance, now) && !m.holdsBack(other, now) {
		return other
	}
	return best
}

// before reports whether e should get a request sooner than o.
func (e *endpoint) before(o *endpoint, balance model.Balance, now time.Time) bool {
	if balance == model.BalanceEWMA {
		return faster(e, o, now)
	}
	return e.inflight.Load() < o.inflight.Load()
}

// byHash chooses by rendezvous hashing, as the data path does for Services with
// ClientIP affinity: each endpoint draws a number from the key, the highest has
// it. So every gateway makes the same choice without a table, what an endpoint
// that leaves or fails had is shared by all others, and nothing else moves. It
// costs 2 ns an endpoint. All includes those that only sessions go to. nil
// means that none is left.
func (m *members) byHash(key uint64, all bool, c *Choice, tried []*endpoint, now time.Time) *endpoint {
	for {
		e := m.highest(nil, m.endpoints, key, c, tried, now)
		if all {
			e = m.highest(e, m.others, key, c, tried, now)
		}
		if e == nil || e.admits(now, c.Repeatable) {
			return e
		}
		// Another request has just been its trial: it is not due any more.
	}
}

// highest returns the endpoint that draws the highest number for a key, among
// best and those of list that may be asked. One that warms up has keys beside
// the others only as far as [members.keeps] says; where there is nobody else, all.
func (m *members) highest(best *endpoint, list []*endpoint, key uint64, c *Choice, tried []*endpoint, now time.Time) *endpoint {
	var top uint64
	if best != nil {
		top = mix(best.seed ^ key)
	}
	var cold *endpoint
	var topCold uint64
	for _, e := range list {
		n := mix(e.seed ^ key)
		switch {
		case best != nil && n <= top || !e.due(now, c.Repeatable) || slices.Contains(tried, e):
		case m.keeps(e, key, now):
			best, top = e, n
		case cold == nil || n > topCold:
			cold, topCold = e, n
		}
	}
	if best == nil {
		return cold
	}
	return best
}

// mix spreads each bit over all (the finaliser of SplitMix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
