package http1

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ferryTest is a tunnel that a ferry carries: what is written to one end comes
// out at the other.
type ferryTest struct {
	ends   [2]*net.TCPConn
	tunnel *tunnel
	fleet  *Ferries
	over   chan int64 // gets what carry returned
}

func newFerryTest(t *testing.T, begun string) *ferryTest {
	t.Helper()
	f := &ferryTest{fleet: new(Ferries), over: make(chan int64, 1)}
	t.Cleanup(f.fleet.Close)
	a, nearA := tcpPair(t)
	b, nearB := tcpPair(t)
	f.ends = [2]*net.TCPConn{a, b}
	socks := [2]*Socket{socketOf(t, nearA), socketOf(t, nearB)}
	_, _ = nearA.Close(), nearB.Close()
	f.tunnel = newTunnel(socks[0], socks[1])
	go func() {
		n := f.tunnel.carry(f.fleet, []byte(begun))
		_, _ = socks[0].Close(), socks[1].Close()
		f.over <- n
	}()
	return f
}

// waits reports whether bytes have come to a side that nobody has taken.
func (f *ferryTest) waits(side int) bool {
	n := 0
	f.tunnel.banks[side].sock.with(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	return n > 0
}

// ended waits for the end of the tunnel and returns how much went from the
// second end to the first.
func (f *ferryTest) ended(t *testing.T) int64 {
	t.Helper()
	select {
	case n := <-f.over:
		return n
	case <-time.After(30 * time.Second):
		t.Fatal("the tunnel did not end")
		return 0
	}
}

func (f *ferryTest) says(t *testing.T, from int, data []byte) {
	t.Helper()
	go func() { _, _ = f.ends[from].Write(data) }()
	got := make([]byte, len(data))
	if n, err := io.ReadFull(f.ends[1-from], got); err != nil {
		t.Fatalf("after %d of %d bytes: %v", n, len(data), err)
	}
	if !bytes.Equal(got, data) {
		t.Fatalf("%d bytes came out as others", len(data))
	}
}

func random(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	return data
}

func wantEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d bytes and %v in place of the end", n, err)
	}
}

// TestFerry carries messages of all sizes both ways, more than a ferry carries
// by itself among them, and then half-closes one side after the other.
func TestFerry(t *testing.T) {
	for _, bulk := range []bool{false, true} {
		f := newFerryTest(t, "begun")
		got := make([]byte, 5)
		if _, err := io.ReadFull(f.ends[1], got); err != nil || string(got) != "begun" {
			t.Fatalf("%q, %v", got, err)
		}
		sizes := []int{1, 64, tunnelBuffer - 1, tunnelBuffer, tunnelBuffer + 1, 7}
		if bulk {
			sizes = append(sizes, 3*tunnelBulk+5, 1, 2, tunnelBulk, 3)
		}
		sum := int64(0)
		for _, n := range sizes {
			f.says(t, 0, random(n))
			f.says(t, 1, random(n))
			sum += int64(n)
		}
		_ = f.ends[0].CloseWrite()
		wantEnd(t, f.ends[1])
		f.says(t, 1, []byte("still there"))
		sum += int64(len("still there"))
		_ = f.ends[1].CloseWrite()
		wantEnd(t, f.ends[0])
		if n := f.ended(t); n != sum {
			t.Errorf("bulk %t: %d bytes, want %d", bulk, n, sum)
		}
	}
}

// TestFerryEndWithBytes has the end come together with the last bytes: it is
// not to wait for anything.
func TestFerryEndWithBytes(t *testing.T) {
	for range 50 {
		f := newFerryTest(t, "")
		f.says(t, 0, []byte("x"))
		f.says(t, 1, []byte("y"))
		_, _ = f.ends[0].Write([]byte("bye"))
		_ = f.ends[0].CloseWrite()
		if got, err := io.ReadAll(f.ends[1]); err != nil || string(got) != "bye" {
			t.Fatalf("%q, %v", got, err)
		}
		_, _ = f.ends[1].Write([]byte("bye"))
		_ = f.ends[1].Close()
		if got, err := io.ReadAll(f.ends[0]); err != nil || string(got) != "bye" {
			t.Fatalf("%q, %v", got, err)
		}
		f.ended(t)
	}
}

