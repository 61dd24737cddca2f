package http1

import (
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a connection to a backend is made with, as Go's dialer does: nothing is
// held back to be sent with more (Nagle), and a silent one is probed after 30
// seconds, then every 15.
var dialed = [...][3]int{
	{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30},
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
}

// Dial opens a TCP connection. A backend on the same machine has agreed by the
// time that the kernel returns, and nobody has to wait for it by the runtime's
// poller; others get as long as timeout says and ctx lasts.
func Dial(ctx context.Context, to netip.AddrPort, timeout time.Duration) (*Socket, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	name, size := sockaddr(to)
	fd, _, errno := syscall.RawSyscall(syscall.SYS_SOCKET, uintptr(name.Addr.Family), syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("socket", errno)
	}
	s := &Socket{fd: int(fd), peer: to}
	for _, o := range dialed {
		value := int32(o[2])
		_, _, errno := syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, fd, uintptr(o[0]), uintptr(o[1]), uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
		if errno != 0 {
			_ = s.Close()
			return nil, os.NewSyscallError("setsockopt", errno)
		}
	}
	connect := func(fd uintptr) syscall.Errno {
		for {
			_, _, errno := syscall.RawSyscall(syscall.SYS_CONNECT, fd, uintptr(unsafe.Pointer(name)), uintptr(size))
			switch errno {
			case syscall.EINTR:
			case syscall.EISCONN:
				return 0
			default:
				return errno
			}
		}
	}
	if errno = connect(fd); errno == syscall.EINPROGRESS {
		errno = connect(fd) // by now it may be there
	}
	if errno == syscall.EALREADY {
		if err := s.awaitConnected(ctx, timeout, func(fd uintptr) bool {
			errno = connect(fd)
			return errno != syscall.EALREADY
		}); err != nil {
			_ = s.Close()
			return nil, err
		}
	}
	if errno == 0 && s.selfConnected() {
		errno = syscall.ECONNREFUSED
	}
	if errno != 0 {
		_ = s.Close()
		return nil, os.NewSyscallError("connect", errno)
	}
	return s, nil
}

// awaitConnected waits until done, which is asked whenever it may be so.
func (s *Socket) awaitConnected(ctx context.Context, timeout time.Duration, done func(fd uintptr) bool) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetWriteDeadline(past) })
	err = raw.Write(done)
	switch {
	case stop():
		return err
	case ctx.Err() == context.DeadlineExceeded:
		return os.NewSyscallError("connect", syscall.ETIMEDOUT) // as the kernel would say, in the end
	}
	return ctx.Err()
}

// selfConnected reports whether a connection to a port of this machine at which
// nobody listens has met itself, since its own port is the same (Go's dialer
// looks for that, too).
func (s *Socket) selfConnected() bool {
	var own unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(own))
	_, _, errno := syscall.RawSyscall(syscall.SYS_GETSOCKNAME, uintptr(s.fd), uintptr(unsafe.Pointer(&own)), uintptr(unsafe.Pointer(&size)))
	return errno == 0 && endOf(&own) == s.peer
}

// sockaddr writes an address as the kernel reads it.
func sockaddr(a netip.AddrPort) (*unix.RawSockaddrAny, int) {
	to := new(unix.RawSockaddrAny)
	port := func(p *uint16) { binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(p))[:], a.Port()) }
	if a.Addr().Is4() {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(to))
		v4.Family, v4.Addr = unix.AF_INET, a.Addr().As4()
		port(&v4.Port)
		return to, unix.SizeofSockaddrInet4
	}
	v6 := (*unix.RawSockaddrInet6)(unsafe.Pointer(to))
	v6.Family, v6.Addr = unix.AF_INET6, a.Addr().As16()
	port(&v6.Port)
	return to, unix.SizeofSockaddrInet6
}
