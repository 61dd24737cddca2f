package tracing

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/propagation"
)

// maxState bounds the tracestate that is taken over; the W3C asks for 512 at least.
const maxState = 1024

// extract reads trace context (https://www.w3.org/TR/trace-context/) into ctx.
// What is not right in whole does not count.
func extract(ctx context.Context, h Header) context.Context {
	return propagation.TraceContext{}.Extract(ctx, carrier{h})
}

// carrier implements propagation.TextMapCarrier. Strings are copied: headers
// may be views, and a span outlives its request.
type carrier struct{ Header }

// Get implements propagation.TextMapCarrier. Two traceparents are none; several
// tracestates are one.
func (c carrier) Get(name string) string {
	switch name {
	case "traceparent":
		if list := c.Values("Traceparent"); len(list) == 1 {
			return strings.Clone(list[0])
		}
	case "tracestate":
		if state := strings.Join(c.Values("Tracestate"), ","); len(state) <= maxState {
			return strings.Clone(state)
		}
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (carrier) Set(string, string) {}

// Keys implements propagation.TextMapCarrier.
func (carrier) Keys() []string { return []string{"traceparent", "tracestate"} }
