package tracing

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	api "go.opentelemetry.io/otel/trace"
)

// exportTimeout limits sending a batch of spans, and closeTimeout sending what
// is left in the end, which has leastTime whatever else has taken long.
const (
	exportTimeout = 10 * time.Second
	closeTimeout  = 5 * time.Second
	leastTime     = 500 * time.Millisecond
)

// Options configure a [Tracer].
type Options struct {
	// Endpoint is the URL of an OTLP receiver, by HTTP. Without a path it is
	// asked at /v1/traces. Required.
	Endpoint string
	// Share is the share of the traces begun here that are kept, 0 to 1. For
	// others the client decided.
	Share float64
	// Version is the program's, and Node where it runs. Optional.
	Version, Node string
	// Logger is told of spans that cannot be sent, once a minute at most. Required.
	Logger *slog.Logger
	// Delay is how long spans wait for others to be sent with; default 5 s.
	Delay time.Duration
}

// Tracer makes spans and sends them in the background. A nil Tracer has sent
// nothing. Close it.
type Tracer struct {
	provider     *trace.TracerProvider
	tracer       api.Tracer
	logger       *slog.Logger
	sent, failed atomic.Uint64
	warned       time.Time
}

// New starts a tracer. The environment variables of OpenTelemetry for OTLP's
// headers and TLS, for batches, and for attributes of the resource hold beside o.
func New(o Options) (*Tracer, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("trace endpoint %q is no URL of http or https: write one such as http://collector:4318", o.Endpoint)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	if !(o.Share >= 0 && o.Share <= 1) {
		return nil, fmt.Errorf("a share of %v of the traces: want 0 to 1", o.Share)
	}
	ctx := context.Background()
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.String()), otlptracehttp.WithTimeout(exportTimeout))
	if err != nil {
		return nil, fmt.Errorf("trace endpoint %s: %w", o.Endpoint, err)
	}
	what := []attribute.KeyValue{attribute.String("service.name", "fairway-gateway")}
	if o.Version != "" {
		what = append(what, attribute.String("service.version", o.Version))
	}
	if o.Node != "" {
		what = append(what, attribute.String("k8s.node.name", o.Node))
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(what...), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	t := &Tracer{logger: o.Logger}
	t.provider = trace.NewTracerProvider(
		trace.WithResource(about),
		trace.WithSampler(trace.ParentBased(trace.TraceIDRatioBased(o.Share))),
		trace.WithBatcher(sender{exporter, t}, trace.WithBatchTimeout(cmp.Or(o.Delay, 5*time.Second))),
	)
	t.tracer = t.provider.Tracer("fairway.dev/fairway")
	return t, nil
}

// Close sends the spans that are left, if the receiver takes them within 5 s and
// until end, which may be zero for no such limit.
func (t *Tracer) Close(end time.Time) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeToClose(time.Now(), end))
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.logger.Warn("the last spans were not sent", "error", err)
	}
}

func timeToClose(now, end time.Time) time.Duration {
	if end.IsZero() {
		return closeTimeout
	}
	return max(min(closeTimeout, end.Sub(now)), leastTime)
}

// Sent returns how many spans were sent, and Failed how many could not be.
func (t *Tracer) Sent() uint64 {
	if t == nil {
		return 0
	}
	return t.sent.Load()
}

// Failed is Sent's other half.
func (t *Tracer) Failed() uint64 {
	if t == nil {
		return 0
	}
	return t.failed.Load()
}

// sender counts and tells what becomes of spans, in place of OpenTelemetry's
// error handler, which is one for the whole process.
type sender struct {
	trace.SpanExporter
	t *Tracer
}

// ExportSpans implements trace.SpanExporter. It is never called twice at a time.
func (s sender) ExportSpans(ctx context.Context, spans []trace.ReadOnlySpan) error {
	err := s.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		s.t.sent.Add(uint64(len(spans)))
		return nil
	}
	s.t.failed.Add(uint64(len(spans)))
	if now := time.Now(); now.Sub(s.t.warned) >= time.Minute {
		s.t.warned = now
		s.t.logger.Warn("spans were not sent; is --trace-endpoint right, and does it answer?", "spans", len(spans), "error", err)
	}
	return nil
}

// Header is how a request's headers are looked up, by canonical names.
type Header interface {
	Values(name string) []string
}

// Request is what a span is of.
type Request struct {
	// Header are its header fields, whose trace goes on if they are to be
	// trusted and right; else a trace begins.
	Header Header
	Trust  bool
	Start  time.Time
	// Method and Path are what backends are asked for; views that are good until
	// the span has ended.
	Method, Path string
}

