package dns

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/dnstest"
	"fairway.dev/fairway/internal/dns/forward"
)

func TestTCPIdleConnectionIsClosed(t *testing.T) {
	addr := run(t, newServer(t, Options{TCPIdleTimeout: 100 * time.Millisecond}))
	conn := dialTCP(t, addr)
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// A client that does not go on with its query is not waited for as long as one
// that has nothing to ask.
func TestTCPPartOfAQuery(t *testing.T) {
	addr := run(t, newServer(t, Options{TCPIdleTimeout: time.Hour}))
	whole := framed(t, question("web.default.svc.cluster.local.", dns.TypeA))
	for name, sent := range map[string][]byte{
		"one byte of a length": whole[:1], "a length": whole[:2], "part of a message": whole[:20],
		"part of a second query": append(append([]byte(nil), whole...), whole[:5]...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := dialTCP(t, addr)
			if _, err := conn.Write(sent); err != nil {
				t.Fatal(err)
			}
			if len(sent) > len(whole) {
				readFramed(t, conn)
			}
			if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the connection is held: %v", err)
			}
		})
	}
	t.Run("in two parts", func(t *testing.T) {
		conn := dialTCP(t, addr)
		for _, part := range [][]byte{whole[:1], whole[1:9], whole[9:]} {
			if _, err := conn.Write(part); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
		readFramed(t, conn)
	})
}

// dialFrom opens a connection from an address of 127.0.0.0/8 and waits until it
// is taken in. What it sends is part of a query if part is true, else a whole one.
func dialFrom(t *testing.T, s *Server, from string, part bool) *net.TCPConn {
	t.Helper()
	clock := s.conns.clock.Load()
	conn, err := net.DialTCP("tcp", &net.TCPAddr{IP: net.ParseIP(from)}, net.TCPAddrFromAddrPort(s.Addrs()[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if part {
		_, _ = conn.Write([]byte{0}) // it may be closed already
		eventually(t, func() bool { return s.conns.clock.Load() > clock })
		return conn
	}
	ask(t, conn)
	return conn
}

func ask(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := conn.Write(framed(t, question("web.default.svc.cluster.local.", dns.TypeA))); err != nil {
		t.Fatal(err)
	}
	readFramed(t, conn)
}

func closed(conn net.Conn) bool {
	_, err := conn.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func openConns(s *Server) int {
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	return len(s.conns.open)
}

func busyConns(s *Server) (n int) {
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	for c := range s.conns.open {
		if c.busy.Load() > 0 {
			n++
		}
	}
	return n
}

func TestTCPIdlestConnectionMakesRoom(t *testing.T) {
	s := newServer(t, Options{MaxTCPConnections: 3, TCPIdleTimeout: time.Hour})
	run(t, s)
	first := dialFrom(t, s, "127.0.0.1", false)
	second := dialFrom(t, s, "127.0.0.2", false)
	third := dialFrom(t, s, "127.0.0.3", false)
	ask(t, first)
	dialFrom(t, s, "127.0.0.4", false)
	if !closed(second) {
		t.Error("the idlest connection stays open")
	}
	ask(t, first)
	ask(t, third)
	if n := openConns(s); n != 3 {
		t.Errorf("%d connections are open", n)
	}
}

// One client with as many connections as it can open, a byte on each, leaves
// the others theirs.
func TestTCPOneClientCannotTakeAll(t *testing.T) {
	s := newServer(t, Options{MaxTCPConnections: 20, MaxTCPPerClient: 5, TCPIdleTimeout: time.Hour})
	run(t, s)
	other := dialFrom(t, s, "127.0.0.2", false)
	for range 40 {
		dialFrom(t, s, "127.0.0.66", true)
	}
	if n := openConns(s); n > 6 {
		t.Errorf("%d connections are open", n)
	}
	ask(t, other)
	dialFrom(t, s, "127.0.0.3", false)
	ask(t, other)
	dialFrom(t, s, "127.0.0.66", false) // even the client itself, once it asks
}

// A connection whose query is being answered does not make room.
func TestTCPBusyConnectionStays(t *testing.T) {
	release, asked := make(chan struct{}), make(chan struct{}, 10)
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		if q.Question[0].Name != "slow.example.com." {
			return nil // the search for loops
		}
		asked <- struct{}{}
		<-release
		return dnstest.Reply(t, q, nil, "slow.example.com. 60 IN A 192.0.2.1")
	})
	s := newServer(t, Options{
		MaxTCPConnections: 2, MaxTCPPerClient: 1, TCPIdleTimeout: time.Hour,
		Upstreams: forward.Plain(up.Addr), UpstreamTimeout: 20 * time.Second,
	})
	run(t, s)
	busy := dialFrom(t, s, "127.0.0.1", false)
	if _, err := busy.Write(framed(t, question("slow.example.com.", dns.TypeA))); err != nil {
		t.Fatal(err)
	}
	<-asked
	idle := dialFrom(t, s, "127.0.0.2", false)
	if refused := dialFrom(t, s, "127.0.0.1", true); !closed(refused) {
		t.Error("a client has more connections than it may")
	}
	ask(t, idle)
	eventually(t, func() bool { return busyConns(s) == 1 }) // the client has its answer a moment earlier
	dialFrom(t, s, "127.0.0.3", false)
	if !closed(idle) {
		t.Error("the idle connection stays open")
	}
	close(release)
	if m := readFramed(t, busy); len(m.Answer) != 1 {
		t.Errorf("got %v", m)
	}
}

func TestTCPShare(t *testing.T) {
	assigned := []netip.Prefix{netip.MustParsePrefix("fd00:10:244::/48"), netip.MustParsePrefix("10.244.0.0/16")}
	tests := []struct {
		name, a, b string
		same       bool
	}{
		{"one IPv4 address", "192.0.2.1", "192.0.2.1", true},
		{"two IPv4 addresses", "192.0.2.1", "192.0.2.2", false},
		{"IPv4 mapped", "::ffff:192.0.2.1", "192.0.2.1", true},
		{"one /64", "2001:db8::1", "2001:db8::ffff:0:0:1", true},
		{"two /64", "2001:db8::1", "2001:db8:0:1::1", false},
		{"link-local", "fe80::1%eth0", "fe80::2", true},
		{"two Pods of a node", "fd00:10:244::5", "fd00:10:244::6", false},
		{"two Pods, IPv4", "10.244.0.5", "10.244.0.6", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := shareOf(netip.MustParseAddr(tt.a), assigned), shareOf(netip.MustParseAddr(tt.b), assigned)
			if (a == b) != tt.same {
				t.Errorf("%s counts as %v, %s as %v", tt.a, a, tt.b, b)
			}
		})
	}
}

// A client that sends a byte now and then (slow loris) is let go after the time
// for a whole query, however lively it looks.
func TestTCPSlowLoris(t *testing.T) {
	t.Parallel()
	s := newServer(t, Options{TCPIdleTimeout: time.Hour})
	run(t, s)
	conns := make([]*net.TCPConn, 20)
	for i := range conns {
		conns[i] = dialFrom(t, s, "127.0.0.66", true)
	}
	stop := make(chan struct{})
	defer close(stop)
	for _, conn := range conns {
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(200 * time.Millisecond):
					if _, err := conn.Write([]byte{0}); err != nil {
						return
					}
				}
			}
		}()
	}
	other := dialFrom(t, s, "127.0.0.2", false)
	eventually(t, func() bool { return openConns(s) == 1 })
	ask(t, other)
}

