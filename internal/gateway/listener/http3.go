package listener

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/time/rate"

	"fairway.dev/fairway/internal/gateway/http2"
)

// quicServer is the half of an [HTTP] server that speaks HTTP/3, at the UDP
// ports of the same numbers. quic-go does QUIC and HTTP/3's framing; here are
// the sockets, the limits on clients, and the end.
type quicServer struct {
	options HTTPOptions
	server  *http3.Server
	sockets []*quicSocket
	active  atomic.Int64 // requests
	open    atomic.Int64 // connections

	mu        sync.Mutex
	listeners []*quic.EarlyListener // nil until serve
	draining  bool
}

type quicSocket struct {
	*steering
	transport *quic.Transport
}

// newQUICServer opens UDP sockets beside TCP ones; packets wait until serve.
func newQUICServer(ctx context.Context, o HTTPOptions, beside []net.Listener) (*quicServer, error) {
	s := &quicServer{options: o}
	s.server = &http3.Server{
		Handler:        http.HandlerFunc(s.serveHTTP),
		MaxHeaderBytes: maxHeaderBytes,
		ConnContext:    s.begin,
		Logger:         o.Logger,
	}
	for _, l := range beside {
		conn, err := config().ListenPacket(ctx, "udp", l.Addr().String())
		if err != nil {
			s.close()
			return nil, fmt.Errorf("listen at UDP %s: %w", l.Addr(), describe(err))
		}
		steering, err := newSteering(conn.(*net.UDPConn))
		if err != nil {
			s.close()
			_ = conn.Close()
			return nil, fmt.Errorf("share UDP %s with another process: %w", l.Addr(), err)
		}
		s.sockets = append(s.sockets, &quicSocket{steering, &quic.Transport{Conn: conn, ConnectionIDGenerator: steering, ConnContext: s.admit}})
	}
	return s, nil
}

// serve takes connections until drain.
func (s *quicServer) serve() error {
	// 0-RTT stays off: what a client sends by it can be sent again by anybody
	// who saw it (RFC 8470).
	config := &quic.Config{
		HandshakeIdleTimeout:           s.options.HeaderTimeout,
		MaxIdleTimeout:                 s.options.IdleTimeout,
		MaxIncomingStreams:             maxStreams,
		MaxIncomingUniStreams:          maxUniStreams,
		InitialStreamReceiveWindow:     streamWindow,
		MaxStreamReceiveWindow:         streamWindow,
		InitialConnectionReceiveWindow: connectionWindow,
		MaxConnectionReceiveWindow:     connectionWindow,
	}
	listeners, err := s.listen(config)
	if err != nil {
		return err
	}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() {
			err := s.server.ServeListener(l)
			if errors.Is(err, http.ErrServerClosed) {
				err = nil
			}
			failed <- err
		}()
	}
	for range listeners {
		if err := <-failed; err != nil {
			return err
		}
	}
	return nil
}

// listen begins to take connections; there are no listeners while draining.
func (s *quicServer) listen(config *quic.Config) ([]*quic.EarlyListener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return nil, nil
	}
	for _, socket := range s.sockets {
		l, err := socket.transport.ListenEarly(http3.ConfigureTLSConfig(s.options.TLS), config)
		if err == nil {
			s.listeners = append(s.listeners, l)
			err = socket.takeOver()
		}
		if err != nil {
			return nil, fmt.Errorf("serve HTTP/3 at %s: %w", socket.conn.LocalAddr(), err)
		}
	}
	return s.listeners, nil
}

// drain refuses what is new, tells clients so (GOAWAY), and lets requests
// finish until ctx ends.
func (s *quicServer) drain(ctx context.Context, lameDuck time.Duration) {
	s.mu.Lock()
	s.draining = true
	for _, l := range s.listeners {
		_ = l.Close()
	}
	s.mu.Unlock()
	told, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.server.Shutdown(told) // ends what is left
	}()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	// The last packets of an answer are still on their way when its request is
	// done, and clients are to end their connections themselves.
	var idle time.Time
wait:
	for {
		switch {
		case s.active.Load() > 0:
			idle = time.Time{}
		case idle.IsZero():
			idle = time.Now()
		case s.open.Load() == 0 || time.Since(idle) > lameDuck:
			break wait
		}
		select {
		case <-poll.C:
		case <-done:
			break wait
		}
	}
	end()
	<-done
	s.close()
}