// Span is a request's, and need not be one that is kept. A nil Span is none. Its
// methods are for one goroutine at a time.
type Span struct {
	tracer       api.Tracer
	span         api.Span
	method, path string
	parent       []byte // for who is asked next
	try          try
}

// Begin begins the span of a request.
func (t *Tracer) Begin(r *Request) *Span {
	ctx := context.Background()
	if r.Trust {
		ctx = extract(ctx, r.Header)
	}
	_, span := t.tracer.Start(ctx, "request", api.WithTimestamp(r.Start), api.WithSpanKind(api.SpanKindServer))
	c := span.SpanContext()
	return &Span{tracer: t.tracer, span: span, method: r.Method, path: r.Path,
		parent: []byte("00-" + c.TraceID().String() + "-" + c.SpanID().String() + "-" + c.TraceFlags().String())}
}

// TraceID names the trace, in hexadecimal digits.
func (s *Span) TraceID() string { return s.span.SpanContext().TraceID().String() }

// Context returns the headers traceparent and tracestate for who is asked next.
// The bytes of parent change with each try.
func (s *Span) Context() (parent []byte, state string) {
	return s.parent, s.span.SpanContext().TraceState().String()
}

// Outcome is what a span tells of a request.
type Outcome struct {
	Method, Scheme, Host, Path, Protocol, UserAgent string
	// Client is its address.
	Client string
	// Route is the path of the rule, Rule the object and field that it stands in.
	Route, Rule string
	// Service and Endpoint are who was asked; empty if nobody was.
	Service, Endpoint string
	RequestID         string
	Status            int
	Bytes             int64
	// Failure is why the gateway answered itself, or cut an answer off.
	Failure string
	End     time.Time
}

// End ends the span. Names are those of OpenTelemetry's semantic conventions
// for HTTP, and fairway.* for what they have no name for. The query is left
// out, which may have secrets.
func (s *Span) End(o *Outcome) {
	if !s.span.IsRecording() {
		s.span.End()
		return
	}
	s.endLast(o)
	list := make([]attribute.KeyValue, 0, 20)
	text := func(name, value string) {
		if value != "" {
			list = append(list, attribute.String(name, valid(value)))
		}
	}
	method, original := methodOf(o.Method)
	text("http.request.method", method)
	text("http.request.method_original", original)
	text("url.scheme", o.Scheme)
	text("url.path", o.Path)
	text("http.route", o.Route)
	text("server.address", o.Host)
	text("client.address", o.Client)
	text("network.protocol.name", "http")
	text("network.protocol.version", strings.TrimSuffix(strings.TrimPrefix(o.Protocol, "HTTP/"), ".0"))
	text("user_agent.original", o.UserAgent)
	text("fairway.rule", o.Rule)
	text("fairway.service", o.Service)
	text("fairway.endpoint", o.Endpoint)
	text("fairway.request_id", o.RequestID)
	text("fairway.failure", o.Failure)
	list = append(list, attribute.Int("http.response.status_code", o.Status), attribute.Int64("http.response.body.size", o.Bytes))
	if o.Status >= 500 {
		text("error.type", fmt.Sprint(o.Status))
		s.span.SetStatus(codes.Error, valid(o.Failure))
	}
	s.span.SetName(strings.TrimSpace(nameOf(method) + " " + valid(o.Route)))
	s.span.SetAttributes(list...)
	s.span.End(api.WithTimestamp(o.End))
}

// methodOf returns how the conventions tell a method: those that are known, and
// other, of which a client can think up any number, with its name apart.
func methodOf(method string) (known, original string) {
	switch method {
	case "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE":
		return method, ""
	}
	return otherMethod, method
}

const otherMethod = "_OTHER"

// nameOf returns how the names of spans begin.
func nameOf(method string) string {
	if method == otherMethod {
		return "HTTP"
	}
	return strings.Clone(method)
}

// maxText is how long a value may be. Paths and headers can be a hundred times as
// long, clients may have their traces kept, and what waits for the receiver is
// thousands of spans: they would fill the memory, and be more than it takes.
const maxText = 1 << 10

// valid copies a string, which may be a view, without what is not UTF-8: header
// fields carry any byte, and one such string would have the exporter refuse all
// spans that are sent together.
func valid(s string) string {
	return strings.ToValidUTF8(strings.Clone(s[:min(len(s), maxText)]), "\ufffd")
}