// A client that asks and asks and takes no answer is let go too, and holds no
// memory beyond its connection's buffers.
func TestTCPClientThatTakesNoAnswers(t *testing.T) {
	t.Parallel()
	s := newServer(t, Options{TCPIdleTimeout: time.Hour})
	addr := run(t, s)
	conn := dialTCP(t, addr)
	query := framed(t, question("crowd.default.svc.cluster.local.", dns.TypeA)) // 5 KB of answer each
	start := time.Now()
	for {
		if _, err := conn.Write(query); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection is held")
			}
			break
		}
	}
	if took := time.Since(start); took < tcpAnswerTimeout {
		t.Errorf("let go after %v", took)
	}
	eventually(t, func() bool { return openConns(s) == 0 })
}

// Queries that arrive at once are answered at once, in as few packets as it takes.
func TestTCPManyQueriesAtOnce(t *testing.T) {
	addr := run(t, newServer(t, Options{}))
	conn := dialTCP(t, addr)
	var all []byte
	const n = 500
	for i := range n {
		q := question("web.default.svc.cluster.local.", dns.TypeA)
		q.Id = uint16(i)
		all = append(all, framed(t, q)...)
	}
	if _, err := conn.Write(all); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if m := readFramed(t, conn); int(m.Id) != i || len(m.Answer) != 1 {
			t.Fatalf("answer %d: %v", i, m)
		}
	}
	if !closed(conn) {
		t.Error("the connection is held")
	}
}

// A query longer than any ends the connection.
func TestTCPQueryThatIsTooLong(t *testing.T) {
	addr := run(t, newServer(t, Options{}))
	conn := dialTCP(t, addr)
	whole := framed(t, question("web.default.svc.cluster.local.", dns.TypeA))
	if _, err := conn.Write(append(whole, 0xff, 0xff)); err != nil {
		t.Fatal(err)
	}
	readFramed(t, conn)
	if !closed(conn) {
		t.Error("it is waited for")
	}
}

// TestShortagesPass checks which errors of accept(2) do not end the server.
func TestShortagesPass(t *testing.T) {
	for errno, want := range map[syscall.Errno]bool{
		syscall.EMFILE: true, syscall.ENFILE: true, syscall.ENOMEM: true, syscall.ENOBUFS: true, syscall.ECONNABORTED: true,
		syscall.EINVAL: false, syscall.EBADF: false,
	} {
		err := &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", errno)}
		if got := passes(err); got != want {
			t.Errorf("%v: %v, want %v", errno, got, want)
		}
	}
}
