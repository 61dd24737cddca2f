package forward

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/dnstest"
)

func TestParseServer(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1":                      "192.0.2.1:53",
		"192.0.2.1:5353":                 "192.0.2.1:5353",
		"2001:db8::1":                    "[2001:db8::1]:53",
		"[2001:db8::1]":                  "[2001:db8::1]:53",
		"[2001:db8::1]:5353":             "[2001:db8::1]:5353",
		"tls://9.9.9.9":                  "tls://9.9.9.9:853",
		"tls://9.9.9.9#dns.quad9.net":    "tls://9.9.9.9:853#dns.quad9.net",
		"tls://[2620:fe::fe]:8853#a.net": "tls://[2620:fe::fe]:8853#a.net",
		"":                               "",
		"dns.quad9.net":                  "",
		"tls://dns.quad9.net":            "",
		"tls://9.9.9.9#":                 "",
		"9.9.9.9#dns.quad9.net":          "",
		"192.0.2.1:0":                    "",
		"https://9.9.9.9":                "",
	} {
		s, err := ParseServer(text)
		switch {
		case want == "" && (err == nil || !strings.Contains(err.Error(), text)):
			t.Errorf("%q: %v, %v", text, s, err)
		case want != "" && (err != nil || s.String() != want):
			t.Errorf("%q: got %v, %v", text, s, err)
		}
		if err != nil {
			continue
		}
		if again, err := ParseServer(s.String()); err != nil || again != s {
			t.Errorf("%q: %v read again is %v, %v", text, s, again, err)
		}
	}
}

func TestParseStub(t *testing.T) {
	s, err := ParseStub("corp.example=192.0.2.1, tls://192.0.2.2#ns.corp.example")
	if err != nil || s.Domain != "corp.example" || len(s.Servers) != 2 || s.Servers[1].Name != "ns.corp.example" {
		t.Errorf("got %v, %v", s, err)
	}
	for _, bad := range []string{"", "corp.example", "=192.0.2.1", ".=192.0.2.1", "corp.example=", "corp.example=ns", "a..b=192.0.2.1"} {
		if s, err := ParseStub(bad); err == nil {
			t.Errorf("%q: got %v", bad, s)
		}
	}
}

func TestStubDomains(t *testing.T) {
	address := func(a string) dnstest.Handler {
		return func(q *dns.Msg, _ string) [][]byte {
			return dnstest.Reply(t, q, nil, q.Question[0].Name+" 60 IN A "+a)
		}
	}
	rest, corp, lab := dnstest.New(t, address("192.0.2.1")), dnstest.New(t, address("192.0.2.2")), dnstest.New(t, address("192.0.2.3"))
	f, _ := newForwarder(t, Options{Stubs: []Stub{
		{Domain: "corp.example", Servers: Plain(corp.Addr)}, {Domain: "Lab.corp.example.", Servers: Plain(lab.Addr)},
	}}, rest)
	for name, want := range map[string]string{
		"www.example.com.": "192.0.2.1", "notcorp.example.": "192.0.2.1", "example.": "192.0.2.1",
		"corp.example.": "192.0.2.2", "WWW.CORP.example.": "192.0.2.2", "xlab.corp.example.": "192.0.2.2",
		"lab.corp.example.": "192.0.2.3", "a.b.lab.corp.example.": "192.0.2.3",
	} {
		if got := answer(t, f, Query{Name: name, Type: dns.TypeA}); !strings.HasSuffix(got, "\t"+want) {
			t.Errorf("%s: got %q, want %s", name, got, want)
		}
	}
}

// Names of a stub domain must not leak to others, whatever its servers do.
func TestStubDomainThatFails(t *testing.T) {
	rest, corp := dnstest.New(t, says(t, record)), dnstest.New(t, silent)
	f, _ := newForwarder(t, Options{Timeout: 200 * time.Millisecond, Stubs: []Stub{{Domain: "corp.example", Servers: Plain(corp.Addr)}}}, rest)
	if _, _, err := f.Resolve(t.Context(), Query{Name: "www.corp.example.", Type: dns.TypeA}); err == nil {
		t.Error("answered")
	}
	if n := rest.UDP.Load(); n != 0 {
		t.Errorf("%d questions went to the servers of other names", n)
	}
}

