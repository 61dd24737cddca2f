package listener

import "time"

// Limits on clients. They bound how long one can hold a connection without
// doing anything useful (slow loris), not how long a transfer may take.
const (
	// defaultHeaderTimeout is for a request's whole header (nginx: 60 s).
	defaultHeaderTimeout = 30 * time.Second
	// defaultIdleTimeout is between requests on a kept connection (nginx: 75 s).
	defaultIdleTimeout = 75 * time.Second
	// defaultBodyTimeout is for the client to send more of a body (nginx: client_body_timeout 60 s).
	defaultBodyTimeout = 60 * time.Second
	// defaultWriteTimeout is for the client to take http1.MinRate of an answer (nginx: send_timeout 60 s, for any byte).
	defaultWriteTimeout = 60 * time.Second
	// defaultDrainTimeout is for what is under way at the end.
	defaultDrainTimeout = 30 * time.Second
	// defaultLameDuck is for kept connections to say what they were about to.
	defaultLameDuck = time.Second
	// maxHeaderBytes is for a request's whole header.
	maxHeaderBytes = 64 << 10
	// maxStreams is how many requests a connection by HTTP/2 or HTTP/3 may have
	// under way (nginx: http2_max_concurrent_streams 128).
	maxStreams = 128
	// maxUniStreams is for what HTTP/3 needs beside requests: three streams, and
	// some of kinds that only the client knows (RFC 9114, 6.2.3).
	maxUniStreams = 8
	// maxCancels and cancelsPerSecond are how many requests by HTTP/3 a client
	// may give up, like package http2's resets.
	maxCancels       = 500
	cancelsPerSecond = 100
	// streamWindow and connectionWindow are how much of request bodies HTTP/2 and
	// HTTP/3 may send ahead: all that is kept of them in memory. One body that waits
	// for a slow backend leaves room for others.
	streamWindow     = 256 << 10
	connectionWindow = 1 << 20
	// proxyHeaderTimeout is for a PROXY protocol header.
	proxyHeaderTimeout = 5 * time.Second
)
