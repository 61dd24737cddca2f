package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/filter"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/listener"
	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/gateway/shed"
	"fairway.dev/fairway/internal/gateway/upstream"
)

// netHandler is where quic-go hands requests over.
type netHandler struct {
	g      *Gateway
	secure bool
}

// ServeHTTP implements http.Handler.
func (h netHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength < 0 && http1.Safe(r.Method) {
		findBody(r)
	}
	n := &netClient{request: r, answers: &recorder{ResponseWriter: w}}
	n.gone = func() bool { return r.Context().Err() == context.Canceled }
	// Proto may be what an extended CONNECT asks for.
	t := &transaction{g: h.g, client: n, target: r.RequestURI, protocol: protocolHTTP3, bodyLength: r.ContentLength,
		grpc: isGRPC(r.Header.Get("Content-Type"))}
	t.view = request.View{Method: r.Method, Authority: r.Host, Header: r.Header, TLS: h.secure}
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		t.view.Peer, t.view.PeerPort = ap.Addr().Unmap(), ap.Port()
	}
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		t.view.Port, t.view.Local = portOf(a), local{a, r.Context()}
	}
	t.begin()
	defer func() {
		// The proxy panics with http.ErrAbortHandler to cut an answer off that
		// cannot be finished; anything else is a fault. The server resets the stream.
		cut := recover()
		switch {
		case cut == nil:
		case cut != http.ErrAbortHandler:
			t.fault()
		case n.cut():
			t.failure, t.status = shed.ErrFull.Error(), http.StatusServiceUnavailable
		case t.failure == "":
			t.failure = "the answer was cut off"
		}
		t.finished()
		if cut != nil {
			panic(cut)
		}
	}()
	if len(t.target) > http1.MaxTarget {
		t.fail(http.StatusRequestURITooLong, targetLong)
		return
	}
	if !isTarget(t.target) {
		t.fail(http.StatusBadRequest, "the request target has a character that must be escaped")
		return
	}
	t.serve()
}

// local is a connection by HTTP/3, as a request shows it.
type local struct {
	addr net.Addr
	ctx  context.Context
}

// LocalAddr implements request.Conn.
func (l local) LocalAddr() net.Addr { return l.addr }

// Client implements request.Conn.
func (l local) Client() *certs.Client { return listener.ClientOf(l.ctx) }

// findBody finds out whether a request has a body: frames of HTTP/3 do not tell
// before the next one or the stream's end has come, which is the case at once.
// One without body is sent so to the backend, and can be sent again.
func findBody(r *http.Request) {
	first := make([]byte, 1)
	n, err := r.Body.Read(first)
	if n == 0 && err == io.EOF {
		r.Body, r.ContentLength = http.NoBody, 0
		return
	}
	rest := io.Reader(r.Body)
	if err != nil {
		rest = failedBody{err}
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(first[:n]), rest), r.Body}
}

// failedBody is what is left of a body that broke off.
type failedBody struct{ err error }

// Read implements io.Reader.
func (b failedBody) Read([]byte) (int, error) { return 0, b.err }

// targetLong is why a target by HTTP/2 or HTTP/3 is refused, in the words of HTTP/1.1's parser.
const targetLong = "the request target is too long"

// isTarget refuses what would end a target in a request line, or for some
// backends its query ("#"): frames carry any byte. Everything else is judged
// where the path is normalised.
func isTarget(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f || s[i] == '#' {
			return false
		}
	}
	return true
}

// netClient is a client as net/http's types show it: quic-go's, and that of an
// engine's adapter.
type netClient struct {
	request *http.Request
	answers *recorder
	gone    func() bool
}

// sent implements client.
func (n *netClient) sent() (int, int64) { return n.answers.status, n.answers.bytes }

// closeAfter implements client.
func (n *netClient) closeAfter() {
	if n.request.ProtoMajor < 3 { // HTTP/3 has no such field, and quic-go would send it
		n.answers.Header().Set("Connection", "close")
	}
}

