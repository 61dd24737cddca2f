package http2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/shed"
)

// tick is how often a server looks at its connections.
const tick = 250 * time.Millisecond

// handle is a Handler.
type handle func(s *Stream)

func (h handle) ServeHTTP2(s *Stream) { h(s) }

// echo answers with the request: its header, and then its body and trailers.
var echo = handle(func(s *Stream) {
	r := &s.Request
	s.Begin(200)
	s.Field("X-Request", fmt.Sprintf("%s %s %s %d", r.Method, r.Target, r.Host, r.Length))
	for _, f := range r.Fields {
		s.Field("X-Got", f.Name+"="+f.Value)
	}
	if s.SendHead() != nil {
		return
	}
	for {
		data, err := s.Next(1 << 20)
		if err == io.EOF {
			break
		}
		if err != nil {
			return
		}
		if _, err := s.Write(data); err != nil {
			return
		}
		if s.Flush() != nil {
			return
		}
	}
	if list := s.Trailers(); len(list) > 0 {
		s.Begin(0)
		for _, f := range list {
			s.Field(f.Name, f.Value)
		}
		_ = s.SendTrailers()
		return
	}
	_ = s.End()
})

// start starts a server, of which each connection made by dial is served.
func start(t testing.TB, o Options) (dial func() net.Conn, s *Server) {
	t.Helper()
	if o.Handler == nil {
		o.Handler = echo
	}
	o.Logger = slog.New(slog.DiscardHandler)
	s, err := NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.ServeConn(http1Wire(c), false)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Drain(ctx)
	})
	return func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		return c
	}, s
}

func http1Wire(c net.Conn) net.Conn { return http1.NewWire(c.(*net.TCPConn)) }

// client returns a client that speaks HTTP/2 to a server.
func client(t testing.TB, dial func() net.Conn) *http.Client {
	t.Helper()
	tr := &http.Transport{Protocols: new(http.Protocols), DialContext: func(context.Context, string, string) (net.Conn, error) { return dial(), nil }}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

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
	_ = s.WriteSettings()
	return s
}

func (s *script) fields(pairs ...string) []byte {
	s.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		_ = s.encoder.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(s.block.Bytes())
}

func (s *script) request(id uint32, end bool, pairs ...string) {
	_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: s.fields(pairs...), EndStream: end, EndHeaders: true, PadLength: uint8(id % 3)})
}

func plainly(pairs ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"}, pairs...)
}

// outcome reads what became of a stream.
func outcome(f *http2.Framer, id uint32) string {
	status := ""
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return "closed"
		}
		ended := false
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == id && status == "" {
				status = f.PseudoValue("status")
			}
			ended = f.StreamEnded()
		case *http2.DataFrame:
			ended = f.StreamEnded()
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return f.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			return "GOAWAY " + f.ErrCode.String()
		}
		if ended && frame.Header().StreamID == id {
			return status
		}
	}
}

func reader(c net.Conn) *http2.Framer {
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return f
}