// close closes the sockets.
func (s *quicServer) close() {
	for _, socket := range s.sockets {
		_ = socket.transport.Close()
		_ = socket.conn.Close()
	}
}

// quicConn is what limits a client's connection.
type quicConn struct {
	*quic.Conn
	cancels *rate.Limiter // requests that the client gives up
	flooded atomic.Bool

	mu      sync.Mutex
	running int
	idle    *time.Timer
}

type quicConnKey struct{}

// errorExcessiveLoad is H3_EXCESSIVE_LOAD (RFC 9114, 8.1).
const errorExcessiveLoad = 0x107

var errTooManyConnections = errors.New("the client has as many connections as it may")

// admit refuses the connections of a client that has too many. It does not
// count: anybody can send a first packet from an address that is another's.
func (s *quicServer) admit(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	if s.options.Clients.full(addrPort(info.RemoteAddr).Addr()) {
		return ctx, errTooManyConnections
	}
	return ctx, nil
}

// register counts a connection for its client, once the handshake has shown
// that the client is where it says.
func (s *quicServer) register(conn *quic.Conn) {
	select {
	case <-conn.HandshakeComplete():
	case <-conn.Context().Done():
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
	c := &quicConn{Conn: conn, cancels: rate.NewLimiter(cancelsPerSecond, maxCancels)}
	c.idle = time.AfterFunc(s.options.IdleTimeout, func() { _ = conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "idle") })
	s.open.Add(1)
	if s.options.Clients != nil {
		go s.register(conn)
	}
	context.AfterFunc(conn.Context(), func() {
		c.idle.Stop()
		s.open.Add(-1)
	})
	return context.WithValue(ctx, quicConnKey{}, c)
}

func (s *quicServer) serveHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(quicConnKey{}).(*quicConn)
	s.active.Add(1)
	defer s.active.Add(-1)
	defer s.end(c, r)
	if !c.start() {
		s.flood(c, ReasonRequests, "too many requests at a time")
		return
	}
	out := &quicWriter{ResponseWriter: w, controller: http.NewResponseController(w), timeout: s.options.WriteTimeout}
	in := r.WithContext(r.Context()) // quic-go goes on to use r
	in.Body = &quicBody{ReadCloser: r.Body, from: r, to: in.Trailer}
	serveTimed(s.options.Requests, out, in, s.options.BodyTimeout)
	if r.Method == http.MethodHead {
		_ = out.FlushError() // or quic-go says that the length is 0
	}
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
		c.idle.Reset(s.options.IdleTimeout)
	}
	c.mu.Unlock()
	if r.Context().Err() != nil && !c.cancels.Allow() {
		s.flood(c, http2.Resets, "too many requests that the client gave up")
	}
}

// ReasonRequests is the reason of a flood by HTTP/3: more requests under way than
// a client may have.
const ReasonRequests = "requests"

func (s *quicServer) flood(c *quicConn, reason, why string) {
	if c.flooded.Swap(true) {
		return // its other requests end as well
	}
	s.options.OnFlood(reason)
	s.options.Logger.Debug("HTTP/3 connection ended", "client", c.RemoteAddr().String(), "error", why)
	_ = c.CloseWithError(errorExcessiveLoad, why)
}

// quicWriter gives the client time for each write, as the other protocols do.
type quicWriter struct {
	http.ResponseWriter
	controller *http.ResponseController
	timeout    time.Duration
}

// Unwrap is for http.ResponseController.
func (w *quicWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter. An answer has the type that it was
// given, or none: quic-go would guess it from the body, as net/http does.
func (w *quicWriter) WriteHeader(status int) {
	if header := w.Header(); status >= 200 && header["Content-Type"] == nil {
		header["Content-Type"] = nil
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *quicWriter) Write(p []byte) (int, error) {
	_ = w.controller.SetWriteDeadline(time.Now().Add(w.timeout))
	return w.ResponseWriter.Write(p)
}

// FlushError is for http.ResponseController.
func (w *quicWriter) FlushError() error {
	_ = w.controller.SetWriteDeadline(time.Now().Add(w.timeout))
	return w.controller.Flush()
}

// quicBody is a request body that fills the trailers in that were announced, as
// net/http does. quic-go makes a new map of whatever trailers come.
type quicBody struct {
	io.ReadCloser
	from *http.Request
	to   http.Header
}

// Read implements io.Reader.
func (b *quicBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		for name := range b.to {
			b.to[name] = b.from.Trailer[name]
		}
	}
	return n, err
}
