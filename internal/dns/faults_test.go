package dns

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/internal/dns/dnstest"
	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/model"
)

// TestUpstreamFaults has clients ask the whole server, over sockets, while its
// upstreams lie, break and stall, in a network namespace of its own.
func TestUpstreamFaults(t *testing.T) {
	if os.Getenv(insideEnv) != "" {
		faultsInside(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestUpstreamFaults$", "-test.v", "-test.parallel=8")
	// Servers by TLS are verified by the system's authorities: those are ours.
	cmd.Env = append(os.Environ(), insideEnv+"=1", "SSL_CERT_FILE="+filepath.Join(t.TempDir(), "roots.pem"), "SSL_CERT_DIR=/nonexistent")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

const (
	truth = "192.0.2.1"
	lie   = "203.0.113.66"
)

// truthful and lying are answers with an address.
func truthful(t *testing.T, q *dns.Msg) []byte { return addressed(t, q, truth) }
func lying(t *testing.T, q *dns.Msg) []byte    { return addressed(t, q, lie) }

func addressed(t *testing.T, q *dns.Msg, addr string) []byte {
	return dnstest.Reply(t, q, nil, q.Question[0].Name+" 60 IN A "+addr)[0]
}

// edited is a lie that is changed once more.
func edited(t *testing.T, q *dns.Msg, edit func(*dns.Msg)) []byte {
	return dnstest.Reply(t, q, edit, q.Question[0].Name+" 60 IN A "+lie)[0]
}

func cut(t *testing.T, q *dns.Msg) [][]byte {
	return dnstest.Reply(t, q, func(m *dns.Msg) { m.Truncated = true })
}

// fault is an upstream that does one thing wrong. Asked alone it gives the true
// answer or none; with a good one beside it the true answer comes in time.
type fault struct {
	name string
	// server starts it.
	server func(t *testing.T) forward.Server
	// answers: it tells the truth all the same.
	answers bool
}

// overUDP answers queries by UDP as h does, those by TCP never.
func overUDP(h func(t *testing.T, q *dns.Msg) [][]byte) func(*testing.T) forward.Server {
	return func(t *testing.T) forward.Server {
		up := dnstest.New(t, func(q *dns.Msg, network string) [][]byte {
			if network != "udp" {
				return nil
			}
			return h(t, q)
		})
		return forward.Server{Addr: up.Addr}
	}
}

// overTCP cuts answers by UDP, and has conn for each connection.
func overTCP(conn func(t *testing.T, c *net.TCPConn)) func(*testing.T) forward.Server {
	return func(t *testing.T) forward.Server {
		p, l := dnstest.Listen(t)
		var wg sync.WaitGroup
		var mu sync.Mutex
		var open []net.Conn
		wg.Go(func() {
			buf := make([]byte, 4096)
			for {
				n, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				q := new(dns.Msg)
				if q.Unpack(buf[:n]) == nil {
					_, _ = p.WriteTo(cut(t, q)[0], from)
				}
			}
		})
		wg.Go(func() {
			for {
				c, err := l.AcceptTCP()
				if err != nil {
					return
				}
				mu.Lock()
				open = append(open, c)
				mu.Unlock()
				wg.Go(func() {
					defer c.Close()
					conn(t, c)
				})
			}
		})
		t.Cleanup(func() {
			l.Close()
			p.Close()
			mu.Lock()
			for _, c := range open {
				c.Close()
			}
			mu.Unlock()
			wg.Wait()
		})
		return forward.Server{Addr: l.Addr().(*net.TCPAddr).AddrPort()}
	}
}

func readQuery(c net.Conn) *dns.Msg {
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil
	}
	buf := make([]byte, binary.BigEndian.Uint16(length[:]))
	q := new(dns.Msg)
	if _, err := io.ReadFull(c, buf); err != nil || q.Unpack(buf) != nil {
		return nil
	}
	return q
}

func writeFramed(c io.Writer, p []byte) error {
	_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
	return err
}

// elsewhere answers from another socket than the one that was asked.
func elsewhere(from string) func(*testing.T) forward.Server {
	return func(t *testing.T) forward.Server {
		p, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		from := from
		if strings.HasSuffix(from, ":") { // the same port at another address
			from += fmt.Sprint(p.LocalAddr().(*net.UDPAddr).Port)
		}
		other, err := net.ListenPacket("udp", from)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 4096)
			for {
				n, client, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				q := new(dns.Msg)
				if q.Unpack(buf[:n]) == nil {
					_, _ = other.WriteTo(lying(t, q), client)
				}
			}
		}()
		t.Cleanup(func() { p.Close(); other.Close(); <-done })
		return forward.Server{Addr: p.LocalAddr().(*net.UDPAddr).AddrPort()}
	}
}

