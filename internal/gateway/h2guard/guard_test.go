package h2guard

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// stream is a connection that says something and hears nothing.
type stream struct {
	net.Conn
	io.Reader
}

func (s stream) Read(p []byte) (int, error)  { return s.Reader.Read(p) }
func (s stream) Write(p []byte) (int, error) { return len(p), nil }

func (s stream) SetWriteDeadline(time.Time) error { return nil }

// script writes what a client says.
type script struct {
	bytes.Buffer
	*http2.Framer
	encoder *hpack.Encoder
	block   bytes.Buffer
}

func newScript() *script {
	s := &script{}
	s.WriteString(http2.ClientPreface)
	s.Framer = http2.NewFramer(&s.Buffer, nil)
	s.Framer.AllowIllegalWrites = true
	s.encoder = hpack.NewEncoder(&s.block)
	return s
}

func (s *script) fields(pairs ...string) []byte {
	s.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		_ = s.encoder.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(s.block.Bytes())
}

func (s *script) request(id uint32, pairs ...string) {
	pairs = append([]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"}, pairs...)
	_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: s.fields(pairs...), EndStream: true, EndHeaders: true, PadLength: uint8(id % 3)})
}

// pass sends what a script says through a guard, in pieces of all sizes.
func pass(s *script) ([]byte, error) {
	c := New(stream{Reader: ragged{bytes.NewReader(s.Bytes())}}, Options{MaxHeaderBytes: 64 << 10})
	return io.ReadAll(c)
}

type ragged struct{ io.Reader }

func (r ragged) Read(p []byte) (int, error) {
	return r.Reader.Read(p[:min(len(p), 1+rand.IntN(40))])
}

func TestPassesOn(t *testing.T) {
	s := newScript()
	_ = s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 100})
	for id := uint32(1); id < 40; id += 2 {
		s.request(id, "te", "trailers", "host", "a", "x", strings.Repeat("y", int(id*100)))
		_ = s.WriteData(id, true, make([]byte, id*300))
		_ = s.WriteWindowUpdate(0, id)
		_ = s.WritePing(false, [8]byte{1})
		_ = s.WriteRSTStream(id, http2.ErrCodeCancel)
		_ = s.WriteRawFrame(0xee, 0, id, make([]byte, 20))
	}
	block := s.fields(":method", "GET", ":path", "/", "x", strings.Repeat("z", 100))
	_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 41, BlockFragment: block[:10], Priority: http2.PriorityParam{Weight: 3}})
	_ = s.WriteContinuation(41, false, block[10:20])
	_ = s.WriteContinuation(41, true, block[20:])
	want := bytes.Clone(s.Bytes())
	if got, err := pass(s); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
	// What breaks off is passed on as far as it came.
	s.Truncate(len(want) - 3)
	if got, err := pass(s); err != nil || !bytes.Equal(got, want[:len(want)-3]) {
		t.Fatalf("broken off: %d bytes of %d, %v", len(got), len(want), err)
	}
}

func TestLeavesErrorsToTheServer(t *testing.T) {
	for name, write := range map[string]func(*script){
		"no preface":         func(s *script) { s.Reset(); s.WriteString("PRI * HTTP/1.1\r\nHost: a\r\n\r\n") },
		"frame too large":    func(s *script) { _ = s.WriteData(1, true, make([]byte, MaxFrameSize+1)) },
		"frames in a header": func(s *script) { _ = s.WriteContinuation(1, false, []byte("x")) },
		"bad HPACK": func(s *script) {
			_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff}, EndHeaders: true})
		},
		"too much padding": func(s *script) { _ = s.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPadded, 1, []byte{9, 1}) },
		"settings of 5":    func(s *script) { _ = s.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5)) },
		"settings that are errors": func(s *script) {
			_ = s.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript()
			write(s)
			s.request(3, "connection", "x")
			if got, err := pass(s); err != nil || !bytes.Contains(got, s.Bytes()[:20]) || len(got) < s.Len() {
				t.Fatalf("%d bytes of %d, %v", len(got), s.Len(), err)
			}
		})
	}
}

// TestMalformed looks at what net/http makes of the frames, by the same code.
func TestMalformed(t *testing.T) {
	for name, pairs := range map[string][]string{
		"connection":           {"connection", "keep-alive"},
		"keep-alive":           {"keep-alive", "1"},
		"proxy-connection":     {"proxy-connection", "close"},
		"transfer-encoding":    {"transfer-encoding", "chunked"},
		"upgrade":              {"upgrade", "h2c"},
		"te":                   {"te", "trailers, deflate"},
		"host unlike":          {"host", "b"},
		"length by sign":       {"content-length", "+1"},
		"lengths":              {"content-length", "1", "content-length", "2"},
		"two hosts":            {"host", "a", "host", "b"},
		"none of it, for once": {"te", "trailers", "host", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript()
			s.request(1, "first", "x")
			s.request(3, pairs...)
			s.request(5, "first", "x")
			got, err := pass(s)
			if err != nil {
				t.Fatal(err)
			}
			f := http2.NewFramer(io.Discard, bytes.NewReader(got[len(http2.ClientPreface):]))
			f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
			for _, id := range []uint32{1, 3, 5} {
				frame, err := f.ReadFrame()
				var broken http2.StreamError
				if id == 3 && name != "none of it, for once" {
					if !errors.As(err, &broken) || broken.StreamID != 3 || broken.Code != http2.ErrCodeProtocol {
						t.Errorf("stream 3: %v", err)
					}
				} else if err != nil || frame.Header().StreamID != id {
					t.Errorf("stream %d: %v", id, err)
				}
			}
		})
	}
}

