package h2client

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
)

// played is a connection on which a backend says what it was given and ends.
type played struct {
	net.Conn // nil: the rest is not used
	says     *bytes.Reader
	closed   chan struct{}
	heard    int
}

// Read implements io.Reader, in small pieces.
func (p *played) Read(b []byte) (int, error) { return p.says.Read(b[:min(len(b), 100)]) }

// Write implements io.Writer.
func (p *played) Write(b []byte) (int, error) {
	select {
	case <-p.closed:
		return 0, net.ErrClosed
	default:
		p.heard += len(b)
		return len(b), nil
	}
}

// Close implements io.Closer.
func (p *played) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

// SetWriteDeadline is called for GOAWAY.
func (p *played) SetWriteDeadline(time.Time) error { return nil }

// FuzzFrames has a backend say anything to three requests. Each comes to an
// end, and an answer that is whole is one that the backend plainly gave.
func FuzzFrames(f *testing.F) {
	frame := func(k kind, flags byte, stream uint32, payload ...byte) []byte {
		return append(appendFrame(nil, len(payload), k, flags, stream), payload...)
	}
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	fields := func(pairs ...string) []byte {
		block.Reset()
		for i := 0; i < len(pairs); i += 2 {
			_ = e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
		}
		return bytes.Clone(block.Bytes())
	}
	settings := frame(settingsFrame, 0, 0)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	head := fields(":status", "200", "content-length", "2")
	f.Add(join(settings, frame(headersFrame, flagEndHeaders, 1, head...), frame(dataFrame, flagEndStream, 1, 'o', 'k')))
	f.Add(join(settings, frame(headersFrame, 0, 3, fields(":status", "103")...), frame(continuationFrame, flagEndHeaders, 3, fields("link", "x")...),
		frame(headersFrame, flagEndHeaders|flagEndStream, 3, fields(":status", "204")...)))
	f.Add(join(settings, frame(headersFrame, flagEndHeaders|flagPadded|flagPriority, 5, join([]byte{1, 0, 0, 0, 0, 0}, fields(":status", "200"), []byte{0})...),
		frame(dataFrame, flagPadded, 5, 2, 'x', 0, 0), frame(headersFrame, flagEndHeaders|flagEndStream, 5, fields("grpc-status", "0")...)))
	f.Add(join(settings, frame(settingsFrame, flagAck, 0), frame(pingFrame, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8), frame(goAwayFrame, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0),
		frame(resetFrame, 0, 1, 0, 0, 0, 7), frame(windowFrame, 0, 3, 0, 0, 0, 1), frame(windowFrame, 0, 0, 0, 0, 1, 0)))
	f.Add(frame(settingsFrame, 0, 0, append(appendSetting(nil, settingInitialWindow, 0), appendSetting(nil, settingTableSize, 0)...)...))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, says []byte) {
		p := &played{says: bytes.NewReader(says), closed: make(chan struct{})}
		hold := make(chan struct{})
		c := New(&held{p, hold}, Options{MaxHeader: 4 << 10, tick: time.Hour})
		var streams []*Stream
		for range 3 {
			s, err := c.Open(&Request{Method: "GET", Authority: "a", Path: "/", Header: header(), End: true})
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, s)
		}
		close(hold)
		for _, s := range streams {
			for {
				h, err := s.Head(nil)
				if err != nil {
					break
				}
				if h.Status < 100 || h.Status > 999 || h.Status == 101 {
					t.Fatalf("status %d", h.Status)
				}
				for _, field := range h.Fields {
					if !all(field.Name, lowerByte) || !all(field.Value, valueByte) || isHop(field.Name) {
						t.Fatalf("field %q: %q", field.Name, field.Value)
					}
				}
				if h.Status < 200 {
					continue
				}
				var n int64
				for {
					data, err := s.Next(nil)
					n += int64(len(data))
					if err == io.EOF && h.Length >= 0 && h.Status != 204 && h.Status != 304 && n != h.Length {
						t.Fatalf("%d bytes of %d", n, h.Length)
					}
					if err != nil {
						break
					}
				}
				break
			}
			s.Close()
		}
		<-p.closed // the backend's end is the connection's
		if n := c.Streams(); n != 0 {
			t.Fatalf("%d streams are left", n)
		}
	})
}

// held says nothing before it may.
type held struct {
	*played
	may chan struct{}
}

// Read implements io.Reader.
func (h *held) Read(b []byte) (int, error) {
	<-h.may
	return h.played.Read(b)
}

// FuzzEncoder has a peer's decoder read what the encoder writes, with limits on
// the table that change.
func FuzzEncoder(f *testing.F) {
	f.Add([]byte("content-type\x00application/grpc\x00"), uint32(4096), uint32(100))
	f.Add([]byte("a\x00b\x00A\x00b\x00a\x00b\x00x-long\x00"+string(bytes.Repeat([]byte("y"), 900))+"\x00"), uint32(0), uint32(4096))
	f.Fuzz(func(t *testing.T, text []byte, first, second uint32) {
		e := newEncoder()
		type pair struct{ name, value string }
		var want, got []pair
		d := hpack.NewDecoder(tableSize, func(f hpack.HeaderField) { got = append(got, pair{f.Name, f.Value}) })
		parts := bytes.Split(text, []byte{0})
		for round := range 6 {
			switch round {
			case 2:
				e.limit(first)
			case 4:
				e.limit(second)
				e.limit(first)
				e.limit(second)
			}
			want, got = want[:0], got[:0]
			out := e.begin(nil)
			for i := 0; i+1 < len(parts); i += 2 {
				name, value := string(parts[i]), string(parts[i+1])
				if name == "" {
					continue
				}
				out = e.field(out, name, value)
				want = append(want, pair{lower(name), value})
			}
			_, err := d.Write(out)
			if err = errors.Join(err, d.Close()); err != nil {
				t.Fatalf("round %d: %v in %x", round, err, out)
			}
			if len(got) != len(want) {
				t.Fatalf("round %d: %q, want %q", round, got, want)
			}
			for i := range want {
				if lower(got[i].name) != want[i].name || got[i].value != want[i].value {
					t.Fatalf("round %d: %q, want %q", round, got, want)
				}
			}
		}
	})
}

func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
