package upstream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/tracing"
	"fairway.dev/fairway/internal/model"
)

// trustedIdle is how long a kept connection counts as open unasked: a backend
// that closes idle ones does so after seconds.
const trustedIdle = time.Second

// Lease is a connection to an endpoint that has begun to answer.
type Lease struct {
	*http1.Backend
	// Endpoint is the endpoint's address.
	Endpoint string

	endpoint *endpoint
	protocol protocol
	begun    time.Time
	span     *tracing.Span
}

// HTTP1 reports whether the pool's endpoints are spoken to by HTTP/1.1, so
// that [Pool.Send] can be used. A client that wants to switch protocols needs
// HTTP/1.1 whatever the endpoints speak.
func (p *Pool) HTTP1(asked model.BackendProtocol, upgrade bool) bool {
	return upgrade || !protocolOf(asked, p.members.Load().appProtocol).http2()
}

// Send sends the request of c, whose head is given, to an endpoint, and waits
// for the answer to begin. If none can be connected to, or a safe request
// without body breaks or takes too long before the answer, the next is tried. End it with
// [Pool.Done]. It is what [Pool.RoundTrip] is for net/http.
func (p *Pool) Send(c *http1.Conn, head []byte, call Call) (Lease, error) {
	limits := call.timeouts()
	var space [maxTries]*endpoint
	tried := space[:0]
	var lastErr error
	for len(tried) < maxTries {
		now := call.now()
		e, err := p.pick(&call.Choice, tried, now)
		if err != nil {
			if lastErr == nil {
				lastErr = err
			}
			break
		}
		if e == nil {
			break
		}
		tried = append(tried, e)
		l, err := p.sendTo(e, c, head, &call, limits, now)
		call.tried(e, now, err)
		if err == nil {
			e.succeeded()
			l.begun = now
			return l, nil
		}
		lastErr = err
		dialFailed := p.blame(e, err, now)
		if call.over() || final(err) || !c.MayRepeat(err, dialFailed) || !dialFailed && !p.mayRepeat() {
			break
		}
	}
	return Lease{}, lastErr
}

func (call *Call) timeouts() http1.Timeouts {
	limits := http1.Timeouts{Answer: call.ReadTimeout, Read: call.ReadTimeout, Send: call.SendTimeout, Total: call.Deadline}
	if limits.Answer == 0 {
		limits.Answer = call.HeaderTimeout
	}
	return limits
}

// Ask is like [Pool.Send] for a request without a body of a client that speaks
// another protocol. Call q.Release before [Pool.Done]; after an error that has
// been done.
func (p *Pool) Ask(q *http1.Question, call Call) (l Lease, err error) {
	limits := call.timeouts()
	var space [maxTries]*endpoint
	tried := space[:0]
	for len(tried) < maxTries {
		now := call.now()
		e, pickErr := p.pick(&call.Choice, tried, now)
		if pickErr != nil || e == nil {
			if err == nil {
				err = pickErr
			}
			break
		}
		tried = append(tried, e)
		l, err = p.askAt(e, q, call, limits, now)
		call.tried(e, now, err)
		if err == nil {
			e.succeeded()
			l.begun = now
			return l, nil
		}
		if q.Gone() {
			return Lease{}, http1.ErrGone
		}
		dialFailed := p.blame(e, err, now)
		if call.over() || final(err) || !q.MayRepeat(dialFailed) || !dialFailed && !p.mayRepeat() {
			break
		}
	}
	return Lease{}, err
}

// askAt is to Ask what sendTo is to Send.
func (p *Pool) askAt(e *endpoint, q *http1.Question, call Call, limits http1.Timeouts, now time.Time) (l Lease, err error) {
	proto := protocolOf(call.Protocol, p.members.Load().appProtocol)
	if proto.http2() {
		proto -= h2c - h1 // it has changed since HTTP1 was asked
	}
	e.acquire()
	var b *http1.Backend
	defer func() { e.unless(l.Backend != nil, b) }()
	for fresh := false; ; fresh = true {
		call.Span.Try(e.addr, proto.scheme(), "1.1", q.Head)
		b = e.kept(proto, q.Repeatable(), fresh, now)
		if b == nil {
			if b, err = e.openFor(q, proto, call); err != nil {
				return Lease{}, err
			}
		}
		err = b.Ask(q, limits)
		if err == nil {
			call.Span.Answered(b.Response.Status)
			return Lease{Backend: b, Endpoint: e.addr, endpoint: e, protocol: proto, span: call.Span}, nil
		}
		q.Release()
		reused := b.Reused
		b.Close()
		b.Done(time.Time{})
		if !reused || fresh || errors.Is(err, ErrTimeout) || !q.MayRepeat(false) {
			return Lease{}, err
		}
		endTry(call.Span, err, time.Time{})
	}
}

