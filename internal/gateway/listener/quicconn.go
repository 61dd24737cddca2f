package listener

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/time/rate"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/http2"
)

// quicConn is what limits a client's connection.
type quicConn struct {
	*quic.Conn
	server  *quicServer
	cancels *rate.Limiter // requests that the client gives up
	flooded atomic.Bool
	cut     atomic.Bool          // ended because memory is short
	leaving atomic.Bool          // to be ended, for its client needs another one
	client  func() *certs.Client // to be called once the handshake is complete, and soon
	unacked unacked
	took    atomic.Int64 // bytes of answers

	mu        sync.Mutex
	running   int
	idleSince time.Time // while nothing runs
	idle      *time.Timer
	ended     bool
	granted   int // what its client may send ahead beyond the first windows
}

type quicConnKey struct{}

// errorExcessiveLoad is H3_EXCESSIVE_LOAD (RFC 9114, 8.1).
const errorExcessiveLoad = 0x107

var errTooManyConnections = errors.New("the client has as many connections as it may")

// mostHalfOpen is how many handshakes may be under way before clients have to show
// first that they are where they say (Retry), which takes a round trip: anybody
// can send a first packet from an address that is another's, and each takes what
// a connection takes until its time is over.
const mostHalfOpen = 512

// handshake is a connection until its handshake is complete.
type handshake struct {
	over    func() // counts it out of those that are half open
	counted bool   // for its client
}

type handshakeKey struct{}

// admit refuses the connections of a client that has too many. It does not
// count one for a client that may not be where it says.
func (s *quicServer) admit(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	client := addrPort(info.RemoteAddr).Addr()
	if s.options.Clients.full(client) {
		return ctx, errTooManyConnections
	}
	h := &handshake{over: sync.OnceFunc(func() { s.halfOpen.Add(-1) })}
	if info.AddrVerified {
		counted, ok := s.options.Clients.enter(client)
		if !ok {
			return ctx, errTooManyConnections
		}
		h.counted = true
		context.AfterFunc(ctx, func() { s.options.Clients.leave(counted) })
	}
	s.halfOpen.Add(1)
	context.AfterFunc(ctx, h.over)
	return context.WithValue(ctx, handshakeKey{}, h), nil
}

// suspicious asks for a proof of clients' addresses.
func (s *quicServer) suspicious(net.Addr) bool { return s.halfOpen.Load() >= s.mostHalfOpen }

// settle waits for the end of the handshake, which has shown that the client is
// where it says, and counts the connection for it.
func (s *quicServer) settle(conn *quicConn, h *handshake) {
	select {
	case <-conn.HandshakeComplete():
	case <-conn.Context().Done():
		return
	}
	h.over()
	conn.client()
	if h.counted {
		return
	}
	client, ok := s.options.Clients.enter(addrPort(conn.RemoteAddr()).Addr())
	if !ok {
		_ = conn.CloseWithError(errorExcessiveLoad, errTooManyConnections.Error())
		return
	}
	context.AfterFunc(conn.Context(), func() { s.options.Clients.leave(client) })
}

// begin looks after a new connection. What carries no request for the idle
// time ends, whatever else its client sends.
func (s *quicServer) begin(ctx context.Context, conn *quic.Conn) context.Context {
	c := &quicConn{Conn: conn, server: s, cancels: rate.NewLimiter(cancelsPerSecond, maxCancels), idleSince: time.Now()}
	c.unacked.next = make(chan struct{})
	c.client = sync.OnceValue(func() *certs.Client {
		shown := conn.ConnectionState().TLS
		return s.options.client(&shown)
	})
	c.idle = time.AfterFunc(s.options.IdleTimeout, c.endIdle)
	s.open.Add(1)
	s.conns.Store(conn, c)
	go s.settle(c, conn.Context().Value(handshakeKey{}).(*handshake))
	context.AfterFunc(conn.Context(), func() {
		c.idle.Stop()
		s.conns.Delete(conn)
		c.forget()
		s.open.Add(-1)
	})
	return context.WithValue(ctx, quicConnKey{}, c)
}

func (c *quicConn) endIdle() {
	_ = c.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "idle")
}

// start counts a request; streams that their client has reset do not count
// against the limit of streams any more, but their requests may be under way.
func (c *quicConn) start() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running++
	c.idle.Stop()
	return c.running <= 2*maxStreams
}

// end counts a request out.
func (s *quicServer) end(c *quicConn, r *http.Request) {
	c.mu.Lock()
	if c.running--; c.running == 0 && c.Context().Err() == nil {
		c.idleSince = time.Now()
		wait := s.options.IdleTimeout
		if c.leaving.Load() {
			wait = s.options.LameDuck // the answer is on its way
		}
		c.idle.Reset(wait)
	}
	c.mu.Unlock()
	if r.Context().Err() != nil && !c.cut.Load() && !c.cancels.Allow() {
		s.flood(c, http2.Resets, "too many requests that the client gave up")
	}
}

// Reasons why a connection by HTTP/3 was ended, beside package http2's.
const (
	// ReasonRequests are more requests under way than a client may have.
	ReasonRequests = "requests"
	// ReasonUnacked is much that a client does not acknowledge, while others'
	// answers fill the memory.
	ReasonUnacked = "unacknowledged"
)

func (s *quicServer) flood(c *quicConn, reason, why string) {
	if c.flooded.Swap(true) {
		return // its other requests end as well
	}
	s.options.OnFlood(reason)
	s.options.Logger.Debug("HTTP/3 connection ended", "client", c.RemoteAddr().String(), "error", why)
	_ = c.CloseWithError(errorExcessiveLoad, why)
}

// ClientOf returns what is known of the client of a request by HTTP/3, by its
// context; nil for nothing.
func ClientOf(ctx context.Context) *certs.Client {
	if c, ok := ctx.Value(quicConnKey{}).(*quicConn); ok {
		return c.client()
	}
	return nil
}

// Leave ends the connection of a request by HTTP/3, given by its context, once
// it carries none for a moment.
func Leave(ctx context.Context) {
	if c, ok := ctx.Value(quicConnKey{}).(*quicConn); ok {
		c.leaving.Store(true)
	}
}