// leave implements client. What an engine's adapter shows is past all that asks
// for it.
func (n *netClient) leave() { listener.Leave(n.request.Context()) }

// bodyFailed implements client.
func (n *netClient) bodyFailed() { n.closeAfter() }

// left implements client.
func (n *netClient) left() bool { return n.gone() }

// cut implements client.
func (n *netClient) cut() bool {
	c, ok := n.answers.ResponseWriter.(interface{ Cut() bool })
	return ok && c.Cut()
}

// answer implements client.
func (n *netClient) answer(_ *transaction, status int, header []http1.Field, body string) {
	h := n.answers.Header()
	for _, f := range header {
		h.Set(f.Name, f.Value)
	}
	n.answers.WriteHeader(status)
	if n.request.Method != http.MethodHead && body != "" {
		_, _ = io.WriteString(n.answers, body) // the client may be gone
	}
}

// proxy implements client. httputil.ReverseProxy does the part of HTTP that
// every proxy has in common: hop-by-hop headers, trailers, interim answers.
func (n *netClient) proxy(t *transaction, b *backend) {
	x, r := &t.exchange, n.request
	call := t.call(b)
	if n.mayAsk() && b.pool.HTTP1(b.protocol, false) {
		n.ask(t, b, call)
		return
	}
	ctx := r.Context()
	if ctx.Value(http.ServerContextKey) == nil {
		// ReverseProxy cuts an answer off that breaks only if a server is there
		// to catch its panic, which it tells by this. Ours all are.
		ctx = context.WithValue(ctx, http.ServerContextKey, (*http.Server)(nil))
	}
	if !call.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, call.Deadline)
		defer cancel()
	}
	r = r.WithContext(ctx)
	if timed, ok := r.Body.(interface{ Timed() }); ok && b.pool.HTTP1(b.protocol, false) {
		timed.Timed()
	}
	if r.Body != nil && r.Body != http.NoBody {
		call.Streamed = true
		body := r.Body
		if x.MaxBody > 0 {
			body = http.MaxBytesReader(n.answers.ResponseWriter, body, x.MaxBody)
		}
		r.Body = clientBody{body, r}
	}
	var answer io.Closer
	defer func() {
		if answer != nil {
			_ = answer.Close() // ReverseProxy does so, but for a fault
		}
	}()
	p := httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) { t.rewrite(p) },
		Transport: roundTripper(func(out *http.Request) (*http.Response, error) {
			if out.Body != nil && out.Body != http.NoBody {
				out.Body = r.Body // which can be closed; ReverseProxy's cannot
			}
			resp, err := b.pool.RoundTrip(out, call)
			if err == nil {
				t.endpoint, answer = resp.Request.URL.Host, resp.Body
			}
			return resp, err
		}),
		BufferPool: t.g.buffers,
		ErrorLog:   t.g.discard,
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			if n.gone() {
				err = http1.ErrGone
			}
			t.proxyFailed(err)
		},
	}
	p.ModifyResponse = func(resp *http.Response) error {
		// Nothing waits in a buffer. An answer without body is not flushed
		// apart from its end: a gRPC status in headers only needs both at once.
		// Nor is one so short that it most likely comes as a whole: that saves
		// the client's protocol two frames, each a system call.
		switch {
		case resp.ContentLength == 0:
		case resp.ContentLength > 0 && resp.ContentLength <= shortAnswer:
			p.FlushInterval = shortWait
		default:
			p.FlushInterval = -1
		}
		t.addExtra(resp.Header)
		if t.grpc && resp.Body != http.NoBody {
			resp.Body = &grpcBody{ReadCloser: resp.Body, t: t, n: n, answer: resp}
		}
		return nil
	}
	p.ServeHTTP(n.answers, r)
}

// grpcBody is the body of a gRPC answer. If it breaks off it ends, and the
// status in the trailers says why: a stream that is reset would tell the client
// INTERNAL, after which it tries no other server.
type grpcBody struct {
	io.ReadCloser
	t      *transaction
	n      *netClient
	answer *http.Response
}

