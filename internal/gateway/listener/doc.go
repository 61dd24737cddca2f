// Package listener owns the gateway's sockets: HTTP and HTTPS ports, of TCP and
// for HTTP/3 of UDP, and TCP and UDP ports that are opened and closed as routes come and go. It bounds
// what a client may hold open, reads PROXY protocol headers, and at the end
// lets what is under way finish.
//
// Sockets are opened with SO_REUSEPORT, so that a new process can listen
// beside the old one before that stops; QUIC's packets are steered to the process
// that knows their connection.
//
// The package must not know about HTTP routes or Kubernetes objects, except
// that a stream port is told by the route that asks for it.
package listener
