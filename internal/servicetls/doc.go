// Package servicetls ends TLS for Services that ask for it. The data path
// redirects connections to such a Service's port to the proxy on the same
// node; the kernel remembers which address the client dialled, and that tells
// the proxy the Service, its certificates and, by package plan, the endpoints
// to go on to.
//
// It owns the connections from then on. It must not decide which endpoints
// serve a Service, must not program the kernel, and must refuse a connection
// rather than pass it on with less protection than was asked for.
package servicetls
