package h2guard

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// TestFarewell floods while answers are sent, in pieces that end anywhere: the
// client gets whole frames, and the last one tells it why.
func TestFarewell(t *testing.T) {
	for range 5 {
		client, server := tcpPair(t)
		c := New(server, Options{MaxHeaderBytes: 64 << 10})
		written := make(chan error, 1)
		go func() {
			var answers bytes.Buffer
			f := http2.NewFramer(&answers, nil)
			for {
				for answers.Len() < 10000 {
					_ = f.WriteData(1, false, make([]byte, rand.IntN(50)))
					_ = f.WriteWindowUpdate(1, 1)
				}
				if _, err := c.Write(answers.Next(1 + rand.IntN(30))); err != nil {
					written <- err
					return
				}
			}
		}()
		go func() {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}()
		go func() {
			s := newScript()
			s.request(7)
			// What is sent buys more frames; resets cost more than it.
			for range 20000 {
				_ = s.WriteRSTStream(7, http2.ErrCodeCancel)
			}
			_, _ = client.Write(s.Bytes()) // may be cut off
		}()
		f := http2.NewFramer(nil, client)
		var last http2.Frame
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				break
			}
			if last != nil && last.Header().Type == http2.FrameGoAway {
				t.Fatalf("%v after the last frame", frame)
			}
			last = frame
			if g, ok := frame.(*http2.GoAwayFrame); ok && (g.ErrCode != http2.ErrCodeEnhanceYourCalm || g.LastStreamID != 7 || !strings.Contains(string(g.DebugData()), "RST_STREAM")) {
				t.Fatalf("%v %q", g, g.DebugData())
			}
		}
		if last == nil || last.Header().Type != http2.FrameGoAway {
			t.Fatalf("the last frame is %v", last)
		}
		_ = client.Close()
		<-written
	}
}

// tcpPair returns both ends of a connection.
func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	return client, server
}

// BenchmarkRequest is what a request costs by a guard, with the header of a
// browser and a short answer, and without one.
func BenchmarkRequest(b *testing.B) {
	s := newScript()
	ask := func() {
		s.request(1, "user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
			"accept-language", "en-US,en;q=0.5", "accept-encoding", "gzip, deflate, br, zstd", "cookie", "session="+strings.Repeat("0123456789abcdef", 4), "referer", "https://www.example.com/some/page")
		_ = s.WriteWindowUpdate(0, 100)
	}
	ask()
	first := bytes.Clone(s.Bytes())
	s.Reset()
	ask() // most of it is in the table now
	next := bytes.Clone(s.Bytes())
	s.Reset()
	f := http2.NewFramer(&s.Buffer, nil)
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: make([]byte, 60)})
	_ = f.WriteData(1, true, make([]byte, 100))
	answer := bytes.Clone(s.Bytes())
	for name, guarded := range map[string]bool{"guarded": true, "plain": false} {
		b.Run(name, func(b *testing.B) {
			var conn net.Conn = stream{Reader: io.MultiReader(bytes.NewReader(first), &repeated{text: next})}
			if guarded {
				conn = New(conn, Options{MaxHeaderBytes: 64 << 10})
			}
			buf := make([]byte, 4096)
			read := func(n int) {
				if _, err := io.ReadFull(conn, buf[:n]); err != nil {
					b.Fatal(err)
				}
			}
			read(len(first))
			b.ReportAllocs()
			for b.Loop() {
				read(len(next))
				_, _ = conn.Write(answer)
			}
		})
	}
}

// repeated gives the same text again and again, one at a time.
type repeated struct {
	text []byte
	at   int
}

func (r *repeated) Read(p []byte) (int, error) {
	n := copy(p, r.text[r.at:])
	r.at = (r.at + n) % len(r.text)
	return n, nil
}
