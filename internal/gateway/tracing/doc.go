// Package tracing makes a span of each request that is to be traced, and sends
// spans by OTLP (OpenTelemetry). What was begun by a client goes on: trace
// context is that of the W3C (traceparent, tracestate).
//
// Where tracing is off, nothing of it is called. It must not know about
// connections or routes: the engine says what a span is of.
package tracing