// TestEcho sends bodies of all sizes, many at once, by a well-known client.
func TestEcho(t *testing.T) {
	dial, _ := start(t, Options{})
	c := client(t, dial)
	done := make(chan error)
	sizes := []int{0, 1, 100, 16383, 16384, 16385, 100_000, 3 << 20}
	for _, size := range sizes {
		go func() {
			done <- func() error {
				body := bytes.Repeat([]byte("abcdefg"), size/7+1)[:size]
				req, err := http.NewRequest("POST", "http://a/x?y", struct{ io.Reader }{bytes.NewReader(body)})
				if err != nil {
					return err
				}
				req.Header.Set("Z", strings.Repeat("z", size%50_000))
				req.Trailer = http.Header{"T": {"end"}}
				resp, err := c.Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				got, err := io.ReadAll(resp.Body)
				if err != nil || !bytes.Equal(got, body) || resp.Trailer.Get("T") != "end" {
					return fmt.Errorf("%d bytes of %d, %v, trailer %v", len(got), size, err, resp.Trailer)
				}
				if got := resp.Header.Get("X-Request"); got != "POST /x?y a -1" {
					return fmt.Errorf("got %q", got)
				}
				return nil
			}()
		}()
	}
	for range sizes {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestAnswers looks at what has no body, comes before the answer, or needs
// several frames.
func TestAnswers(t *testing.T) {
	long := strings.Repeat("l", 40_000)
	dial, _ := start(t, Options{Handler: handle(func(s *Stream) {
		switch s.Request.Target {
		case "/interim":
			s.Begin(103)
			s.Field("Link", "</a>")
			_ = s.SendInterim()
			s.Begin(204)
			_ = s.SendHead()
			_ = s.End()
		case "/long":
			s.Begin(404)
			s.Field("X-Long", long)
			_ = s.SendHead()
			_ = s.End()
		case "/cut":
			s.Begin(200)
			_ = s.SendHead()
			_, _ = s.Write([]byte("some"))
			_ = s.Flush()
		case "/early":
			s.Begin(413)
			_ = s.SendHead()
			_ = s.End()
		}
	})})
	c := client(t, dial)
	if resp, err := c.Get("http://a/interim"); err != nil || resp.StatusCode != 204 {
		t.Errorf("%v, %v", resp, err)
	}
	if resp, err := c.Get("http://a/long"); err != nil || resp.StatusCode != 404 || resp.Header.Get("X-Long") != long {
		t.Errorf("%v", err)
	}
	resp, err := c.Get("http://a/cut")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(resp.Body); err == nil || string(got) != "some" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := c.Get("http://a/nothing"); err == nil {
		t.Error("no answer is an answer")
	}
	body, w := io.Pipe()
	resp, err = c.Post("http://a/early", "x/y", body)
	if err != nil || resp.StatusCode != 413 {
		t.Errorf("%v, %v", resp, err)
	}
	_ = w.Close()
}

// TestExpect sends 100 when the body is asked for.
func TestExpect(t *testing.T) {
	dial, _ := start(t, Options{})
	conn := dial()
	s := newScript()
	s.request(1, false, plainly("expect", "100-continue")...)
	_, _ = conn.Write(s.Bytes())
	f := reader(conn)
	heads := []string{}
	for len(heads) < 1 {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := frame.(*http2.MetaHeadersFrame); ok {
			heads = append(heads, h.PseudoValue("status"))
		}
	}
	// The echo has begun its answer before it reads.
	if heads[0] != "200" {
		t.Errorf("got %v", heads)
	}
	dial, _ = start(t, Options{Handler: handle(func(s *Stream) {
		data, err := s.Next(100)
		s.Begin(200)
		s.Field("got", fmt.Sprint(string(data), err))
		_ = s.SendHead()
		_ = s.End()
	})})
	conn = dial()
	_, _ = conn.Write(s.Bytes())
	f = reader(conn)
	for want := []string{"100", "200"}; len(want) > 0; {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := frame.(*http2.MetaHeadersFrame); ok {
			if got := h.PseudoValue("status"); got != want[0] {
				t.Fatalf("got %s, want %s", got, want[0])
			}
			if want = want[1:]; len(want) == 1 {
				s.Reset()
				_ = s.WriteData(1, true, []byte("body"))
				_, _ = conn.Write(s.Bytes())
			} else if h.RegularFields()[0].Value != "body<nil>" {
				t.Errorf("got %v", h.Fields)
			}
		}
	}
}

// malformed are requests that RFC 9113 calls so, by what is wrong with them.
var malformed = map[string][]string{
	"capitals":               plainly("X-A", "b"),
	"connection":             plainly("connection", "keep-alive"),
	"keep-alive":             plainly("keep-alive", "1"),
	"proxy-connection":       plainly("proxy-connection", "close"),
	"transfer-encoding":      plainly("transfer-encoding", "chunked"),
	"upgrade":                plainly("upgrade", "h2c"),
	"te":                     plainly("te", "trailers, deflate"),
	"host unlike":            plainly("host", "b"),
	"two hosts":              {":method", "GET", ":scheme", "http", ":path", "/", "host", "a", "host", "b"},
	"length by sign":         plainly("content-length", "+1"),
	"length of nothing":      plainly("content-length", ""),
	"length too long":        plainly("content-length", "10000000000000000000"),
	"lengths":                plainly("content-length", "1", "content-length", "2"),
	"length without body":    plainly("content-length", "1"),
	"space in a name":        plainly("a b", "c"),
	"colon in a name":        plainly("a:b", "c"),
	"name of nothing":        plainly("", "c"),
	"CR":                     plainly("a", "b\rc"),
	"LF":                     plainly("a", "b\nc"),
	"NUL":                    plainly("a", "b\x00c"),
	"DEL":                    plainly("a", "b\x7fc"),
	"space before":           plainly("a", " b"),
	"tab behind":             plainly("a", "b\t"),
	"late pseudo":            {":method", "GET", ":scheme", "http", "a", "b", ":path", "/", ":authority", "a"},
	"two methods":            plainly(":method", "GET"),
	"two paths":              plainly(":path", "/"),
	"two schemes":            plainly(":scheme", "http"),
	"two authorities":        plainly(":authority", "a"),
	"unknown pseudo":         plainly(":x", "y"),
	"status":                 plainly(":status", "200"),
	"protocol":               plainly(":protocol", "websocket"),
	"no method":              {":scheme", "http", ":path", "/", ":authority", "a"},
	"no scheme":              {":method", "GET", ":path", "/", ":authority", "a"},
	"scheme of files":        {":method", "GET", ":scheme", "file", ":path", "/", ":authority", "a"},
	"no path":                {":method", "GET", ":scheme", "http", ":authority", "a"},
	"path of nothing":        {":method", "GET", ":scheme", "http", ":path", "", ":authority", "a"},
	"CONNECT with a path":    {":method", "CONNECT", ":path", "/", ":authority", "a"},
	"CONNECT with a scheme":  {":method", "CONNECT", ":scheme", "http", ":authority", "a"},
	"CONNECT without target": {":method", "CONNECT"},
}

// TestMalformed has each of them refused, alone: the connection goes on, and so
// does HPACK's table.
func TestMalformed(t *testing.T) {
	dial, _ := start(t, Options{})
	for name, pairs := range malformed {
		t.Run(name, func(t *testing.T) {
			conn := dial()
			s := newScript()
			s.request(1, true, plainly("first", "x")...)
			s.request(3, true, pairs...)
			s.request(5, true, plainly("first", "x")...)
			_, _ = conn.Write(s.Bytes())
			f := reader(conn)
			if got := outcome(f, 3); got != "PROTOCOL_ERROR" {
				t.Errorf("got %s", got)
			}
			if got := outcome(f, 5); got != "200" {
				t.Errorf("the next got %s", got)
			}
		})
	}
}

// TestWellFormed is what only looks odd.
func TestWellFormed(t *testing.T) {
	dial, _ := start(t, Options{})
	for want, pairs := range map[string][]string{
		"GET / a 0;te=trailers;x=y\tz":           plainly("te", "trailers", "host", "A", "x", "y\tz"),
		"GET / b 0;":                             {":method", "GET", ":scheme", "https", ":path", "/", "host", "b"},
		"OPTIONS * a 0;":                         {":method", "OPTIONS", ":scheme", "https", ":path", "*", ":authority", "a"},
		"CONNECT a:1 a:1 0;":                     {":method", "CONNECT", ":authority", "a:1"},
		"GET / a 0;cookie=a=b; c=d; e=f;x=\x80":  plainly("cookie", "", "cookie", "a=b", "cookie", "", "cookie", "c=d", "x", "\x80", "cookie", "e=f"),
		"GET / a 0;content-length=0;proxy-auth=": plainly("content-length", "0", "content-length", "0", "proxy-auth", ""),
	} {
		t.Run(want, func(t *testing.T) {
			conn := dial()
			s := newScript()
			s.request(1, true, pairs...)
			_, _ = conn.Write(s.Bytes())
			f := reader(conn)
			for {
				frame, err := f.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				h, ok := frame.(*http2.MetaHeadersFrame)
				if !ok {
					continue
				}
				got := []string{}
				for _, f := range h.RegularFields() {
					got = append(got, f.Value)
				}
				got[0] += ";" + strings.Join(got[1:], ";")
				if got[0] != want {
					t.Errorf("got %q", got[0])
				}
				return
			}
		})
	}
}

// TestBodiesUnlikeTheirLength are reset, whichever frame shows it.
func TestBodiesUnlikeTheirLength(t *testing.T) {
	dial, _ := start(t, Options{})
	for name, write := range map[string]func(*script){
		"short":            func(s *script) { _ = s.WriteData(1, true, []byte("abc")) },
		"long":             func(s *script) { _ = s.WriteData(1, false, []byte("abcde")) },
		"short, two":       func(s *script) { _ = s.WriteData(1, false, []byte("abc")); _ = s.WriteData(1, true, nil) },
		"short, trailers":  func(s *script) { _ = s.WriteData(1, false, []byte("abc")); s.request(1, true, "t", "u") },
		"pseudo trailers":  func(s *script) { _ = s.WriteData(1, false, []byte("abcd")); s.request(1, true, ":path", "u") },
		"endless trailers": func(s *script) { _ = s.WriteData(1, false, []byte("abcd")); s.request(1, false, "t", "u") },
		"odd trailers":     func(s *script) { _ = s.WriteData(1, false, []byte("abcd")); s.request(1, true, "connection", "u") },
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial()
			s := newScript()
			s.request(1, false, plainly("content-length", "4")...)
			write(s)
			_, _ = conn.Write(s.Bytes())
			if got := outcome(reader(conn), 1); got != "PROTOCOL_ERROR" {
				t.Errorf("got %s", got)
			}
		})
	}
}