// newTunnelTest is a tunnel that nobody carries yet.
func newTunnelTest(t *testing.T) *ferryTest {
	t.Helper()
	f := &ferryTest{fleet: new(Ferries), over: make(chan int64, 1)}
	t.Cleanup(f.fleet.Close)
	a, nearA := tcpPair(t)
	b, nearB := tcpPair(t)
	f.ends = [2]*net.TCPConn{a, b}
	f.tunnel = newTunnel(socketOf(t, nearA), socketOf(t, nearB))
	_, _ = nearA.Close(), nearB.Close()
	t.Cleanup(func() { _, _ = f.tunnel.banks[0].sock.Close(), f.tunnel.banks[1].sock.Close() })
	return f
}

// tcpInfo asks the kernel about a connection.
func tcpInfo(t *testing.T, c syscall.Conn) (info *unix.TCPInfo) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// TestFerryEndInOnePacket has the last bytes and the end, which have come
// together, leave together.
func TestFerryEndInOnePacket(t *testing.T) {
	f := newTunnelTest(t)
	_, _ = f.ends[0].Write([]byte("bye"))
	_ = f.ends[0].CloseWrite()
	b := &f.tunnel.banks[0]
	await(t, "the end has come", func() bool {
		state := byte(0)
		b.sock.with(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				state = info.State
			}
		})
		return state == unix.BPF_TCP_CLOSE_WAIT
	})
	before := tcpInfo(t, f.ends[1]).Segs_in
	one := &ferry{}
	if !one.carry(b, unix.EPOLLIN|unix.EPOLLRDHUP, make([]byte, tunnelBuffer)) {
		t.Fatal("the tunnel left the ferry")
	}
	if got, err := io.ReadAll(f.ends[1]); err != nil || string(got) != "bye" {
		t.Fatalf("%q, %v", got, err)
	}
	if n := tcpInfo(t, f.ends[1]).Segs_in - before; n != 1 {
		t.Errorf("the last bytes and the end came in %d packets", n)
	}
}

// TestFirst sends on what has come before anybody waits, and keeps what cannot be.
func TestFirst(t *testing.T) {
	f := newTunnelTest(t)
	if rest, failed := f.tunnel.first(); failed || rest != nil {
		t.Fatalf("nothing has come, but %q is left, failed %t", rest, failed)
	}
	_, _ = f.ends[0].Write([]byte("hello"))
	await(t, "it has come", func() bool { return f.waits(0) })
	if rest, failed := f.tunnel.first(); failed || len(rest) > 0 {
		t.Fatalf("%d bytes are left, failed %t", len(rest), failed)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(f.ends[1], got); err != nil || string(got) != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
	// The other side takes nothing more, sooner or later.
	var want, rest []byte
	await(t, "something is left", func() bool {
		f.tunnel.banks[1].sock.with(func(fd uintptr) {
			for piece := random(1000); ; {
				n, errno := send(fd, piece, unix.MSG_NOSIGNAL)
				if errno != 0 {
					return
				}
				want = append(want, piece[:n]...)
			}
		})
		data := random(5000)
		_, _ = f.ends[0].Write(data)
		want = append(want, data...)
		for taken := int64(0); taken < int64(len(data)) && len(rest) == 0; {
			before := f.tunnel.banks[0].n
			var failed bool
			if rest, failed = f.tunnel.first(); failed {
				t.Fatal("it failed")
			}
			taken += f.tunnel.banks[0].n - before
		}
		return len(rest) > 0
	})
	_ = f.ends[0].CloseWrite()
	go func() { f.over <- f.tunnel.carry(f.fleet, rest) }()
	all, err := io.ReadAll(f.ends[1])
	if err != nil || !bytes.Equal(all, want) {
		t.Errorf("%d of %d bytes, equal %t, %v", len(all), len(want), bytes.Equal(all, want), err)
	}
	_ = f.ends[1].Close()
	f.ended(t)

	f = newTunnelTest(t)
	_ = f.ends[0].SetLinger(0)
	_ = f.ends[0].Close()
	await(t, "the reset has come", func() bool {
		_, failed := f.tunnel.first()
		return failed
	})
}

// TestFerrySlow has a side that takes nothing for a while: nothing is lost, and
// nobody else waits for it.
func TestFerrySlow(t *testing.T) {
	f, other := newFerryTest(t, ""), newFerryTest(t, "")
	f.says(t, 0, []byte("x"))
	f.tunnel.banks[1].sock.with(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10) })
	data := random(2 << 20) // more than the sockets hold
	full := make(chan struct{})
	go func() {
		defer func() { _ = f.ends[0].CloseWrite() }()
		taken := true // one by one, as long as somebody takes them, so that it is no bulk
		for piece := range slices.Chunk(data, 3000) {
			if _, err := f.ends[0].Write(piece); err != nil {
				return
			}
			for since := time.Now(); taken && f.waits(0); time.Sleep(time.Millisecond) {
				if taken = time.Since(since) < time.Second; !taken {
					close(full)
				}
			}
		}
	}()
	for range 100 {
		other.says(t, 0, []byte("a message"))
		f.says(t, 1, []byte("the other way"))
	}
	<-full
	got, err := io.ReadAll(f.ends[1])
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d of %d bytes, equal %t, %v", len(got), len(data), bytes.Equal(got, data), err)
	}
	_ = f.ends[1].Close()
	f.ended(t)
	other.tunnel.cut()
	other.ended(t)
}