func TestStubsRefused(t *testing.T) {
	self := netip.MustParseAddrPort("10.96.0.10:53")
	other := Plain(netip.MustParseAddrPort("192.0.2.1:53"))
	for name, stubs := range map[string][]Stub{
		"itself":     {{Domain: "a", Servers: Plain(self)}},
		"no server":  {{Domain: "a"}},
		"given once": {{Domain: "a", Servers: other}, {Domain: "A.", Servers: other}},
	} {
		f := &Forwarder{opts: Options{Stubs: stubs, Self: []netip.AddrPort{self}}}
		if err := f.checkStubs(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestPolicy(t *testing.T) {
	const questions = 60
	for policy, even := range map[Policy]bool{Sequential: false, RoundRobin: true, Random: true} {
		t.Run(string(policy), func(t *testing.T) {
			none := says(t, "a. 0 IN A 192.0.2.1")
			a, b, c := dnstest.New(t, none), dnstest.New(t, none), dnstest.New(t, none)
			f, _ := newForwarder(t, Options{Policy: policy, Timeout: time.Minute}, a, b, c)
			for range questions {
				answer(t, f, Query{Name: "a.", Type: dns.TypeA})
			}
			counts := []int32{a.UDP.Load(), b.UDP.Load(), c.UDP.Load()}
			switch {
			case !even && counts[0] != questions:
				t.Errorf("asked %v times", counts)
			case policy == RoundRobin && (counts[0] != questions/3 || counts[1] != questions/3):
				t.Errorf("asked %v times", counts)
			case policy == Random && (counts[0] == 0 || counts[1] == 0 || counts[2] == 0): // by chance once in 10^10
				t.Errorf("asked %v times", counts)
			}
		})
	}
	if _, err := New(Options{Policy: "loudest", Cache: mustCache(t), Logger: discard}); err == nil {
		t.Error("an unknown policy is taken")
	}
}

// tlsServer is a name server by DNS over TLS.
type tlsServer struct {
	addr                   netip.AddrPort
	roots                  *x509.CertPool
	connections, questions atomic.Int32

	mu   sync.Mutex
	open []net.Conn
}

// newTLSServer starts one with a certificate for dns.example. It answers each
// question in a goroutine of its own, so in any order.
func newTLSServer(t *testing.T, h func(q *dns.Msg) [][]byte) *tlsServer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"dns.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s := &tlsServer{roots: x509.NewCertPool()}
	s.roots.AddCert(leaf)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().(*net.TCPAddr).AddrPort()
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); s.drop(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.open = append(s.open, conn)
			s.mu.Unlock()
			wg.Go(func() { s.serve(conn, h) })
		}
	})
	return s
}

// drop closes the connections that are open.
func (s *tlsServer) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.open {
		c.Close()
	}
	s.open = nil
}

func (s *tlsServer) serve(conn net.Conn, h func(q *dns.Msg) [][]byte) {
	defer conn.Close()
	if conn.(*tls.Conn).Handshake() != nil {
		return
	}
	s.connections.Add(1)
	var mu sync.Mutex
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
		s.questions.Add(1)
		go func() {
			for _, p := range h(q) {
				mu.Lock()
				_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
				mu.Unlock()
			}
		}()
	}
}

func (s *tlsServer) as(name string) []Server { return []Server{{Addr: s.addr, TLS: true, Name: name}} }

