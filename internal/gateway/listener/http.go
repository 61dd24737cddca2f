package listener

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/http2"
	"fairway.dev/fairway/internal/gateway/shed"
)

// HTTPOptions configure an [HTTP] server.
type HTTPOptions struct {
	// Addrs are where to listen, "host:port" or ":port". Required.
	Addrs []string
	// TLS makes it an HTTPS server. Optional.
	TLS *tls.Config
	// Client returns what is to be known of a client by its handshake; nil for
	// nothing. Optional.
	Client func(*tls.ConnectionState) *certs.Client
	// HTTP3 serves HTTP/3 as well, at the same ports of UDP. A port that cannot
	// be had is logged, and the server goes on without. It needs TLS and cannot
	// be had with ProxyProtocol, for QUIC carries no such header.
	HTTP3 bool
	// HTTP1 answers requests by HTTP/1.1, HTTP2 those by HTTP/2, Requests those by
	// HTTP/3. The last is optional without HTTP3, the others are required.
	HTTP1    http1.Handler
	HTTP2    http2.Handler
	Requests http.Handler
	// Through takes connections over whose TLS is not ended here, and returns those
	// that are to be served; nil for one that it has taken. Wait is how long a client
	// has to begin. Optional, and for servers with TLS.
	Through func(sock *http1.Socket, conn net.Conn, wait time.Duration) net.Conn
	// ProxyProtocol makes every connection begin with a PROXY header. Only
	// turn it on behind a proxy that sends them: it decides the client's address.
	ProxyProtocol bool
	// Short says that memory is short: clients by HTTP/1 and HTTP/2 then do not get
	// long to send their next request. Optional.
	Short func() bool
	// Held counts what of bodies by HTTP/2 waits for backends. Optional. What HTTP/3
	// lets clients send ahead has the same limit beside it.
	Held *shed.Held
	// Unacked counts what of answers by HTTP/3 the clients may not have
	// acknowledged, above 64 KiB each. Optional.
	Unacked *shed.Held
	// OnFlood is told of each connection that is ended because its client makes
	// work for nothing: one of package http2's reasons, or ReasonRequests. Optional.
	OnFlood func(reason string)
	// Clients bounds the connections of each client. Optional.
	Clients *Clients
	// DrainTimeout is how long requests under way may take at the end; default 30 s.
	DrainTimeout time.Duration
	// LameDuck is how long kept connections may send one more request at the
	// end, whose answer tells the client to go elsewhere; default 1 s.
	LameDuck time.Duration
	// HeaderTimeout limits reading a request's header and the TLS handshake
	// (default 30 s), IdleTimeout the pause between requests (75 s), BodyTimeout
	// the wait for more of a body, but for RPCs by HTTP/2 and HTTP/3 (60 s), and
	// WriteTimeout the wait for a client to take more bytes (60 s).
	HeaderTimeout, IdleTimeout, BodyTimeout, WriteTimeout time.Duration
	// Logger is told of broken connections, at debug level. Required.
	Logger *slog.Logger
}

// HTTP is a server for HTTP/1.1 and HTTP/2, with TLS or without (h2c), and for
// HTTP/3.
type HTTP struct {
	options   HTTPOptions
	addrs     []net.Addr
	bound     []*os.File     // sockets beside another process's, which do not listen yet
	listeners []net.Listener // none while there are bound ones
	doors     []*os.File     // the listeners again, to accept by
	listening atomic.Bool
	http1     *http1.Server
	http2     *http2.Server
	http3     *quicServer    // nil for none
	accepting sync.WaitGroup // goroutines that accept
	serving   atomic.Int64   // connections
	passing   atomic.Int64   // those whose TLS is not ended here, or may not be
	draining  atomic.Bool
	stop      context.CancelFunc
	crew      crew[*http1.Socket]
}