// TestFerryEnds ends tunnels by a reset of either side, and from outside.
func TestFerryEnds(t *testing.T) {
	for name, end := range map[string]func(*ferryTest){
		"reset by the first":  func(f *ferryTest) { _ = f.ends[0].SetLinger(0); _ = f.ends[0].Close() },
		"reset by the second": func(f *ferryTest) { _ = f.ends[1].SetLinger(0); _ = f.ends[1].Close() },
		"cut":                 func(f *ferryTest) { f.tunnel.cut() },
	} {
		for _, bulk := range []bool{false, true} {
			f := newFerryTest(t, "")
			f.says(t, 0, []byte("x"))
			if bulk {
				f.says(t, 1, random(tunnelBulk))
			}
			end(f)
			f.ended(t)
			if t.Failed() {
				t.Log(name, bulk)
			}
		}
	}
}

// TestFerryLeaves has a ferry know nothing of tunnels that have ended.
func TestFerryLeaves(t *testing.T) {
	f := newFerryTest(t, "")
	f.says(t, 0, []byte("x"))
	_, _ = f.ends[0].Close(), f.ends[1].Close()
	f.ended(t)
	for _, one := range f.fleet.list {
		one.mu.Lock()
		if len(one.banks) != 0 {
			t.Errorf("%d banks are left", len(one.banks))
		}
		one.mu.Unlock()
	}
}

