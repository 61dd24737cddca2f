package http1

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tcpPair returns the two ends of a connection.
func tcpPair(t *testing.T) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		t.Cleanup(func() { _ = c.Close() })
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// socketOf returns a Socket of a connection, which is closed in its place.
func socketOf(t *testing.T, c *net.TCPConn) *Socket {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	_ = raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	if fd < 0 {
		t.Fatal(err)
	}
	s := &Socket{fd: fd, peer: addrPort(c.RemoteAddr()), port: addrPort(c.LocalAddr()).Port()}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestTransfer carries pieces of all sizes, and after bulk small ones again.
func TestTransfer(t *testing.T) {
	for name, wrap := range map[string]func(*net.TCPConn) net.Conn{
		"plain":  func(c *net.TCPConn) net.Conn { return c },
		"wire":   func(c *net.TCPConn) net.Conn { return NewWire(c) },
		"socket": func(c *net.TCPConn) net.Conn { return socketOf(t, c) },
		"opaque": func(c *net.TCPConn) net.Conn { return struct{ net.Conn }{c} },
	} {
		t.Run(name, func(t *testing.T) {
			sender, src := tcpPair(t)
			dst, receiver := tcpPair(t)
			type end struct {
				n   int64
				err error
			}
			done := make(chan end, 1)
			go func() {
				n, err := transfer(wrap(dst), wrap(src))
				_ = dst.CloseWrite()
				done <- end{n, err}
			}()
			sum := int64(0)
			for _, size := range []int{1, 64, tunnelBuffer - 1, tunnelBuffer, tunnelBuffer + 1, 7, 3*tunnelBulk + 5, 1, 2, tunnelBulk, 3} {
				data := make([]byte, size)
				for i := range data {
					data[i] = byte(rand.Uint32())
				}
				go func() { _, _ = sender.Write(data) }()
				got := make([]byte, size)
				if _, err := io.ReadFull(receiver, got); err != nil {
					t.Fatalf("%d bytes: %v", size, err)
				}
				if !bytes.Equal(got, data) {
					t.Fatalf("%d bytes came out as others", size)
				}
				sum += int64(size)
			}
			_ = sender.CloseWrite()
			if n, err := receiver.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("after the end: %d, %v", n, err)
			}
			if e := <-done; e.n != sum || e.err != nil {
				t.Errorf("%+v, want %d", e, sum)
			}
		})
	}
}

// TestTransferEnds gives a direction up from outside, and by what its ends do.
func TestTransferEnds(t *testing.T) {
	start := func() (sender, src, dst, receiver *net.TCPConn, done chan error) {
		sender, src = tcpPair(t)
		dst, receiver = tcpPair(t)
		done = make(chan error, 1)
		go func() {
			_, err := transfer(dst, src)
			done <- err
		}()
		if _, err := sender.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := receiver.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return
	}
	_, src, _, _, done := start()
	_ = src.SetDeadline(past)
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	sender, _, _, _, done := start()
	_ = sender.SetLinger(0)
	_ = sender.Close()
	if err := <-done; err == nil {
		t.Error("a reset of the source is no end")
	}
	sender, _, _, receiver, done := start()
	_ = receiver.SetLinger(0)
	_ = receiver.Close()
	for range 1000 {
		if _, err := sender.Write([]byte("x")); err != nil {
			break
		}
		select {
		case err := <-done:
			if err == nil {
				t.Error("what nobody takes was carried")
			}
			return
		case <-time.After(time.Millisecond):
		}
	}
	t.Error("it goes on without anybody there to receive")
}