func TestTLSConnectionIsShared(t *testing.T) {
	const together = 20
	var arrived sync.WaitGroup
	arrived.Add(together)
	s := newTLSServer(t, func(q *dns.Msg) [][]byte {
		name := q.Question[0].Name
		if strings.HasPrefix(name, "many") {
			arrived.Done()
			arrived.Wait() // answered only once all of them have been asked
		}
		return dnstest.Reply(t, q, nil, name+" 0 IN TXT "+name)
	})
	f, _ := newForwarder(t, Options{Upstreams: s.as("dns.example"), TLSRoots: s.roots, Timeout: time.Minute})
	ask := func(name string) {
		m, _, err := f.Resolve(t.Context(), Query{Name: name, Type: dns.TypeTXT})
		if err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.TXT).Txt[0] != name {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	ask("first.")
	var wg sync.WaitGroup
	for i := range together {
		wg.Go(func() { ask("many" + string(rune('a'+i)) + ".") })
	}
	wg.Wait()
	if n := s.connections.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestTLSConnectionThatTheServerClosed(t *testing.T) {
	s := newTLSServer(t, func(q *dns.Msg) [][]byte { return dnstest.Reply(t, q, nil, "a. 0 IN A 192.0.2.1") })
	u := newUpstream(s.as("dns.example")[0], usually, s.roots, mustMetrics(t))
	defer u.close()
	for range 20 {
		if _, err := u.exchange(t.Context(), Query{Name: "a.", Type: dns.TypeA}); err != nil {
			t.Fatal(err)
		}
		s.drop()
	}
}

// A server that cannot show that it is the one must never see a question.
func TestTLSCertificate(t *testing.T) {
	s := newTLSServer(t, func(q *dns.Msg) [][]byte { return dnstest.Reply(t, q, nil, record) })
	for name, o := range map[string]Options{
		"another name":   {Upstreams: s.as("other.example"), TLSRoots: s.roots},
		"no address":     {Upstreams: s.as(""), TLSRoots: s.roots},
		"another issuer": {Upstreams: s.as("dns.example"), TLSRoots: x509.NewCertPool()},
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := newForwarder(t, o)
			if m, _, err := f.Resolve(t.Context(), query); err == nil {
				t.Errorf("answered %v", m)
			}
			if n := s.questions.Load(); n != 0 {
				t.Errorf("%d questions were sent", n)
			}
		})
	}
}

func TestTLSLies(t *testing.T) {
	for name, lie := range map[string]func(q *dns.Msg) [][]byte{
		"wrong ID": func(q *dns.Msg) [][]byte { return dnstest.Reply(t, q, func(m *dns.Msg) { m.Id++ }, record) },
		"wrong name": func(q *dns.Msg) [][]byte {
			return dnstest.Reply(t, q, func(m *dns.Msg) { m.Question[0].Name = "x." }, record)
		},
		"garbage":   func(*dns.Msg) [][]byte { return [][]byte{{1, 2, 3}} },
		"nothing":   func(*dns.Msg) [][]byte { return [][]byte{{}} },
		"truncated": func(q *dns.Msg) [][]byte { return dnstest.Reply(t, q, func(m *dns.Msg) { m.Truncated = true }, record) },
		"silence":   func(*dns.Msg) [][]byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := newTLSServer(t, lie)
			good := dnstest.New(t, says(t, record))
			f, _ := newForwarder(t, Options{Upstreams: s.as("dns.example"), TLSRoots: s.roots, Timeout: 2 * time.Second}, good)
			if got := answer(t, f, query); got != "Www.example.com.\t60\tIN\tA\t192.0.2.1" {
				t.Errorf("got %q", got)
			}
			u := (*f.servers.Load())[0]
			eventually(t, func() bool {
				u.streams.mu.Lock()
				defer u.streams.mu.Unlock()
				for _, s := range u.streams.open {
					s.mu.Lock()
					n := len(s.waiting)
					s.mu.Unlock()
					if n > 0 {
						return false
					}
				}
				return true
			})
		})
	}
}

func TestTLSConnectionsEndWithTheForwarder(t *testing.T) {
	s := newTLSServer(t, func(q *dns.Msg) [][]byte { return dnstest.Reply(t, q, nil, record) })
	f, _ := newForwarder(t, Options{Upstreams: s.as("dns.example"), TLSRoots: s.roots})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	answer(t, f, query)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	u := (*f.servers.Load())[0]
	eventually(t, func() bool {
		u.streams.mu.Lock()
		defer u.streams.mu.Unlock()
		return len(u.streams.open) == 0
	})
}

func FuzzParseServer(f *testing.F) {
	for _, s := range []string{"192.0.2.1", "tls://9.9.9.9#dns.quad9.net", "[2001:db8::1]:53", "fe80::1%eth0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseServer(text)
		if err != nil {
			return
		}
		if again, err := ParseServer(s.String()); err != nil || again != s {
			t.Fatalf("%q is %v, and read again %v, %v", text, s, again, err)
		}
	})
}

func mustMetrics(t *testing.T) *metrics {
	t.Helper()
	m, err := newMetrics(nil, mustCache(t), "")
	if err != nil {
		t.Fatal(err)
	}
	return m
}
