package dns

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stream reads from and writes to a TCP connection without telling the runtime's
// scheduler of each system call: the socket never blocks, and with queries of a
// few microseconds what that wakes costs as much as the query. It has one reader
// and one writer at a time; the connection's deadlines count.
type stream struct {
	raw         syscall.RawConn
	read, write func(fd uintptr) bool // made once

	in    []byte // of Read, and what became of it
	n     int
	inErr error

	out    []byte // of Write: what is left
	outErr error
}

func newStream(conn *net.TCPConn) (*stream, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &stream{raw: raw}
	s.read, s.write = s.receive, s.send
	return s, nil
}

// Read implements [io.Reader].
func (s *stream) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	s.in, s.n, s.inErr = b, 0, nil
	err := s.raw.Read(s.read)
	s.in = nil
	if err == nil {
		err = s.inErr
	}
	return s.n, err
}

func (s *stream) receive(fd uintptr) bool {
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&s.in[0])), uintptr(len(s.in)), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return false
		case errno != 0:
			s.inErr = os.NewSyscallError("recvfrom", errno)
		case n == 0:
			s.inErr = io.EOF
		default:
			s.n = int(n)
		}
		return true
	}
}

// Write implements [io.Writer].
func (s *stream) Write(b []byte) (int, error) {
	s.out, s.outErr = b, nil
	err := s.raw.Write(s.write)
	n := len(b) - len(s.out)
	s.out = nil
	if err == nil {
		err = s.outErr
	}
	return n, err
}

func (s *stream) send(fd uintptr) bool {
	for len(s.out) > 0 {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&s.out[0])), uintptr(len(s.out)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			s.out = s.out[n:]
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			s.outErr = os.NewSyscallError("sendto", errno)
			return true
		}
	}
	return true
}
