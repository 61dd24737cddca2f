// Package http2 is the gateway's server for HTTP/2 (RFC 9113), by ALPN over TLS
// or with prior knowledge.
//
// One goroutine reads a connection and does all that frames ask for; each
// request is handed to a goroutine that has served others. What several streams
// have to send goes out in one write. A window is opened only as far as its
// bytes have been consumed, so that a client can send no faster than the backend
// takes.
//
// Requests that RFC 9113 calls malformed, and clients that make work for
// nothing, end here:
//
//   - fields are held to 8.2 and 8.3: no capitals, no control characters, no
//     space around a value, no fields of HTTP/1.1's connections, pseudo-header
//     fields once and first, a Host like :authority, a Content-Length that is
//     what comes;
//   - floods that cost the gateway more than the client end the connection with
//     GOAWAY: streams that are reset at once ("rapid reset", CVE-2023-44487),
//     PING, SETTINGS, PRIORITY, WINDOW_UPDATE and empty frames, header blocks in
//     many CONTINUATION frames (CVE-2023-45288);
//   - what is decoded of a header is bounded ("HPACK bomb"), and so is how long
//     a client may leave a window shut, or a header or body half sent.
//
// It must not know of routes, filters or endpoints: a [Handler] decides what
// happens to a request.
package http2
