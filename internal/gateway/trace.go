package gateway

import (
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/tracing"
)

// beginSpan begins the span of a request that a rule takes, and has backends
// told of it.
func (t *transaction) beginSpan() {
	x := &t.exchange
	t.span = t.g.tracer.Begin(&tracing.Request{Header: t.view.Header, Trust: !x.TraceDistrust, Start: t.start, Method: t.view.Method, Path: x.Path})
	parent, state := t.span.Context()
	x.TraceParent, x.TraceState = http1.Text(parent), state
}

// endSpan ends the span of a request that is done.
func (t *transaction) endSpan(status int, bytes int64, took time.Duration) {
	o := tracing.Outcome{
		Method: t.view.Method, Scheme: t.view.Scheme, Host: t.view.Host, Path: t.view.Path, Protocol: t.protocol, Client: t.view.Client.String(),
		Route: t.rule.Spec.Path.Value, Rule: t.rule.Ref().String() + " " + t.rule.Spec.Field, Endpoint: t.endpoint, RequestID: t.id,
		Status: status, Bytes: bytes, Failure: t.failure, End: t.start.Add(took),
	}
	o.UserAgent, _ = t.view.First("User-Agent")
	if t.pool != nil {
		o.Service = t.pool.Key().Service.String()
	}
	t.span.End(&o)
}
