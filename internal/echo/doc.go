// Package echo is the workload behind the image fairway.dev/echo: servers for
// HTTP (1.1, HTTP/2 with and without TLS, WebSocket, gRPC), TCP, UDP and
// MySQL that answer with what they received and who they are, so that
// people and tests see which Pod a connection reached and what became of it on
// the way.
//
// It owns no part of the Service layer and imports none: what it reports must
// come from the wire and from the Pod's environment alone.
package echo
