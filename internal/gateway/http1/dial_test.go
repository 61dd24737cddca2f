package http1

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDial opens connections by both families, with what Go's dialer would set.
func TestDial(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1", "::ffff:127.0.0.1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
			continue // a machine without IPv6
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		s, err := Dial(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(host), addrPort(l.Addr()).Port()), time.Minute)
		if err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		defer s.Close()
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		for _, c := range []net.Conn{s, far} {
			_ = c.SetDeadline(time.Now().Add(time.Minute))
		}
		if got, want := s.LocalAddr().String(), far.RemoteAddr().String(); got != want {
			t.Errorf("%s: from %s, the backend says %s", host, got, want)
		}
		buf := make([]byte, 5)
		for _, c := range [][2]net.Conn{{s, far}, {far, s}} {
			_, _ = c[0].Write([]byte("hello"))
			if n, err := c[1].Read(buf); string(buf[:n]) != "hello" {
				t.Errorf("%s: %q, %v", host, buf[:n], err)
			}
		}
		plain, err := (&net.Dialer{KeepAlive: 30 * time.Second}).Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		for _, o := range dialed {
			if got, want := option(t, s, o[0], o[1]), option(t, plain.(*net.TCPConn), o[0], o[1]); got != want {
				t.Errorf("%s: option %d of level %d is %d, Go's dialer sets %d", host, o[1], o[0], got, want)
			}
		}
	}
}

func option(t *testing.T, c syscall.Conn, level, name int) (value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), level, name) })
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// TestDialFails: nobody listens, or nobody has agreed when time or patience
// ends. Nothing is left open.
func TestDialFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := addrPort(l.Addr())
	_ = l.Close()
	if s, err := Dial(t.Context(), nobody, time.Minute); s != nil || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v, %v", s, err)
	}
	full := newFull(t)
	before := openFiles(t)
	if s, err := Dial(t.Context(), full.addr, 50*time.Millisecond); s != nil || !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("nobody agrees: %v, %v", s, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if s, err := Dial(ctx, full.addr, time.Minute); s != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v, %v", s, err)
	}
	await(t, "what was opened is closed", func() bool { return openFiles(t) <= before })
}

// TestDialWaits has a backend agree late.
func TestDialWaits(t *testing.T) {
	full := newFull(t)
	got := make(chan error, 1)
	go func() {
		s, err := Dial(t.Context(), full.addr, time.Minute)
		if err == nil {
			_, err = s.Write([]byte("x"))
			_ = s.Close()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	for { // until the kernel, which asks again after a second, is let in
		fd, _, err := unix.Accept(full.fd)
		if err == nil {
			defer unix.Close(fd)
		}
		select {
		case err := <-got:
			if err != nil {
				t.Error(err)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// fullQueue listens, but takes no further connection.
type fullQueue struct {
	fd   int
	addr netip.AddrPort
}

func newFull(t *testing.T) fullQueue {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	b := fullQueue{fd, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))}
	c, err := net.Dial("tcp", b.addr.String()) // fills the queue
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return b
}

// TestSelfConnected makes a connection to itself, as happens when nobody
// listens at a port that the kernel may also give to who dials it.
func TestSelfConnected(t *testing.T) {
	a, _ := tcpPair(t)
	if s := socketOf(t, a); s.selfConnected() {
		t.Error("a connection to somebody else counts as one to itself")
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err == nil {
		err = unix.Connect(fd, name)
	}
	if err != nil {
		t.Fatal(err)
	}
	own := name.(*unix.SockaddrInet4)
	if s := (&Socket{fd: fd, peer: netip.AddrPortFrom(netip.AddrFrom4(own.Addr), uint16(own.Port))}); !s.selfConnected() {
		t.Error("a connection to itself goes unnoticed")
	}
}
