package agent

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/state"
)

// pulses is a data path that is told of nothing but the DNS server's life.
type pulses struct {
	dataplane.Dataplane
	told atomic.Int32
	away atomic.Bool // the server
}

func (p *pulses) Pulse(valid time.Duration, _ []uint64, _ []netip.AddrPort) error {
	if valid <= pulseEvery {
		panic("over before the next one")
	}
	if p.away.Load() {
		panic("told that it answers while it does not")
	}
	p.told.Add(1)
	return nil
}

// log is what was logged.
type log struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *log) count(words string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.all.String(), words)
}

// TestPulse checks that the data path is told that the server answers while it does, and no longer, and that the log
// tells of both.
func TestPulse(t *testing.T) {
	listen := func(addr string) net.PacketConn {
		server, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			b := make([]byte, 512)
			for {
				n, from, err := server.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = server.WriteTo(b[:n], from)
			}
		}()
		return server
	}
	server := listen("127.0.0.1:0")
	at := netip.MustParseAddrPort(server.LocalAddr().String())
	sockets, err := dns.New(dns.Options{Store: state.New(), Logger: quiet, Listen: []netip.AddrPort{at}})
	if err != nil {
		t.Fatal(err)
	}
	path, said := &pulses{}, &log{}
	n := &node{NodeOptions: NodeOptions{Common: Common{Logger: slog.New(slog.NewTextHandler(said, nil))}}, dataplane: path}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- newPulse(n, []netip.AddrPort{at}, sockets).run(ctx) }()
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s never came about", what)
			}
		}
	}
	// A busy machine may have it warn, and find that all is well, at any time.
	ill := func() bool { return said.count("does not answer") > said.count("answers again") }
	until("a second pulse", func() bool { return path.told.Load() > 1 })
	server.Close()
	until("a warning", ill)
	time.Sleep(2 * pulseEvery) // an answer may have been under way
	path.away.Store(true)
	time.Sleep(2 * pulseEvery) // nothing is to come
	path.away.Store(false)
	again := listen(at.String())
	defer again.Close()
	until("that it answers again", func() bool { return !ill() })
	before := path.told.Load()
	until("another pulse", func() bool { return path.told.Load() > before })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