// TestFloods ends connections whose clients make work for nothing, and tells them.
func TestFloods(t *testing.T) {
	floods := map[string]func(*script, uint32){
		"resets": func(s *script, id uint32) {
			s.request(id, true, plainly()...)
			_ = s.WriteRSTStream(id, http2.ErrCodeCancel)
		},
		"made to reset": func(s *script, id uint32) { s.request(id, true, plainly("connection", "x")...) },
		"pings":         func(s *script, _ uint32) { _ = s.WritePing(false, [8]byte{}) },
		"settings":      func(s *script, _ uint32) { _ = s.WriteSettings() },
		"priorities":    func(s *script, id uint32) { _ = s.WritePriority(id, http2.PriorityParam{}) },
		"empty data": func(s *script, id uint32) {
			if id == 1 {
				s.request(id, false, plainly()...)
			}
			_ = s.WriteData(1, false, nil)
		},
		"padded data": func(s *script, id uint32) {
			if id == 1 {
				s.request(id, false, plainly()...)
			}
			_ = s.WriteDataPadded(1, false, nil, make([]byte, 1))
		},
		"refused": func(s *script, id uint32) { s.request(id, false, plainly()...) },
		"too large": func(s *script, id uint32) {
			if id < 3000 {
				s.request(id, true, plainly(strings.Fields(strings.Repeat("a b ", maxFields))...)...)
			}
		},
		"after a reset": func(s *script, id uint32) {
			if id == 1 {
				s.request(1, true, plainly("connection", "x")...)
			}
			s.request(1, true, plainly()...)
		},
		"large headers": func(s *script, id uint32) {
			if id < 100 { // each 60 KB of Huffman codes, which are those of more than a header may have
				block := s.fields(plainly("a", strings.Repeat("a", 96<<10))...)
				for first := true; len(block) > 0; first = false {
					n := min(len(block), maxFrame)
					if first {
						_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: true, EndHeaders: n == len(block), BlockFragment: block[:n]})
					} else {
						_ = s.WriteContinuation(id, n == len(block), block[:n])
					}
					block = block[n:]
				}
			}
		},
		"windows": func(s *script, _ uint32) { _ = s.WriteWindowUpdate(0, 1) },
		"unknown": func(s *script, id uint32) { _ = s.WriteRawFrame(0xbe, 0, id, nil) },
		"continuation": func(s *script, id uint32) {
			if id == 1 {
				_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.fields(":method", "GET")})
			}
			_ = s.WriteContinuation(1, false, nil)
		},
	}
	for name, write := range floods {
		t.Run(name, func(t *testing.T) {
			var told atomic.Pointer[string]
			o := Options{OnFlood: func(reason string) { told.Store(&reason) }}
			if name == "large headers" {
				// It would come back faster than a machine with other work spends it.
				o.heads = budget{most: 1 << 20}
			}
			dial, _ := start(t, o)
			conn := dial()
			go func() {
				s := newScript()
				for id := uint32(1); id < 20000; id += 2 {
					write(s, id)
				}
				_, _ = conn.Write(s.Bytes()) // may be cut off
			}()
			f := reader(conn)
			last := ""
			for {
				frame, err := f.ReadFrame()
				if err != nil {
					break
				}
				last = frame.Header().Type.String()
				if g, ok := frame.(*http2.GoAwayFrame); ok {
					last = g.ErrCode.String()
				}
			}
			switch reason := told.Load(); {
			case reason == nil:
				t.Errorf("it ends unasked; the last that was heard is %s", last)
			case name == "large headers": // more is on its way than is read at the end, which may keep its client from hearing why
				if *reason != Headers {
					t.Errorf("it ended for its %s", *reason)
				}
			case last != "ENHANCE_YOUR_CALM":
				t.Errorf("the last that was heard is %s", last)
			}
		})
	}
}

// TestUnpaid: what the gateway says itself does not pay for what its client does.
func TestUnpaid(t *testing.T) {
	earned := make(chan int64, 1)
	dial, _ := start(t, Options{Handler: handle(func(s *Stream) {
		if s.Request.Target == "/earned" {
			earned <- s.Conn().earned()
		} else if s.Request.Target == "/unpaid" {
			s.Unpaid()
		}
		s.Begin(200)
		s.Field("x", strings.Repeat("~", 300))
		_ = s.SendHead()
		_, _ = s.Write(make([]byte, 1000))
		_ = s.End()
	})})
	conn := dial()
	s := newScript()
	f := reader(conn)
	id := uint32(1)
	ask := func(path string) {
		t.Helper()
		s.request(id, true, ":method", "GET", ":scheme", "http", ":path", path, ":authority", "a")
		_, _ = conn.Write(s.Bytes())
		s.Reset()
		if got := outcome(f, id); got != "200" {
			t.Fatal(got)
		}
		id += 2
	}
	ask("/earned")
	before := <-earned
	ask("/unpaid")
	for range 100 {
		_ = s.WritePing(false, [8]byte{})
		_ = s.WriteSettings()
	}
	ask("/earned")
	if got := <-earned - before; got < 1300 || got > 1500 {
		t.Errorf("two answers have earned %d bytes, one of which is unpaid, as are the answers to PING and SETTINGS", got)
	}
}

