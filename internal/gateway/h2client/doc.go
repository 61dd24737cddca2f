// Package h2client is the gateway's side of HTTP/2 connections to backends: many
// requests share one connection, their frames go out together, and answers are
// read by one goroutine for all of them.
//
// [Conn] is a connection, [Stream] one request on it. What a backend may send
// is bounded: header sizes, frames that bring nothing, and data beyond the
// windows that it was given. A request that the backend has certainly not
// processed fails with [ErrUnprocessed], so that it can be sent again.
//
// The package opens no connections, knows no endpoints, and repeats nothing:
// that is package upstream's. It is not for clients of the gateway.
package h2client
