package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"fairway.dev/fairway/internal/gateway/filter"
	"fairway.dev/fairway/internal/gateway/h2client"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/http2"
	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/gateway/upstream"
)

// http2Client is a client that speaks HTTP/2, as its engine shows it. It is
// kept with a stream, and with it all that a request needs.
type http2Client struct {
	transaction
	stream   *http2.Stream
	question http1.Question
	direct   upstream.Exchange
	forward  http1.Forward         // what the backend is asked for
	own      [maxExtra]http1.Field // of the answer
	content  limitedBody
	body     []byte // a short one
	ends
}

// ServeHTTP2 implements http2.Handler.
func (g *Gateway) ServeHTTP2(s *http2.Stream) {
	h := g.http2Client(s)
	c, r := s.Conn(), &s.Request
	h.view = request.View{
		Method: r.Method, Authority: r.Host, Header: r, TLS: c.Secure,
		Peer: c.Peer.Addr(), Port: c.Port, PeerText: h.peer, PortText: h.port,
		PeerPort: c.Peer.Port(), Local: c,
	}
	h.target, h.bodyLength, h.protocol = r.Target, r.Length, "HTTP/2.0"
	if kind, ok := r.First("Content-Type"); ok {
		h.grpc = isGRPC(kind)
	}
	h.begin()
	defer h.done()
	switch {
	case s.Refused != nil:
		h.fail(s.Refused.Status, s.Refused.Reason)
	case len(h.target) > http1.MaxTarget:
		h.fail(http.StatusRequestURITooLong, targetLong)
	case !isTarget(h.target):
		h.fail(http.StatusBadRequest, "the request target has a character that must be escaped")
	default:
		h.serve()
	}
}

func (g *Gateway) http2Client(s *http2.Stream) *http2Client {
	h, ok := s.Scratch.(*http2Client)
	if !ok {
		h = &http2Client{stream: s}
		h.question.Interim, h.direct.Interim = h.interim, h.interim2
		s.Scratch = h
	}
	// The Stream, and what is with it, has been another connection's before.
	c := s.Conn()
	h.ends.are(c.Peer, c.Port)
	h.renew(g, h)
	return h
}

// answer implements client.
func (h *http2Client) answer(_ *transaction, status int, header []http1.Field, body string) {
	s := h.stream
	s.Unpaid()
	s.Begin(status)
	for i := range header {
		s.Field(header[i].Name, header[i].Value)
	}
	h.date()
	if status != http.StatusNoContent && status != http.StatusNotModified {
		s.Field("Content-Length", strconv.Itoa(len(body)))
	}
	_ = s.SendHead() // the client may be gone
	if s.Request.Method != http.MethodHead && body != "" {
		_, _ = s.Write([]byte(body))
	}
	_ = s.End()
}

// date says when the answer was given.
func (h *http2Client) date() { h.stream.Field("Date", time.Now().UTC().Format(http.TimeFormat)) }

// sent implements client.
func (h *http2Client) sent() (int, int64) { return h.stream.Status, h.stream.Bytes }

// closeAfter implements client.
func (h *http2Client) closeAfter() { h.stream.Conn().Leave() }

// leave implements client.
func (h *http2Client) leave() { h.stream.Conn().Leave() }

// bodyFailed implements client. The stream ends with the answer, by a reset; the
// connection's other requests have nothing to do with it.
func (h *http2Client) bodyFailed() {}

// left implements client.
func (h *http2Client) left() bool { return h.stream.Gone() }

// cut implements client.
func (h *http2Client) cut() bool { return h.stream.Cut() }

// bodyWithHead is the length of a body that goes to the backend in one write
// with the header.
const bodyWithHead = 16 << 10

// wholeBody takes a short body that has come, so that it is sent at once and
// can be sent again. Most of them come right behind their header.
func (h *http2Client) wholeBody() ([]byte, bool) {
	s := h.stream
	r := &s.Request
	if r.Length == 0 || r.Length > bodyWithHead || r.ExpectContinue {
		return nil, false
	}
	body, ok := s.AppendWhole(h.body[:0], bodyWithHead)
	if !ok {
		runtime.Gosched() // whoever reads the connection is about to see it
		body, ok = s.AppendWhole(body, bodyWithHead)
	}
	h.body = body
	return body, ok
}

