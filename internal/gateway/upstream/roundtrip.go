package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"time"

	"fairway.dev/fairway/internal/gateway/h2client"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/tracing"
	"fairway.dev/fairway/internal/model"
)

// Call is how one request is to be sent.
type Call struct {
	// Protocol is what the route asks for.
	Protocol model.BackendProtocol
	// ConnectTimeout limits opening a connection; 0 leaves the set's limit.
	ConnectTimeout time.Duration
	// HeaderTimeout limits waiting for the answer to begin once the request is
	// sent; 0 for no limit. HTTP/2 backends are exempt: a stream may be silent.
	HeaderTimeout time.Duration
	// ReadTimeout limits the time between two reads of the answer, and the
	// wait for its beginning as well; 0 for no limit.
	ReadTimeout time.Duration
	// SendTimeout limits the time between two writes of the request body.
	SendTimeout time.Duration
	// Silence limits how long a stream of HTTP/2 may carry nothing either way, with
	// whatever it is that is waited for; 0 for no limit.
	Silence time.Duration
	// Choice is how the endpoint is chosen.
	Choice Choice
	// Streamed tells that some of the request's body is yet to come from the client:
	// how long the answer takes says more of that one than of the endpoint.
	Streamed bool
	// Deadline is when all has to be over; zero for no limit. [Pool.RoundTrip]
	// takes it from the request's context instead.
	Deadline time.Time
	// Span is the request's, which is told of each try; nil for none.
	Span *tracing.Span
	// Now is the time, where the caller has just asked for it. Optional.
	Now time.Time
}

// now returns the time, the first time as the caller knew it.
func (c *Call) now() time.Time {
	now := c.Now
	if now.IsZero() {
		return time.Now()
	}
	c.Now = time.Time{}
	return now
}

// over reports whether there is no time left.
func (c *Call) over() bool { return !c.Deadline.IsZero() && !time.Now().Before(c.Deadline) }

// RoundTrip sends req, whose URL needs only path and query, to an endpoint. If
// none can be connected to, or a safe request without body breaks or takes too
// long before the answer, the next is tried. The body of the answer is not read ahead.
func (p *Pool) RoundTrip(req *http.Request, call Call) (*http.Response, error) {
	var src *source
	if req.Body != nil && req.Body != http.NoBody {
		src = &source{inner: req.Body, keep: true}
	}
	var space [maxTries]*endpoint
	tried := space[:0]
	var lastErr error
	for len(tried) < maxTries {
		now := time.Now()
		e, err := p.pick(&call.Choice, tried, now)
		if err != nil {
			if lastErr != nil {
				return nil, lastErr
			}
			return nil, err
		}
		if e == nil {
			break
		}
		tried = append(tried, e)
		resp, err := p.attempt(e, req, src, call, now)
		call.tried(e, now, err)
		if err == nil {
			return resp, nil
		}
		lastErr = err
		if !p.mayRetry(e, req, src, err, now) {
			break
		}
	}
	return nil, lastErr
}

// mayRetry judges a failed attempt: whether the endpoint is to blame, and
// whether another may be asked without the request being served twice.
func (p *Pool) mayRetry(e *endpoint, req *http.Request, src *source, err error, begun time.Time) bool {
	if req.Context().Err() != nil || final(err) {
		return false
	}
	if errors.Is(err, h2client.ErrUnprocessed) && (src == nil || src.repeatable()) {
		p.blame(e, err, begun)
		return true
	}
	dialFailed := p.blame(e, err, begun)
	if src != nil && !src.untouched() {
		return false
	}
	return dialFailed || src == nil && http1.Safe(req.Method) && req.Header.Get("Upgrade") == "" && p.mayRepeat()
}

func (p *Pool) attempt(e *endpoint, req *http.Request, src *source, call Call, begun time.Time) (*http.Response, error) {
	proto := protocolOf(call.Protocol, p.members.Load().appProtocol)
	if proto.http2() && req.Header.Get("Upgrade") != "" {
		proto -= h2c - h1 // only HTTP/1.1 can switch protocols
	}
	if proto.http2() {
		if proto == h2 && e.shared[proto-h2c].oldWays.Load() > begun.UnixNano() {
			proto = https1
		} else {
			resp, err := p.attemptHTTP2(e, proto, req, src, call, begun)
			if !errors.Is(err, ErrNotHTTP2) {
				return resp, err
			}
			proto = https1
		}
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	if call.ConnectTimeout > 0 {
		ctx = context.WithValue(ctx, connectTimeoutKey{}, call.ConnectTimeout)
	}
	wait := call.ReadTimeout
	if wait == 0 {
		wait = call.HeaderTimeout
	}
	dog := newWatchdog(cancel, wait, call.SendTimeout)
	out := req.WithContext(limitInterims(ctx, cancel))
	span := call.Span
	span.Try(e.addr, proto.scheme(), "1.1", nil)
	out.Header = span.Header(req.Header)
	url := *req.URL
	url.Scheme, url.Host = proto.scheme(), e.addr
	out.URL = &url
	if err := prepareBody(out, src, dog); err != nil {
		cancel(nil)
		return nil, err
	}
	e.acquire()
	finish := func() {
		dog.stop()
		cancel(nil)
		e.release()
	}
	goesOn := false
	defer func() {
		if !goesOn { // which is so after a fault as well
			finish()
		}
	}()
	resp, err := e.transport(proto).RoundTrip(out)
	if err != nil {
		return nil, causeOf(ctx, err)
	}
	goesOn = true
	e.succeeded()
	span.Answered(resp.StatusCode)
	dog.answered()
	body := &answerBody{ReadCloser: resp.Body, dog: dog, idle: call.ReadTimeout, ctx: ctx, finish: finish, ended: func(err error) { p.answered(e, span, err, begun) }}
	if w, ok := resp.Body.(io.Writer); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		body.ended = func(error) {}
		resp.Body = &tunnelBody{answerBody: body, Writer: w}
	} else {
		resp.Body = body
	}
	return resp, nil
}

// limitInterims ends an attempt whose backend sends interim answers without end:
// the transport takes any number if somebody wants to see them.
func limitInterims(ctx context.Context, cancel context.CancelCauseFunc) context.Context {
	n := 0
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
		if n++; n > http1.MaxInterims {
			cancel(http1.ErrInterims)
		}
		return nil
	}})
}

// prepareBody gives the attempt its view of the request body. The transport
// may take another one by GetBody, when a kept connection turns out dead.
func prepareBody(out *http.Request, src *source, dog *watchdog) error {
	if src == nil {
		out.Body, out.GetBody = nil, nil
		dog.sent()
		return nil
	}
	body, err := src.next(dog)
	if err != nil {
		return err
	}
	out.Body = body
	out.GetBody = func() (io.ReadCloser, error) { return src.next(dog) }
	return nil
}