// NewHTTP opens the server's sockets; connections wait until Run. Where another
// process listens at the same ports they are left to it until Listen or Run.
func NewHTTP(ctx context.Context, o HTTPOptions) (*HTTP, error) {
	o.DrainTimeout = cmp.Or(o.DrainTimeout, defaultDrainTimeout)
	o.LameDuck = cmp.Or(o.LameDuck, defaultLameDuck)
	o.HeaderTimeout = cmp.Or(o.HeaderTimeout, defaultHeaderTimeout)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, defaultIdleTimeout)
	o.BodyTimeout = cmp.Or(o.BodyTimeout, defaultBodyTimeout)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, defaultWriteTimeout)
	if o.OnFlood == nil {
		o.OnFlood = func(string) {}
	}
	if o.HTTP3 && (o.TLS == nil || o.ProxyProtocol) {
		return nil, errors.New("HTTP/3 needs TLS, and clients that connect without a PROXY header")
	}
	base, stop := context.WithCancel(context.Background())
	h := &HTTP{options: o, stop: stop}
	h.crew.init(h.greet, base.Done())
	if err := h.open(ctx); err != nil {
		stop()
		h.closeSockets()
		return nil, err
	}
	var err error
	h.http1, err = http1.NewServer(http1.Options{
		Handler: o.HTTP1, Logger: o.Logger, HTTP2: h.handOver, Short: o.Short, Ended: h.left,
		HeaderTimeout: o.HeaderTimeout, IdleTimeout: o.IdleTimeout, BodyTimeout: o.BodyTimeout, WriteTimeout: o.WriteTimeout,
	})
	if err != nil {
		h.closeSockets()
		return nil, err
	}
	h.http2, err = http2.NewServer(http2.Options{
		Handler: o.HTTP2, Logger: o.Logger, OnFlood: o.OnFlood, Short: o.Short, Held: o.Held,
		MaxStreams: maxStreams, StreamWindow: streamWindow, ConnectionWindow: connectionWindow, MaxHeaderBytes: maxHeaderBytes,
		HeaderTimeout: o.HeaderTimeout, IdleTimeout: o.IdleTimeout, BodyTimeout: o.BodyTimeout, WriteTimeout: o.WriteTimeout,
	})
	if err != nil {
		h.closeSockets()
		h.http1.Drain(ctx)
		return nil, err
	}
	if o.HTTP3 {
		if h.http3, err = newQUICServer(ctx, o, h.addrs); err != nil {
			o.Logger.Warn("HTTP/3 is not served, free the UDP port or turn HTTP/3 off", "error", err)
		}
	}
	return h, nil
}

// open listens, or only binds if another process listens at one of the addresses.
func (h *HTTP) open(ctx context.Context) error {
	var all []*net.TCPAddr
	for _, text := range h.options.Addrs {
		addr, err := net.ResolveTCPAddr("tcp", text)
		if err != nil {
			return fmt.Errorf("listen at %s: %w", text, err)
		}
		f, err := beside(addr)
		if err != nil {
			return fmt.Errorf("listen at %s: %w", text, describe(err))
		}
		if f != nil {
			h.bound = append(h.bound, f)
		}
		all = append(all, addr)
	}
	if len(h.bound) == 0 {
		return h.Listen(ctx)
	}
	for _, addr := range all {
		h.addrs = append(h.addrs, addr)
	}
	return nil
}

// Alone reports whether clients would have nobody else to go to: the server
// listens itself, or no other process does where it is to.
func (h *HTTP) Alone() bool {
	if h.listening.Load() {
		return true
	}
	for _, a := range h.addrs {
		// What cannot be told is not a reason to keep clients away.
		if other, err := listens(a.(*net.TCPAddr)); err == nil && other {
			return false
		}
	}
	return true
}

// Listening reports whether clients can connect.
func (h *HTTP) Listening() bool { return h.listening.Load() }

// Listen lets clients connect; they wait until Run. It does nothing if they can
// already.
func (h *HTTP) Listen(ctx context.Context) error {
	if h.listening.Load() {
		return nil
	}
	var err error
	if len(h.bound) < len(h.options.Addrs) {
		closeAll(h.bound) // another process was at some of them
		h.bound = nil
		h.listeners, err = Listen(ctx, h.options.Addrs)
	}
	for len(h.bound) > 0 && err == nil {
		var l net.Listener
		if l, err = listenNow(h.bound[0]); err == nil {
			h.listeners = append(h.listeners, l)
		}
		h.bound = h.bound[1:]
	}
	if err != nil {
		return describe(err)
	}
	if h.doors, err = files(h.listeners); err == nil {
		err = deferred(h.doors)
	}
	if err != nil {
		return err
	}
	if len(h.addrs) == 0 {
		for _, l := range h.listeners {
			h.addrs = append(h.addrs, l.Addr())
		}
	}
	h.listening.Store(true)
	return nil
}

// Addrs returns the addresses in use, for ports that the kernel chose.
func (h *HTTP) Addrs() []net.Addr { return slices.Clone(h.addrs) }

// Secure reports whether it is an HTTPS server.
func (h *HTTP) Secure() bool { return h.options.TLS != nil }

// HTTP3 reports whether it serves HTTP/3 as well.
func (h *HTTP) HTTP3() bool { return h.http3 != nil }

// Close closes the sockets of a server that is not to Run.
func (h *HTTP) Close() error {
	h.closeSockets()
	h.drain()
	return nil
}

func (h *HTTP) closeSockets() {
	closeAll(h.bound)
	closeAll(h.listeners)
	closeAll(h.doors)
}

// handOver serves a connection that turned out to speak HTTP/2.
func (h *HTTP) handOver(conn net.Conn) {
	h.serving.Add(1)
	client := h.options.Clients.client(addrPort(conn.RemoteAddr()).Addr()) // it has entered
	go func() {
		defer h.serving.Add(-1)
		defer h.options.Clients.leave(client)
		h.http2.ServeConn(conn, false)
	}()
}