// sendTo tries one endpoint; a kept connection that turns out dead does not
// count against it.
func (p *Pool) sendTo(e *endpoint, c *http1.Conn, head []byte, call *Call, limits http1.Timeouts, now time.Time) (l Lease, err error) {
	proto := protocolOf(call.Protocol, p.members.Load().appProtocol)
	if proto.http2() {
		proto -= h2c - h1 // only HTTP/1.1 can switch protocols
	}
	e.acquire()
	var b *http1.Backend
	defer func() { e.unless(l.Backend != nil, b) }()
	for fresh := false; ; fresh = true {
		call.Span.Try(e.addr, proto.scheme(), "1.1", head)
		b = e.kept(proto, c.Repeatable(), fresh, now)
		if b == nil {
			if b, err = e.openFor(c, proto, *call); err != nil {
				return Lease{}, err
			}
		}
		err = c.Send(b, head, limits)
		if err == nil {
			call.Span.Answered(b.Response.Status)
			return Lease{Backend: b, Endpoint: e.addr, endpoint: e, protocol: proto, span: call.Span}, nil
		}
		reused := b.Reused
		b.Close()
		b.Done(time.Time{})
		if !reused || fresh || errors.Is(err, ErrTimeout) || !c.MayRepeat(err, false) {
			return Lease{}, err
		}
		endTry(call.Span, err, time.Time{})
	}
}

// Done ends a lease now; err is how the answer ended. Its connection is kept if
// it can serve again.
func (p *Pool) Done(l Lease, err error, now time.Time) {
	endTry(l.span, err, now)
	if l.Response.Status != http.StatusSwitchingProtocols {
		p.ended(l.endpoint, err, l.begun)
	}
	if !l.Backend.Done(now) || !l.endpoint.keep(l.protocol, l.Backend, now) {
		l.Backend.Close()
	}
	l.endpoint.release()
}

// Drop ends a lease whose holder has failed by a fault of the gateway's own,
// which says nothing of the endpoint: its connection is in an unknown state.
func (p *Pool) Drop(l Lease) { l.endpoint.unless(false, l.Backend) }

// unless ends a use of the endpoint, and of a connection that may be nil, unless
// that goes on. Deferred it does so also where a fault ends it.
func (e *endpoint) unless(goesOn bool, b *http1.Backend) {
	if goesOn {
		return
	}
	if b != nil {
		b.Close()
	}
	e.release()
}

// waiter is who waits for a connection, and may leave meanwhile.
type waiter interface {
	WhileWaited(connect func(context.Context)) (gone bool)
}

// openFor opens a connection for as long as somebody waits for it: else it
// returns [http1.ErrGone], which is not the endpoint's fault.
func (e *endpoint) openFor(w waiter, proto protocol, call Call) (b *http1.Backend, err error) {
	gone := w.WhileWaited(func(ctx context.Context) { b, err = e.open(ctx, proto, call) })
	if gone && b != nil {
		b.Close()
	}
	if gone {
		return nil, http1.ErrGone
	}
	return b, err
}

// open opens a connection.
func (e *endpoint) open(ctx context.Context, proto protocol, call Call) (*http1.Backend, error) {
	if call.ConnectTimeout > 0 {
		ctx = context.WithValue(ctx, connectTimeoutKey{}, call.ConnectTimeout)
	}
	if !call.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, call.Deadline)
		defer cancel()
	}
	var conn net.Conn
	var err error
	if proto == https1 {
		conn, _, err = e.connectTLS(ctx)
	} else {
		conn, err = e.connect(ctx, "tcp")
	}
	if err != nil {
		if call.over() {
			return nil, ErrTimeout
		}
		return nil, err
	}
	return http1.NewBackend(conn), nil
}

// kept returns a kept connection, the one used last; nil if there is none. A
// request that must not be sent twice gets one that is known to be open.
func (e *endpoint) kept(proto protocol, repeatable, fresh bool, now time.Time) *http1.Backend {
	if fresh {
		return nil
	}
	for {
		e.mu.Lock()
		list := e.idle[proto]
		if len(list) == 0 {
			e.mu.Unlock()
			return nil
		}
		b := list[len(list)-1]
		list[len(list)-1] = nil
		e.idle[proto] = list[:len(list)-1]
		e.mu.Unlock()
		age := now.Sub(b.IdleSince())
		if age < idleConnTimeout && (repeatable && age < trustedIdle || b.Alive()) {
			return b
		}
		b.Close()
	}
}

// keep keeps a connection for the next request.
func (e *endpoint) keep(proto protocol, b *http1.Backend, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.removed.Load() || len(e.idle[proto]) >= e.mostIdle {
		return false
	}
	e.idle[proto] = append(e.idle[proto], b)
	if e.reaper == nil {
		e.reaper = time.AfterFunc(idleConnTimeout, e.reap)
	}
	return true
}

// reap closes connections that nobody has used for long.
func (e *endpoint) reap() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reaper = nil
	left := 0
	for i, list := range e.idle {
		// They stand in the order of their last use.
		n, _ := slices.BinarySearchFunc(list, time.Now().Add(-idleConnTimeout), func(b *http1.Backend, t time.Time) int { return b.IdleSince().Compare(t) })
		for _, b := range list[:n] {
			b.Close()
		}
		e.idle[i] = slices.Delete(list, 0, n)
		left += len(e.idle[i])
	}
	if left > 0 {
		e.reaper = time.AfterFunc(idleConnTimeout/2, e.reap)
	}
}