func TestSettingsTwice(t *testing.T) {
	s := newScript()
	_ = s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 20000},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
	_ = s.WritePing(false, [8]byte{7})
	got, err := pass(s)
	if err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(io.Discard, bytes.NewReader(got[len(http2.ClientPreface):]))
	frame, err := f.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	settings := frame.(*http2.SettingsFrame)
	if window, _ := settings.Value(http2.SettingInitialWindowSize); settings.NumSettings() != 2 || settings.HasDuplicates() || window != 1 {
		t.Errorf("got %v", settings)
	}
	if frame, err := f.ReadFrame(); err != nil || frame.Header().Type != http2.FramePing {
		t.Errorf("then %v, %v", frame, err)
	}
}

func TestFloods(t *testing.T) {
	floods := map[string]func(*script, uint32){
		"resets":       func(s *script, id uint32) { s.request(id); _ = s.WriteRSTStream(id, http2.ErrCodeCancel) },
		"pings":        func(s *script, _ uint32) { _ = s.WritePing(false, [8]byte{}) },
		"settings":     func(s *script, _ uint32) { _ = s.WriteSettings() },
		"priorities":   func(s *script, id uint32) { _ = s.WritePriority(id, http2.PriorityParam{}) },
		"empty data":   func(s *script, _ uint32) { _ = s.WriteData(1, false, nil) },
		"windows":      func(s *script, _ uint32) { _ = s.WriteWindowUpdate(0, 1) },
		"unknown":      func(s *script, id uint32) { _ = s.WriteRawFrame(0xbe, 0, id, nil) },
		"continuation": func(s *script, _ uint32) { _ = s.WriteContinuation(1, false, nil) },
	}
	for name, write := range floods {
		t.Run(name, func(t *testing.T) {
			s := newScript()
			if name == "continuation" {
				_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.fields(":method", "GET")})
			}
			for id := uint32(1); id < 20000; id += 2 {
				write(s, id)
			}
			var told error
			c := New(stream{Reader: s}, Options{MaxHeaderBytes: 64 << 10, OnFlood: func(f *Flood) { told = f }})
			if _, err := io.Copy(io.Discard, c); !errors.Is(err, ErrFlood) || told == nil {
				t.Errorf("got %v, told %v", err, told)
			}
			t.Log(told)
		})
	}
}

// TestPaidFor lets clients ask as often as they get something.
func TestPaidFor(t *testing.T) {
	s := newScript()
	r, w := io.Pipe()
	c := New(stream{Reader: r}, Options{MaxHeaderBytes: 64 << 10})
	go func() {
		_, _ = w.Write(s.Bytes())
		for range 20000 {
			_, _ = c.Write(make([]byte, 64)) // an answer
			s.Reset()
			_ = s.WritePing(false, [8]byte{})
			_ = s.WriteWindowUpdate(1, 10)
			_ = s.WriteWindowUpdate(0, 10)
			_, _ = w.Write(s.Bytes())
		}
		_ = w.Close()
	}()
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Error(err)
	}
}

// TestDeadline passes on that nothing came in time, and goes on after it.
func TestDeadline(t *testing.T) {
	s := newScript()
	want := s.String()
	c := New(stream{Reader: &late{Reader: s}}, Options{MaxHeaderBytes: 1})
	var got []byte
	for {
		p := make([]byte, 100)
		n, err := c.Read(p)
		got = append(got, p[:n]...)
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	if string(got) != want {
		t.Errorf("got %q", got)
	}
}

// late gives a byte every other time.
type late struct {
	io.Reader
	turn int
}

func (l *late) Read(p []byte) (int, error) {
	if l.turn++; l.turn%2 == 0 {
		return 0, os.ErrDeadlineExceeded
	}
	return l.Reader.Read(p[:1])
}

// FuzzConn holds the guard to passing on, byte by byte, whatever it does not
// end or spoil, and to not looking beyond what is there.
func FuzzConn(f *testing.F) {
	s := newScript()
	_ = s.WriteSettings()
	s.request(1, "connection", "x")
	_ = s.WriteData(1, true, []byte("x"))
	f.Add(s.Bytes()[len(http2.ClientPreface):])
	f.Fuzz(func(t *testing.T, frames []byte) {
		in := append([]byte(http2.ClientPreface), frames...)
		out, err := io.ReadAll(New(stream{Reader: bytes.NewReader(in)}, Options{MaxHeaderBytes: 1 << 10}))
		if err == nil && len(out) > len(in)+len(in)/frameHeader*len(spoiled) {
			t.Fatalf("%d bytes became %d", len(in), len(out))
		}
	})
}