// authority signs certificates, and is among the system's authorities.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) issue(t *testing.T, name string, until time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// overTLS is a real name server by DNS over TLS.
func overTLS(cert tls.Certificate, h func(t *testing.T, q *dns.Msg) []byte) func(*testing.T) forward.Server {
	return func(t *testing.T) forward.Server {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
		if err != nil {
			t.Fatal(err)
		}
		server := &dns.Server{Listener: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { _, _ = w.Write(h(t, q)) })}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.ActivateAndServe()
		}()
		t.Cleanup(func() { l.Close(); <-done })
		return forward.Server{Addr: l.Addr().(*net.TCPAddr).AddrPort(), TLS: true, Name: "dns.example"}
	}
}

// withinTLS is a server with a good certificate that does with what is within the
// connection what it likes. It is called for each question, until it closes.
func withinTLS(cert tls.Certificate, h func(t *testing.T, q *dns.Msg, c net.Conn)) func(*testing.T) forward.Server {
	return rawTLS(func(t *testing.T, tcp *net.TCPConn) {
		c := tls.Server(tcp, &tls.Config{Certificates: []tls.Certificate{cert}})
		for {
			q := readQuery(c)
			if q == nil {
				return
			}
			h(t, q, c)
		}
	})
}

// rawTLS is a server that is asked by TLS, and does with connections what it likes.
func rawTLS(conn func(t *testing.T, c *net.TCPConn)) func(*testing.T) forward.Server {
	return func(t *testing.T) forward.Server {
		s := overTCP(conn)(t)
		s.TLS, s.Name = true, "dns.example"
		return s
	}
}

func stall(_ *testing.T, c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }

