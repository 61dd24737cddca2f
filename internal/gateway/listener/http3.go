package listener

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/shed"
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
	// halfOpen counts handshakes, of which mostHalfOpen may be under way by clients
	// that may not be where they say.
	halfOpen     atomic.Int64
	mostHalfOpen int64
	conns        sync.Map   // of *quicConn, by *quic.Conn
	ahead        *shed.Held // what clients may send ahead, beyond the first windows
	stall        time.Duration
	ended        chan struct{} // closed at the end

	mu        sync.Mutex
	listeners []*quic.EarlyListener // nil until serve
	draining  bool
}

type quicSocket struct {
	*steering
	transport *quic.Transport
}

// newQUICServer opens UDP sockets beside TCP ones; packets wait until serve.
func newQUICServer(ctx context.Context, o HTTPOptions, beside []net.Addr) (*quicServer, error) {
	s := &quicServer{options: o, ahead: o.Held.Beside(), stall: defaultStall, mostHalfOpen: mostHalfOpen, ended: make(chan struct{})}
	s.server = &http3.Server{
		Handler:        http.HandlerFunc(s.serveHTTP),
		MaxHeaderBytes: maxHeaderBytes,
		ConnContext:    s.begin,
		Logger:         o.Logger,
	}
	for _, addr := range beside {
		conn, err := config().ListenPacket(ctx, "udp", addr.String())
		if err != nil {
			s.close()
			return nil, fmt.Errorf("listen at UDP %s: %w", addr, describe(err))
		}
		steering, err := newSteering(conn.(*net.UDPConn))
		if err != nil {
			s.close()
			_ = conn.Close()
			return nil, fmt.Errorf("share UDP %s with another process: %w", addr, err)
		}
		s.sockets = append(s.sockets, &quicSocket{steering, &quic.Transport{Conn: conn, ConnectionIDGenerator: steering, ConnContext: s.admit, VerifySourceAddress: s.suspicious}})
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
		InitialStreamReceiveWindow:     firstStreamWindow,
		MaxStreamReceiveWindow:         streamWindow,
		InitialConnectionReceiveWindow: firstConnectionWindow,
		MaxConnectionReceiveWindow:     connectionWindow,
		AllowConnectionWindowIncrease:  s.allow,
	}
	listeners, err := s.listen(config)
	if err != nil {
		return err
	}
	go s.watch()
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
	close(s.ended)
	for _, socket := range s.sockets {
		_ = socket.transport.Close()
		_ = socket.conn.Close()
	}
}

func (s *quicServer) serveHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(quicConnKey{}).(*quicConn)
	s.active.Add(1)
	defer s.active.Add(-1)
	defer s.end(c, r)
	c.client()
	if !c.start() {
		s.flood(c, ReasonRequests, "too many requests at a time")
		return
	}
	out := &quicWriter{ResponseWriter: w, controller: http.NewResponseController(w), timeout: s.options.WriteTimeout, conn: c, ctx: r.Context()}
	in := r.WithContext(r.Context()) // quic-go goes on to use r
	in.Body = &quicBody{ReadCloser: r.Body, from: r, to: in.Trailer}
	serveTimed(s.options.Requests, out, in, s.options.BodyTimeout)
	if r.Method == http.MethodHead {
		_ = out.FlushError() // or quic-go says that the length is 0
	}
}

// quicWriter gives the client time for each write, as the other protocols do.
type quicWriter struct {
	http.ResponseWriter
	controller *http.ResponseController
	timeout    time.Duration
	conn       *quicConn
	ctx        context.Context // ends with the request
}

// Cut reports whether the request was ended because memory is short.
func (w *quicWriter) Cut() bool { return w.conn.cut.Load() }

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
	for done := 0; ; {
		n, err := w.write(p[done : done+w.conn.mayWrite(w.ctx, len(p)-done)])
		if done += n; err != nil || done == len(p) {
			return done, err
		}
	}
}

// maxTurns is how many times as long an answer may wait for others of its
// connection that the client takes meanwhile, and may prefer (RFC 9218).
const maxTurns = 10

// write gives the client more time for as long as it takes enough.
func (w *quicWriter) write(p []byte) (done int, err error) {
	least := http1.Least(w.timeout)
	for turns := 1; ; turns++ {
		before := w.conn.took.Load()
		_ = w.controller.SetWriteDeadline(time.Now().Add(w.timeout))
		n, err := w.ResponseWriter.Write(p[done:])
		done += n
		others := w.conn.took.Add(int64(n)) - before - int64(n)
		w.conn.wrote()
		switch {
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return done, err
		case int64(n) >= least:
			turns = 0
		case others < least || turns >= maxTurns:
			return done, err
		}
	}
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
