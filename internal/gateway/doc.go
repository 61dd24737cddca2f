// Package gateway is Fairway's L7 gateway: it serves the HTTP, TCP and UDP
// routes of a [state.Store].
//
// A request passes listener -> request view -> router -> filters -> upstream.
// The rooms for these are the packages below; this one ties them: it follows
// the store, compiles what it finds into one immutable config that is swapped
// whole, keeps pools and ports that live on beside it, counts and logs, and
// answers for what cannot be served. Package http1 is the engine for HTTP/1.1,
// http2 the one for HTTP/2, quic-go the one for HTTP/3; all stand before the
// same router and filters.
//
// It must not know about Kubernetes objects, nor decide about endpoints (that
// is package plan's) or write status: [Gateway.Problems] is what it tells.
package gateway
