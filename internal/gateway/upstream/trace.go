package upstream

import (
	"errors"
	"net"
	"time"

	"fairway.dev/fairway/internal/gateway/h2client"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/shed"
	"fairway.dev/fairway/internal/gateway/tracing"
)

// tried notes how a try at an endpoint that began at a time has gone until the
// answer began, or did not.
func (c *Call) tried(e *endpoint, begun time.Time, err error) {
	e.measure(c, begun)
	if err != nil {
		endTry(c.Span, err, time.Time{})
	}
}

// endTry ends the span of a try. Where an endpoint turns out not to speak HTTP/2
// nothing was sent: it is the same try that is made by HTTP/1.1.
func endTry(s *tracing.Span, err error, end time.Time) {
	switch {
	case s == nil || errors.Is(err, ErrNotHTTP2):
	case err == nil:
		s.EndTry("", "", end)
	default:
		s.EndTry(kindOf(err), err.Error(), end)
	}
}

// answered notes how an answer that had begun came to its end.
func (p *Pool) answered(e *endpoint, s *tracing.Span, err error, begun time.Time) {
	endTry(s, err, time.Time{})
	p.ended(e, err, begun)
}

// kindOf names the kind of a failure: a few words only, by which spans are
// counted.
func kindOf(err error) string {
	var timeout net.Error
	switch {
	case asTLSError(err) != nil:
		return "tls_failed"
	case isDialError(err):
		return "connection_failed"
	case errors.As(err, new(*LimitError)):
		return "limit"
	case errors.Is(err, shed.ErrFull):
		return "memory_short"
	case errors.Is(err, ErrTimeout), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, http1.ErrBodyTooLarge):
		return "body_too_large"
	case errors.Is(err, http1.ErrGone), errors.Is(err, http1.ErrClient):
		return "client_failed"
	case errors.Is(err, h2client.ErrUnprocessed):
		return "unprocessed"
	}
	return "backend_failed"
}