func faultsInside(t *testing.T) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	known, unknown := newAuthority(t), newAuthority(t)
	roots := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: known.cert.Raw})
	if err := os.WriteFile(os.Getenv("SSL_CERT_FILE"), roots, 0o600); err != nil {
		t.Fatal(err)
	}
	hour := time.Now().Add(time.Hour)
	good := known.issue(t, "dns.example", hour)
	many := func(n int, p func(i int) []byte) [][]byte {
		list := make([][]byte, n)
		for i := range list {
			list[i] = p(i)
		}
		return list
	}
	faults := []fault{
		{"silence", overUDP(func(*testing.T, *dns.Msg) [][]byte { return nil }), false},
		{"every ID but the right one", overUDP(func(t *testing.T, q *dns.Msg) [][]byte {
			return many(200, func(i int) []byte { return edited(t, q, func(m *dns.Msg) { m.Id += uint16(1 + i) }) })
		}), false},
		{"a wrong ID first, then the truth", overUDP(func(t *testing.T, q *dns.Msg) [][]byte {
			return [][]byte{edited(t, q, func(m *dns.Msg) { m.Id++ }), truthful(t, q)}
		}), true},
		{"another port", elsewhere("127.0.0.1:0"), false},
		{"another address", elsewhere("127.0.0.9:"), false},
		{"another name", overUDP(func(t *testing.T, q *dns.Msg) [][]byte {
			return [][]byte{edited(t, q, func(m *dns.Msg) { m.Question[0].Name = "other.example." })}
		}), false},
		{"another type", overUDP(func(t *testing.T, q *dns.Msg) [][]byte {
			return [][]byte{edited(t, q, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA })}
		}), false},
		{"two questions", overUDP(func(t *testing.T, q *dns.Msg) [][]byte {
			return [][]byte{edited(t, q, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) })}
		}), false},
		{"a query for an answer", overUDP(func(t *testing.T, q *dns.Msg) [][]byte {
			return [][]byte{edited(t, q, func(m *dns.Msg) { m.Response = false })}
		}), false},
		{"no question", overUDP(func(t *testing.T, q *dns.Msg) [][]byte {
			return [][]byte{edited(t, q, func(m *dns.Msg) { m.Question = nil })}
		}), false},
		{"garbage with the right ID", overUDP(func(_ *testing.T, q *dns.Msg) [][]byte {
			return many(100, func(i int) []byte {
				p := make([]byte, 12+13*i)
				_, _ = rand.Read(p)
				binary.BigEndian.PutUint16(p, q.Id)
				p[2] |= 0x80
				p[3] &= 0xf0 // a bare header that tells of failure would be an answer
				return p
			})
		}), false},
		{"half an answer", overUDP(func(t *testing.T, q *dns.Msg) [][]byte {
			p := lying(t, q)
			return [][]byte{p[:len(p)-5]}
		}), false},
		{"a name that points at itself", overUDP(func(t *testing.T, q *dns.Msg) [][]byte {
			p := edited(t, q, func(m *dns.Msg) { m.Compress = true })
			at := bytes.LastIndex(p, []byte{0xc0, 12})
			if at < 0 {
				return nil // a probe, for the root
			}
			binary.BigEndian.PutUint16(p[at:], 0xc000|uint16(at))
			return [][]byte{p}
		}), false},
		{"TC, and TCP is silent", overTCP(stall), false},
		{"TC, and TCP is reset", overTCP(func(_ *testing.T, c *net.TCPConn) {
			readQuery(c)
			_ = c.SetLinger(0)
		}), false},
		{"TC, and half an answer by TCP", overTCP(func(t *testing.T, c *net.TCPConn) {
			if q := readQuery(c); q != nil {
				p := lying(t, q)
				_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p[:len(p)/2]...))
			}
		}), false},
		{"TC, and 64 KiB of garbage by TCP", overTCP(func(_ *testing.T, c *net.TCPConn) {
			readQuery(c)
			p := make([]byte, 65535)
			_, _ = rand.Read(p)
			for writeFramed(c, p) == nil {
			}
		}), false},
		{"TC, and TC by TCP, too", overTCP(func(t *testing.T, c *net.TCPConn) {
			if q := readQuery(c); q != nil {
				_ = writeFramed(c, edited(t, q, func(m *dns.Msg) { m.Truncated = true }))
			}
		}), false},
		{"TC, and another question by TCP", overTCP(func(t *testing.T, c *net.TCPConn) {
			if q := readQuery(c); q != nil {
				_ = writeFramed(c, edited(t, q, func(m *dns.Msg) { m.Question[0].Name = "other.example." }))
			}
		}), false},
		{"TC, and the truth by TCP", overTCP(func(t *testing.T, c *net.TCPConn) {
			if q := readQuery(c); q != nil {
				_ = writeFramed(c, truthful(t, q))
			}
		}), true},
		{"SERVFAIL", overUDP(func(t *testing.T, q *dns.Msg) [][]byte {
			return dnstest.Reply(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure })
		}), false},

		{"TLS as it should be", overTLS(good, truthful), true},
		{"TLS, of an unknown authority", overTLS(unknown.issue(t, "dns.example", hour), lying), false},
		{"TLS, for another name", overTLS(known.issue(t, "dns.other", hour), lying), false},
		{"TLS, out of date", overTLS(known.issue(t, "dns.example", time.Now().Add(-time.Hour)), lying), false},
		{"TLS, and another question", overTLS(good, func(t *testing.T, q *dns.Msg) []byte {
			return edited(t, q, func(m *dns.Msg) { m.Question[0].Name = "other.example." })
		}), false},
		{"TLS, and another ID", overTLS(good, func(t *testing.T, q *dns.Msg) []byte { return edited(t, q, func(m *dns.Msg) { m.Id++ }) }), false},
		{"TLS, and garbage", withinTLS(good, func(_ *testing.T, q *dns.Msg, c net.Conn) {
			p := make([]byte, 200)
			_, _ = rand.Read(p)
			binary.BigEndian.PutUint16(p, q.Id)
			p[2] |= 0x80
			p[3] &= 0xf0
			_ = writeFramed(c, p)
		}), false},
		{"TLS, and 64 KiB of garbage without end", withinTLS(good, func(_ *testing.T, _ *dns.Msg, c net.Conn) {
			p := make([]byte, 65535)
			_, _ = rand.Read(p)
			for writeFramed(c, p) == nil {
			}
		}), false},
		{"TLS, and more counted than there is", withinTLS(good, func(t *testing.T, q *dns.Msg, c net.Conn) {
			p := lying(t, q)
			binary.BigEndian.PutUint16(p[6:], 9)
			_ = writeFramed(c, p)
		}), false},
		{"TLS, and TC", withinTLS(good, func(t *testing.T, q *dns.Msg, c net.Conn) {
			_ = writeFramed(c, edited(t, q, func(m *dns.Msg) { m.Truncated = true }))
		}), false},
		{"TLS, and half an answer, then the end", withinTLS(good, func(t *testing.T, q *dns.Msg, c net.Conn) {
			p := lying(t, q)
			_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p[:len(p)/2]...))
			c.Close()
		}), false},
		{"TLS, and half an answer, then silence", withinTLS(good, func(t *testing.T, q *dns.Msg, c net.Conn) {
			p := lying(t, q)
			_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p[:len(p)/2]...))
			_, _ = io.Copy(io.Discard, c)
		}), false},
		{"TLS, and answers that are cut in the connection", withinTLS(good, func(t *testing.T, q *dns.Msg, c net.Conn) {
			p := lying(t, q)
			_ = writeFramed(c, p[:len(p)-5])
		}), false},
		{"TLS, and the end in place of an answer", withinTLS(good, func(_ *testing.T, _ *dns.Msg, c net.Conn) { c.Close() }), false},
		{"TLS, and empty answers", withinTLS(good, func(_ *testing.T, _ *dns.Msg, c net.Conn) { _ = writeFramed(c, nil) }), false},
		{"TLS, and the truth byte by byte, twice", withinTLS(good, func(t *testing.T, q *dns.Msg, c net.Conn) {
			p := truthful(t, q)
			p = append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...)
			for _, b := range slices.Concat(p, p) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
			}
		}), true},
		{"TLS that never shakes hands", rawTLS(stall), false},
		{"TLS that is reset", rawTLS(func(_ *testing.T, c *net.TCPConn) { _ = c.SetLinger(0) }), false},
		{"no TLS at all", rawTLS(func(t *testing.T, c *net.TCPConn) {
			_ = writeFramed(c, bytes.Repeat([]byte("HTTP"), 100))
			stall(t, c)
		}), false},
	}
	before := runtime.NumGoroutine()
	t.Run("faults", func(t *testing.T) {
		for _, f := range faults {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				faulty(t, f.answers, f.server(t))
			})
			t.Run(f.name+", beside a good one", func(t *testing.T) {
				t.Parallel()
				up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte { return [][]byte{truthful(t, q)} })
				faulty(t, true, f.server(t), forward.Server{Addr: up.Addr})
			})
		}
	})
	// Nothing is left of 2,400 questions.
	slowly(t, func() bool { return runtime.NumGoroutine() < before+10 })
	t.Run("more than was asked for", poison)
	t.Run("cookies", cookies)
	t.Run("loop", loopLater)
}

