// Package http1 is the gateway's engine for HTTP/1.1: it reads requests from
// clients, carries them to backends over kept connections, and streams answers
// back, without an allocation per request on the plain path.
//
// It owns connections, message framing (RFC 9112) and time limits. What reads
// in two ways is refused and never passed on: CL with TE, bare CR or LF, NUL,
// obs-fold, space before a colon, a second Host, chunk sizes that are no plain
// hexadecimal number. Answers of backends are held to the same rules.
//
// A goroutine serves a connection while it is in use. One that pauses is parked,
// without goroutine and buffers, until its client goes on. Messages of tunnels
// between plain connections are carried by a few goroutines for all of them.
//
// It must not know of routes, filters or endpoints: a [Handler] decides what
// happens to a request. Strings in a [Request] or [Response] are views into a
// connection's buffer and end with the exchange; what outlives it copies them.
package http1
