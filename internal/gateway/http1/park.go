package http1

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A connection whose client pauses is parked: it has no goroutine then, no
// Conn and no buffers, only what is in parked and what the kernel and crypto/tls
// keep. Waiting by a goroutine costs ten times the memory, but less time, so
// connections that are in use do that.
const (
	// pause is how long a connection is without request until it is parked; a
	// tick or two more.
	pause = 500 * time.Millisecond
	// parkedSweep is how often those are looked through whose time may be up.
	parkedSweep = time.Second
	// trimFrom is how many more connections must be parked than before until the
	// memory that they have given back is given on to the system.
	trimFrom = 1000
)

// parked is a connection that waits for its client without anybody.
type parked struct {
	sock   *Socket
	conn   net.Conn // sock, or what is on top of it
	peer   netip.AddrPort
	until  int64 // by the clock, when it is closed
	port   uint16
	secure bool
	served bool // a request
}

// lot is where connections are parked. Its poller is one of our own, since
// that of the runtime only wakes goroutines.
type lot struct {
	epoll *os.File
	fd    int
	// conns are by file descriptor; Server.mu is for them as for Server.conns.
	conns map[int32]*parked

	// swept is when those were looked through whose time may be up, trimmed how
	// many were parked at the last trim, and calm for how many ticks hardly any
	// have been added to that. They are the janitor's.
	swept         int64
	trimmed, calm int
	// tick counts those parked since the last tick; Server.mu is for it.
	tick int
}

func newLot() (*lot, error) {
	epoll, fd, err := newPoller()
	if err != nil {
		return nil, err
	}
	return &lot{epoll: epoll, fd: fd, conns: map[int32]*parked{}}, nil
}

// watch makes the kernel tell when a socket has something, once.
func (l *lot) watch(s *Socket) error {
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(s.fd)}
	op := unix.EPOLL_CTL_ADD
	if s.watched {
		op = unix.EPOLL_CTL_MOD
	}
	s.watched = true
	return unix.EpollCtl(l.fd, op, s.fd, &event)
}

// attend has connections served whose clients go on, until the lot is closed.
func (s *Server) attend() {
	raw, err := s.lot.epoll.SyscallConn()
	if err != nil {
		return
	}
	events := make([]unix.EpollEvent, 128)
	_ = raw.Read(func(fd uintptr) bool {
		for {
			n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, fd, uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
			if errno == syscall.EINTR {
				continue
			}
			if errno != 0 || n == 0 {
				return false
			}
			for _, e := range events[:n] {
				if c := s.unpark(e.Fd); c != nil {
					go s.run(c)
				}
			}
		}
	})
}

// park takes a connection over whose goroutine leaves; false if it cannot be.
func (s *Server) park(c *Conn) bool {
	p := &parked{sock: c.sock, conn: c.conn, peer: c.Peer, port: c.Port, secure: c.Secure, served: c.served > 0, until: c.until}
	if c.front != nil {
		p.conn = c.sock
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// At the end it would have been closed as idle.
	if s.empty != nil || s.ended || s.lot.watch(p.sock) != nil || !c.state.CompareAndSwap(idle, closed) {
		return false
	}
	delete(s.conns, c)
	s.lot.conns[int32(p.sock.fd)] = p
	s.lot.tick++
	return true
}

// unpark returns a parked connection as one that is in use; nil if there is
// none of that descriptor any more.
func (s *Server) unpark(fd int32) *Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.lot.conns[fd]
	if p == nil {
		return nil
	}
	delete(s.lot.conns, fd)
	c := newConn(s, p.conn, p.sock, p.secure, p.peer, p.port)
	c.until = p.until
	if p.served {
		c.served = 1
	}
	s.conns[c] = struct{}{}
	return c
}

// closeParked closes the parked connections that are chosen.
func (s *Server) closeParked(chosen func(*parked) bool) {
	s.mu.Lock()
	var list []*parked
	for fd, p := range s.lot.conns {
		if chosen(p) {
			list = append(list, p)
			delete(s.lot.conns, fd)
			s.closing++
		}
	}
	s.mu.Unlock()
	for _, p := range list {
		end := func() {
			_ = p.conn.Close()
			s.mu.Lock()
			s.closing--
			s.mu.Unlock()
			s.left(p.sock, false)
		}
		if p.secure {
			go end() // it says so to the client, who may take nothing
		} else {
			end()
		}
	}
}

// sweepParked is the janitor's look at parked connections.
func (s *Server) sweepParked(now int64) {
	l := s.lot
	if now-l.swept >= int64(parkedSweep) {
		l.swept = now
		s.closeParked(func(p *parked) bool { return now > p.until })
	}
	s.mu.Lock()
	parked, added := len(l.conns), l.tick
	l.tick = 0
	s.mu.Unlock()
	l.trimmed = min(l.trimmed, parked)
	if l.calm++; added > (parked-l.trimmed)/8 {
		l.calm = 0
	}
	if parked-l.trimmed >= trimFrom && l.calm >= 2 {
		l.trimmed = parked
		go func() {
			runtime.GC() // what pools keep goes with the second one only
			debug.FreeOSMemory()
		}()
	}
}