// faulty asks many names at once and wants the truth, or where there is none,
// SERVFAIL.
func faulty(t *testing.T, answered bool, upstreams ...forward.Server) {
	const clients = 40
	timeout := time.Second
	if answered {
		timeout = 5 * time.Second // the good one comes third of it later, and the machine may be busy
	}
	addr, s := faultyServer(t, timeout, upstreams)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			name := fmt.Sprintf("n%d.example.", i)
			m, _, err := (&dns.Client{Net: []string{"udp", "tcp"}[i%2], Timeout: 20 * time.Second}).Exchange(question(name, dns.TypeA), addr.String())
			want := "NOERROR; " + name + " A " + truth
			if !answered {
				want = "SERVFAIL"
			}
			if got := told(m); err != nil || got != want {
				t.Errorf("%s: %s, %v, want %s", name, got, err, want)
			}
		})
	}
	wg.Wait()
	t.Logf("%d answers in %v", clients, time.Since(began).Round(time.Millisecond))
	if n := s.cache.Len(); !answered && n > 0 {
		t.Errorf("%d answers are kept", n)
	}
	// The zone is served as if nothing was.
	if got := told(lookup(t, "udp", addr, "db.default.svc.cluster.local.")); got != "NOERROR; db.default.svc.cluster.local. A 10.244.9.1" {
		t.Errorf("meanwhile in the zone: %s", got)
	}
}

func faultyServer(t *testing.T, timeout time.Duration, upstreams []forward.Server) (netip.AddrPort, *Server) {
	s := newServer(t, Options{Upstreams: upstreams, UpstreamTimeout: timeout})
	return run(t, s), s
}