// TestLargeHeaders counts what a client may have decoded.
func TestLargeHeaders(t *testing.T) {
	b := newHeaders()
	const now, size = int64(time.Hour), 60 << 10
	n := 0
	for ; b.take(size, now, 0); n += size {
	}
	if n > 8<<20 {
		t.Errorf("%d bytes at once", n)
	}
	for end := now + int64(10*time.Second); ; n += size {
		if !b.take(size, end, 0) {
			break
		}
	}
	if n > 18<<20 {
		t.Errorf("%d bytes in ten seconds", n)
	}
	if b.take(size, now+int64(10*time.Second), size-1<<10); !b.take(1, now+int64(10*time.Second), size) {
		t.Error("an answer as large does not make up for it")
	}
}

// TestPaidFor lets clients ask as often as they get something.
func TestPaidFor(t *testing.T) {
	dial, _ := start(t, Options{Handler: handle(func(s *Stream) {
		s.Begin(200)
		s.Field("x", strings.Repeat("~", 300))
		_ = s.SendHead()
		_ = s.End()
	})})
	conn := dial()
	s := newScript()
	f := reader(conn)
	for id := uint32(1); id < 10000; id += 2 {
		s.request(id, true, plainly()...)
		_ = s.WritePing(false, [8]byte{})
		_ = s.WriteWindowUpdate(0, 10)
		_, _ = conn.Write(s.Bytes())
		s.Reset()
		if got := outcome(f, id); got != "200" {
			t.Fatalf("request %d got %s", id, got)
		}
	}
}

// TestHeaderTooLarge is answered by the handler, and costs little.
func TestHeaderTooLarge(t *testing.T) {
	dial, _ := start(t, Options{MaxHeaderBytes: 10_000, Handler: handle(func(s *Stream) {
		s.Begin(200)
		if s.Refused != nil {
			s.Begin(s.Refused.Status)
		}
		_ = s.SendHead()
		_ = s.End()
	})})
	conn := dial()
	s := newScript()
	s.request(1, true, plainly("x", strings.Repeat("y", 4000), "x", strings.Repeat("y", 4000), "x", strings.Repeat("y", 4000))...)
	s.request(3, true, plainly("x", strings.Repeat("y", 4000))...)
	// One field alone, in as many frames as there may be: of Huffman's shortest code, which gets longest.
	block := s.fields(plainly("first", "in the table", "x", strings.Repeat("0", maxString-100), "last", "in the table")...)
	for first := true; len(block) > 0; first = false {
		piece := block[:min(maxFrame, len(block))]
		block = block[len(piece):]
		if first {
			_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: piece, EndStream: true})
		} else {
			_ = s.WriteContinuation(5, len(block) == 0, piece)
		}
	}
	s.request(7, true, plainly("first", "in the table", "last", "in the table")...)
	_, _ = conn.Write(s.Bytes())
	f := reader(conn)
	heads := map[uint32]string{}
	for len(heads) < 4 {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := frame.(*http2.MetaHeadersFrame); ok {
			heads[h.StreamID] = h.PseudoValue("status")
		}
	}
	if heads[1] != "431" || heads[3] != "200" || heads[5] != "431" || heads[7] != "200" {
		t.Errorf("got %v", heads)
	}
}

// TestPaths leaves it to the handler to answer where no path is one.
func TestPaths(t *testing.T) {
	dial, _ := start(t, Options{Handler: handle(func(s *Stream) {
		s.Begin(200)
		if s.Refused != nil {
			s.Begin(s.Refused.Status)
		}
		_ = s.SendHead()
		_ = s.End()
	})})
	for path, want := range map[string]string{"/": "200", "x": "400", "*": "400", "http://b/": "400", "@b/": "400", "?": "400"} {
		conn := dial()
		s := newScript()
		s.request(1, true, ":method", "GET", ":scheme", "http", ":path", path, ":authority", "a")
		_, _ = conn.Write(s.Bytes())
		if got := outcome(reader(conn), 1); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

// TestWindowThatStaysShut gives an answer up that its client does not take,
// but not that of an RPC.
func TestWindowThatStaysShut(t *testing.T) {
	ended := make(chan error, 1)
	dial, _ := start(t, Options{WriteTimeout: 100 * time.Millisecond, Handler: handle(func(s *Stream) {
		s.Begin(200)
		_ = s.SendHead()
		_, err := s.Write(make([]byte, 1000))
		_ = s.End()
		ended <- err
	})})
	for _, kind := range []string{"x/y", "application/grpc"} {
		conn := dial()
		s := newScript()
		_ = s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
		s.request(1, true, plainly("content-type", kind)...)
		_, _ = conn.Write(s.Bytes())
		if kind == "x/y" {
			if err := <-ended; !errors.Is(err, http1.ErrGone) {
				t.Errorf("got %v", err)
			}
			if got := outcome(reader(conn), 1); got != "CANCEL" {
				t.Errorf("the client got %s", got)
			}
			continue
		}
		select {
		case err := <-ended:
			t.Errorf("an RPC ended with %v", err)
		case <-time.After(4 * tick):
		}
		s.Reset()
		_ = s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 500})
		_ = s.WriteWindowUpdate(1, 500)
		_, _ = conn.Write(s.Bytes())
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// TestTrickle: a client that opens a window by hardly anything, and again and
// again, is given up; one that takes an answer slowly gets it. So it is with the
// stream's window and with the connection's.
func TestTrickle(t *testing.T) {
	const size = firstWindow + 100_000
	dial, _ := start(t, Options{WriteTimeout: 4 * tick, Handler: handle(func(s *Stream) {
		s.Begin(200)
		_ = s.SendHead()
		if _, err := s.Write(make([]byte, size)); err == nil {
			_ = s.End()
		}
	})})
	for name, tt := range map[string]struct{ stream, on, connection, step uint32 }{
		"stream, slowly": {10, 1, maxWindow, 2000}, "stream, hardly": {10, 1, maxWindow, 1},
		"connection, slowly": {maxWindow, 0, firstWindow, 2000}, "connection, hardly": {maxWindow, 0, firstWindow, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := dial()
			s := newScript()
			_ = s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: tt.stream})
			if more := tt.connection - firstWindow; more > 0 {
				_ = s.WriteWindowUpdate(0, more)
			}
			s.request(1, true, plainly()...)
			if tt.on == 1 && tt.step > 1 {
				_ = s.WriteWindowUpdate(1, firstWindow)
			}
			_, _ = conn.Write(s.Bytes())
			done := make(chan struct{})
			opened := make(chan struct{})
			go func() {
				defer close(opened)
				for {
					select {
					case <-done:
						return
					case <-time.After(50 * time.Millisecond):
					}
					more := newScript()
					more.Reset()
					_ = more.WriteWindowUpdate(tt.on, tt.step)
					_, _ = conn.Write(more.Bytes())
				}
			}()
			want := "CANCEL"
			if tt.step > 1 {
				want = "200"
			}
			if got := outcome(reader(conn), 1); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			close(done)
			<-opened
		})
	}
}

