package http2

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/shed"
)

// Handler decides what happens to a request. It is called in a goroutine for
// each, and the request ends when it returns: an answer without end is cut off
// by a reset then.
type Handler interface {
	ServeHTTP2(s *Stream)
}

// Options configure a [Server].
type Options struct {
	// Handler is required.
	Handler Handler
	// Logger is told of broken connections, at debug level. Required.
	Logger *slog.Logger
	// OnFlood is told why a connection was ended whose client makes work for
	// nothing. Optional.
	OnFlood func(reason string)
	// Short says that memory is short: connections without request get 5 s
	// then. Optional.
	Short func() bool
	// Held counts what of bodies waits for backends, and says when that is too
	// much: then requests end by a reset. Optional.
	Held *shed.Held
	// MaxStreams is how many requests a client may have under way (default 128).
	MaxStreams int
	// StreamWindow and ConnectionWindow are how much of bodies a client may send
	// ahead (default 256 KiB and 1 MiB).
	StreamWindow, ConnectionWindow int64
	// MaxHeaderBytes limits a header as HPACK counts it (default 64 KiB).
	MaxHeaderBytes int
	// HeaderTimeout limits reading a header (default 30 s), IdleTimeout how long
	// there may be no request (75 s), BodyTimeout the wait for more of a body, but
	// for RPCs (60 s), WriteTimeout the wait for a client to take more bytes: of
	// the connection, and of each answer that is no RPC's (60 s).
	HeaderTimeout, IdleTimeout, BodyTimeout, WriteTimeout time.Duration

	heads budget // what large headers spend; that of newHeaders if zero
}

const (
	// shortWait is how long a connection may be without request while memory is short.
	shortWait = 5 * time.Second
	// maxSpare is how many goroutines wait for requests: one that has served
	// before has its stack grown.
	maxSpare = 256
)

// past makes a connection's next read or write fail, and the one under way.
var past = time.Unix(1, 0)

// Server serves connections. Make one with [NewServer].
type Server struct {
	Options
	// Clock is set by the server's janitor, four times a second.
	Clock http1.Clock

	draining atomic.Bool
	stop     context.CancelFunc
	old      sync.Pool // of *Stream

	mu    sync.Mutex
	conns map[*Conn]struct{}
	empty chan struct{} // closed when the last connection goes, while draining
	ended bool

	workers sync.Mutex
	spare   []chan *Stream // of goroutines that wait
	closed  bool
}

// NewServer returns a server; end it with [Server.Drain].
func NewServer(o Options) (*Server, error) {
	if o.Handler == nil || o.Logger == nil {
		return nil, errors.New("http2: Handler and Logger are required")
	}
	if o.OnFlood == nil {
		o.OnFlood = func(string) {}
	}
	o.heads = cmp.Or(o.heads, newHeaders())
	o.MaxStreams = cmp.Or(o.MaxStreams, 128)
	o.StreamWindow = cmp.Or(o.StreamWindow, 256<<10)
	o.ConnectionWindow = cmp.Or(o.ConnectionWindow, 1<<20)
	o.MaxHeaderBytes = cmp.Or(o.MaxHeaderBytes, 64<<10)
	o.HeaderTimeout = cmp.Or(o.HeaderTimeout, 30*time.Second)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, 75*time.Second)
	o.BodyTimeout = cmp.Or(o.BodyTimeout, 60*time.Second)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, 60*time.Second)
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{Options: o, stop: stop, conns: map[*Conn]struct{}{}}
	s.Clock.Store(time.Now().UnixNano())
	go s.Clock.Run(ctx, s.sweep)
	return s, nil
}

// ServeConn serves a client's connection, which begins with the preface, until
// its end and that of all its requests. Secure tells that it is encrypted.
func (s *Server) ServeConn(conn net.Conn, secure bool) {
	c := newConn(s, conn, secure)
	s.mu.Lock()
	ended := s.ended
	if !ended {
		s.conns[c] = struct{}{}
	}
	s.mu.Unlock()
	if ended {
		_ = conn.Close()
		return
	}
	defer s.forget(c)
	c.serve()
}

// Open returns how many connections there are.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *Server) forget(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if len(s.conns) == 0 && s.empty != nil {
		close(s.empty)
		s.empty, s.ended = nil, true
	}
}

// Drain tells all clients to go elsewhere and waits for their requests until
// ctx ends; what is under way then is cut off. No request is lost by it: those
// that are on their way when a client hears of it are served.
func (s *Server) Drain(ctx context.Context) {
	s.draining.Store(true)
	s.mu.Lock()
	done := make(chan struct{})
	if len(s.conns) == 0 {
		s.ended = true
		close(done)
	} else {
		s.empty = done
	}
	for c := range s.conns {
		c.Leave()
	}
	s.mu.Unlock()
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
	s.workers.Lock()
	defer s.workers.Unlock()
	s.closed = true
	for _, w := range s.spare {
		close(w)
	}
	s.spare = nil
}

// sweep is the janitor's: it ends what takes too long.
func (s *Server) sweep(now int64) {
	idle := s.IdleTimeout
	if s.Short != nil && s.Short() {
		idle = min(idle, shortWait)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.sweep(now, idle)
	}
}

// newStream readies a Stream, an old one if there is one.
func (s *Server) newStream(c *Conn, id uint32) *Stream {
	st, ok := s.old.Get().(*Stream)
	if !ok {
		st = &Stream{readable: make(chan struct{}, 1), writable: make(chan struct{}, 1)}
	}
	st.conn, st.id, st.at = c, id, -1
	return st
}

// drop keeps a Stream for another request.
func (s *Server) drop(st *Stream) {
	if st.shared {
		return
	}
	clear(st.Request.Fields)
	clear(st.trailers)
	for _, wake := range []chan struct{}{st.readable, st.writable} {
		select {
		case <-wake:
		default:
		}
	}
	*st = Stream{
		Request: http1.Request{Fields: st.Request.Fields[:0]}, Scratch: st.Scratch, readable: st.readable, writable: st.writable,
		block: st.block[:0], body: st.body[:0], trailers: st.trailers[:0],
	}
	s.old.Put(st)
}

// run serves a request in a goroutine that has served others, if one waits.
func (s *Server) run(st *Stream) {
	s.workers.Lock()
	if n := len(s.spare); n > 0 {
		w := s.spare[n-1]
		s.spare = s.spare[:n-1]
		s.workers.Unlock()
		w <- st
		return
	}
	s.workers.Unlock()
	go s.work(st)
}

// work serves a request, and then others.
func (s *Server) work(st *Stream) {
	w := make(chan *Stream, 1)
	for st != nil {
		c := st.conn
		s.serve(st)
		st.finish()
		s.drop(st)
		c.handlers.Done()
		s.workers.Lock()
		if s.closed || len(s.spare) >= maxSpare {
			s.workers.Unlock()
			return
		}
		s.spare = append(s.spare, w)
		s.workers.Unlock()
		st = <-w
	}
}

// serve has a fault in the handler cost the one request.
func (s *Server) serve(st *Stream) {
	defer func() {
		if p := recover(); p != nil {
			st.shared = true // nobody knows what still uses it
			st.Hold(nil)
			st.Stop() // whoever reads the body for the handler
			s.Logger.Error("request failed by a fault in the gateway", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	s.Handler.ServeHTTP2(st)
}

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
