// Package protocols holds the gateway to what others have written down about
// the protocols that it speaks: h2spec for HTTP/2, the interoperability cases
// of gRPC, and a WebSocket library's reading of RFC 6455.
//
// It is a module of its own, so that what it needs does not become Fairway's.
// It must not test what belongs to Fairway alone: that stands beside the code.
package protocols