// TestSlowClients are given up: with a header that does not come to its end, a
// body that does not come, no request at all.
func TestSlowClients(t *testing.T) {
	for name, write := range map[string]func(s *script){
		"no preface":   func(s *script) { s.Truncate(10) },
		"half a frame": func(s *script) { s.Write([]byte{0, 0, 8, 6}) },
		"half a header": func(s *script) {
			_ = s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.fields(plainly()...)})
		},
		"half of DATA": func(s *script) {
			s.request(1, false, plainly("content-type", "application/grpc")...)
			s.Write([]byte{0, 0, 8, 0, 0, 0, 0, 0, 1, 'x'})
		},
		"no request":     func(*script) {},
		"no more of one": func(s *script) { s.request(1, false, plainly()...) },
	} {
		t.Run(name, func(t *testing.T) {
			dial, _ := start(t, Options{HeaderTimeout: tick, IdleTimeout: tick, BodyTimeout: tick})
			conn := dial()
			s := newScript()
			write(s)
			_, _ = conn.Write(s.Bytes())
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("it waits for ever")
			}
		})
	}
}

// TestBodyThatIsLate tells the handler so.
func TestBodyThatIsLate(t *testing.T) {
	ended := make(chan error, 1)
	dial, _ := start(t, Options{BodyTimeout: 10 * time.Millisecond, Handler: handle(func(s *Stream) {
		_, err := s.Next(10)
		ended <- err
	})})
	conn := dial()
	s := newScript()
	s.request(1, false, plainly()...)
	_, _ = conn.Write(s.Bytes())
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) || !errors.Is(err, http1.ErrClient) {
		t.Errorf("got %v", err)
	}
}

// holder is an exchange that tells of its end.
type holder chan struct{}

func (h holder) Abandon()    { close(h) }
func (h holder) Sweep(int64) {}

// TestHeld: where too much of bodies waits for backends, the request that has
// most of it ends, also if whoever sends it on hears of nothing else. Its
// connection goes on.
func TestHeld(t *testing.T) {
	held := shed.NewHeld(16*4*chunkSize, func() bool { return false })
	release, cut := make(chan struct{}), make(chan error, 1)
	dial, _ := start(t, Options{Held: held, Handler: handle(func(s *Stream) {
		x := make(holder)
		s.Hold(x)
		defer s.Hold(nil)
		select {
		case <-x:
			if !s.Cut() {
				t.Error("the request was given up for another reason")
			}
			_, err := s.Next(10)
			cut <- err
		case <-release:
			if _, err := s.Next(10); err != nil {
				t.Error(err)
			}
			s.Begin(204)
			_ = s.SendHead()
			_ = s.End()
		}
	})})
	conn := dial()
	s := newScript()
	s.request(1, false, plainly()...)
	_ = s.WriteData(1, true, make([]byte, chunkSize))
	s.request(3, false, plainly()...)
	for range 7 {
		_ = s.WriteData(3, false, make([]byte, chunkSize))
	}
	_, _ = conn.Write(s.Bytes())
	if err := <-cut; err != shed.ErrFull {
		t.Errorf("the body ends with %v", err)
	}
	f := reader(conn)
	if got := outcome(f, 3); got != "ENHANCE_YOUR_CALM" {
		t.Errorf("the client gets %s", got)
	}
	close(release)
	if got := outcome(f, 1); got != "204" {
		t.Errorf("the other request gets %s", got)
	}
	for end := time.Now().Add(20 * time.Second); held.Bytes() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes count as held at the end", held.Bytes())
		}
	}
	if held.Cut() != 1 {
		t.Errorf("%d were cut", held.Cut())
	}
}

