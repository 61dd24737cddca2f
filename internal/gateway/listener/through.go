package listener

import (
	"net"
	"strings"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
)

// Through takes a connection of an HTTPS port over whose client asks, by TLS, for a
// host of a route at those ports, until it has ended; nil is returned then. Other
// connections are returned, to be served with what has been read of them. Wait is
// how long a client has to begin. Without such routes nothing is read.
func (s *Streams) Through(sock *http1.Socket, conn net.Conn, wait time.Duration) net.Conn {
	t := s.through.Load()
	if t == nil {
		return conn
	}
	s.passing.Add(1)
	defer s.passing.Add(-1)
	name, isTLS, read := peekServerName(conn, wait)
	if len(read) == 0 { // it has had its time, or has gone
		_ = sock.Close()
		return nil
	}
	route := t.named(name)
	if !isTLS || route == nil {
		return http1.Begun(conn, read)
	}
	if refuse := s.options.Refuse; refuse != nil && refuse() {
		sock.Reset()
		return nil
	}
	if proxied, ok := conn.(*proxyConn); ok {
		read = append(read, proxied.rest...)
	}
	over := make(chan struct{})
	s.carry(sock, conn, read, route, func() { close(over) })
	<-over
	return nil
}

// Passed returns the route by which TLS for a server name passes through at the
// HTTPS ports; nil if it does not.
func (s *Streams) Passed(name string) *Stream {
	t := s.through.Load()
	if t == nil {
		return nil
	}
	return t.named(strings.ToLower(strings.TrimSuffix(name, ".")))
}
