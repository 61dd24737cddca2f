package http1

import (
	"net"
	"time"
)

// MinRate is how many bytes a second a client has to take, of an answer that
// waits for it (IIS and Kestrel have the same). It is less than a modem takes.
const MinRate = 240

// Pace tells whether a client takes what it is sent: at least [MinRate] of what
// it is kept waiting for. A write that waits may have moved much meanwhile, or
// have nothing to move, if it waits for a backend as well.
type Pace struct {
	of    int64  // the wait that it is about
	taken uint64 // at its beginning
}

// Least returns how many bytes a client has to take in a time.
func Least(in time.Duration) int64 { return int64(MinRate * in / time.Second) }

// Look is called four times a second with what tells one wait from another.
func (p *Pace) Look(wait int64, s *Socket) {
	if wait > 0 && wait != p.of && s != nil {
		p.of = wait
		p.taken, _ = s.taken()
	}
}

// Kept reports whether the wait may last for the limit once more: the client
// has taken enough during the last, or nothing waits for it. Next is what tells
// the prolonged wait from others.
func (p *Pace) Kept(next int64, limit time.Duration, s *Socket) bool {
	if s == nil {
		return false
	}
	taken, waits := s.taken()
	if waits && taken-p.taken < uint64(Least(limit)) {
		return false
	}
	p.of, p.taken = next, taken
	return true
}

// SocketOf returns the client's socket beneath a connection; nil if that is another.
func SocketOf(conn net.Conn) *Socket {
	switch c := conn.(type) {
	case *Socket:
		return c
	case *front:
		return c.Socket
	case interface{ NetConn() net.Conn }:
		return SocketOf(c.NetConn())
	}
	return nil
}
