package http1

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket is the TCP connection of a client. The runtime's poller knows of it
// only once somebody has to wait, which is never for a connection whose one
// request has come by the time it is accepted: that saves four of eleven system
// calls, and what a net.TCPConn is made of.
//
// It is safe for use by many, as a net.Conn is, but for what [Conn] does with
// it before the poller knows it.
type Socket struct {
	// Client is who counts the connection, as whoever accepted it knows him.
	Client netip.Addr

	fd   int
	peer netip.AddrPort
	port uint16

	file   atomic.Pointer[os.File] // nil until the poller knows it
	mu     sync.Mutex              // of the next two, and while fd is used without the file
	closed bool
	own    *wire // of Read and Write; nil until they are called

	held atomic.Bool // see Hold

	watched bool // has been parked before; the Server's
}

// Hold has what is written from here on wait for the end of the connection, that
// is to follow at once: the kernel sends both in one packet then, where it would
// send two, and with TLS three.
func (s *Socket) Hold() { s.held.Store(true) }

// flags are for sending.
func (s *Socket) flags() uintptr {
	if s.held.Load() {
		return syscall.MSG_NOSIGNAL | unix.MSG_MORE
	}
	return syscall.MSG_NOSIGNAL
}

// Accept takes the next connection from a listening socket, that must not
// block. Port is the one that it listens at.
func Accept(listener uintptr, port uint16) (*Socket, syscall.Errno) {
	var from unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(from))
	for {
		fd, _, errno := syscall.RawSyscall6(syscall.SYS_ACCEPT4, listener, uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size)),
			syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
			return &Socket{fd: int(fd), peer: endOf(&from), port: port}, 0
		case syscall.EINTR, syscall.ECONNABORTED: // the client has left the queue again
		default:
			return nil, errno
		}
	}
}

// endOf reads an address that the kernel has written.
func endOf(from *unix.RawSockaddrAny) netip.AddrPort {
	port := func(p *uint16) uint16 {
		b := (*[2]byte)(unsafe.Pointer(p))
		return uint16(b[0])<<8 | uint16(b[1])
	}
	switch from.Addr.Family {
	case unix.AF_INET:
		a := (*unix.RawSockaddrInet4)(unsafe.Pointer(from))
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), port(&a.Port))
	case unix.AF_INET6:
		a := (*unix.RawSockaddrInet6)(unsafe.Pointer(from))
		addr := netip.AddrFrom16(a.Addr).Unmap()
		if a.Scope_id != 0 && addr.Is6() {
			if i, err := net.InterfaceByIndex(int(a.Scope_id)); err == nil {
				addr = addr.WithZone(i.Name)
			}
		}
		return netip.AddrPortFrom(addr, port(&a.Port))
	}
	return netip.AddrPort{}
}

// File is its number among the files that the process has open. The kernel gives
// the least that is free, so at least as many are open.
func (s *Socket) File() int { return s.fd }

// Peer is the other end.
func (s *Socket) Peer() netip.AddrPort { return s.peer }

// RemoteAddr implements net.Conn.
func (s *Socket) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.peer) }

// LocalAddr implements net.Conn.
func (s *Socket) LocalAddr() net.Addr {
	var to unix.RawSockaddrAny
	if !s.with(func(fd uintptr) {
		size := uint32(unsafe.Sizeof(to))
		_, _, _ = syscall.RawSyscall(syscall.SYS_GETSOCKNAME, fd, uintptr(unsafe.Pointer(&to)), uintptr(unsafe.Pointer(&size)))
	}) {
		return &net.TCPAddr{Port: int(s.port)}
	}
	return net.TCPAddrFromAddrPort(endOf(&to))
}

// with does something that does not wait, unless the socket is closed.
func (s *Socket) with(do func(fd uintptr)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	do(uintptr(s.fd))
	return true
}

// polled tells the runtime's poller of the socket.
func (s *Socket) polled() (*os.File, error) {
	if f := s.file.Load(); f != nil {
		return f, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.polledLocked()
}

func (s *Socket) polledLocked() (*os.File, error) {
	if f := s.file.Load(); f != nil {
		return f, nil
	}
	if s.closed {
		return nil, net.ErrClosed
	}
	f := os.NewFile(uintptr(s.fd), "") // a socket that does not block goes to the poller
	s.file.Store(f)
	return f, nil
}

// unpoll takes the socket from the runtime's poller. Nobody else may read or
// write it meanwhile; false if that fails.
func (s *Socket) unpoll() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.file.Load()
	if s.closed || f == nil {
		return !s.closed
	}
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return false
	}
	s.fd, s.own, s.watched = fd, nil, false
	s.file.Store(nil)
	_ = f.Close()
	return true
}

// SyscallConn implements syscall.Conn.
func (s *Socket) SyscallConn() (syscall.RawConn, error) {
	f, err := s.polled()
	if err != nil {
		return nil, err
	}
	return f.SyscallConn()
}

// wire returns what Read and Write go by.
func (s *Socket) wire() (*wire, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own != nil {
		return s.own, nil
	}
	f, err := s.polledLocked()
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	s.own = newWire(raw)
	return s.own, nil
}

