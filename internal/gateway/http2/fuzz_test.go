package http2

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// played is a connection whose client has said all that it will, and hears all.
type played struct {
	net.Conn
	in    *bytes.Reader
	out   bytes.Buffer
	ended bool
}

func (p *played) Read(b []byte) (int, error) {
	if p.ended {
		return 0, os.ErrDeadlineExceeded
	}
	return p.in.Read(b)
}

func (p *played) Write(b []byte) (int, error)      { return p.out.Write(b) }
func (p *played) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (p *played) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (p *played) SetDeadline(time.Time) error      { return nil }
func (p *played) SetReadDeadline(time.Time) error  { return nil }
func (p *played) SetWriteDeadline(time.Time) error { return nil }
func (p *played) Close() error                     { return nil }

// FuzzConn says anything to a server. It must come to an end, and what it says
// itself must be frames.
func FuzzConn(f *testing.F) {
	s := newScript()
	n := s.Len()
	seed := func(write func()) {
		s.Truncate(n)
		write()
		f.Add(s.Bytes()[len(http2.ClientPreface):])
	}
	seed(func() { s.request(1, true, plainly()...) })
	seed(func() {
		s.request(1, false, plainly("content-length", "3")...)
		_ = s.WriteData(1, true, []byte("abc"))
	})
	seed(func() {
		_ = s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		s.request(1, false, plainly()...)
		_ = s.WriteDataPadded(1, false, []byte("abc"), make([]byte, 9))
		_ = s.WriteWindowUpdate(1, 100)
		s.request(1, true, "t", "u")
		_ = s.WriteRSTStream(1, http2.ErrCodeCancel)
		_ = s.WritePing(false, [8]byte{1})
		_ = s.WritePriority(3, http2.PriorityParam{Weight: 3})
		_ = s.WriteGoAway(0, http2.ErrCodeNo, nil)
	})
	seed(func() {
		block := s.fields(plainly("x", "y")...)
		_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:3]})
		_ = s.WriteContinuation(1, false, block[3:5])
		_ = s.WriteContinuation(1, true, block[5:])
	})
	server, err := NewServer(Options{Handler: echo, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, frames []byte) {
		p := &played{in: bytes.NewReader(append([]byte(http2.ClientPreface), frames...))}
		server.ServeConn(p, false)
		framer := http2.NewFramer(io.Discard, &p.out)
		framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		for {
			frame, err := framer.ReadFrame()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatalf("%v after %v", err, frame)
			}
		}
	})
}

// FuzzHeader holds headers beside x/net: what is taken here must be taken
// there, and say the same.
func FuzzHeader(f *testing.F) {
	for _, pairs := range malformed {
		f.Add(strings.Join(pairs, "\xff"))
	}
	f.Add(strings.Join(plainly("cookie", "a", "te", "trailers", "x", "y z"), "\xff"))
	server, err := NewServer(Options{Logger: slog.New(slog.DiscardHandler), Handler: handle(func(s *Stream) {
		r := &s.Request
		s.Begin(200)
		s.Field("line", r.Method+"\xff"+r.Target+"\xff"+r.Host)
		for _, f := range r.Fields {
			s.Field("field", f.Name+"\xff"+f.Value)
		}
		_ = s.SendHead()
		_ = s.End()
	})})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		pairs := strings.Split(text, "\xff")
		if len(pairs)%2 != 0 || len(text) > 1000 {
			return
		}
		s := newScript()
		s.request(1, true, pairs...)
		p := &played{in: bytes.NewReader(s.Bytes())}
		server.ServeConn(p, false)
		frames := http2.NewFramer(io.Discard, bytes.NewReader(s.Bytes()[len(http2.ClientPreface):]))
		frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		_, _ = frames.ReadFrame() // SETTINGS
		frame, theirs := frames.ReadFrame()
		answers := http2.NewFramer(io.Discard, &p.out)
		answers.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		for {
			frame2, err := answers.ReadFrame()
			if errors.Is(err, io.EOF) {
				return // refused
			}
			if err != nil {
				t.Fatal(err)
			}
			ours, ok := frame2.(*http2.MetaHeadersFrame)
			if !ok {
				continue
			}
			if theirs != nil {
				t.Fatalf("taken, but x/net says %v", theirs)
			}
			request := frame.(*http2.MetaHeadersFrame)
			fields := ours.RegularFields()
			line := strings.Split(fields[0].Value, "\xff")
			path := request.PseudoValue("path")
			if line[0] == "CONNECT" {
				path = request.PseudoValue("authority")
			}
			if line[0] != request.PseudoValue("method") || line[1] != path {
				t.Fatalf("read as %q, x/net: %v", line, request.Fields)
			}
			want := map[string]int{}
			for _, f := range request.RegularFields() {
				if f.Name != "cookie" && f.Name != "host" && f.Name != "expect" && f.Name != "content-length" {
					want[f.Name+"\xff"+f.Value]++
				}
			}
			for _, f := range fields[1:] {
				if name, _, _ := strings.Cut(f.Value, "\xff"); name != "cookie" && name != "expect" && name != "content-length" {
					want[f.Value]--
				}
			}
			for field, n := range want {
				if n != 0 {
					t.Fatalf("%q is there %d times too often there", field, n)
				}
			}
			return
		}
	})
}

// TestEncode writes what HPACK's decoder reads.
func TestEncode(t *testing.T) {
	for _, status := range []int{100, 200, 204, 206, 299, 304, 400, 404, 500, 599} {
		block := appendStatus(nil, status)
		want := []hpack.HeaderField{}
		for name := range staticNames {
			block = appendField(block, strings.ToUpper(name), "Some value of "+name)
			want = append(want, hpack.HeaderField{Name: name, Value: "Some value of " + name})
		}
		for _, n := range []int{0, 1, 10, 126, 127, 128, 300, 20_000} {
			f := hpack.HeaderField{Name: strings.Repeat("n", n+1), Value: strings.Repeat("\xff", n)}
			block = appendField(block, f.Name, f.Value)
			want = append(want, f)
		}
		got, err := hpack.NewDecoder(4096, nil).DecodeFull(block)
		if err != nil || len(got) != len(want)+1 || got[0].Name != ":status" {
			t.Fatalf("%v, %v", got, err)
		}
		for i := range want {
			if got[i+1] != want[i] {
				t.Errorf("%v, want %v", got[i+1], want[i])
			}
		}
	}
}
