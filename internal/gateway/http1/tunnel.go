package http1

import (
	"cmp"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// tunnelBuffer is how much of a tunnel is read at once, and tunnelBulk what
// the kernel carries by itself once so much has come.
const (
	tunnelBuffer = 16 << 10
	tunnelBulk   = 1 << 20
)

var tunnelBuffers = sync.Pool{New: func() any { b := make([]byte, tunnelBuffer); return &b }}

// between carries bytes both ways by two goroutines until both sides have ended,
// and returns how many went from b to a. Begun has come from a already.
func between(a, b net.Conn, begun []byte) int64 {
	var other sync.WaitGroup
	other.Go(func() {
		_, err := b.Write(begun)
		if err == nil {
			_, err = transfer(b, a)
		}
		closeWrite(b)
		if err != nil {
			_ = b.SetDeadline(past)
		}
	})
	n, err := transfer(a, b)
	closeWrite(a)
	if err != nil {
		_ = a.SetDeadline(past)
	}
	other.Wait()
	return n
}

// transfer carries bytes from src to dst until src ends, and returns how many. It
// is io.Copy for two connections: what comes in small pieces, as messages do,
// takes two system calls each where both are plain, and what comes in bulk is
// moved by the kernel.
func transfer(dst, src net.Conn) (int64, error) {
	to, from := plain(dst), plain(src)
	if to == nil || from == nil {
		return io.Copy(dst, src)
	}
	in, err := from.SyscallConn()
	if err != nil {
		return 0, err
	}
	out, err := to.SyscallConn()
	if err != nil {
		return 0, err
	}
	t := direction{to: newWire(out)}
	for {
		t.bulk = false
		if err := in.Read(t.turn); err != nil {
			return t.n, err
		}
		if !t.bulk {
			return t.n, t.err
		}
		n, err := splice(out, in, tunnelBulk)
		t.n += n
		if err != nil || n < tunnelBulk {
			return t.n, err
		}
	}
}

// plain returns the TCP connection that is read and written as it is; nil if
// there is something on top of it.
func plain(c net.Conn) syscall.Conn {
	switch c := c.(type) {
	case *net.TCPConn:
		return c
	case *Wire:
		return c.TCPConn
	case *Socket:
		return c
	case *front:
		return c.Socket
	}
	return nil
}

// splice lets the kernel carry up to most bytes from one socket to another, by
// way of a pipe: net.TCPConn's own knows no other sort of connection. It
// returns fewer at the end only.
func splice(to, from syscall.RawConn, most int) (int64, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return 0, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	_, _ = unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, most) // the default does as well
	var failed error
	move := func(out, in, n int) (int, bool) {
		for {
			m, err := unix.Splice(in, nil, out, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			switch err {
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				return 0, false
			case nil:
			default:
				failed = os.NewSyscallError("splice", err)
			}
			return int(m), true
		}
	}
	total := 0
	for total < most {
		n := 0
		if err := from.Read(func(fd uintptr) (done bool) {
			n, done = move(ends[1], int(fd), most-total)
			return done
		}); err != nil || failed != nil || n == 0 {
			return int64(total), cmp.Or(failed, err)
		}
		for n > 0 {
			m := 0
			if err := to.Write(func(fd uintptr) (done bool) {
				m, done = move(int(fd), ends[0], n)
				return done
			}); err != nil || failed != nil {
				return int64(total), cmp.Or(failed, err)
			}
			n, total = n-m, total+m
		}
	}
	return int64(total), nil
}

// direction carries one direction of a tunnel.
type direction struct {
	to    *wire
	ask   inquiry
	asked bool // whether the kernel tells what is left to be read
	n     int64
	bulk  bool
	err   error
}

// turn is what the runtime calls when there may be something to read. See
// Conn.takeTurn for why it goes on as long as it can. It returns true when the
// tunnel ends, or has bytes in bulk.
func (t *direction) turn(fd uintptr) bool {
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