// limitedBody is a body that may be no longer than a limit.
type limitedBody struct {
	*http2.Stream
	limit, read int64
}

// Next implements http1.Content.
func (b *limitedBody) Next(limit int) ([]byte, error) {
	data, err := b.Stream.Next(limit)
	if b.read += int64(len(data)); b.limit > 0 && b.read > b.limit {
		return nil, http1.ErrBodyTooLarge
	}
	return data, err
}

// proxy implements client. It goes straight from stream to connection where
// the backend speaks HTTP/1.1, and from stream to stream where it speaks HTTP/2.
func (h *http2Client) proxy(t *transaction, b *backend) {
	s, x := h.stream, &t.exchange
	r := &s.Request
	call := t.call(b)
	body, whole := h.wholeBody()
	if whole && x.MaxBody > 0 && int64(len(body)) > x.MaxBody {
		t.proxyFailed(http1.ErrBodyTooLarge)
		return
	}
	var content http1.Content
	if !whole && r.Length != 0 {
		h.content = limitedBody{s, x.MaxBody, 0}
		content = &h.content
		call.Streamed = true
	}
	h.forward = http1.Forward{Path: x.Path, Query: x.Query, Host: t.view.Authority, Set: x.Header, Drop: filter.Spoofs}
	if !b.pool.HTTP1(b.protocol, false) {
		h.exchange2(t, b, call, body, content)
		return
	}
	s.Timed()
	if whole && r.Length < 0 {
		r.SetLength(len(body))
	}
	q := &h.question
	q.Clock, q.Content = s.Clock(), content
	q.FillFrom(r, &h.forward)
	q.Head = append(q.Head, body...)
	s.Hold(q)
	defer s.Hold(nil)
	lease, err := b.pool.Ask(q, call)
	if err != nil {
		t.proxyFailed(err)
		return
	}
	over := false
	defer func() {
		if !over {
			b.pool.Drop(lease)
		}
	}()
	t.endpoint = lease.Endpoint
	trailers, err := h.relay(t, lease.Backend)
	over = true
	q.Release()
	b.pool.Done(lease, err, t.g.clock.now())
	h.finish(t, trailers, err)
}

// finish ends an answer of a backend's, of which err is how it ended.
func (h *http2Client) finish(t *transaction, trailers bool, err error) {
	s := h.stream
	switch {
	case err == nil && trailers:
		_ = s.SendTrailers() // the client may be gone
	case err == nil:
		_ = s.End()
	default:
		t.failure = err.Error() // the answer cannot be finished; the stream is reset
		if t.grpc && !errors.Is(err, http1.ErrClient) {
			// It ends, and the status says why: a stream that is reset would tell the
			// client INTERNAL, after which it tries no other server.
			code, message := t.brokeOff(err)
			s.Begin(0)
			s.Field("grpc-status", code)
			s.Field("grpc-message", message)
			_ = s.SendTrailers()
		}
	}
}

// interim passes an answer of 1xx on.
func (h *http2Client) interim(r *http1.Response) {
	h.stream.Begin(r.Status)
	for name, value := range r.Each() {
		h.stream.Field(name, value)
	}
	_ = h.stream.SendInterim() // the next write tells as well
}

// relay gives a backend's answer to the client but for its end, and reports
// whether trailers are ready to be sent with that. What has come goes out
// together; nothing is held back to wait for more.
func (h *http2Client) relay(t *transaction, b *http1.Backend) (trailers bool, err error) {
	s := h.stream
	s.Begin(b.Response.Status)
	own := t.extra(h.own[:0])
	for _, f := range own {
		s.Field(f.Name, f.Value)
	}
	for name, value := range b.Response.Each() {
		if !http1.Replaces(own, name) {
			s.Field(name, value)
		}
	}
	if !b.Response.Dated() {
		h.date()
	}
	if err := s.SendHead(); err != nil {
		return false, err
	}
	for !b.Ended() {
		data, err := b.NextReady()
		if len(data) == 0 && err == nil {
			if err := s.Flush(); err != nil {
				return false, err
			}
			data, err = b.Next()
		}
		if len(data) > 0 {
			if _, err := s.Write(data); err != nil {
				return false, fmt.Errorf("%w: %w", http1.ErrClient, err)
			}
		}
		if err != nil && err != io.EOF {
			_ = s.Flush() // what came before is true all the same
			return false, err
		}
	}
	s.Begin(0)
	for name, value := range b.EachTrailer() {
		s.Field(name, value)
		trailers = true
	}
	return trailers, nil
}

