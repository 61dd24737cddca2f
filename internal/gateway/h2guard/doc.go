// Package h2guard stands between a client's connection and net/http's server
// for HTTP/2. It holds clients to what that server leaves open, and takes from
// them what it refuses without need:
//
//   - floods that cost the gateway more than the client end the connection:
//     streams that are reset at once ("rapid reset", CVE-2023-44487), PING,
//     SETTINGS, PRIORITY and empty frames, header blocks in many CONTINUATION
//     frames (CVE-2023-45288). The client is told so by GOAWAY, between two
//     frames of the server's;
//   - requests that RFC 9113 calls malformed (8.2.2: fields of HTTP/1.1's
//     connections; 8.3.1: a Host unlike :authority; 8.1.1: a Content-Length that
//     is no number) become stream errors;
//   - SETTINGS that set a value twice are read in order, as 6.5.3 has it.
//
// It must not know about requests beyond that, nor keep their bodies: the
// payload of DATA frames passes through.
package h2guard