// poison: what a server says of other names is not believed when those are asked for.
func poison(t *testing.T) {
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		if q.Question[0].Name != "bait.example." {
			return [][]byte{truthful(t, q)}
		}
		return dnstest.Reply(t, q, func(m *dns.Msg) {
			for _, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
				rr, err := dns.NewRR("bank.example. 60 IN A " + lie)
				if err != nil {
					t.Fatal(err)
				}
				*section = append(*section, rr)
			}
		}, "bait.example. 60 IN A "+truth)
	})
	addr := run(t, newServer(t, Options{Upstreams: forward.Plain(up.Addr)}))
	for range 3 {
		lookup(t, "udp", addr, "bait.example.")
		if got := told(lookup(t, "udp", addr, "bank.example.")); got != "NOERROR; bank.example. A "+truth {
			t.Errorf("got %s", got)
		}
	}
}

// cookies are between two neighbours (RFC 7873): one of a client goes no further
// than to us, and one of an upstream no further than to us, either.
func cookies(t *testing.T) {
	var mu sync.Mutex
	var seen []dns.EDNS0
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		if o := q.IsEdns0(); o != nil {
			seen = append(seen, o.Option...)
		}
		return dnstest.Reply(t, q, func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708090a0b0c0d0e0f10"}}
		}, q.Question[0].Name+" 60 IN A "+truth)
	})
	addr := run(t, newServer(t, Options{Upstreams: forward.Plain(up.Addr)}))
	for _, name := range []string{"a.example.", "a.example.", "db.default.svc.cluster.local."} { // asked, cached, in the zone
		for _, network := range []string{"udp", "tcp"} {
			q := question(name, dns.TypeA).SetEdns0(1232, false)
			q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "1112131415161718"}}
			m, _, err := (&dns.Client{Net: network, Timeout: 5 * time.Second}).Exchange(q, addr.String())
			if err != nil || len(m.Answer) != 1 {
				t.Fatalf("%s: %v, %v", name, m, err)
			}
			if o := m.IsEdns0(); o == nil || len(o.Option) > 0 {
				t.Errorf("%s: the client is told %v", name, o)
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) > 0 {
		t.Errorf("the upstream is told %v", seen)
	}
}

// loopLater: an upstream that leads back here is found when the node's
// resolv.conf, or the Corefile, names it only later.
func loopLater(t *testing.T) {
	good := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte { return [][]byte{truthful(t, q)} })
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	relay := netip.MustParseAddrPort("127.0.5.1:53")
	write := func(text string) {
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	log := &bytes.Buffer{}
	var mu sync.Mutex
	store := cluster()
	s, err := New(Options{
		Store: store, Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, ResolvConf: conf,
		Logger: slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(p)
		}), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	addr := run(t, s)
	// A name server of the node that asks us: 127.0.5.1 for resolv.conf, another for the Corefile.
	back := func(listen string) netip.AddrPort {
		p, err := net.ListenPacket("udp", listen)
		if err != nil {
			t.Fatal(err)
		}
		server := &dns.Server{PacketConn: p, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			if m, _, err := (&dns.Client{Timeout: time.Second}).Exchange(q, addr.String()); err == nil {
				_ = w.WriteMsg(m)
			}
		})}
		go func() { _ = server.ActivateAndServe() }()
		t.Cleanup(func() { p.Close() })
		return p.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	found := func(server netip.AddrPort) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return strings.Contains(log.String(), "leads back to this one") && strings.Contains(log.String(), "server="+server.String())
		}
	}
	back(relay.String())
	write("nameserver " + relay.Addr().String() + "\n")
	slowly(t, found(relay))
	if got := told(lookup(t, "udp", addr, "a.example.")); got != "SERVFAIL" {
		t.Errorf("with a loop only: %s", got)
	}
	other := back("127.0.0.1:0")
	c := &model.DNSConfig{Blocks: []model.DNSBlock{{Zones: []string{"."}, Forwards: []model.DNSForward{{
		From: ".", Policy: "sequential", Servers: []model.DNSServer{{Addr: other}, {Addr: good.Addr}},
	}}}}}
	if err := s.configure(c); err != nil {
		t.Fatal(err)
	}
	slowly(t, found(other))
	for range 5 {
		if got := told(lookup(t, "udp", addr, "b.example.")); got != "NOERROR; b.example. A "+truth {
			t.Errorf("beside a loop: %s", got)
		}
	}
}

// slowly is eventually, for what takes its time.
func slowly(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never came about")
		}
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
