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
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/gateway/h2guard"
	"fairway.dev/fairway/internal/gateway/http1"
)

// HTTPOptions configure an [HTTP] server.
type HTTPOptions struct {
	// Addrs are where to listen, "host:port" or ":port". Required.
	Addrs []string
	// TLS makes it an HTTPS server. Optional.
	TLS *tls.Config
	// HTTP3 serves HTTP/3 as well, at the same ports of UDP. A port that cannot
	// be had is logged, and the server goes on without. It needs TLS and cannot
	// be had with ProxyProtocol, for QUIC carries no such header.
	HTTP3 bool
	// HTTP1 answers requests by HTTP/1.1, HTTP2 those by HTTP/2 and HTTP/3. Required.
	HTTP1 http1.Handler
	HTTP2 http.Handler
	// ProxyProtocol makes every connection begin with a PROXY header. Only
	// turn it on behind a proxy that sends them: it decides the client's address.
	ProxyProtocol bool
	// Short says that memory is short: clients by HTTP/1 then do not get long to
	// send their next request. Optional.
	Short func() bool
	// OnFlood is told of each connection that is ended because its client makes
	// work for nothing: one of h2guard's reasons, or ReasonRequests. Optional.
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
	listeners []net.Listener
	http1     *http1.Server
	http2     *http.Server
	http3     *quicServer    // nil for none
	handoff   *handoff       // connections that turned out to speak HTTP/2
	accepting sync.WaitGroup // goroutines that accept
	serving   atomic.Int64   // connections that speak HTTP/1.1, or have not said what they speak
	active    sync.WaitGroup // requests by HTTP/2
	open      atomic.Int64   // connections by HTTP/2, from when they are handed over
	draining  atomic.Bool
	stop      context.CancelFunc
	accepted  chan *net.TCPConn // for goroutines that have served others
	spare     atomic.Int64      // those that wait
	ended     <-chan struct{}
}

// NewHTTP opens the server's sockets; connections wait until Run.
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
	listeners, err := Listen(ctx, o.Addrs)
	if err != nil {
		return nil, err
	}
	base, stop := context.WithCancel(context.Background())
	h := &HTTP{options: o, listeners: listeners, stop: stop, handoff: newHandoff(listeners[0].Addr()), accepted: make(chan *net.TCPConn), ended: base.Done()}
	h.http1, err = http1.NewServer(http1.Options{
		Handler: o.HTTP1, Logger: o.Logger, HTTP2: h.handOver, Short: o.Short,
		HeaderTimeout: o.HeaderTimeout, IdleTimeout: o.IdleTimeout, BodyTimeout: o.BodyTimeout, WriteTimeout: o.WriteTimeout,
	})
	if err != nil {
		closeAll(listeners)
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true) // TLS has ended where the guard stands
	h.http2 = &http.Server{
		Handler:   http.HandlerFunc(h.serveHTTP2),
		Protocols: protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReadFrameSize:              h2guard.MaxFrameSize,
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connectionWindow,
			WriteByteTimeout:              o.WriteTimeout,
		},
		ReadHeaderTimeout: o.HeaderTimeout,
		IdleTimeout:       o.IdleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
		ConnState:         h.count,
		// Requests under way outlive the context that Run gets.
		BaseContext: func(net.Listener) context.Context { return base },
	}
	if o.HTTP3 {
		if h.http3, err = newQUICServer(ctx, o, listeners); err != nil {
			o.Logger.Warn("HTTP/3 is not served, free the UDP port or turn HTTP/3 off", "error", err)
		}
	}
	return h, nil
}

// Addrs returns the addresses in use, for ports that the kernel chose.
func (h *HTTP) Addrs() []net.Addr {
	var list []net.Addr
	for _, l := range h.listeners {
		list = append(list, l.Addr())
	}
	return list
}

// Secure reports whether it is an HTTPS server.
func (h *HTTP) Secure() bool { return h.options.TLS != nil }

// HTTP3 reports whether it serves HTTP/3 as well.
func (h *HTTP) HTTP3() bool { return h.http3 != nil }

// Close closes the sockets of a server that is not to Run.
func (h *HTTP) Close() error {
	closeAll(h.listeners)
	h.drain()
	return nil
}

// handOver serves a connection that speaks HTTP/2.
func (h *HTTP) handOver(conn net.Conn) {
	h.open.Add(1)
	client := conn.RemoteAddr().String()
	guest := &guest{Conn: h2guard.New(conn, h2guard.Options{
		MaxHeaderBytes: maxHeaderBytes,
		OnFlood: func(f *h2guard.Flood) {
			h.options.OnFlood(f.Reason)
			h.options.Logger.Debug("HTTP/2 connection ended", "client", client, "error", f)
		},
	}), client: h.options.Clients.client(conn.RemoteAddr())}
	if !h.handoff.give(guest) {
		h.count(guest, http.StateClosed)
		_ = conn.Close()
	}
}

// guest is a connection by HTTP/2, counted for its client since it was greeted.
type guest struct {
	*h2guard.Conn
	client netip.Addr
}

func (h *HTTP) serveHTTP2(w http.ResponseWriter, r *http.Request) {
	h.active.Add(1)
	defer h.active.Done()
	serveTimed(h.options.HTTP2, w, r, h.options.BodyTimeout)
}

