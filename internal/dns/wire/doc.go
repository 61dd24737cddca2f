// Package wire reads DNS queries and writes answers (RFC 1035 section 4)
// without allocating: for the questions that a node answers itself, where
// unpacking and packing would cost more than everything else.
//
// It knows one question per query, EDNS (RFC 6891), and the records that a
// cluster's zone has; messages of other servers are left to a library. It knows
// no zone, and opens no socket.
package wire
