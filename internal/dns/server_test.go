package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/dnstest"
	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// run starts a server and returns its address.
func run(t *testing.T, s *Server) netip.AddrPort {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	eventually(t, func() bool {
		select {
		case err := <-done:
			t.Fatalf("Run ended: %v", err)
		default:
		}
		return s.Addrs() != nil
	})
	return s.Addrs()[0]
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("never came about")
}

func lookup(t *testing.T, network string, server netip.AddrPort, name string) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	m, _, err := c.Exchange(question(name, dns.TypeA), server.String())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFollowsTheStore(t *testing.T) {
	store := state.New()
	s := newServer(t, Options{Store: store})
	if s.Ready() {
		t.Error("ready before Run")
	}
	addr := run(t, s)
	const name = "new.default.svc.cluster.local."
	if m := lookup(t, "udp", addr, name); m.Rcode != dns.RcodeServerFailure || s.Ready() {
		t.Errorf("before sync: rcode %d, ready %v", m.Rcode, s.Ready())
	}
	store.Update(func(tx *state.Tx) { tx.SetSynced() })
	eventually(t, func() bool { return lookup(t, "udp", addr, name).Rcode == dns.RcodeNameError })
	if !s.Ready() {
		t.Error("not ready after sync")
	}
	k := model.Key{Namespace: "default", Name: "new"}
	store.Update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: k, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.99")}})
	})
	eventually(t, func() bool { return len(lookup(t, "udp", addr, name).Answer) == 1 })
	store.Update(func(tx *state.Tx) { tx.DeleteService(k) })
	eventually(t, func() bool { return lookup(t, "tcp", addr, name).Rcode == dns.RcodeNameError })
}

func dialTCP(t *testing.T, addr netip.AddrPort) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func framed(t *testing.T, q *dns.Msg) []byte {
	t.Helper()
	packed, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)
}

func readFramed(t *testing.T, r io.Reader) *dns.Msg {
	t.Helper()
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(r, buf); err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(buf); err != nil {
		t.Fatal(err)
	}
	return m
}

// A slow name does not hold up those behind it (RFC 7766 section 6.2.1.1), and
// a client that closed its side still gets its answers.
func TestTCPPipelining(t *testing.T) {
	release := make(chan struct{})
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		<-release
		return dnstest.Reply(t, q, nil, "slow.example.com. 60 IN A 192.0.2.1")
	})
	addr := run(t, newServer(t, Options{Upstreams: forward.Plain(up.Addr), UpstreamTimeout: 20 * time.Second}))
	conn := dialTCP(t, addr)
	slow, fast := question("slow.example.com.", dns.TypeA), question("web.default.svc.cluster.local.", dns.TypeA)
	slow.Id, fast.Id = 1, 2
	if _, err := conn.Write(append(framed(t, slow), framed(t, fast)...)); err != nil {
		t.Fatal(err)
	}
	if m := readFramed(t, conn); m.Id != 2 {
		t.Errorf("answer to %d came first", m.Id)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(release)
	if m := readFramed(t, conn); m.Id != 1 || len(m.Answer) != 1 {
		t.Errorf("slow answer %v", m)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("connection is not closed after the last answer: %v", err)
	}
}