// Run serves until ctx ends. It then closes the sockets, tells clients of kept
// connections, waits for requests and upgraded connections under way, up to
// the drain timeout, and returns nil.
func (h *HTTP) Run(ctx context.Context) error {
	if ctx.Err() == nil {
		if err := h.Listen(ctx); err != nil {
			h.drain()
			return err
		}
	}
	failed := make(chan error, len(h.listeners)+1)
	for i, door := range h.doors {
		h.accepting.Add(1)
		port := addrPort(h.listeners[i].Addr()).Port()
		go func() {
			defer h.accepting.Done()
			failed <- accept(door, port, h.take, h.options.Logger)
		}()
	}
	if h.http3 != nil {
		go func() {
			if err := h.http3.serve(); err != nil && !h.draining.Load() {
				failed <- err
			}
		}()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	h.drain()
	return err
}

// take has a connection served.
func (h *HTTP) take(sock *http1.Socket) {
	h.serving.Add(1)
	h.crew.take(sock)
}

// greet finds out what a connection speaks, and serves it.
func (h *HTTP) greet(sock *http1.Socket) {
	conn := h.admitted(sock)
	if conn == nil {
		h.serving.Add(-1)
		return
	}
	if h.options.TLS == nil {
		h.http1.ServeConn(conn, sock, false)
		return
	}
	if h.options.Through != nil {
		h.passing.Add(1)
		conn = h.options.Through(sock, conn, h.options.HeaderTimeout)
		if h.passing.Add(-1); conn == nil {
			h.left(sock, false)
			return
		}
	}
	secure := h.greeted(conn, sock)
	if secure == nil {
		h.left(sock, false)
		return
	}
	shown := secure.ConnectionState()
	conn = secure
	if client := h.options.client(&shown); client != nil {
		conn = &certs.ClientConn{Conn: secure, Client: client}
	}
	if shown.NegotiatedProtocol == "h2" {
		h.http2.ServeConn(conn, true)
		h.left(sock, false)
		return
	}
	h.http1.ServeConn(conn, sock, true)
}

// client returns what Client does.
func (o *HTTPOptions) client(secure *tls.ConnectionState) *certs.Client {
	if o.Client == nil {
		return nil
	}
	return o.Client(secure)
}

// left counts a connection out, unless somebody else does so for its client.
func (h *HTTP) left(sock *http1.Socket, handed bool) {
	if !handed {
		h.options.Clients.leave(sock.Client)
	}
	h.serving.Add(-1)
}

// admitted returns a connection whose client may have another one, before that
// costs more; nil if it may not, and has been closed.
func (h *HTTP) admitted(sock *http1.Socket) net.Conn {
	var conn net.Conn = sock
	peer := sock.Peer()
	if h.options.ProxyProtocol {
		proxied := &proxyConn{Conn: conn}
		if proxied.header() != nil {
			return nil
		}
		conn, peer = proxied, addrPort(proxied.RemoteAddr())
	}
	var ok bool
	if sock.Client, ok = h.options.Clients.enter(peer.Addr()); !ok {
		sock.Reset()
		return nil
	}
	return conn
}

// greeted returns a connection that is encrypted; nil if it could not be, and
// was closed.
func (h *HTTP) greeted(conn net.Conn, sock *http1.Socket) *tls.Conn {
	secure := tls.Server(conn, h.options.TLS)
	// A context would take a goroutine, which a deadline does not.
	_ = sock.SetDeadline(time.Now().Add(h.options.HeaderTimeout))
	err := secure.Handshake()
	_ = sock.SetDeadline(time.Time{})
	if err != nil {
		refusePlain(err)
		h.options.Logger.Debug("TLS handshake failed", "client", sock.Peer().String(), "error", err)
		_ = sock.Close()
		return nil
	}
	return secure
}

// refusePlain tells a client that speaks plain HTTP to the HTTPS port so.
func refusePlain(err error) {
	var header tls.RecordHeaderError
	if !errors.As(err, &header) || header.Conn == nil {
		return
	}
	switch string(header.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "PATCH":
		const text = "400 Bad Request: the client speaks plain HTTP to the HTTPS port\n"
		_, _ = fmt.Fprintf(header.Conn, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
	}
}

// drain ends the server without losing a request: also the first ones of
// connections that were just accepted are served, and kept connections are not
// closed while their clients may be sending.
func (h *HTTP) drain() {
	h.draining.Store(true)
	h.closeSockets()
	h.accepting.Wait() // what is accepted is counted
	h.http1.Leave()
	ctx, cancel := context.WithTimeout(context.Background(), h.options.DrainTimeout)
	defer cancel()
	pause := min(h.options.LameDuck, h.options.DrainTimeout)
	lameDuck := time.Now().Add(pause)
	var all sync.WaitGroup
	if h.http3 != nil {
		all.Go(func() { h.http3.drain(ctx, pause) })
	}
	for h.serving.Load() > 0 && time.Now().Before(lameDuck) {
		time.Sleep(5 * time.Millisecond)
	}
	all.Go(func() { h.http1.Drain(ctx) })
	all.Go(func() { h.http2.Drain(ctx) })
	all.Wait()
	h.stop()
}
