package upstream

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
)

// Connections kept per endpoint, and how long they are kept without use: less
// than the 75 s after which nginx closes them from its side.
const (
	maxIdleConns    = 256
	idleConnTimeout = 60 * time.Second
)

// maxResponseHeader leaves room for large authentication headers.
const maxResponseHeader = 256 << 10

// endpoint is one address that requests go to.
type endpoint struct {
	addr string // "address:port" or "name:port"
	dial dialFunc
	mark // how cookies and hashes know it
	// patience limits opening a connection over TLS where a route does not; 0 is the default.
	patience time.Duration
	// origin is the endpoint that this one stands for, for one client or for
	// connections by settings of their own; nil for one that is everybody's.
	origin   *endpoint
	secured  *secured     // nil for the gateway's own settings
	used     atomic.Int64 // when the client asked last, in Unix nanoseconds
	mostIdle int          // how many connections are kept

	inflight atomic.Int64
	removed  atomic.Bool

	strikes   atomic.Int32 // requests in a row without an answer
	broken    atomic.Int32 // answers in a row that broke off
	ejections atomic.Int32 // in a row
	unreached atomic.Bool  // whether one of these was for a connection that could not be opened
	ejected   atomic.Int64 // until when, in Unix nanoseconds; 0 for not
	ejectedAt atomic.Int64 // when it was last, in Unix nanoseconds

	down          atomic.Bool // as health checks say
	downUnreached atomic.Bool // since they could not connect

	// since is when it began to serve, or to serve again, in Unix nanoseconds; 0
	// for before the gateway knew it.
	since atomic.Int64

	latency latency

	variants atomic.Pointer[[]*endpoint] // those for connections by other settings

	mu         sync.Mutex
	transports [h2c]*http.Transport        // by HTTP/1.1
	shared     [protocols - h2c]shared     // by HTTP/2
	idle       [protocols][]*http1.Backend // kept connections, in the order of their last use
	reaper     *time.Timer                 // nil while none are kept
	owners     map[owner]*endpoint         // those that stand for it
	ownReaper  *time.Timer                 // nil while there are none
}

func newEndpoint(addr string, dial dialFunc, m mark) *endpoint {
	e := &endpoint{addr: addr, dial: dial, mark: m, mostIdle: maxIdleConns}
	for i := range e.shared {
		e.shared[i].room = make(chan struct{}, 1)
	}
	return e
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// connectTimeoutKey carries a route's own connect timeout to the dialer.
type connectTimeoutKey struct{}

func (e *endpoint) connect(ctx context.Context, network string) (net.Conn, error) {
	if d, ok := ctx.Value(connectTimeoutKey{}).(time.Duration); ok && d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	conn, err := e.dial(ctx, network, e.addr)
	if err != nil {
		return nil, &DialError{e.addr, err}
	}
	return conn, nil
}

// transport returns the connections of one protocol of HTTP/1; they are made on first use.
func (e *endpoint) transport(p protocol) *http.Transport {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.transports[p]; t != nil {
		return t
	}
	t := newTransport(p)
	t.MaxIdleConnsPerHost = e.mostIdle
	t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return e.connect(ctx, network)
	}
	t.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, _, err := e.connectTLS(ctx)
		return conn, err
	}
	e.transports[p] = t
	return t
}

// newTransport returns a transport that speaks a protocol; the caller says how
// it connects.
func newTransport(p protocol) *http.Transport {
	t := &http.Transport{
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        idleConnTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponseHeader,
		Protocols:              new(http.Protocols),
	}
	switch p {
	case h2c:
		t.Protocols.SetUnencryptedHTTP2(true)
	case h2:
		t.Protocols.SetHTTP2(true)
	default:
		t.Protocols.SetHTTP1(true)
	}
	return t
}

func (e *endpoint) acquire() {
	e.inflight.Add(1)
	if e.origin != nil {
		e.origin.acquire()
	}
}

// release ends a use of the endpoint; the last one after its removal closes
// the connections that are left.
func (e *endpoint) release() {
	if e.origin != nil {
		e.used.Store(time.Now().UnixNano()) // before it seems to be idle
	}
	if e.inflight.Add(-1) == 0 && e.removed.Load() {
		e.closeIdle()
	}
	if e.origin != nil {
		e.origin.release()
	}
}

// remove keeps new requests from the endpoint's connections being kept.
func (e *endpoint) remove() {
	e.removed.Store(true)
	e.closeIdle()
	e.dropVariants(func(*TLSSettings) bool { return true })
	for _, o := range e.dropOwned(func(*endpoint) bool { return true }) {
		o.remove()
	}
}

func (e *endpoint) closeIdle() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, t := range e.transports {
		if t != nil {
			t.CloseIdleConnections()
		}
	}
	for i := range e.shared {
		e.shared[i].close()
	}
	for i, list := range e.idle {
		for _, b := range list {
			b.Close()
		}
		e.idle[i] = nil
	}
	if e.reaper != nil {
		e.reaper.Stop()
		e.reaper = nil
	}
}
