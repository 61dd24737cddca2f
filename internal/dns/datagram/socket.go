package datagram

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Socket is a UDP socket at one address. One goroutine may receive from it, by
// a [Batch]; any may send.
type Socket struct {
	// Addr is where it is bound.
	Addr netip.AddrPort
	// Cookie is the number by which the kernel knows it (SO_COOKIE).
	Cookie uint64

	file   *os.File
	raw    syscall.RawConn // does not wait
	closed atomic.Bool

	// poller is an epoll instance that has the socket, for packets that arrive
	// alone, and arrivals waits until it has something to say. The runtime's poller
	// always wants to know, too, that a socket can be written to: the kernel would
	// tell it, and wake a thread, of each answer that has left, where nobody waits
	// for that.
	poller   *os.File
	arrivals syscall.RawConn
}

// Listen opens n sockets at one specific address, over which the kernel
// spreads clients. The address need not be on an interface yet. Port 0 takes a
// free one. It fails where anybody else has the port, even if they would share it.
func Listen(addr netip.AddrPort, n, receiveBuffer int) (sockets []*Socket, err error) {
	defer func() {
		if err != nil {
			for _, s := range sockets {
				s.Close()
			}
		}
	}()
	for range n {
		s, err := open(addr, len(sockets) == 0, receiveBuffer)
		if err != nil {
			return sockets, fmt.Errorf("listen on %s by UDP: %w", addr, err)
		}
		addr = s.Addr
		sockets = append(sockets, s)
	}
	return sockets, nil
}

func open(addr netip.AddrPort, first bool, receiveBuffer int) (*Socket, error) {
	family, level, freebind := unix.AF_INET, unix.SOL_IP, unix.IP_FREEBIND
	if addr.Addr().Is6() {
		family, level, freebind = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	// It blocks, so that os.File keeps it out of the runtime's poller; each call
	// says that it does not want to.
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	share := func() error {
		return os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	steps := []func() error{
		func() error {
			return os.NewSyscallError("setsockopt IP_FREEBIND", unix.SetsockoptInt(fd, level, freebind, 1))
		},
		func() error {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer) // the kernel caps it
			if addr.Addr().Is6() {
				return os.NewSyscallError("setsockopt IPV6_V6ONLY", unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1))
			}
			return nil
		},
	}
	bind := func() error { return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(addr))) }
	if first { // shares from now on, and only with those to come
		steps = append(steps, bind, share)
	} else {
		steps = append(steps, share, bind)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("getsockname", err)
	}
	port := addr.Port()
	switch b := bound.(type) {
	case *unix.SockaddrInet4:
		port = uint16(b.Port)
	case *unix.SockaddrInet6:
		port = uint16(b.Port)
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("getsockopt SO_COOKIE", err)
	}
	s := &Socket{Addr: netip.AddrPortFrom(addr.Addr(), port), Cookie: cookie, file: os.NewFile(uintptr(fd), "udp "+addr.String())}
	if s.raw, err = s.file.SyscallConn(); err == nil {
		err = s.poll(fd)
	}
	if err != nil {
		s.file.Close()
		return nil, err
	}
	return s, nil
}

// poll makes the socket's poller.
func (s *Socket) poll(fd int) error {
	poller, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	err = os.NewSyscallError("epoll_ctl", unix.EpollCtl(poller, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}))
	if err == nil {
		err = os.NewSyscallError("fcntl", unix.SetNonblock(poller, true)) // for the runtime's poller to take it in
	}
	if err != nil {
		unix.Close(poller)
		return err
	}
	s.poller = os.NewFile(uintptr(poller), "arrivals at udp "+s.Addr.String())
	if s.arrivals, err = s.poller.SyscallConn(); err != nil {
		s.poller.Close()
	}
	return err
}

// Close ends the socket, and the one that serves it. It must not be called by
// the function that handles packets.
func (s *Socket) Close() {
	s.closed.Store(true)
	s.poller.Close()
	s.file.Close()
}

// Send sends one packet; where it would have to wait it fails. The error is
// [net.ErrClosed] after Close.
func (s *Socket) Send(packet []byte, to netip.AddrPort) error {
	var err error
	control := s.raw.Control(func(fd uintptr) {
		err = unix.Sendto(int(fd), packet, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, sockaddr(to))
	})
	switch {
	case control != nil && s.closed.Load():
		return net.ErrClosed
	case control != nil:
		return control
	}
	return os.NewSyscallError("sendto", err)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port()), ZoneId: zoneID(a.Addr().Zone())}
}

// zoneID is the interface that an address is meant on; 0 for any.
func zoneID(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	return 0
}

// temporary reports whether an error is one packet's matter, or a shortage
// that passes.
func temporary(err error) bool {
	return errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ECONNREFUSED) ||
		errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}
