package datagram

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	loopback4 = netip.MustParseAddrPort("127.0.0.1:0")
	loopback6 = netip.MustParseAddrPort("[::1]:0")
)

func listen(t testing.TB, addr netip.AddrPort, n int) []*Socket {
	t.Helper()
	sockets, err := Listen(addr, n, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return sockets
}

// serve answers with the number of the socket in front, until the test ends.
func serve(t testing.TB, sockets []*Socket) {
	t.Helper()
	var wg sync.WaitGroup
	for i, s := range sockets {
		b := newBatch(t, s)
		wg.Go(func() {
			err := b.Serve(func(n int) {
				for k := range n {
					if packet, whole, _ := b.Packet(k); whole {
						b.Reply(k, append(append(b.Buffer(), byte(i)), packet...))
					}
				}
			})
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		for _, s := range sockets {
			s.Close()
		}
		wg.Wait()
	})
}

func newBatch(t testing.TB, s *Socket) *Batch {
	b := s.NewBatch(8, 512, 1024)
	b.Dropped = func(err error) { t.Errorf("dropped: %v", err) }
	return b
}

func dial(t testing.TB, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestEcho(t *testing.T) {
	for _, addr := range []netip.AddrPort{loopback4, loopback6} {
		t.Run(addr.Addr().String(), func(t *testing.T) {
			sockets := listen(t, addr, 2)
			serve(t, sockets)
			conn := dial(t, sockets[0].Addr)
			buf := make([]byte, 2000)
			for range 50 {
				if _, err := conn.Write([]byte("hello")); err != nil {
					t.Fatal(err)
				}
				n, err := conn.Read(buf)
				if err != nil || string(buf[1:n]) != "hello" {
					t.Fatalf("%q, %v", buf[:n], err)
				}
			}
		})
	}
}

func TestClientsAreSpread(t *testing.T) {
	sockets := listen(t, loopback4, 4)
	serve(t, sockets)
	seen := map[byte]int{}
	for range 200 {
		conn := dial(t, sockets[0].Addr)
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		if _, err := conn.Read(buf); err != nil {
			t.Fatal(err)
		}
		seen[buf[0]]++
		conn.Close()
	}
	if len(seen) != 4 {
		t.Errorf("sockets were chosen %v times", seen)
	}
}

func TestPacketThatIsTooLong(t *testing.T) {
	s := listen(t, loopback4, 1)[0]
	conn := dial(t, s.Addr)
	if _, err := conn.Write(make([]byte, 600)); err != nil {
		t.Fatal(err)
	}
	b := newBatch(t, s)
	err := b.Serve(func(n int) {
		packet, whole, from := b.Packet(0)
		if n != 1 || len(packet) != 512 || whole || from != conn.LocalAddr().(*net.UDPAddr).AddrPort() {
			t.Errorf("%d packets, %d bytes, whole %v, from %v", n, len(packet), whole, from)
		}
		go s.Close()
	})
	if err != nil {
		t.Error(err)
	}
}

func TestSend(t *testing.T) {
	for _, addr := range []netip.AddrPort{loopback4, loopback6} {
		s := listen(t, addr, 1)[0]
		conn := dial(t, s.Addr)
		if err := s.Send([]byte("late"), conn.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "late" {
			t.Errorf("%q, %v", buf[:n], err)
		}
		s.Close()
		if err := s.Send([]byte("too late"), conn.LocalAddr().(*net.UDPAddr).AddrPort()); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
}

// One answer that cannot be sent does not take the others with it.
func TestFlushGoesOn(t *testing.T) {
	s := listen(t, loopback4, 1)[0]
	conns := []*net.UDPConn{dial(t, s.Addr), dial(t, s.Addr), dial(t, s.Addr)}
	for i, conn := range conns {
		if _, err := conn.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	b := newBatch(t, s)
	dropped, seen := 0, 0
	b.Dropped = func(err error) {
		if dropped++; !errors.Is(err, syscall.EMSGSIZE) {
			t.Error(err)
		}
	}
	err := b.Serve(func(n int) {
		for i := range n {
			answer := append(b.Buffer(), 'y')
			if packet, _, _ := b.Packet(i); packet[0] == 1 {
				answer = make([]byte, 70000) // too long for UDP
			}
			b.Reply(i, answer)
		}
		if seen += n; seen == len(conns) {
			go func() {
				buf := make([]byte, 10)
				for _, i := range []int{0, 2} {
					if _, err := conns[i].Read(buf); err != nil || buf[0] != 'y' {
						t.Errorf("%q, %v", buf, err)
					}
				}
				s.Close()
			}()
		}
	})
	if err != nil || dropped != 1 {
		t.Errorf("%d dropped, %v", dropped, err)
	}
}

// More packets than fit in a batch arrive at once, and some while a batch is
// being answered: none is left lying.
func TestNothingIsLeftLying(t *testing.T) {
	sockets := listen(t, loopback4, 1)
	serve(t, sockets)
	var wg sync.WaitGroup
	for c := range 4 {
		conn := dial(t, sockets[0].Addr)
		wg.Go(func() {
			buf := make([]byte, 16)
			for round := range 300 {
				burst := 1 + (round+c)%20
				for range burst {
					if _, err := conn.Write([]byte("x")); err != nil {
						t.Error(err)
						return
					}
				}
				for range burst {
					if _, err := conn.Read(buf); err != nil {
						t.Errorf("round %d: %v", round, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestNobodyElseSharesThePort(t *testing.T) {
	s := listen(t, loopback4, 2)
	defer s[0].Close()
	defer s[1].Close()
	if _, err := Listen(s[0].Addr, 1, 1<<20); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second server has the port: %v", err)
	}
}

func TestCloseWakes(t *testing.T) {
	s := listen(t, loopback4, 1)[0]
	b := newBatch(t, s)
	done := make(chan error, 1)
	go func() { done <- b.Serve(func(int) {}) }()
	time.Sleep(20 * time.Millisecond) // so that it mostly waits already; either way it must end
	s.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the receiver sleeps on")
	}
}

func TestNothingIsAllocated(t *testing.T) {
	sockets := listen(t, loopback4, 1)
	serve(t, sockets)
	conn := dial(t, sockets[0].Addr)
	out, in := []byte("hello"), make([]byte, 100)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := conn.Write(out); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(in); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// The kernel tells that an answer has left whoever asked to know when a socket
// can be written to. Nobody must: it would wake a thread for nothing.
func TestNobodyIsWokenByAnswers(t *testing.T) {
	s := listen(t, loopback4, 1)[0]
	serve(t, []*Socket{s})
	conn := dial(t, s.Addr)
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 10)); err != nil { // now it is waited for
		t.Fatal(err)
	}
	var fd int
	if err := s.raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range files {
		info, _ := os.ReadFile(file) // of what has been closed since there is none
		for line := range strings.Lines(string(info)) {
			var n int
			var events uint32
			if _, err := fmt.Sscanf(line, "tfd: %d events: %x", &n, &events); err != nil || n != fd {
				continue
			}
			if found++; events&unix.EPOLLIN == 0 || events&unix.EPOLLOUT != 0 {
				t.Errorf("waits for events %#x", events)
			}
		}
	}
	if found != 1 {
		t.Errorf("the socket is in %d pollers", found)
	}
}