// exchange2 is proxy to backends that speak HTTP/2.
func (h *http2Client) exchange2(t *transaction, b *backend, call upstream.Call, body []byte, content http1.Content) {
	s, r, x := h.stream, &h.stream.Request, &h.direct
	path := h.forward.Path
	if h.forward.Query != "" {
		path += "?" + h.forward.Query
	}
	x.Begin(s.Clock())
	x.Request = h2client.Request{Method: r.Method, Authority: h.forward.Host, Path: path, Header: r.Each(&h.forward)}
	x.Body, x.Content = body, content
	s.Hold(x)
	defer s.Hold(nil)
	err := b.pool.Exchange(x, call)
	if errors.Is(err, upstream.ErrNotHTTP2) {
		s.Hold(nil)
		s.Timed()
		h.adapt(t, b, body)
		return
	}
	if err != nil {
		t.proxyFailed(err)
		return
	}
	over := false
	defer func() {
		if !over {
			b.pool.DropExchange(x)
		}
	}()
	t.endpoint = x.Endpoint
	trailers, err := h.relay2(t, x)
	over = true
	b.pool.EndExchange(x, err)
	h.finish(t, trailers, err)
}

// interim2 passes an answer of 1xx on.
func (h *http2Client) interim2(head *h2client.Head) {
	h.stream.Begin(head.Status)
	for _, f := range head.Fields {
		h.stream.Field(f.Name, f.Value)
	}
	_ = h.stream.SendInterim() // the next write tells as well
}

// relay2 is relay from a backend that speaks HTTP/2.
func (h *http2Client) relay2(t *transaction, x *upstream.Exchange) (trailers bool, err error) {
	s := h.stream
	s.Begin(x.Head.Status)
	own := t.extra(h.own[:0])
	for _, f := range own {
		s.Field(f.Name, f.Value)
	}
	dated := false
	for _, f := range x.Head.Fields {
		dated = dated || f.Name == "date"
		// A length may be left out with 304; some clients wait for that body.
		if !http1.Replaces(own, f.Name) && (x.Head.Status != http.StatusNotModified || f.Name != "content-length") {
			s.Field(f.Name, f.Value)
		}
	}
	if !dated {
		h.date()
	}
	if err := s.SendHead(); err != nil {
		return false, err
	}
	if x.Head.End {
		return false, nil
	}
	for {
		data, err := x.NextReady()
		if len(data) == 0 && err == nil {
			if err := s.Flush(); err != nil {
				return false, err
			}
			data, err = x.Next()
		}
		if len(data) > 0 {
			if _, err := s.Write(data); err != nil {
				return false, err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			_ = s.Flush() // what came before is true all the same
			return false, err
		}
	}
	s.Begin(0)
	for _, f := range x.Trailer() {
		s.Field(f.Name, f.Value)
		trailers = true
	}
	return trailers, nil
}

// adapt reaches backends through net/http's types. Body is what was taken of
// the request's, all of it.
func (h *http2Client) adapt(t *transaction, b *backend, body []byte) {
	a := h.stream.Adapt()
	if len(body) > 0 {
		a.Request.Body, a.Request.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	n := &netClient{request: a.Request, answers: &recorder{ResponseWriter: a}, gone: a.Gone}
	ok := false
	defer func() {
		cut := recover() // the proxy panics with http.ErrAbortHandler to cut an answer off
		a.Close(ok && cut == nil)
		if cut != nil && cut != http.ErrAbortHandler {
			panic(cut) // a fault, which is the engine's
		}
		if cut != nil && t.failure == "" {
			t.failure = "the answer was cut off"
		}
	}()
	t.client = n
	n.proxy(t, b)
	t.client = h
	ok = true
}