func (h *HTTP) count(conn net.Conn, state http.ConnState) {
	if state == http.StateClosed || state == http.StateHijacked {
		h.options.Clients.leave(conn.(*guest).client)
		h.open.Add(-1)
	}
}

// Run serves until ctx ends. It then closes the sockets, tells clients of kept
// connections, waits for requests and upgraded connections under way, up to
// the drain timeout, and returns nil.
func (h *HTTP) Run(ctx context.Context) error {
	failed := make(chan error, len(h.listeners)+2)
	for _, l := range h.listeners {
		h.accepting.Add(1)
		go func() { failed <- h.accept(l) }()
	}
	go func() {
		err := h.http2.Serve(h.handoff)
		if errors.Is(err, http.ErrServerClosed) || h.draining.Load() {
			err = nil
		}
		failed <- err
	}()
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

// accept serves the connections of one socket. When the machine is short of
// something, those that wait can be taken later.
func (h *HTTP) accept(l net.Listener) error {
	defer h.accepting.Done()
	for pause := 5 * time.Millisecond; ; {
		conn, err := l.Accept()
		if err != nil {
			if h.draining.Load() || isClosed(err) {
				return nil
			}
			h.options.Logger.Warn("connections cannot be accepted now", "error", err)
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		h.serving.Add(1)
		tcp := conn.(*net.TCPConn)
		select {
		case h.accepted <- tcp:
		default:
			go h.work(tcp)
		}
	}
}

// maxSpare is how many goroutines wait for connections: one that has served
// before has its stack grown.
const maxSpare = 64

// work serves a connection, and then others.
func (h *HTTP) work(tcp *net.TCPConn) {
	for {
		h.greet(tcp)
		if h.spare.Add(1) > maxSpare {
			h.spare.Add(-1)
			return
		}
		select {
		case tcp = <-h.accepted:
			h.spare.Add(-1)
		case <-h.ended:
			return
		}
	}
}

// greet finds out what a connection speaks, and serves it.
func (h *HTTP) greet(tcp *net.TCPConn) {
	defer h.serving.Add(-1)
	conn, client := h.admitted(tcp)
	if conn == nil {
		return
	}
	handed := false // to who counts it out then
	defer func() {
		if !handed {
			h.options.Clients.leave(client)
		}
	}()
	if conn, handed = h.greeted(conn, tcp); conn != nil {
		handed = h.http1.ServeConn(conn, tcp, h.options.TLS != nil)
	}
}

// admitted returns a connection whose client may have another one, before that
// costs more; nil if it may not, and has been closed.
func (h *HTTP) admitted(tcp *net.TCPConn) (net.Conn, netip.Addr) {
	var conn net.Conn = tcp
	if h.options.TLS != nil {
		conn = http1.NewWire(tcp)
	}
	if h.options.ProxyProtocol {
		proxied := &proxyConn{Conn: conn}
		if proxied.header() != nil {
			return nil, netip.Addr{}
		}
		conn = proxied
	}
	client, ok := h.options.Clients.enter(conn.RemoteAddr())
	if !ok {
		reset(tcp)
		return nil, client
	}
	return conn, client
}

// greeted returns a connection that speaks HTTP/1.1; nil if it does not, and
// was closed, or handed over as one that speaks HTTP/2.
func (h *HTTP) greeted(conn net.Conn, tcp *net.TCPConn) (_ net.Conn, handed bool) {
	if h.options.TLS != nil {
		secure := tls.Server(conn, h.options.TLS)
		ctx, cancel := context.WithTimeout(context.Background(), h.options.HeaderTimeout)
		err := secure.HandshakeContext(ctx)
		cancel()
		if err != nil {
			refusePlain(err)
			h.options.Logger.Debug("TLS handshake failed", "client", tcp.RemoteAddr().String(), "error", err)
			_ = tcp.Close()
			return nil, false
		}
		if secure.ConnectionState().NegotiatedProtocol == "h2" {
			h.handOver(secure)
			return nil, true
		}
		conn = secure
	}
	return conn, false
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

// drain ends the server without losing a request. http.Server's Shutdown alone
// would: it drops requests that it reads after it was called, also the first
// ones of connections that were just accepted, and closes kept connections
// while their clients may be sending.
func (h *HTTP) drain() {
	h.draining.Store(true)
	closeAll(h.listeners)
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
	for h.open.Load()+h.serving.Load() > 0 && time.Now().Before(lameDuck) {
		time.Sleep(5 * time.Millisecond)
	}
	all.Go(func() { h.http1.Drain(ctx) })
	all.Go(func() {
		if h.http2.Shutdown(ctx) == nil {
			h.active.Wait()
		}
	})
	all.Wait()
	h.stop()
	_ = h.http2.Close()
	h.handoff.close()
}

// handoff is a listener whose connections were accepted by somebody else.
type handoff struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// give hands a connection over, unless the server has ended.
func (l *handoff) give(c net.Conn) bool {
	select {
	case l.conns <- c:
		return true
	case <-l.done:
		return false
	}
}

// Accept implements net.Listener.
func (l *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *handoff) close() { l.once.Do(func() { close(l.done) }) }

// Close implements net.Listener.
func (l *handoff) Close() error {
	l.close()
	return nil
}

// Addr implements net.Listener.
func (l *handoff) Addr() net.Addr { return l.addr }