// Read implements net.Conn. One goroutine may read and one may write at a time.
func (s *Socket) Read(p []byte) (int, error) {
	w, err := s.wire()
	if err != nil {
		return 0, err
	}
	n, err := w.Read(p)
	return n, s.explained(err)
}

// Write implements net.Conn.
func (s *Socket) Write(p []byte) (int, error) {
	w, err := s.wire()
	if err != nil {
		return 0, err
	}
	w.flags = s.flags()
	n, err := w.Write(p)
	return n, s.explained(err)
}

// explained says what others know of a socket that was closed here.
func (s *Socket) explained(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed && !errors.Is(err, os.ErrDeadlineExceeded) {
		return net.ErrClosed
	}
	return err
}

// ReadFrom implements io.ReaderFrom: the kernel carries what comes from a
// net.TCPConn, also through an io.LimitedReader.
func (s *Socket) ReadFrom(r io.Reader) (int64, error) {
	f, err := s.polled()
	if err != nil {
		return 0, err
	}
	return f.ReadFrom(r)
}

// SetDeadline implements net.Conn.
func (s *Socket) SetDeadline(t time.Time) error { return s.setDeadline(t, (*os.File).SetDeadline) }

// SetReadDeadline implements net.Conn.
func (s *Socket) SetReadDeadline(t time.Time) error {
	return s.setDeadline(t, (*os.File).SetReadDeadline)
}

// SetWriteDeadline implements net.Conn.
func (s *Socket) SetWriteDeadline(t time.Time) error {
	return s.setDeadline(t, (*os.File).SetWriteDeadline)
}

func (s *Socket) setDeadline(t time.Time, set func(*os.File, time.Time) error) error {
	if t.IsZero() && s.file.Load() == nil {
		return nil // there is none yet
	}
	f, err := s.polled()
	if err != nil {
		return err
	}
	return s.explained(set(f, t))
}

// CloseWrite tells the other end that nothing more comes.
func (s *Socket) CloseWrite() error {
	var errno syscall.Errno
	if !s.with(func(fd uintptr) {
		_, _, errno = syscall.RawSyscall(syscall.SYS_SHUTDOWN, fd, syscall.SHUT_WR, 0)
	}) {
		return net.ErrClosed
	}
	if errno != 0 {
		return os.NewSyscallError("shutdown", errno)
	}
	return nil
}

// Close implements net.Conn.
func (s *Socket) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.closed = true
	f := s.file.Load()
	if f == nil {
		// The scheduler need not be told of this, as of a call that may take its time.
		_, _, _ = syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(s.fd), 0, 0)
		s.mu.Unlock()
		return nil
	}
	// As little as possible is left to the file's Close, which the scheduler is told of.
	_, _, _ = syscall.RawSyscall(syscall.SYS_SHUTDOWN, uintptr(s.fd), syscall.SHUT_WR, 0)
	s.mu.Unlock()
	return f.Close()
}

// Reset ends the connection at once, so that the kernel keeps nothing of it
// either.
func (s *Socket) Reset() {
	s.mu.Lock()
	if !s.closed {
		_ = unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		s.closed = true
		if f := s.file.Load(); f != nil {
			defer f.Close()
		} else {
			_, _, _ = syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(s.fd), 0, 0)
		}
	}
	s.mu.Unlock()
}

// established reports whether neither side has closed the connection.
func (s *Socket) established() bool {
	open := false
	s.with(func(fd uintptr) { open = established(fd) })
	return open
}

// taken returns how many bytes the other end has acknowledged, and whether there
// are others that it has no room for, or the network.
func (s *Socket) taken() (bytes uint64, waits bool) {
	s.with(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			bytes, waits = info.Bytes_acked, info.Notsent_bytes > 0
		}
	})
	return bytes, waits
}

// front is a Socket as its Conn reads and writes it: at once if that can be,
// and by the runtime's poller if not. Nobody else may close it.
type front struct {
	*Socket
	wire wire
}

func newFront() *front {
	f := new(front)
	f.wire.init()
	return f
}

func (f *front) reset(s *Socket) {
	f.Socket = s
	f.wire.raw = nil
}

// ready makes the wire wait by the poller.
func (f *front) ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.wire.raw != nil {
		return nil
	}
	file, err := f.polledLocked()
	if err == nil {
		f.wire.raw, err = file.SyscallConn()
	}
	return err
}

// Read implements net.Conn.
func (f *front) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if f.file.Load() == nil {
		n, errno := receive(uintptr(f.fd), p)
		switch {
		case errno == 0 && n == 0:
			return 0, io.EOF
		case errno == 0:
			return n, nil
		case errno != syscall.EAGAIN:
			return 0, os.NewSyscallError("read", errno)
		}
	}
	if err := f.ready(); err != nil {
		return 0, err
	}
	return f.wire.Read(p)
}

// Write implements net.Conn.
func (f *front) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, errno := send(uintptr(f.fd), p[done:], f.flags())
		if errno == syscall.EAGAIN {
			break
		}
		if errno != 0 {
			return done, os.NewSyscallError("write", errno)
		}
		done += n
	}
	if done == len(p) {
		return done, nil
	}
	if err := f.ready(); err != nil {
		return done, err
	}
	f.wire.flags = f.flags()
	n, err := f.wire.Write(p[done:])
	return done + n, err
}
