// Package dnstest is a name server for tests that says what it is told to,
// lies included. It must not be imported by anything but tests.
package dnstest

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// Handler returns the packets to send back for a query, none for silence.
// Network is "udp" or "tcp".
type Handler func(q *dns.Msg, network string) [][]byte

// Server is a name server on the loopback interface, by UDP and TCP.
type Server struct {
	// Addr is where it listens.
	Addr netip.AddrPort
	// UDP and TCP count the queries.
	UDP, TCP atomic.Int32

	handler atomic.Pointer[Handler]
}

// New starts a server that ends with the test.
func New(t testing.TB, h Handler) *Server {
	t.Helper()
	udp, tcp := Listen(t)
	s := &Server{Addr: udp.LocalAddr().(*net.UDPAddr).AddrPort()}
	s.Handle(h)
	var wg sync.WaitGroup
	wg.Go(func() { s.serveUDP(udp) })
	wg.Go(func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { s.serveTCP(conn) })
		}
	})
	t.Cleanup(func() {
		udp.Close()
		tcp.Close()
		wg.Wait()
	})
	return s
}

// Listen opens one port for both protocols. The kernel picks a port that is
// free for one of them only; the other may have it in use by another test, or
// by a connection going out, so it is asked again until it gives a pair.
func Listen(t testing.TB) (*net.UDPConn, *net.TCPListener) {
	t.Helper()
	var taken error
	for range 50 {
		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: udp.LocalAddr().(*net.UDPAddr).Port})
		if err == nil {
			return udp, tcp
		}
		udp.Close()
		taken = err
	}
	t.Fatalf("no port free for both UDP and TCP: %v", taken)
	return nil, nil
}

// Handle replaces the handler.
func (s *Server) Handle(h Handler) { s.handler.Store(&h) }

func (s *Server) serveUDP(conn *net.UDPConn) {
	buf := make([]byte, 65535)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		q := new(dns.Msg)
		if q.Unpack(buf[:n]) != nil {
			continue
		}
		s.UDP.Add(1)
		go func() {
			for _, p := range (*s.handler.Load())(q, "udp") {
				_, _ = conn.WriteToUDPAddrPort(p, from)
			}
		}()
	}
}

func (s *Server) serveTCP(conn net.Conn) {
	defer conn.Close()
	for {
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		buf := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, buf); err != nil {
			return
		}
		q := new(dns.Msg)
		if q.Unpack(buf) != nil {
			return
		}
		s.TCP.Add(1)
		for _, p := range (*s.handler.Load())(q, "tcp") {
			_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
		}
	}
}

// Reply is a good answer with records in presentation form; edit, where not
// nil, changes it before it is packed.
func Reply(t testing.TB, q *dns.Msg, edit func(*dns.Msg), records ...string) [][]byte {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Errorf("record %q: %v", r, err)
			continue
		}
		if _, soa := rr.(*dns.SOA); soa && q.Question[0].Qtype != dns.TypeSOA {
			m.Ns = append(m.Ns, rr)
			continue
		}
		m.Answer = append(m.Answer, rr)
	}
	if edit != nil {
		edit(m)
	}
	p, err := m.Pack()
	if err != nil {
		t.Errorf("pack %v: %v", m, err)
		return nil
	}
	return [][]byte{p}
}
