package upstream

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/gateway/h2client"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/model"
)

// maxShared is how many connections an endpoint gets whose streams are all
// taken; further requests wait for one to end.
const maxShared = 256

// asHTTP1 is how long an endpoint that did not agree to HTTP/2 by ALPN is
// spoken to by HTTP/1.1 before it is asked again.
const asHTTP1 = time.Minute

// ErrNotHTTP2 means that an endpoint chose HTTP/1.1 by ALPN, or knows no ALPN:
// [Pool.RoundTrip] can ask it.
var ErrNotHTTP2 = errors.New("the endpoint does not speak HTTP/2")

// shared are an endpoint's connections by HTTP/2, which requests share.
type shared struct {
	conns atomic.Pointer[[]*h2client.Conn]
	// room is written to when there may be room in one of them, if somebody waits.
	room    chan struct{}
	waiting atomic.Int32
	dialing atomic.Int32 // dials
	oldWays atomic.Int64 // until when it is spoken to by HTTP/1.1, in Unix nanoseconds

	mu    sync.Mutex // for writing conns, and dials
	dials []*dial
}

// dial is a connection that is being opened, for all who wait for it.
type dial struct {
	done    chan struct{}
	err     error
	waiting int
}

// perDial is how many requests wait for one connection: what it has room for
// before its settings have come.
const perDial = 100

// open sends a request's head on a connection that has room, opening one if
// there is none. Only connecting can fail, or ctx end, or r be malformed, or p's
// Service have as many connections as it may.
func (m *shared) open(ctx context.Context, p *Pool, e *endpoint, proto protocol, r *h2client.Request, call *Call) (*h2client.Stream, error) {
	for {
		s, full, err := m.have(r)
		if s != nil || err != nil {
			return s, err
		}
		if err := m.grow(ctx, p, e, proto, call, full); err != nil {
			return nil, err
		}
	}
}

// have is open without waiting: nil if there is no room. Full is how many
// connections have none.
func (m *shared) have(r *h2client.Request) (s *h2client.Stream, full int, err error) {
	list := m.conns.Load()
	if list == nil {
		return nil, 0, nil
	}
	for _, c := range *list {
		s, err := c.Open(r)
		switch err {
		case nil:
			m.passOn()
			return s, full, nil
		case h2client.ErrFull:
			full++
		case h2client.ErrClosing:
			m.drop(c)
		default:
			return nil, full, err
		}
	}
	return nil, full, nil
}

// grow waits for a further connection, or for room.
func (m *shared) grow(ctx context.Context, p *Pool, e *endpoint, proto protocol, call *Call, full int) error {
	limits := p.members.Load().limits
	if limits != nil && limits.Connections == 0 {
		limits = nil
	}
	if limits != nil {
		p.growing.Lock() // so that nobody else counts until this one is counted
	}
	d, room := m.join(p, e, proto, call, full, limits != nil && p.shares() >= limits.Connections)
	if limits != nil {
		p.growing.Unlock()
	}
	switch {
	case room:
		return nil
	case d == nil:
		defer m.waiting.Add(-1)
		return m.await(ctx, p, limits, e, call)
	}
	select {
	case <-d.done:
		return d.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join returns the dial to wait for, a new one if there may be a further
// connection; if not, nil, and the caller is counted as waiting. Enough tells that
// the Service has as many as it may; but one is every endpoint's. Room tells that
// there is something to be had meanwhile.
func (m *shared) join(p *Pool, e *endpoint, proto protocol, call *Call, full int, enough bool) (d *dial, room bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if list := m.conns.Load(); list != nil && len(*list) > full {
		return nil, true // another one has come
	}
	switch n := len(m.dials); {
	case n > 0 && m.dials[n-1].waiting < perDial:
		d = m.dials[n-1]
	case full+n < maxShared && (full+n == 0 || !enough):
		d = &dial{done: make(chan struct{})}
		m.dials = append(m.dials, d)
		m.dialing.Add(1)
		go m.dial(p, e, proto, call.ConnectTimeout, d)
	default:
		m.waiting.Add(1)
		return nil, false
	}
	d.waiting++
	return d, false
}

// await waits for room in connections that are all full. Limits, which may be
// nil, say how many may do so.
func (m *shared) await(ctx context.Context, p *Pool, limits *model.UpstreamLimits, e *endpoint, call *Call) error {
	if limits != nil && p.waiting() > limits.Pending {
		if limits.Pending == 0 {
			return &LimitError{p.key.Service, LimitConnections, limits.Connections}
		}
		return &LimitError{p.key.Service, LimitPending, limits.Pending}
	}
	limit := call.ConnectTimeout
	if limit <= 0 {
		limit = DefaultConnectTimeout
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	// What has become free before it was known that somebody waits tells nobody.
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		select {
		case <-m.room:
			return nil
		case <-again.C:
			return nil
		case <-timer.C:
			if limits != nil {
				return &LimitError{p.key.Service, LimitConnections, limits.Connections}
			}
			return &DialError{e.addr, errors.New("all streams of its connections are taken")}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// passOn wakes the next one that waits for room: more than one stream may have
// ended since the last was woken.
func (m *shared) passOn() {
	if m.waiting.Load() > 0 {
		select {
		case m.room <- struct{}{}:
		default:
		}
	}
}

// dial opens a connection for those who wait for d.
func (m *shared) dial(p *Pool, e *endpoint, proto protocol, limit time.Duration, d *dial) {
	conn, err := e.dialHTTP2(proto, limit)
	if errors.Is(err, ErrNotHTTP2) {
		m.oldWays.Store(time.Now().Add(asHTTP1).UnixNano())
	}
	m.mu.Lock()
	d.err = err
	m.dials = slices.DeleteFunc(m.dials, func(o *dial) bool { return o == d })
	m.dialing.Add(-1)
	if err == nil {
		var list []*h2client.Conn
		if old := m.conns.Load(); old != nil {
			list = slices.Clone(*old)
		}
		list = append(list, h2client.New(conn, h2client.Options{MaxHeader: maxResponseHeader, OnRoom: m.passOn, Held: p.held}))
		m.conns.Store(&list)
	}
	m.mu.Unlock()
	close(d.done)
	if e.removed.Load() && e.inflight.Load() == 0 {
		e.closeIdle() // nobody has waited for it
	}
}

// drop forgets a connection that takes no more streams.
func (m *shared) drop(c *h2client.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.conns.Load(); old != nil { // else close has forgotten all
		list := slices.DeleteFunc(slices.Clone(*old), func(o *h2client.Conn) bool { return o == c })
		m.conns.Store(&list)
	}
}

// close ends all connections as soon as their streams have ended.
func (m *shared) close() {
	m.mu.Lock()
	list := m.conns.Swap(nil)
	m.mu.Unlock()
	if list != nil {
		for _, c := range *list {
			c.Close()
		}
	}
}

// dialHTTP2 opens a connection by HTTP/2.
func (e *endpoint) dialHTTP2(proto protocol, limit time.Duration) (net.Conn, error) {
	ctx := context.Background()
	if limit > 0 {
		ctx = context.WithValue(ctx, connectTimeoutKey{}, limit)
	}
	if proto != h2 {
		conn, err := e.connect(ctx, "tcp")
		if tcp, ok := conn.(*net.TCPConn); ok {
			conn = http1.NewWire(tcp)
		}
		return conn, err
	}
	conn, secure, err := e.connectTLS(ctx, "h2", "http/1.1")
	if err != nil {
		return nil, err
	}
	if secure.ConnectionState().NegotiatedProtocol != "h2" {
		_ = secure.Close()
		return nil, ErrNotHTTP2
	}
	return conn, nil
}
