package tracing

import (
	"bytes"
	"context"
	"encoding/hex"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	api "go.opentelemetry.io/otel/trace"
)

// try is a request's way to a backend, which it may have to go several times.
type try struct {
	span   api.Span // nil while there is none
	before int      // how many have ended
	status int      // of the answer; 0 until that has begun
}

// Where the ID of a span stands in a traceparent.
const idStart, idEnd = 36, 52

// Try begins the span of a try at an endpoint by a version of HTTP: it is the
// parent that the backend is told of, and stands in head, which may be nil, in
// place of the one before. A try that has not ended by then was none. Traces
// that are not kept have no such spans.
func (s *Span) Try(endpoint, scheme, version string, head []byte) {
	if s == nil || !s.span.IsRecording() {
		return
	}
	method, original := methodOf(s.method)
	host, digits, _ := net.SplitHostPort(endpoint)
	list := make([]attribute.KeyValue, 0, 8)
	list = append(list,
		attribute.String("http.request.method", valid(method)),
		attribute.String("url.full", valid(scheme+"://"+endpoint+s.path)),
		attribute.String("server.address", host),
		attribute.String("network.protocol.name", "http"),
		attribute.String("network.protocol.version", version))
	if original != "" {
		list = append(list, attribute.String("http.request.method_original", valid(original)))
	}
	if port, err := strconv.Atoi(digits); err == nil {
		list = append(list, attribute.Int("server.port", port))
	}
	if s.try.before > 0 {
		list = append(list, attribute.Int("http.request.resend_count", s.try.before))
	}
	ctx := api.ContextWithSpan(context.Background(), s.span)
	_, s.try.span = s.tracer.Start(ctx, nameOf(method), api.WithSpanKind(api.SpanKindClient), api.WithAttributes(list...))
	s.try.status = 0
	at := -1
	if head != nil {
		at = bytes.Index(head, s.parent)
	}
	id := s.try.span.SpanContext().SpanID()
	hex.Encode(s.parent[idStart:idEnd], id[:])
	if at >= 0 {
		copy(head[at:], s.parent)
	}
}

// Header returns header with the try as the parent, for a backend that is asked
// by net/http, which may still read the header of the try before.
func (s *Span) Header(header http.Header) http.Header {
	if s == nil || s.try.span == nil {
		return header
	}
	if list := header["Traceparent"]; len(list) != 1 || len(list[0]) < idStart || list[0][:idStart] != string(s.parent[:idStart]) {
		return header
	}
	header = maps.Clone(header)
	header["Traceparent"] = []string{string(s.parent)}
	return header
}

// Answered notes that the answer to the try has begun.
func (s *Span) Answered(status int) {
	if s != nil {
		s.try.status = status
	}
}

// EndTry ends the try, if there is one: why tells of what kind the failure was
// and reason says it in words, both empty for none. A zero end is now.
func (s *Span) EndTry(why, reason string, end time.Time) {
	if s == nil || s.try.span == nil {
		return
	}
	span, status := s.try.span, s.try.status
	s.try.span = nil
	s.try.before++
	if status != 0 {
		span.SetAttributes(attribute.Int("http.response.status_code", status))
	}
	if why == "" && status >= http.StatusBadRequest {
		why = strconv.Itoa(status)
	}
	if why != "" {
		span.SetAttributes(attribute.String("error.type", why))
		span.SetStatus(codes.Error, valid(reason))
	}
	if end.IsZero() {
		span.End()
		return
	}
	span.End(api.WithTimestamp(end))
}

// endLast ends a try with the request: the backend switched protocols, or the
// answer was given up. One that was not answered has been none.
func (s *Span) endLast(o *Outcome) {
	switch {
	case s.try.status == 0:
	case o.Failure != "":
		s.EndTry("canceled", o.Failure, o.End)
	default:
		s.EndTry("", "", o.End)
	}
}
