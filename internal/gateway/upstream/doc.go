// Package upstream keeps the backends of the gateway: a pool of endpoints for
// each Service port that a route names, connections to them, and what was
// learned about their health.
//
// Pools live beside the router. A change of endpoints updates a pool in place,
// so connections, in-flight counts and ejections of the endpoints that stay
// are kept; an endpoint that goes gets no new requests while those under way
// finish. Which endpoints count is package plan's decision; which of them a
// request goes to is decided in choose.go, for all protocols; what a Service asks
// for besides is in files of their own: health checks, slow start, limits, PROXY
// headers.
//
// The package must not know about routes, filters or clients.
package upstream