// TestCarry carries connections of all sorts, and ends some from outside. What
// carries them closes them.
func TestCarry(t *testing.T) {
	plain := func(c *net.TCPConn) net.Conn { return c }
	polled := func(c *net.TCPConn) net.Conn {
		s := socketOf(t, c)
		_ = c.Close()
		_ = s.SetDeadline(time.Now().Add(30 * time.Second)) // as whoever reads something before
		_ = s.SetDeadline(time.Time{})
		return s
	}
	opaque := func(c *net.TCPConn) net.Conn {
		return struct {
			net.Conn
			closeWriter
		}{c, c}
	}
	for name, wrap := range map[string][2]func(*net.TCPConn) net.Conn{
		"plain": {plain, plain}, "socket": {polled, plain}, "one is opaque": {plain, opaque}, "the other is opaque": {opaque, polled},
	} {
		t.Run(name, func(t *testing.T) {
			var fleet Ferries
			defer fleet.Close()
			for _, end := range []string{"closed", "cut", "silent"} {
				a, nearA := tcpPair(t)
				b, nearB := tcpPair(t)
				nears := []string{inode(t, nearA), inode(t, nearB)}
				_, _ = nearA.SetDeadline(time.Time{}), nearB.SetDeadline(time.Time{})
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				over := make(chan struct{})
				idle := time.Duration(0)
				if end == "silent" {
					idle = 2 * time.Second
				}
				fleet.Carry(ctx, wrap[0](nearA), wrap[1](nearB), []byte("begun"), idle, func() { close(over) })
				f := &ferryTest{ends: [2]*net.TCPConn{a, b}}
				got := make([]byte, 5)
				if _, err := io.ReadFull(b, got); err != nil || string(got) != "begun" {
					t.Fatalf("%q, %v", got, err)
				}
				f.says(t, 0, []byte("question"))
				f.says(t, 1, []byte("answer"))
				switch end {
				case "cut":
					cancel()
				case "closed":
					_ = a.CloseWrite()
					wantEnd(t, b)
					f.says(t, 1, random(tunnelBulk))
					_ = b.CloseWrite()
				}
				select {
				case <-over:
				case <-time.After(30 * time.Second):
					t.Fatalf("%s: it did not end", end)
				}
				wantEnd(t, a)
				for _, near := range nears {
					if isOpen(near) {
						t.Errorf("%s: a connection was left open", end)
					}
				}
			}
		})
	}
}

type closeWriter interface{ CloseWrite() error }

// inode tells the socket of a connection, whoever has it.
func inode(t *testing.T, c *net.TCPConn) string {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var stat unix.Stat_t
	_ = raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &stat) })
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("socket:[%d]", stat.Ino)
}

// isOpen reports whether the process has a socket.
func isOpen(inode string) bool {
	files, _ := filepath.Glob("/proc/self/fd/*")
	return slices.ContainsFunc(files, func(name string) bool {
		to, _ := os.Readlink(name)
		return to == inode
	})
}

// tunneller has requests upgraded by the backend at an address.
type tunneller string

// ServeHTTP1 implements Handler.
func (to tunneller) ServeHTTP1(c *Conn) {
	conn, err := net.Dial("tcp", string(to))
	if err != nil {
		c.Answer(502, nil, err.Error())
		return
	}
	b := NewBackend(conn)
	defer b.Close()
	if err := c.Send(b, []byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"), Timeouts{}); err != nil {
		c.Answer(502, nil, err.Error())
		return
	}
	_ = c.Tunnel(b, nil)
}

// TestTunnelCut upgrades a connection whose client was waited for, has it
// closed by a half, and ends another at the end of the server's patience.
func TestTunnelCut(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for line := ""; line != "\r\n"; {
					if line, err = r.ReadString('\n'); err != nil {
						return
					}
				}
				_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				_, _ = io.Copy(c, r)
			}()
		}
	}()
	l := openLobby(t, Options{Handler: tunneller(echo.Addr().String())}, nil)
	upgraded := func() (*net.TCPConn, *bufio.Reader) {
		c, err := net.Dial("tcp", l.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n")
		time.Sleep(10 * time.Millisecond) // most likely somebody waits for the rest by then
		_, _ = io.WriteString(c, "Connection: Upgrade\r\nUpgrade: echo\r\n\r\nat once\n")
		r := bufio.NewReader(c)
		for _, want := range []string{"HTTP/1.1 101 Switching Protocols\r\n", "Upgrade: echo\r\n", "Connection: Upgrade\r\n", "\r\n", "at once\n"} {
			if line, err := r.ReadString('\n'); err != nil || line != want {
				t.Fatalf("%q, %v, want %q", line, err, want)
			}
		}
		return c.(*net.TCPConn), r
	}
	c, r := upgraded()
	_, _ = io.WriteString(c, "bye")
	_ = c.CloseWrite()
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "bye" {
		t.Errorf("%q, %v", rest, err)
	}
	await(t, "the first is counted out", func() bool { return l.ended.Load() == 1 })
	c, r = upgraded()
	_, _ = io.WriteString(c, "hello\n")
	if line, err := r.ReadString('\n'); err != nil || line != "hello\n" {
		t.Fatalf("%q, %v", line, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l.Drain(ctx)
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}
