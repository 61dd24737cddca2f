package http1

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Handler decides what happens to a request. It ends the exchange by one of
// [Conn.Answer], [Conn.Relay], [Conn.Tunnel] or an [Adapter]'s writes.
type Handler interface {
	ServeHTTP1(c *Conn)
}

// Options configure a [Server].
type Options struct {
	// Handler is required.
	Handler Handler
	// Logger is told of broken connections, at debug level. Required.
	Logger *slog.Logger
	// HTTP2 gets connections whose client speaks HTTP/2 by prior knowledge.
	// Optional; without it they are refused.
	HTTP2 func(net.Conn)
	// Short says that memory is short: connections that begin to wait for a
	// request get 5 s then. Optional.
	Short func() bool
	// Ended is called once for each connection that ServeConn got, at its end.
	// Handed tells that it went to HTTP2 in place of that. Optional.
	Ended func(sock *Socket, handed bool)
	// HeaderTimeout limits reading a request's header (default 30 s),
	// IdleTimeout the pause between requests (75 s), BodyTimeout the wait for
	// more of a body (60 s), WriteTimeout the wait for a client to take more
	// bytes (60 s).
	HeaderTimeout, IdleTimeout, BodyTimeout, WriteTimeout time.Duration
}

// Server serves connections. Make one with [NewServer].
type Server struct {
	Options
	clock    clock
	draining atomic.Bool
	idling   atomic.Bool // idle connections are closed
	stop     context.CancelFunc
	old      sync.Pool // of *Conn whose connections have ended

	lot     *lot
	ferries Ferries

	mu      sync.Mutex
	conns   map[*Conn]struct{}
	closing int           // parked connections that are being closed
	empty   chan struct{} // closed when the last connection goes, while draining
	ended   bool          // nothing is served any more
}

// NewServer returns a server; end it with [Server.Drain].
func NewServer(o Options) (*Server, error) {
	if o.Handler == nil || o.Logger == nil {
		return nil, errors.New("http1: Handler and Logger are required")
	}
	o.HeaderTimeout = cmp.Or(o.HeaderTimeout, 30*time.Second)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, 75*time.Second)
	o.BodyTimeout = cmp.Or(o.BodyTimeout, 60*time.Second)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, 60*time.Second)
	if o.Ended == nil {
		o.Ended = func(*Socket, bool) {}
	}
	lot, err := newLot()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{Options: o, stop: stop, lot: lot, conns: map[*Conn]struct{}{}}
	s.clock.Store(time.Now().UnixNano())
	go s.clock.Run(ctx, s.look)
	go s.attend()
	return s, nil
}

// ServeConn serves a client's connection until its end, or until its client
// pauses: the connection is parked then, and taken up again without the caller.
// [Options.Ended] tells of the end. Secure tells that conn is encrypted; sock is
// the connection beneath it, or conn itself.
func (s *Server) ServeConn(conn net.Conn, sock *Socket, secure bool) {
	peer, port := sock.peer, sock.port
	if conn != sock {
		peer, port = addrPort(conn.RemoteAddr()), addrPort(conn.LocalAddr()).Port()
	}
	c := newConn(s, conn, sock, secure, peer, port)
	s.mu.Lock()
	ended := s.ended
	if !ended {
		s.conns[c] = struct{}{}
	}
	s.mu.Unlock()
	if ended {
		_ = conn.Close()
		s.Ended(sock, false)
		return
	}
	s.run(c)
}

// run serves a connection until its end, or until it is parked.
func (s *Server) run(c *Conn) {
	sock := c.sock
	parked, done := false, false
	defer func() {
		if parked {
			c.recycle()
			return
		}
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		s.left(sock, c.handed)
		if done {
			c.recycle()
		}
	}()
	parked = c.serve()
	done = true
}

// left counts a connection out.
func (s *Server) left(sock *Socket, handed bool) {
	s.Ended(sock, handed)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.none() && s.empty != nil {
		close(s.empty)
		s.empty, s.ended = nil, true
	}
}

// none reports whether there is no connection; mu is held.
func (s *Server) none() bool { return len(s.conns)+len(s.lot.conns)+s.closing == 0 }

// Leave makes every further answer the last one of its connection.
func (s *Server) Leave() { s.draining.Store(true) }

// Drain closes idle connections and waits for the others until ctx ends; what
// is under way then is cut off.
func (s *Server) Drain(ctx context.Context) {
	s.Leave()
	s.idling.Store(true)
	s.mu.Lock()
	done := make(chan struct{})
	if s.none() {
		s.ended = true
		close(done)
	} else {
		s.empty = done
	}
	for c := range s.conns {
		c.closeIdle()
	}
	s.mu.Unlock()
	s.closeParked(func(*parked) bool { return true })
	select {
	case <-done:
	case <-ctx.Done():
		s.mu.Lock()
		s.ended = true // what comes now would not be cut off
		for c := range s.conns {
			c.cut()
		}
		s.mu.Unlock()
		<-done
	}
	s.stop()
	_ = s.lot.epoll.Close()
	s.ferries.Close()
}

// look is the janitor's: it ends what takes too long, and exchanges whose client
// is gone.
func (s *Server) look(now int64) {
	s.sweep(now)
	s.sweepParked(now)
}

func (s *Server) sweep(now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.sweep(now)
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