func TestRunEndsWithOpenConnections(t *testing.T) {
	s := newServer(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	eventually(t, func() bool { return s.Addrs() != nil })
	addr := s.Addrs()[0]
	conn := dialTCP(t, addr)
	if _, err := conn.Write(framed(t, question("web.default.svc.cluster.local.", dns.TypeA))); err != nil {
		t.Fatal(err)
	}
	readFramed(t, conn)
	cancel()
	select {
	case err := <-done:
		if err != nil || s.Ready() {
			t.Errorf("Run: %v, ready %v", err, s.Ready())
		}
	case <-time.After(8 * time.Second):
		t.Fatal("an idle connection keeps Run from ending")
	}
	if l, err := net.Listen("tcp", addr.String()); err != nil {
		t.Errorf("port is still taken: %v", err)
	} else {
		l.Close()
	}
}

// TestAlso checks addresses that come and go while the server is at work.
func TestAlso(t *testing.T) {
	s := newServer(t, Options{})
	at := func(addr string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(addr), 10353) }
	if err := s.Also([]netip.AddrPort{at("127.0.0.2")}); err == nil {
		t.Error("a server that does not run serves at an address")
	}
	first := run(t, s)
	sockets := len(s.Sockets())
	answers := func(a netip.AddrPort) bool {
		p := NewPinger(a)
		defer p.Close()
		return p.Ping(t.Context(), time.Minute) == nil
	}
	for _, step := range [][]netip.AddrPort{{at("127.0.0.2")}, {at("127.0.0.3"), at("127.0.0.4")}, {at("127.0.0.3"), at("127.0.0.4")}, nil} {
		if err := s.Also(step); err != nil {
			t.Fatal(err)
		}
		if got := len(s.Sockets()); got != sockets*(1+len(step)) {
			t.Errorf("with %v it has %d sockets, and %d without", step, got, sockets)
		}
		for i := range byte(3) {
			a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 2 + i}), 10353)
			if want := slices.Contains(step, a); answers(a) != want {
				t.Errorf("with %v %s answers: %v", step, a, !want)
			}
		}
	}
	if err := s.Also([]netip.AddrPort{at("127.0.0.5"), first}); err == nil {
		t.Error("it opens an address that it has")
	}
	if answers(at("127.0.0.5")) || !answers(first) || len(s.Sockets()) != sockets {
		t.Error("an address of several could not be opened, and others are not as they were")
	}
	if got := lookup(t, "tcp", first, "web.prod.svc.cluster.local."); got == nil {
		t.Error("no answer")
	}
}

// TestAddressInUse: while somebody else has an address the server waits, and does
// not end the role that it is a part of.
func TestAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	start := func(ctx context.Context) (*Server, chan error) {
		s := newServer(t, Options{Listen: []netip.AddrPort{netip.MustParseAddrPort(taken.Addr().String())}})
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(50 * time.Millisecond) // it has tried
		return s, done
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, done := start(ctx)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("told to end while it waits: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	s, done := start(ctx)
	select {
	case err := <-done:
		t.Fatalf("it has ended: %v", err)
	default:
	}
	taken.Close()
	eventually(t, func() bool { return s.Addrs() != nil })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	log, listen := slog.New(slog.DiscardHandler), []netip.AddrPort{local}
	for name, o := range map[string]Options{
		"no store":       {Listen: listen, Logger: log},
		"no logger":      {Listen: listen, Store: state.New()},
		"no address":     {Store: state.New(), Logger: log},
		"every address":  {Store: state.New(), Logger: log, Listen: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:53")}},
		"bad domain":     {Store: state.New(), Logger: log, Listen: listen, Domain: "a..b"},
		"negative limit": {Store: state.New(), Logger: log, Listen: listen, MaxTCPPerClient: -1},
		"tiny answers":   {Store: state.New(), Logger: log, Listen: listen, MaxUDPSize: 100},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestFirstLoadWaits has a first complete state answered from once what has to be
// done first is done, or has taken too long, and all states after it at once.
func TestFirstLoadWaits(t *testing.T) {
	put := func(name string) func(tx *state.Tx) {
		return func(tx *state.Tx) {
			tx.PutService(&model.Service{
				Key: model.Key{Namespace: "default", Name: name}, IPv4: true, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.9")},
				Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}},
			})
			tx.SetSynced()
		}
	}
	for name, patience := range map[string]time.Duration{"it ends": time.Hour, "it does not": time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			store, after := state.New(), make(chan struct{})
			s := newServer(t, Options{Store: store, LoadAfter: after, loadPatience: patience})
			addr := run(t, s)
			store.Update(put("first"))
			if patience == time.Hour {
				if m := lookup(t, "udp", addr, "first.default.svc.cluster.local."); m.Rcode != dns.RcodeServerFailure || s.Ready() {
					t.Errorf("before: rcode %d, ready %v", m.Rcode, s.Ready())
				}
				close(after)
			}
			eventually(t, s.Ready)
			store.Update(put("second"))
			for _, name := range []string{"first", "second"} {
				eventually(t, func() bool {
					m := lookup(t, "udp", addr, name+".default.svc.cluster.local.")
					return m.Rcode == dns.RcodeSuccess && len(m.Answer) == 1
				})
			}
		})
	}
}
