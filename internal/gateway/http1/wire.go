package http1

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Wire is a plain TCP connection that is read and written at less cost than
// net.TCPConn's own methods have: the sockets are non-blocking, so the
// scheduler need not be told of each system call. It would take the processor
// away from one that takes 20 µs, as sending over loopback does, and wake
// another thread for it. Waiting is the runtime's as ever.
//
// One goroutine may read and one may write at a time.
type Wire struct {
	*net.TCPConn
	wire
}

// NewWire returns a Wire over tcp.
func NewWire(tcp *net.TCPConn) *Wire {
	w := &Wire{TCPConn: tcp}
	w.init()
	w.raw, _ = tcp.SyscallConn() // fails only for nil
	return w
}

// Read implements io.Reader.
func (w *Wire) Read(p []byte) (int, error) { return w.wire.Read(p) }

// Write implements io.Writer.
func (w *Wire) Write(p []byte) (int, error) { return w.wire.Write(p) }

// wire is what reads and writes a socket that the runtime's poller knows.
type wire struct {
	raw syscall.RawConn

	in       []byte
	n        int
	inErr    error
	out      []byte // what is left to be written
	outErr   error
	flags    uintptr // for sending
	asked    bool
	read     func(fd uintptr) bool
	write    func(fd uintptr) bool
	exchange func(fd uintptr) bool
}

func newWire(raw syscall.RawConn) *wire {
	w := &wire{raw: raw}
	w.init()
	return w
}

func (w *wire) init() {
	w.flags = syscall.MSG_NOSIGNAL
	w.read, w.write, w.exchange = w.tryRead, w.tryWrite, w.tryExchange
}

// Read implements io.Reader.
func (w *wire) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	w.in, w.n, w.inErr = p, 0, nil
	err := w.raw.Read(w.read)
	w.in = nil
	return w.n, w.received(err)
}

func (w *wire) received(err error) error {
	switch {
	case err != nil:
		return err
	case w.inErr != nil:
		return os.NewSyscallError("read", w.inErr)
	case w.n == 0:
		return io.EOF
	}
	return nil
}

// Write implements io.Writer.
func (w *wire) Write(p []byte) (int, error) {
	w.out, w.outErr = p, nil
	err := w.raw.Write(w.write)
	n := len(p) - len(w.out)
	w.out = nil
	if err == nil && w.outErr != nil {
		err = os.NewSyscallError("write", w.outErr)
	}
	return n, err
}

// ask writes a request and waits for the answer's first bytes, without looking
// for them before they can have come. What came, or the end, between the last
// read and the call goes unnoticed until there is more. If not all of the
// request could be written at once, rest is what is left, and there is no answer.
func (w *wire) ask(request, answer []byte) (n int, rest []byte, err error) {
	w.in, w.n, w.inErr = answer, 0, nil
	w.out, w.outErr, w.asked = request, nil, false
	err = w.raw.Read(w.exchange)
	rest = w.out
	w.in, w.out = nil, nil
	switch {
	case err == nil && w.outErr != nil:
		return 0, nil, os.NewSyscallError("write", w.outErr)
	case err == nil && len(rest) > 0:
		return 0, rest, nil
	}
	return w.n, nil, w.received(err)
}

func (w *wire) tryRead(fd uintptr) bool {
	n, errno := receive(fd, w.in)
	switch errno {
	case 0:
		w.n = n
	case syscall.EAGAIN:
		return false
	default:
		w.inErr = errno
	}
	return true
}

func (w *wire) tryWrite(fd uintptr) bool {
	for len(w.out) > 0 {
		n, errno := send(fd, w.out, w.flags)
		switch errno {
		case 0:
			w.out = w.out[n:]
		case syscall.EAGAIN:
			return false
		default:
			w.outErr = errno
			return true
		}
	}
	return true
}

func (w *wire) tryExchange(fd uintptr) bool {
	if w.asked {
		return w.tryRead(fd)
	}
	w.asked = true
	// The runtime forgot what it knew of the connection just before this, and
	// nothing that comes from here on escapes it.
	return !w.tryWrite(fd) || w.outErr != nil
}

func receive(fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

func send(fd uintptr, p []byte, flags uintptr) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags, 0, 0)
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

// inquiry receives and asks in the same call whether there is more.
type inquiry struct {
	header  unix.Msghdr
	vector  unix.Iovec
	control [32]byte // room for one int of TCP_INQ, with its header
}

// enable makes the kernel answer; false if it cannot.
func (q *inquiry) enable(fd uintptr) bool {
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_INQ, 1) == nil
}

// receive is as the function of that name; more tells that a further read
// would not wait: there are bytes, or the end.
func (q *inquiry) receive(fd uintptr, p []byte) (n int, more bool, errno syscall.Errno) {
	q.vector.Base = unsafe.SliceData(p)
	q.vector.SetLen(len(p))
	q.header.Iov = &q.vector
	q.header.SetIovlen(1)
	q.header.Control = &q.control[0]
	for {
		q.header.SetControllen(len(q.control))
		r, _, errno := syscall.RawSyscall(syscall.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&q.header)), 0)
		if errno == syscall.EINTR {
			continue
		}
		q.vector.Base = nil
		if errno != 0 {
			return 0, false, errno
		}
		more = true
		if q.header.Controllen >= unix.SizeofCmsghdr+4 {
			h := (*unix.Cmsghdr)(unsafe.Pointer(&q.control[0]))
			if h.Level == unix.IPPROTO_TCP && h.Type == unix.TCP_INQ {
				more = *(*int32)(unsafe.Pointer(&q.control[unix.SizeofCmsghdr])) != 0
			}
		}
		return int(r), more, 0
	}
}
