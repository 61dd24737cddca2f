package gateway

import (
	"time"

	"fairway.dev/fairway/internal/gateway/tracing"
)

// beginSpan begins the span of a request that a rule takes, and has the backend
// told of it.
func (t *transaction) beginSpan() {
	x := &t.exchange
	t.span = t.g.tracer.Begin(t.view.Header, !x.TraceDistrust, t.start)
	x.TraceParent, x.TraceState = t.span.Context()
}

// traced reports whether the request has a span.
func (t *transaction) traced() bool { return t.span.Begun() }

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
