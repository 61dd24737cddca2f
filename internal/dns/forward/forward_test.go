package forward

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/cache"
	"fairway.dev/fairway/internal/dns/dnstest"
)

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

var discard = slog.New(slog.DiscardHandler)

func mustCache(t *testing.T) *cache.Cache {
	t.Helper()
	c, err := cache.New(cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newForwarder(t *testing.T, o Options, upstreams ...*dnstest.Server) (*Forwarder, *clock) {
	t.Helper()
	clk := &clock{now: time.Unix(1e9, 0)}
	c, err := cache.New(cache.Options{Now: clk.Now})
	if err != nil {
		t.Fatal(err)
	}
	o.Cache, o.Logger = c, discard
	for _, u := range upstreams {
		o.Upstreams = append(o.Upstreams, Server{Addr: u.Addr})
	}
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return f, clk
}

var query = Query{Name: "Www.example.com.", Type: dns.TypeA}

func answer(t *testing.T, f *Forwarder, q Query) string {
	t.Helper()
	m, _, err := f.Resolve(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Answer) == 0 {
		return dns.RcodeToString[m.Rcode]
	}
	return m.Answer[0].String()
}

func says(t *testing.T, records ...string) dnstest.Handler {
	return func(q *dns.Msg, _ string) [][]byte { return dnstest.Reply(t, q, nil, records...) }
}

func rcode(t *testing.T, code int) dnstest.Handler {
	return func(q *dns.Msg, _ string) [][]byte {
		return dnstest.Reply(t, q, func(m *dns.Msg) { m.Rcode = code })
	}
}

func silent(*dns.Msg, string) [][]byte { return nil }

const record = "www.example.com. 60 IN A 192.0.2.1"

func TestAnswerIsRemembered(t *testing.T) {
	up := dnstest.New(t, says(t, record))
	f, clk := newForwarder(t, Options{}, up)
	if got, want := answer(t, f, query), "Www.example.com.\t60\tIN\tA\t192.0.2.1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	clk.advance(20 * time.Second)
	lower := Query{Name: "www.example.com.", Type: dns.TypeA}
	if got, want := answer(t, f, lower), "www.example.com.\t40\tIN\tA\t192.0.2.1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := up.UDP.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if _, _, err := f.Resolve(t.Context(), Query{Name: query.Name, Type: query.Type, DNSSECOK: true}); err != nil || up.UDP.Load() != 2 {
		t.Errorf("a question with DO is another one: asked %d times, %v", up.UDP.Load(), err)
	}
}

func TestQueryAsSent(t *testing.T) {
	seen := make(chan *dns.Msg, 1)
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		seen <- q
		return dnstest.Reply(t, q, nil, record)
	})
	f, _ := newForwarder(t, Options{}, up)
	answer(t, f, Query{Name: query.Name, Type: dns.TypeA, DNSSECOK: true, CheckingDisabled: true})
	q := <-seen
	opt := q.IsEdns0()
	if !q.RecursionDesired || !q.CheckingDisabled || opt == nil || !opt.Do() || opt.UDPSize() != udpSize {
		t.Errorf("sent %v", q)
	}
}

func TestTruncatedAnswerByTCP(t *testing.T) {
	up := dnstest.New(t, func(q *dns.Msg, network string) [][]byte {
		if network == "udp" {
			return dnstest.Reply(t, q, func(m *dns.Msg) { m.Truncated = true })
		}
		return dnstest.Reply(t, q, nil, record)
	})
	f, _ := newForwarder(t, Options{}, up)
	if got := answer(t, f, query); got != "Www.example.com.\t60\tIN\tA\t192.0.2.1" {
		t.Errorf("got %q", got)
	}
	if up.TCP.Load() != 1 {
		t.Errorf("asked %d times by TCP", up.TCP.Load())
	}
}