// TestGone tells exchanges that nobody waits.
func TestGone(t *testing.T) {
	for name, leave := range map[string]func(conn net.Conn, s *script){
		"reset": func(conn net.Conn, s *script) {
			_ = s.WriteRSTStream(1, http2.ErrCodeCancel)
			_, _ = conn.Write(s.Bytes())
		},
		"closed": func(conn net.Conn, _ *script) { _ = conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			held, told := make(chan struct{}), make(chan error, 1)
			dial, _ := start(t, Options{Handler: handle(func(s *Stream) {
				x := make(holder)
				s.Hold(x)
				close(held)
				<-x
				s.Hold(nil)
				_, err := s.Next(10)
				told <- err
			})})
			conn := dial()
			s := newScript()
			s.request(1, false, plainly()...)
			_, _ = conn.Write(s.Bytes())
			<-held
			s.Reset()
			leave(conn, s)
			if err := <-told; !errors.Is(err, http1.ErrGone) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestDrain loses no request: one that is under way, and one that was sent
// before its client could hear of it.
func TestDrain(t *testing.T) {
	held, release := make(chan struct{}), make(chan struct{})
	dial, server := start(t, Options{Handler: handle(func(s *Stream) {
		if s.Request.Target == "/slow" {
			close(held)
			<-release
		}
		s.Begin(200)
		_ = s.SendHead()
		_ = s.End()
	})})
	conn := dial()
	s := newScript()
	s.request(1, true, ":method", "GET", ":scheme", "http", ":path", "/slow", ":authority", "a")
	_, _ = conn.Write(s.Bytes())
	<-held
	drained := make(chan struct{})
	go func() {
		server.Drain(context.Background())
		close(drained)
	}()
	f := reader(conn)
	next := func() http2.Frame {
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			switch frame.(type) {
			case *http2.GoAwayFrame, *http2.MetaHeadersFrame, *http2.PingFrame:
				return frame
			}
		}
	}
	if g, ok := next().(*http2.GoAwayFrame); !ok || g.LastStreamID != maxWindow || g.ErrCode != http2.ErrCodeNo {
		t.Fatalf("got %v", g)
	}
	ping, ok := next().(*http2.PingFrame)
	if !ok {
		t.Fatal("no PING")
	}
	s.Reset()
	s.request(3, true, plainly()...)
	_ = s.WritePing(true, ping.Data)
	s.request(5, true, plainly()...)
	_, _ = conn.Write(s.Bytes())
	seen := map[string]bool{}
	for range 2 {
		switch f := next().(type) {
		case *http2.GoAwayFrame:
			seen[fmt.Sprint("last ", f.LastStreamID)] = true
		case *http2.MetaHeadersFrame:
			seen[fmt.Sprint("answer ", f.StreamID)] = true
		}
	}
	if !seen["last 3"] || !seen["answer 3"] {
		t.Errorf("got %v", seen)
	}
	close(release)
	if h, ok := next().(*http2.MetaHeadersFrame); !ok || h.StreamID != 1 {
		t.Errorf("got %v", h)
	}
	if _, err := f.ReadFrame(); err == nil {
		t.Error("the connection goes on")
	}
	_ = conn.Close()
	<-drained
}

// TestDrainAtTheStart: a connection that is told to end before it has said
// anything says its SETTINGS first all the same (RFC 9113, 3.4).
func TestDrainAtTheStart(t *testing.T) {
	_, server := start(t, Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(server, far, false)
	c.Leave()
	_ = near.SetDeadline(time.Now().Add(30 * time.Second))
	f := reader(near)
	frame, err := f.ReadFrame()
	if _, ok := frame.(*http2.SettingsFrame); !ok {
		t.Errorf("got %v, %v", frame, err)
	}
	done := make(chan struct{})
	go func() {
		c.serve()
		close(done)
	}()
	_ = near.Close()
	<-done
}

// TestAfterTheLast: what a client sends of requests beyond the last one that is
// served is no error, and GOAWAY never tells that more are served after all.
func TestAfterTheLast(t *testing.T) {
	held, release := make(chan struct{}), make(chan struct{})
	dial, server := start(t, Options{Handler: handle(func(s *Stream) {
		close(held)
		<-release
		s.Begin(200)
		_ = s.SendHead()
		_ = s.End()
	})})
	conn := dial()
	s := newScript()
	s.request(1, true, plainly()...)
	_, _ = conn.Write(s.Bytes())
	<-held
	drained := make(chan struct{})
	go func() {
		server.Drain(context.Background())
		close(drained)
	}()
	defer func() {
		close(release)
		_ = conn.Close()
		<-drained
	}()
	f := reader(conn)
	next := func() string {
		for {
			frame, err := f.ReadFrame()
			switch f := frame.(type) {
			case *http2.GoAwayFrame:
				return fmt.Sprintf("GOAWAY %d %v", f.LastStreamID, f.ErrCode)
			case *http2.MetaHeadersFrame:
				return fmt.Sprintf("answer %d", f.StreamID)
			case *http2.RSTStreamFrame:
				return fmt.Sprintf("reset %d %v", f.StreamID, f.ErrCode)
			case *http2.PingFrame:
				return string(f.Data[:])
			}
			if err != nil {
				return err.Error()
			}
		}
	}
	expect := func(want string) {
		t.Helper()
		if got := next(); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	expect(fmt.Sprintf("GOAWAY %d NO_ERROR", maxWindow))
	expect(string(leavePing[:]))
	s.Reset()
	_ = s.WritePing(true, leavePing)
	s.request(3, false, plainly()...)
	_ = s.WriteData(3, false, []byte("body"))
	s.request(3, true, "trailer", "x")
	_ = s.WritePing(false, [8]byte{'d', 'o', 'n', 'e', '?', '?', '?', '?'})
	_, _ = conn.Write(s.Bytes())
	expect("GOAWAY 1 NO_ERROR")
	expect("done????")
	s.Reset()
	_ = s.WriteRawFrame(http2.FramePing, 0, 0, []byte("short"))
	_, _ = conn.Write(s.Bytes())
	expect("GOAWAY 1 FRAME_SIZE_ERROR")
}

// TestNothingBeginsAfterTheCut: a connection that comes when the time for what
// is under way is over is not served: its requests would have no limit.
func TestNothingBeginsAfterTheCut(t *testing.T) {
	held, gone, release := make(chan struct{}), make(chan struct{}), make(chan struct{})
	dial, server := start(t, Options{Handler: handle(func(s *Stream) {
		if s.Request.Target == "/held" {
			close(held)
			for !s.Gone() {
				time.Sleep(time.Millisecond)
			}
			close(gone)
			<-release
			return
		}
		s.Begin(200)
		_ = s.SendHead()
		_ = s.End()
	})})
	s := newScript()
	s.request(1, true, ":method", "GET", ":scheme", "http", ":path", "/held", ":authority", "a")
	_, _ = dial().Write(s.Bytes())
	<-held
	drained := make(chan struct{})
	go func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		server.Drain(ctx)
		close(drained)
	}()
	<-gone
	conn := dial()
	s = newScript()
	s.request(1, true, plainly()...)
	_, _ = conn.Write(s.Bytes())
	if got := outcome(reader(conn), 1); got != "closed" {
		t.Errorf("got %s", got)
	}
	close(release)
	<-drained
}

// TestStreamsAtOnce refuses more than there may be, so that they can be asked
// for again.
func TestStreamsAtOnce(t *testing.T) {
	release := make(chan struct{})
	dial, _ := start(t, Options{MaxStreams: 3, Handler: handle(func(s *Stream) {
		<-release
		s.Begin(200)
		_ = s.SendHead()
		_ = s.End()
	})})
	conn := dial()
	s := newScript()
	for id := uint32(1); id <= 7; id += 2 {
		s.request(id, true, plainly()...)
	}
	_, _ = conn.Write(s.Bytes())
	f := reader(conn)
	if got := outcome(f, 7); got != "REFUSED_STREAM" {
		t.Errorf("got %s", got)
	}
	close(release)
	s.Reset()
	_ = s.WritePing(false, [8]byte{})
	_, _ = conn.Write(s.Bytes())
	for answers := 0; answers < 3; {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := frame.(*http2.MetaHeadersFrame); ok {
			answers++
		}
	}
}

// TestLateFrames sends more to streams that the server has ended before their
// client did: that is no error of the connection.
func TestLateFrames(t *testing.T) {
	dial, _ := start(t, Options{Handler: handle(func(s *Stream) {
		s.Begin(413)
		_ = s.SendHead()
		_ = s.End()
	})})
	conn := dial()
	s := newScript()
	f := reader(conn)
	for id := uint32(1); id < 20; id += 2 {
		s.request(id, false, plainly()...)
		_, _ = conn.Write(s.Bytes())
		s.Reset()
		if got := outcome(f, id); got != "413" {
			t.Fatalf("stream %d got %s", id, got)
		}
		if got := outcome(f, id); got != "NO_ERROR" {
			t.Fatalf("then stream %d got %s", id, got)
		}
		_ = s.WriteData(id, false, make([]byte, 1000))
		s.request(id, true, "t", "u")
		_ = s.WriteWindowUpdate(id, 5)
	}
	s.request(21, true, plainly()...)
	_, _ = conn.Write(s.Bytes())
	if got := outcome(f, 21); got != "413" {
		t.Errorf("got %s", got)
	}
}

// TestWindowsAreHeld ends what goes beyond them.
func TestWindowsAreHeld(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	dial, _ := start(t, Options{StreamWindow: 100_000, ConnectionWindow: 250_000, Handler: handle(func(*Stream) { <-release })})
	for want, streams := range map[string][]uint32{"FLOW_CONTROL_ERROR": {1}, "GOAWAY FLOW_CONTROL_ERROR": {1, 3, 5}} {
		conn := dial()
		s := newScript()
		for _, id := range streams {
			s.request(id, false, plainly()...)
			n := 10 // in frames of 10,000 bytes
			if len(streams) == 1 {
				n++
			}
			for range n {
				_ = s.WriteData(id, false, make([]byte, 10_000))
			}
		}
		go func() { _, _ = conn.Write(s.Bytes()) }()
		if got := outcome(reader(conn), streams[len(streams)-1]); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestUnwantedBodies do not use up the connection's window.
func TestUnwantedBodies(t *testing.T) {
	dial, _ := start(t, Options{StreamWindow: 100_000, ConnectionWindow: 200_000, Handler: handle(func(s *Stream) {
		s.Stop()
		if _, err := s.Next(1); err == nil || err == io.EOF {
			t.Errorf("reading a closed body: %v", err)
		}
		x := make(holder)
		s.Hold(x)
		<-x
		s.Hold(nil)
	})})
	conn := dial()
	f := reader(conn)
	window := 200_000
	for id := uint32(1); id < 21; id += 2 {
		s := newScript()
		if id > 1 {
			s.Reset()
		}
		s.request(id, false, plainly()...)
		for range 9 {
			_ = s.WriteData(id, false, make([]byte, 10_000))
			window -= 10_000
		}
		_ = s.WriteRSTStream(id, http2.ErrCodeCancel)
		_, _ = conn.Write(s.Bytes())
		for window < 90_000 {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if w, ok := frame.(*http2.WindowUpdateFrame); ok && w.StreamID == 0 && w.Increment != 200_000-firstWindow {
				window += int(w.Increment)
			}
		}
	}
}

// TestClientThatReadsNothing costs a bounded buffer, and for a time.
func TestClientThatReadsNothing(t *testing.T) {
	var written atomic.Int64
	ended := make(chan error, 2)
	dial, server := start(t, Options{WriteTimeout: 4 * tick, Handler: handle(func(s *Stream) {
		s.Begin(200)
		_ = s.SendHead()
		for {
			n, err := s.Write(make([]byte, 100_000))
			written.Add(int64(n))
			if err != nil {
				ended <- err
				return
			}
		}
	})})
	conn := dial()
	_ = conn.(*net.TCPConn).SetReadBuffer(64 << 10)
	s := newScript()
	_ = s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: maxWindow})
	_ = s.WriteWindowUpdate(0, maxWindow-firstWindow)
	s.request(1, true, plainly()...)
	s.request(3, true, plainly("content-type", "application/grpc")...)
	_, _ = conn.Write(s.Bytes())
	for range 2 {
		if err := <-ended; !errors.Is(err, http1.ErrGone) {
			t.Errorf("got %v", err)
		}
	}
	if n := written.Load(); n > 16<<20 {
		t.Errorf("%d bytes were taken", n)
	}
	for server.Open() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// stuckConn is a connection whose client sends on and on, and does not take an
// answer before all has been read, or a while has passed.
type stuckConn struct {
	played
	parts         []string
	third, stuck  chan struct{}
	read          chan struct{}
	most, patient int
}

func (c *stuckConn) Read(b []byte) (int, error) {
	switch len(c.parts) {
	case 0:
		close(c.read)
		return 0, io.EOF
	case 1:
		if c.patient++; c.patient == 1 {
			close(c.third)
			<-c.stuck
		}
	}
	n := copy(b, c.parts[0])
	if c.parts[0] = c.parts[0][n:]; c.parts[0] == "" {
		c.parts = c.parts[1:]
	}
	return n, nil
}

func (c *stuckConn) Write(b []byte) (int, error) {
	select {
	case <-c.third:
		if c.most == 0 {
			close(c.stuck)
			select {
			case <-c.read:
			case <-time.After(300 * time.Millisecond):
			}
		}
		c.most = max(c.most, len(b))
	default:
	}
	return len(b), nil
}

// TestReaderWaits holds a bounded answer to a client that takes none, whatever
// it may send.
func TestReaderWaits(t *testing.T) {
	conn := &stuckConn{third: make(chan struct{}), stuck: make(chan struct{}), read: make(chan struct{})}
	s, err := NewServer(Options{Logger: slog.New(slog.DiscardHandler), Handler: handle(func(s *Stream) {
		<-conn.third // the one who reads writes no more
		s.Begin(200)
		_ = s.SendHead()
		_ = s.End()
	})})
	if err != nil {
		t.Fatal(err)
	}
	said := newScript()
	conn.parts = append(conn.parts, said.String())
	said.Reset()
	said.request(1, true, plainly()...)
	conn.parts = append(conn.parts, said.String())
	said.Reset()
	for range 200_000 {
		_ = said.WritePing(false, [8]byte{})
	}
	conn.parts = append(conn.parts, said.String())
	c := newConn(s, conn, false)
	c.chores.most, c.chores.left, c.chores.last = 1e9, 1e9, 1
	c.serve()
	if conn.most < 100 || conn.most > 2*heldLimit {
		t.Errorf("%d bytes were held", conn.most)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.Drain(ctx)
}

// TestManySettings ends a connection for them.
func TestManySettings(t *testing.T) {
	dial, _ := start(t, Options{})
	conn := dial()
	s := newScript()
	list := make([]http2.Setting, maxSettings+1)
	for i := range list {
		list[i] = http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)}
	}
	_ = s.WriteSettings(list[1:]...)
	s.request(1, true, plainly()...)
	_, _ = conn.Write(s.Bytes())
	f := reader(conn)
	if got := outcome(f, 1); got != "200" {
		t.Errorf("got %s for as many as may be", got)
	}
	s.Reset()
	_ = s.WriteSettings(list...)
	_, _ = conn.Write(s.Bytes())
	if got := outcome(f, 3); got != "GOAWAY ENHANCE_YOUR_CALM" {
		t.Errorf("got %s", got)
	}
}

// TestExpectWhileAnswering has the body read while the answer is sent.
func TestExpectWhileAnswering(t *testing.T) {
	dial, _ := start(t, Options{Handler: handle(func(s *Stream) {
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = s.Next(10)
		}()
		time.Sleep(time.Millisecond) // most likely it looks now; to wait for it would order both
		s.Begin(200)
		_ = s.SendHead()
		_ = s.End()
		s.Stop()
		<-read
	})})
	conn := dial()
	f := reader(conn)
	s := newScript()
	for id := uint32(1); id < 100; id += 2 {
		s.request(id, false, plainly("expect", "100-continue")...)
		_, _ = conn.Write(s.Bytes())
		s.Reset()
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := frame.(*http2.RSTStreamFrame); ok {
				break
			}
		}
	}
}

// TestTimed gives RPCs up as well, where the handler says so.
func TestTimed(t *testing.T) {
	dial, _ := start(t, Options{BodyTimeout: 10 * time.Millisecond, WriteTimeout: 10 * time.Millisecond, Handler: handle(func(s *Stream) {
		s.Timed()
		_, err := s.Next(10)
		s.Begin(200)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.Begin(408)
		}
		_ = s.SendHead()
		_, _ = s.Write(make([]byte, 1000))
		_ = s.End()
	})})
	conn := dial()
	s := newScript()
	_ = s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	s.request(1, false, plainly("content-type", "application/grpc")...)
	_, _ = conn.Write(s.Bytes())
	if got := outcome(reader(conn), 1); got != "CANCEL" {
		t.Errorf("got %s", got)
	}
}

