package listener

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/shed"
)

// serveQUIC runs a server by HTTP/3, and returns it with its address.
func serveQUIC(t *testing.T, o HTTPOptions, change ...func(*quicServer)) (*quicServer, *net.UDPAddr) {
	t.Helper()
	fallback, err := certs.SelfSigned("a", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	o.Addrs, o.TLS, o.HTTP3 = []string{"127.0.0.1:0"}, certs.NewResolver(certs.NewIndex(fallback)).ServerConfig("h2", "http/1.1"), true
	o.Logger, o.LameDuck, o.DrainTimeout = slog.New(slog.DiscardHandler), time.Millisecond, 100*time.Millisecond
	o.HTTP1, o.HTTP2 = handle(nil), none
	var h *HTTP
	for tries := 0; h == nil || !h.HTTP3(); tries++ {
		if tries == 20 {
			t.Fatal("no port is free by TCP and by UDP")
		}
		if h != nil {
			_ = h.Close() // somebody has the UDP port of that number
		}
		if h, err = NewHTTP(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	h.http3.stall = 3 * time.Second
	for _, c := range change {
		c(h.http3)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return h.http3, net.UDPAddrFromAddrPort(addrPort(h.Addrs()[0]))
}

// dumb is a UDP socket whose packets do not go out any more once it is struck.
// Until then they take their time, without which no congestion window grows.
type dumb struct {
	net.PacketConn
	late   time.Duration
	once   bool // struck after the first
	struck atomic.Bool
}

func (d *dumb) WriteTo(p []byte, to net.Addr) (int, error) {
	if d.once && d.struck.Swap(true) {
		return len(p), nil
	}
	if d.late == 0 {
		return d.PacketConn.WriteTo(p, to)
	}
	packet := bytes.Clone(p)
	time.AfterFunc(d.late, func() {
		if !d.struck.Load() {
			_, _ = d.PacketConn.WriteTo(packet, to)
		}
	})
	return len(p), nil
}

// dialQUIC is a client that takes as much as it is sent.
func dialQUIC(t *testing.T, to *net.UDPAddr, late time.Duration, window ...uint64) (*quic.Conn, *dumb) {
	t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &dumb{PacketConn: socket, late: late}
	transport := &quic.Transport{Conn: d}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream := uint64(1 << 30)
	if window != nil {
		stream = window[0]
	}
	conn, err := transport.Dial(ctx, to, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}, ServerName: "a"},
		&quic.Config{InitialStreamReceiveWindow: stream, MaxStreamReceiveWindow: stream, InitialConnectionReceiveWindow: 1 << 30, MaxConnectionReceiveWindow: 1 << 30, MaxIdleTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.CloseWithError(0, "")
		_ = transport.Close()
		_ = socket.Close()
	})
	return conn, d
}

// TestHalfOpen: of connections whose clients say no more than hello there are not
// more than may be, and other clients still get theirs, counted once.
func TestHalfOpen(t *testing.T) {
	const most = 4
	clients := NewClients(ClientsOptions{Most: 100, OnRefused: func() {}, Logger: slog.New(slog.DiscardHandler)})
	s, addr := serveQUIC(t, HTTPOptions{Clients: clients, Requests: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}, func(s *quicServer) { s.mostHalfOpen = most })
	for range 3 * most {
		socket, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		mute := &dumb{PacketConn: socket, once: true}
		transport := &quic.Transport{Conn: mute}
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan struct{})
		go func() {
			defer close(failed)
			_, _ = transport.Dial(ctx, addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h3"}, ServerName: "a"}, nil)
		}()
		t.Cleanup(func() {
			cancel()
			<-failed
			_ = transport.Close()
			_ = socket.Close()
		})
		eventually(t, "the client has said hello", mute.struck.Load)
	}
	eventually(t, "as many as may be are half open", func() bool { return s.halfOpen.Load() == most })
	for range 2 {
		conn, _ := dialQUIC(t, addr, 0)
		if _, err := io.ReadAll(requestOn(t, conn, "GET", "/", 0)); err != nil {
			t.Error(err)
		}
	}
	if n := s.halfOpen.Load(); n != most {
		t.Errorf("%d connections are half open, want %d", n, most)
	}
	here := netip.MustParseAddr("127.0.0.1")
	shard := clients.shard(here)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if n := shard.open[here]; n != 2 {
		t.Errorf("%d connections count for the client, want 2", n)
	}
}

// requestOn sends a header, and the beginning of a body's frame of n bytes.
func requestOn(t *testing.T, conn *quic.Conn, method, path string, n uint64) *quic.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := conn.OpenStreamSync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	encoder := qpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", method}, {":scheme", "https"}, {":path", path}, {":authority", "a"}} {
		_ = encoder.WriteField(qpack.HeaderField{Name: f[0], Value: f[1]})
	}
	out := append(quicvarint.Append([]byte{1}, uint64(block.Len())), block.Bytes()...)
	if n > 0 {
		out = quicvarint.Append(append(out, 0), n)
	}
	if _, err := s.Write(out); err != nil {
		t.Fatal(err)
	}
	return s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// TestUploadsThatNobodyReads: what clients may send ahead grows for those whose
// bodies are read, as long as all of them together have not too much of it.
func TestUploadsThatNobodyReads(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	read := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/read" {
			_, _ = io.Copy(io.Discard, r.Body)
			return
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	for limit, grows := range map[uint64]bool{16 << 30: true, 0: false} {
		s, addr := serveQUIC(t, HTTPOptions{Requests: read, Held: shed.NewHeld(limit, func() bool { return limit == 0 })})
		conn, _ := dialQUIC(t, addr, 0)
		const size = 8 << 20
		fast := requestOn(t, conn, "POST", "/read", size)
		if _, err := io.CopyN(fast, zeros{}, size); err != nil {
			t.Fatal(err)
		}
		_ = fast.Close()
		if _, err := io.ReadAll(fast); err != nil {
			t.Fatal(err)
		}
		var taken atomic.Int64
		for range 16 {
			stuck := requestOn(t, conn, "POST", "/stuck", size)
			go func() {
				for {
					n, err := stuck.Write(make([]byte, 4<<10))
					taken.Add(int64(n))
					if err != nil {
						return
					}
				}
			}()
		}
		// What a stream's buffer holds at the client counts as taken there.
		most := int64(firstConnectionWindow + 16*4<<10)
		if grows {
			eventually(t, "the window has grown", func() bool { return taken.Load() > most })
			if s.ahead.Bytes() == 0 {
				t.Error("what clients may send ahead is not counted")
			}
		} else {
			eventually(t, "the first window is full", func() bool { return taken.Load() >= firstConnectionWindow-16*4<<10 })
			before := int64(-1)
			eventually(t, "no more is taken", func() bool {
				now := taken.Load()
				defer func() { before = now }()
				time.Sleep(100 * time.Millisecond)
				return now == before
			})
			if got := taken.Load(); got > most {
				t.Errorf("%d bytes wait, want %d at most", got, most)
			}
		}
		_ = conn.CloseWithError(0, "")
		eventually(t, "nothing is held for a connection that is gone", func() bool { return s.ahead.Bytes() == 0 })
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestAnswersThatAreNotAcknowledged: clients that stop acknowledging do not have
// more of answers in memory, together, than there may be; they are disconnected,
// and others get theirs all the while.
func TestAnswersThatAreNotAcknowledged(t *testing.T) {
	ended := make(chan string, 100)
	unacked := shed.NewHeld(16<<20, func() bool { return false }) // 1 MiB
	s, addr := serveQUIC(t, HTTPOptions{Unacked: unacked, OnFlood: func(reason string) { ended <- reason },
		Requests: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var size int64
			_, _ = fmt.Sscan(r.URL.Path[1:], &size)
			_, _ = io.CopyN(w, zeros{}, size)
		})})
	var sockets []*dumb
	var taken atomic.Int64 // reads
	for range 4 {
		conn, socket := dialQUIC(t, addr, 20*time.Millisecond)
		sockets = append(sockets, socket)
		body := requestOn(t, conn, "GET", "/1000000000", 0)
		go func() {
			for buf := make([]byte, 64<<10); ; {
				if _, err := body.Read(buf); err != nil {
					return
				}
				taken.Add(1)
			}
		}()
	}
	eventually(t, "much is unacknowledged", unacked.Much)
	later := taken.Load() + 500
	eventually(t, "the clients take more, while windows could grow", func() bool { return taken.Load() >= later })
	// Each may have gone on from half of it to all before it was told.
	most := unacked.Bytes()
	if t.Logf("%d bytes are unacknowledged", most); most > 3<<20 {
		t.Errorf("%d bytes are unacknowledged", most)
	}
	for _, socket := range sockets {
		socket.struck.Store(true)
	}
	eventually(t, "those that acknowledge nothing are disconnected", func() bool { return !unacked.Much() })
	if len(ended) == 0 {
		t.Error("nobody was disconnected")
	}
	for len(ended) > 0 {
		if reason := <-ended; reason != ReasonUnacked {
			t.Errorf("a client was disconnected for %s", reason)
		}
	}
	conn, _ := dialQUIC(t, addr, 0)
	if got, err := io.Copy(io.Discard, requestOn(t, conn, "GET", "/4000000", 0)); err != nil || got < 4000000 {
		t.Errorf("another client gets %d bytes, %v", got, err)
	}
	eventually(t, "what was acknowledged does not count", func() bool {
		counted := 0
		s.conns.Range(func(_, c any) bool {
			u := &c.(*quicConn).unacked
			u.mu.Lock()
			defer u.mu.Unlock()
			if !u.open {
				counted += u.counted
			}
			return true
		})
		return counted == 0
	})
}

// TestPaceOfAnswers: a client by HTTP/3 that takes an answer slowly gets it, also
// where it lets the answer wait for another, but not if it takes next to nothing.
func TestPaceOfAnswers(t *testing.T) {
	const timeout, window = time.Second, 4 << 10
	ended := make(chan error, 1)
	_, addr := serveQUIC(t, HTTPOptions{WriteTimeout: timeout, Requests: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := w.Write(make([]byte, 64<<10))
		for err == nil && r.URL.Path == "/endless" {
			_, err = w.Write(make([]byte, 1<<10))
		}
		if r.URL.Path != "/endless" {
			ended <- err
		}
	})})
	take := func(s *quic.Stream, piece int64) (stop func()) {
		done, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-done:
					return
				case <-time.After(50 * time.Millisecond):
				}
				if _, err := io.CopyN(io.Discard, s, piece); err != nil {
					return
				}
			}
		}()
		return func() { close(done); s.CancelRead(0); <-stopped }
	}
	for name, tt := range map[string]struct{ piece, beside int64 }{"slowly": {2 << 10, 0}, "hardly": {1, 0}, "after another": {0, 2 << 10}} {
		t.Run(name, func(t *testing.T) {
			conn, _ := dialQUIC(t, addr, 0, window)
			if tt.beside > 0 {
				defer take(requestOn(t, conn, "GET", "/endless", 0), tt.beside)()
			}
			s := requestOn(t, conn, "GET", "/", 0)
			if tt.beside > 0 {
				select {
				case err := <-ended:
					t.Fatalf("ended with %v", err)
				case <-time.After(2 * timeout): // longer than it may wait alone
				}
				tt.piece = 64 << 10
			}
			defer take(s, tt.piece)()
			if err := <-ended; (err == nil) != (tt.piece > 1) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}