// A server off the path does not know the ID, and one on it may be broken:
// only the answer to the question counts.
func TestWrongAnswersAreIgnored(t *testing.T) {
	poison := "www.example.com. 60 IN A 203.0.113.66"
	lies := map[string]func(*dns.Msg){
		"wrong ID":       func(m *dns.Msg) { m.Id++ },
		"wrong name":     func(m *dns.Msg) { m.Question[0].Name = "www.example.org." },
		"wrong type":     func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
		"wrong class":    func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		"no question":    func(m *dns.Msg) { m.Question = nil },
		"no answer":      func(m *dns.Msg) { m.Response = false },
		"another opcode": func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify },
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
				return append(append([][]byte{{1, 2, 3}}, dnstest.Reply(t, q, lie, poison)...), dnstest.Reply(t, q, nil, record)...)
			})
			f, _ := newForwarder(t, Options{}, up)
			if got := answer(t, f, query); got != "Www.example.com.\t60\tIN\tA\t192.0.2.1" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestNextServerAfter(t *testing.T) {
	for name, h := range map[string]dnstest.Handler{
		"silence": silent, "SERVFAIL": rcode(t, dns.RcodeServerFailure), "REFUSED": rcode(t, dns.RcodeRefused),
	} {
		t.Run(name, func(t *testing.T) {
			first, second := dnstest.New(t, h), dnstest.New(t, says(t, record))
			f, _ := newForwarder(t, Options{Timeout: 600 * time.Millisecond}, first, second)
			if got := answer(t, f, query); got != "Www.example.com.\t60\tIN\tA\t192.0.2.1" {
				t.Errorf("got %q", got)
			}
			if first.UDP.Load() == 0 {
				t.Error("the first server was not asked")
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	second := dnstest.New(t, says(t, record))
	f, _ := newForwarder(t, Options{Upstreams: Plain(netip.MustParseAddrPort("127.0.0.1:1"))}, second)
	if got := answer(t, f, query); got != "Www.example.com.\t60\tIN\tA\t192.0.2.1" {
		t.Errorf("got %q", got)
	}
}

func TestTroubleIsPassedOnWhenAllAgree(t *testing.T) {
	f, _ := newForwarder(t, Options{}, dnstest.New(t, rcode(t, dns.RcodeServerFailure)))
	if got := answer(t, f, query); got != "SERVFAIL" {
		t.Errorf("got %q", got)
	}
}

func TestServerWithoutEDNS(t *testing.T) {
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		if q.IsEdns0() != nil {
			return dnstest.Reply(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeFormatError; m.Question = nil })
		}
		return dnstest.Reply(t, q, nil, record)
	})
	f, _ := newForwarder(t, Options{}, up)
	if got := answer(t, f, query); got != "Www.example.com.\t60\tIN\tA\t192.0.2.1" {
		t.Errorf("got %q", got)
	}
}

// A server that does not answer is asked last, and first again once it answers.
func TestHealth(t *testing.T) {
	first, second := dnstest.New(t, silent), dnstest.New(t, says(t, "a. 0 IN A 192.0.2.2"))
	f, _ := newForwarder(t, Options{Timeout: 300 * time.Millisecond}, first, second)
	q := Query{Name: "a.", Type: dns.TypeA}
	began := time.Now()
	if s := f.Silent(); len(s) != 0 {
		t.Errorf("silent before anybody was asked: %v", s)
	}
	for range failuresUntilDown {
		answer(t, f, q)
	}
	asked := first.UDP.Load()
	answer(t, f, q)
	if first.UDP.Load() != asked {
		t.Error("a server that is down was asked while another is up")
	}
	if s := f.Silent(); len(s) != 1 || s[0].Server != first.Addr.String() || s[0].Since.Before(began) || s[0].Since.After(time.Now()) {
		t.Errorf("silent since %v: %v", began, s)
	}

	first.Handle(says(t, "a. 0 IN A 192.0.2.1"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	eventually(t, func() bool { return answer(t, f, q) == "a.\t0\tIN\tA\t192.0.2.1" })
	if s := f.Silent(); len(s) != 0 {
		t.Errorf("silent, although it answers: %v", s)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("never came about")
}

func TestNoUpstream(t *testing.T) {
	f, _ := newForwarder(t, Options{ResolvConf: filepath.Join(t.TempDir(), "none")})
	if _, _, err := f.Resolve(t.Context(), query); !errors.Is(err, ErrNoUpstream) {
		t.Errorf("got %v", err)
	}
}

func TestCoalescing(t *testing.T) {
	release := make(chan struct{})
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		<-release
		return dnstest.Reply(t, q, nil, "www.example.com. 0 IN A 192.0.2.1")
	})
	// Twice the time that the test may take, so that no second packet is sent.
	f, _ := newForwarder(t, Options{Timeout: time.Minute}, up)
	var wg sync.WaitGroup
	names := []string{"www.example.com.", "WWW.example.com.", "wWw.example.com."}
	for i := range 30 {
		wg.Go(func() {
			name := names[i%len(names)]
			m, _, err := f.Resolve(t.Context(), Query{Name: name, Type: dns.TypeA})
			if err != nil || m.Answer[0].Header().Name != name {
				t.Errorf("%v, %v", m, err)
			}
		})
	}
	eventually(t, func() bool { return up.UDP.Load() == 1 })
	time.Sleep(50 * time.Millisecond) // let the others arrive
	close(release)
	wg.Wait()
	if n := up.UDP.Load(); n != 1 {
		t.Errorf("30 clients made %d questions", n)
	}
}

func TestBusy(t *testing.T) {
	release := make(chan struct{})
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		<-release
		return dnstest.Reply(t, q, nil, record)
	})
	f, _ := newForwarder(t, Options{MaxConcurrent: 1, Timeout: time.Minute}, up)
	done := make(chan struct{})
	go func() { defer close(done); answer(t, f, query) }()
	eventually(t, func() bool { return up.UDP.Load() == 1 })
	if _, _, err := f.Resolve(t.Context(), Query{Name: "other.", Type: dns.TypeA}); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v", err)
	}
	close(release)
	<-done
}