// cutConn reads frames in pieces that end within them.
type cutConn struct {
	played
	c     *Conn
	since []int64
}

func (c *cutConn) Read(b []byte) (int, error) {
	c.c.mu.Lock()
	c.since = append(c.since, c.c.partialSince)
	c.c.mu.Unlock()
	c.c.server.Clock.Store(c.c.server.Clock.Load() + 1)
	return c.in.Read(b[:min(len(b), 17)])
}

// TestTimeIsEachFrames has a client's time for a frame begin with that.
func TestTimeIsEachFrames(t *testing.T) {
	s, err := NewServer(Options{Logger: slog.New(slog.DiscardHandler), Handler: echo})
	if err != nil {
		t.Fatal(err)
	}
	said := newScript()
	_ = said.WriteRawFrame(0xbe, 0, 1, make([]byte, 3))
	for range 20 {
		_ = said.WritePing(false, [8]byte{})
	}
	conn := &cutConn{played: played{in: bytes.NewReader(said.Bytes())}}
	conn.c = newConn(s, conn, false)
	conn.c.serve()
	since := conn.since[10 : len(conn.since)-1]
	for i := range since[1:] {
		if since[i+1] <= since[i] {
			t.Fatalf("times began at %d", since)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.Drain(ctx)
}

// TestPanic costs one request.
func TestPanic(t *testing.T) {
	dial, _ := start(t, Options{Handler: handle(func(s *Stream) {
		if s.Request.Target == "/panic" {
			panic("a fault")
		}
		echo(s)
	})})
	conn := dial()
	f := reader(conn)
	s := newScript()
	s.request(1, true, ":method", "GET", ":scheme", "http", ":path", "/panic", ":authority", "a")
	_, _ = conn.Write(s.Bytes())
	if got := outcome(f, 1); got != "INTERNAL_ERROR" {
		t.Errorf("got %s", got)
	}
	s.Reset()
	s.request(3, true, plainly()...)
	_, _ = conn.Write(s.Bytes())
	if got := outcome(f, 3); got != "200" {
		t.Errorf("the next got %s", got)
	}
}

// TestPanicEndsReading: who reads the body for a handler that fails is told so,
// and what it looks at stays what it was.
func TestPanicEndsReading(t *testing.T) {
	ended := make(chan error, 1)
	dial, _ := start(t, Options{Handler: handle(func(s *Stream) {
		if s.Request.Target != "/panic" {
			echo(s)
			return
		}
		reads := make(chan struct{})
		go func() {
			view, err := s.Next(100)
			close(reads)
			if err == nil {
				_, err = s.Next(100)
			}
			if string(view) != "body" {
				err = fmt.Errorf("read %q", view)
			}
			ended <- err
		}()
		<-reads
		panic("a fault")
	})})
	conn := dial()
	s := newScript()
	s.request(1, false, ":method", "POST", ":scheme", "http", ":path", "/panic", ":authority", "a")
	_ = s.WriteData(1, false, []byte("body"))
	_, _ = conn.Write(s.Bytes())
	if got := outcome(reader(conn), 1); got != "INTERNAL_ERROR" {
		t.Errorf("got %s", got)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, http1.ErrClient) {
			t.Errorf("got %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits on")
	}
}

// TestOddFrames end the connection.
func TestOddFrames(t *testing.T) {
	dial, _ := start(t, Options{})
	for want, write := range map[string]func(s *script){
		"GOAWAY FRAME_SIZE_ERROR": func(s *script) { _ = s.WriteRawFrame(http2.FrameGoAway, 0, 0, make([]byte, 7)) },
		"GOAWAY PROTOCOL_ERROR":   func(s *script) { _ = s.WritePriority(5, http2.PriorityParam{StreamDep: 5}) },
	} {
		conn := dial()
		s := newScript()
		write(s)
		_, _ = conn.Write(s.Bytes())
		if got := outcome(reader(conn), 5); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
