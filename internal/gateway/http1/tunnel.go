package http1

import (
	"io"
	"net"
	"sync"
	"syscall"
)

// tunnelBuffer is how much of a tunnel is read at once, and tunnelBulk what
// the kernel carries by itself once so much has come.
const (
	tunnelBuffer = 16 << 10
	tunnelBulk   = 1 << 20
)

var tunnelBuffers = sync.Pool{New: func() any { b := make([]byte, tunnelBuffer); return &b }}

// Copy carries bytes from src to dst until src ends, and returns how many. It
// is io.Copy for two connections: what comes in small pieces, as messages do,
// takes two system calls each where both are plain, and what comes in bulk is
// moved by the kernel.
func Copy(dst, src net.Conn) (int64, error) {
	to, from := plain(dst), plain(src)
	if to == nil || from == nil {
		return io.Copy(dst, src)
	}
	t := tunnel{from: from, to: NewWire(to)}
	raw, err := from.SyscallConn()
	if err != nil {
		return 0, err
	}
	for {
		t.bulk = false
		if err := raw.Read(t.turn); err != nil {
			return t.n, err
		}
		if !t.bulk {
			return t.n, t.err
		}
		n, err := to.ReadFrom(&io.LimitedReader{R: from, N: tunnelBulk})
		t.n += n
		if err != nil || n < tunnelBulk {
			return t.n, err
		}
	}
}

// plain returns the TCP connection that is read and written as it is; nil if
// there is something on top of it.
func plain(c net.Conn) *net.TCPConn {
	switch c := c.(type) {
	case *net.TCPConn:
		return c
	case *Wire:
		return c.TCPConn
	}
	return nil
}

// tunnel carries one direction of a tunnel.
type tunnel struct {
	from  *net.TCPConn
	to    *Wire
	ask   inquiry
	asked bool // whether the kernel tells what is left to be read
	n     int64
	bulk  bool
	err   error
}

// turn is what the runtime calls when there may be something to read. See
// Conn.takeTurn for why it goes on as long as it can. It returns true when the
// tunnel ends, or has bytes in bulk.
func (t *tunnel) turn(fd uintptr) bool {
	for {
		buf := tunnelBuffers.Get().(*[]byte)
		var n int
		var more bool
		var errno syscall.Errno
		if t.asked {
			n, more, errno = t.ask.receive(fd, *buf)
		} else {
			n, errno = receive(fd, *buf)
			more, t.asked = true, t.ask.enable(fd)
		}
		if n > 0 && errno == 0 {
			var written int
			written, t.err = t.to.Write((*buf)[:n])
			t.n += int64(written)
		}
		tunnelBuffers.Put(buf)
		switch {
		case errno == syscall.EAGAIN:
			return false
		case errno != 0:
			t.err = errno
			return true
		case n == 0 || t.err != nil:
			return true
		case n == tunnelBuffer && more:
			t.bulk = true
			return true
		case !more:
			return false
		}
	}
}