func TestStaleWhileServersAreAway(t *testing.T) {
	for name, h := range map[string]dnstest.Handler{"silence": silent, "SERVFAIL": rcode(t, dns.RcodeServerFailure)} {
		t.Run(name, func(t *testing.T) {
			up := dnstest.New(t, says(t, record))
			f, clk := newForwarder(t, Options{Timeout: 200 * time.Millisecond}, up)
			answer(t, f, query)
			up.Handle(h)
			clk.advance(10 * time.Minute)
			if got := answer(t, f, query); got != "Www.example.com.\t30\tIN\tA\t192.0.2.1" {
				t.Errorf("got %q", got)
			}
			asked := up.UDP.Load()
			answer(t, f, query)
			if up.UDP.Load() != asked {
				t.Error("waited for the servers again at once")
			}
			up.Handle(says(t, "www.example.com. 60 IN A 192.0.2.9"))
			clk.advance(10 * time.Second)
			if got := answer(t, f, query); got != "Www.example.com.\t60\tIN\tA\t192.0.2.9" {
				t.Errorf("after the servers are back: %q", got)
			}
		})
	}
}

func TestPrefetch(t *testing.T) {
	up := dnstest.New(t, says(t, "www.example.com. 100 IN A 192.0.2.1"))
	f, clk := newForwarder(t, Options{}, up)
	for range 3 {
		answer(t, f, query)
	}
	clk.advance(95 * time.Second)
	if got := answer(t, f, query); got != "Www.example.com.\t5\tIN\tA\t192.0.2.1" {
		t.Errorf("got %q", got)
	}
	eventually(t, func() bool { return answer(t, f, query) == "Www.example.com.\t100\tIN\tA\t192.0.2.1" })
}

func TestLoop(t *testing.T) {
	good := dnstest.New(t, says(t, record))
	var f *Forwarder
	ready := make(chan struct{})
	looping := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		<-ready
		f.Looped(q.Question[0].Name) // as the server does with each question that it forwards
		return dnstest.Reply(t, q, nil, "www.example.com. 60 IN A 203.0.113.66")
	})
	f, _ = newForwarder(t, Options{}, looping, good)
	close(ready)
	if f.Looped("www.example.com.") || f.Looped("1234"+loopDomain) {
		t.Error("somebody else's question is no loop")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = f.Run(ctx) }()
	eventually(t, func() bool { return len(f.Servers()) == 1 })
	if s := f.Silent(); len(s) != 1 || s[0].Server != looping.Addr.String() || !s[0].Since.IsZero() {
		t.Errorf("silent: %v", s)
	}
	if got := answer(t, f, query); got != "Www.example.com.\t60\tIN\tA\t192.0.2.1" {
		t.Errorf("got %q", got)
	}
}

func TestResolvConf(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	behind := write("behind", "nameserver 192.0.2.53\nnameserver 192.0.2.54\n")
	tests := []struct {
		name, text, behind string
		want               []string
	}{
		{"in order, each once", "# c\nsearch x\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver 192.0.2.1\noptions ndots:5\n", behind, []string{"192.0.2.1:53", "[2001:db8::1]:53"}},
		{"link-local with interface", "nameserver fe80::1%eth0\n", behind, []string{"[fe80::1%eth0]:53"}},
		{"no address", "nameserver nowhere\nnameserver 192.0.2.1\n", behind, []string{"192.0.2.1:53"}},
		{"only the local stub", "nameserver 127.0.0.53\n", behind, []string{"192.0.2.53:53", "192.0.2.54:53"}},
		{"local stub with nothing behind", "nameserver 127.0.0.53\n", filepath.Join(dir, "none"), []string{"127.0.0.53:53"}},
		{"local stub beside others", "nameserver 127.0.0.53\nnameserver 192.0.2.1\n", behind, []string{"127.0.0.53:53", "192.0.2.1:53"}},
		{"empty", "", behind, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			list, err := readResolvConf(write("resolv.conf", tt.text), tt.behind)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range list {
				got = append(got, a.String())
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestResolvConfIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("nameserver 192.0.2.1\nnameserver 10.96.0.10\n")
	f, _ := newForwarder(t, Options{ResolvConf: path, Self: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}})
	want := Plain(netip.MustParseAddrPort("192.0.2.1:53"))
	if got := f.Servers(); !slices.Equal(got, want) {
		t.Errorf("got %v: our own address must not be asked", got)
	}
	kept := (*f.servers.Load())[0]
	kept.failed()
	write("nameserver 192.0.2.2\nnameserver 192.0.2.1\n")
	if added := f.reload(); len(added) != 1 {
		t.Errorf("added %v", added)
	}
	if now := *f.servers.Load(); len(now) != 2 || now[1] != kept {
		t.Error("health of a known server is forgotten")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.reload()
	if len(f.Servers()) != 2 {
		t.Error("servers are forgotten when the file is gone")
	}
	write("nameserver 192.0.2.1\n")
	f.reload()
	if got := f.Servers(); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}
