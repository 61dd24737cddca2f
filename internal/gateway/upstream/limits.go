package upstream

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/model"
)

// LimitError means that a pool has as much under way as its Service allows.
type LimitError struct {
	Service model.Key
	// Limit names the limit, as its annotation does.
	Limit string
	Most  int
}

// Error implements error.
func (e *LimitError) Error() string {
	what := map[string]string{LimitRequests: "requests under way", LimitConnections: "connections in use", LimitPending: "requests that wait for a connection"}[e.Limit]
	return fmt.Sprintf("service %s has as many %s as it may (%d)", e.Service, what, e.Most)
}

// The limits of a pool, as annotations name them.
const (
	LimitRequests    = "max-requests"
	LimitConnections = "max-connections"
	LimitPending     = "max-pending-requests"
)

// lookInterval is how often whoever waits for a connection looks whether its
// client still does.
const lookInterval = 50 * time.Millisecond

// gate counts what is under way in a pool whose Service has limits.
type gate struct {
	mu                    sync.Mutex
	requests, connections int
	waiting               []chan struct{} // for a connection, in their order
}

// Ticket is one thing under way that was counted.
type Ticket struct {
	pool                *Pool
	request, connection bool
}

// EnterRequest counts a request, until it leaves. Where it needs a connection
// and all are in use it waits for one, for a time at most, and as long as gone,
// which may be nil, says that somebody waits for the answer. An error is a
// [LimitError], or [http1.ErrGone]. Without limits nothing is counted, at no cost.
func (p *Pool) EnterRequest(asked model.BackendProtocol, wait time.Duration, gone func() bool) (Ticket, error) {
	m := p.members.Load()
	if m.limits == nil {
		return Ticket{}, nil
	}
	// A connection by HTTP/2 carries many requests: those are counted when they
	// are opened, unless each is for one client.
	return p.enter(m.limits, Ticket{pool: p, request: true, connection: !protocolOf(asked, m.appProtocol).http2() || m.proxy != 0}, wait, gone)
}

// EnterConnection is like EnterRequest for a connection, or a session of UDP.
func (p *Pool) EnterConnection(wait time.Duration) (Ticket, error) {
	m := p.members.Load()
	if m.limits == nil {
		return Ticket{}, nil
	}
	return p.enter(m.limits, Ticket{pool: p, connection: true}, wait, nil)
}

func (p *Pool) enter(l *model.UpstreamLimits, t Ticket, wait time.Duration, gone func() bool) (Ticket, error) {
	g := &p.gate
	g.mu.Lock()
	if t.request && l.Requests > 0 && g.requests >= l.Requests {
		g.mu.Unlock()
		return Ticket{}, &LimitError{p.key.Service, LimitRequests, l.Requests}
	}
	turn, err := g.connect(p.key.Service, l, t.connection, wait > 0)
	if err == nil && t.request {
		g.requests++
	}
	g.mu.Unlock()
	if err != nil || turn == nil {
		return t, err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	var left error = &LimitError{p.key.Service, LimitConnections, l.Connections}
wait:
	for {
		select {
		case <-turn:
			return t, nil
		case <-timer.C:
			break wait
		case <-look.C:
			if gone != nil && gone() {
				left = http1.ErrGone
				break wait
			}
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.waiting, turn)
	if i < 0 {
		return t, nil // its turn has just come
	}
	g.waiting = slices.Delete(g.waiting, i, i+1)
	if t.request {
		g.requests--
	}
	return Ticket{}, left
}

// connect takes a connection, or returns what tells that one is free.
func (g *gate) connect(service model.Key, l *model.UpstreamLimits, wanted, mayWait bool) (turn chan struct{}, err error) {
	if !wanted {
		return nil, nil
	}
	g.serve(l)
	switch {
	case l.Connections == 0 || g.connections < l.Connections:
		g.connections++
		return nil, nil
	case !mayWait || l.Pending == 0:
		return nil, &LimitError{service, LimitConnections, l.Connections}
	case len(g.waiting) >= l.Pending:
		return nil, &LimitError{service, LimitPending, l.Pending}
	}
	turn = make(chan struct{})
	g.waiting = append(g.waiting, turn)
	return turn, nil
}

// serve gives connections that are free to those that wait.
func (g *gate) serve(l *model.UpstreamLimits) {
	for len(g.waiting) > 0 && (l == nil || l.Connections == 0 || g.connections < l.Connections) {
		g.connections++
		close(g.waiting[0])
		g.waiting = slices.Delete(g.waiting, 0, 1)
	}
}

// Leave ends what the ticket was for.
func (t Ticket) Leave() {
	if t.pool == nil {
		return
	}
	g := &t.pool.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.request {
		g.requests--
	}
	if t.connection {
		g.connections--
		g.serve(t.pool.members.Load().limits)
	}
}

// shares returns how many connections by HTTP/2 there are, and are being opened.
func (p *Pool) shares() int {
	n := 0
	for e := range p.members.Load().all() {
		n += e.shares()
	}
	return n
}

func (e *endpoint) shares() (n int) {
	for i := range e.shared {
		m := &e.shared[i]
		n += int(m.dialing.Load())
		if list := m.conns.Load(); list != nil {
			n += len(*list)
		}
	}
	if list := e.variants.Load(); list != nil {
		for _, v := range *list {
			n += v.shares()
		}
	}
	return n
}

// waiting returns how many requests wait for room in connections by HTTP/2.
func (p *Pool) waiting() int {
	n := 0
	for e := range p.members.Load().all() {
		n += e.waiting()
	}
	return n
}

func (e *endpoint) waiting() (n int) {
	for i := range e.shared {
		n += int(e.shared[i].waiting.Load())
	}
	if list := e.variants.Load(); list != nil {
		for _, v := range *list {
			n += v.waiting()
		}
	}
	return n
}

// Waiting returns how many requests and connections of all pools wait for a connection.
func (s *Set) Waiting() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := 0
	for _, e := range s.pools {
		g := &e.pool.gate
		g.mu.Lock()
		n += len(g.waiting)
		g.mu.Unlock()
		n += e.pool.waiting()
	}
	return n
}
