package upstream

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/model"
)

// maxTries is how many endpoints are tried for one request or connection, as
// proxy_next_upstream_tries in ingress-nginx.
const maxTries = 3

// Key names a pool: a Service port of a transport protocol.
type Key struct {
	Service  model.Key
	Port     model.PortRef
	Protocol model.Protocol
}

// Pool is the endpoints of a Service port.
type Pool struct {
	key       Key
	members   atomic.Pointer[members]
	turn      atomic.Uint64 // counts requests
	budget    budget
	onFailure func(key Key, why, endpoint string)
}

// members are the endpoints as of one moment; never changed.
type members struct {
	endpoints   []*endpoint
	appProtocol string
	err         error // why there are no endpoints
}

// Key returns what the pool is for.
func (p *Pool) Key() Key { return p.key }

// Err says why the pool cannot serve: [ErrNoService], [ErrNoPort] or
// [ErrNoEndpoints], wrapped with the object's key; nil if it can.
func (p *Pool) Err() error { return p.members.Load().err }

// pick chooses the endpoint for the next request: in turns, but with another at random it compares which has fewer
// requests under way (the power of two choices). Ejected endpoints wait. If all are, everything is better than nothing:
// those that could be connected to get their turns, and if there are none, the one that has waited longest. nil means that
// every endpoint was tried.
func (p *Pool) pick(tried []*endpoint, now time.Time) (*endpoint, error) {
	m := p.members.Load()
	if m.err != nil {
		return nil, m.err
	}
	n := len(m.endpoints)
	start := int(p.turn.Add(1) % uint64(n))
	var best, last *endpoint
	for i := range n {
		e := m.endpoints[(start+i)%n]
		if slices.Contains(tried, e) {
			continue
		}
		if e.admits(now) {
			best = e
			break
		}
		if last == nil || last.unreached.Load() && (!e.unreached.Load() || e.ejected.Load() < last.ejected.Load()) {
			last = e
		}
	}
	if best == nil {
		return last, nil
	}
	if n > 2 && best.healthy() {
		other := m.endpoints[rand.IntN(n)]
		if other.inflight.Load() < best.inflight.Load() && other.healthy() && !slices.Contains(tried, other) {
			best = other
		}
	}
	return best, nil
}

// Conn is a connection to an endpoint that counts as under way until it is closed.
type Conn struct {
	net.Conn
	endpoint *endpoint
	closed   atomic.Bool
}

// Close closes the connection.
func (c *Conn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.endpoint.release()
	}
	return c.Conn.Close()
}

// Removed reports whether the endpoint has left its pool since: what has a
// choice should go to another one.
func (c *Conn) Removed() bool { return c.endpoint.removed.Load() }

// Dial opens a connection to an endpoint, trying others if that fails. Network
// is "tcp" or "udp".
func (p *Pool) Dial(ctx context.Context, network string) (*Conn, error) {
	var err error
	var space [maxTries]*endpoint
	tried := space[:0]
	for len(tried) < maxTries {
		e, pickErr := p.pick(tried, time.Now())
		if pickErr != nil {
			return nil, pickErr
		}
		if e == nil {
			break
		}
		tried = append(tried, e)
		e.acquire()
		var conn net.Conn
		if conn, err = e.connect(ctx, network); err == nil {
			e.succeeded()
			return &Conn{Conn: conn, endpoint: e}, nil
		}
		e.release()
		if ctx.Err() != nil {
			return nil, err
		}
		p.blame(e, err)
	}
	return nil, err
}

// update makes list the endpoints, keeping those that stay.
func (p *Pool) update(m *members) {
	old := p.members.Swap(m)
	if old == nil {
		return
	}
	stays := make(map[*endpoint]struct{}, len(m.endpoints))
	for _, e := range m.endpoints {
		stays[e] = struct{}{}
	}
	for _, e := range old.endpoints {
		if _, ok := stays[e]; !ok {
			e.remove()
		}
	}
}