// Read implements io.Reader.
func (b *grpcBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == nil || err == io.EOF || b.n.gone() {
		return n, err
	}
	code, message := b.t.brokeOff(err)
	trailer := http.Header{"Grpc-Status": {code}, "Grpc-Message": {message}}
	for name := range b.answer.Trailer {
		if _, ok := trailer[name]; !ok {
			trailer[name] = nil // announced, and ReverseProxy counts them
		}
	}
	b.answer.Trailer = trailer
	return n, io.EOF
}

// brokeOff notes that an answer of gRPC broke off, and returns the status and
// message that tell the client so.
func (t *transaction) brokeOff(err error) (code, message string) {
	var reason string
	t.status, reason = http.StatusBadGateway, "the backend broke off"
	if errors.Is(err, upstream.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) {
		t.status, reason = http.StatusGatewayTimeout, "the backend did not answer in time"
	}
	t.failure = err.Error()
	t.g.metrics.upstreamFailed(t.pool.Key().Service, t.status)
	return grpcCode(t.status), t.grpcMessage(reason)
}

// shortAnswer is the length of an answer that net/http and quic-go hold in their
// buffers, and shortWait how long it may wait there for its end.
const (
	shortAnswer = 4 << 10
	shortWait   = time.Millisecond
)

// rewrite makes the request that the backend gets.
func (t *transaction) rewrite(p *httputil.ProxyRequest) {
	x := &t.exchange
	// Opaque is sent as it is: the very path that was matched.
	// The transport may outlive the exchange, and so what the strings are views of.
	p.Out.URL = &url.URL{Opaque: strings.Clone(x.Path), RawQuery: strings.Clone(x.Query)}
	p.Out.Host = strings.Clone(t.view.Authority)
	p.Out.Trailer = p.In.Trailer // is filled while the body is read
	trimTrailer(p.In.Trailer)    // of what is announced
	for name := range p.Out.Header {
		if filter.Spoofs(name) {
			delete(p.Out.Header, name)
		}
	}
	for _, c := range x.Header {
		if c.Value == "" {
			delete(p.Out.Header, c.Name)
			continue
		}
		p.Out.Header[c.Name] = []string{strings.Clone(c.Value)}
	}
}

// mayUpgrade lets a client switch to WebSocket and the like, but not to
// another HTTP or to TLS: what it then sent to the backend would pass by the
// router and the filters ("h2c smuggling"). A server may ignore an Upgrade
// (RFC 9110, 7.8).
func mayUpgrade(value string) bool {
	for name := range strings.SplitSeq(value, ",") {
		name, _, _ = strings.Cut(strings.TrimSpace(name), "/")
		switch strings.ToLower(name) {
		case "h2c", "h2", "http", "tls":
			return false
		}
	}
	return value != ""
}

// trimTrailer removes what may not go on to a backend.
func trimTrailer(trailer http.Header) {
	for name := range trailer {
		if !http1.TrailerGoes(name) {
			delete(trailer, name)
		}
	}
}

// clientBody tells failures of the client's from those of a backend, and keeps
// the trailers to what may go on.
type clientBody struct {
	io.ReadCloser
	request *http.Request
}

func (b clientBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == io.EOF:
		trimTrailer(b.request.Trailer)
	case err == nil || errors.Is(err, http1.ErrClient) || errors.Is(err, http1.ErrBodyTooLarge):
	case errors.As(err, new(*http.MaxBytesError)):
		err = http1.ErrBodyTooLarge
	default:
		err = fmt.Errorf("%w: %w", http1.ErrClient, err)
	}
	return n, err
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// bufferPool implements httputil.BufferPool.
type bufferPool struct{ pool *sync.Pool }

func newBufferPool() bufferPool {
	return bufferPool{&sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}}
}

// Get implements httputil.BufferPool.
func (p bufferPool) Get() []byte { return *p.pool.Get().(*[]byte) }

// Put implements httputil.BufferPool.
func (p bufferPool) Put(b []byte) { p.pool.Put(&b) }

// recorder remembers the status and size of an answer.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}
