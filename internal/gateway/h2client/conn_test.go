package h2client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"fairway.dev/fairway/internal/gateway/shed"
)

// backend is the other end of a connection, which says frame by frame what it
// wants.
type backend struct {
	*http2.Framer
	t       *testing.T
	conn    net.Conn
	block   bytes.Buffer
	encoder *hpack.Encoder
	frames  chan got
}

const limit = 20 * time.Second

// pipe returns a connection to a backend that has greeted it.
func pipe(t *testing.T, settings ...http2.Setting) (*Conn, *backend) {
	t.Helper()
	return pipeWith(t, Options{MaxHeader: 64 << 10}, settings...)
}

func pipeWith(t *testing.T, o Options, settings ...http2.Setting) (*Conn, *backend) {
	t.Helper()
	c, b := ungreeted(t, o)
	b.do(b.WriteSettings(settings...))
	await(t, "the settings are taken", func() bool {
		f := b.next()
		return f.kind == http2.FrameSettings && f.flags.Has(http2.FlagSettingsAck)
	})
	return c, b
}

// ungreeted returns a connection to a backend that has said nothing yet.
func ungreeted(t *testing.T, o Options) (*Conn, *backend) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if o.tick == 0 {
		o.tick = time.Hour // tests call it
	}
	c := New(near, o)
	b := &backend{Framer: http2.NewFramer(far, far), t: t, conn: far, frames: make(chan got, 1000)}
	b.AllowIllegalWrites = true
	b.encoder = hpack.NewEncoder(&b.block)
	b.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = far.SetDeadline(time.Now().Add(limit))
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(far, preface); err != nil || string(preface) != http2.ClientPreface {
		t.Fatalf("preface %q, %v", preface, err)
	}
	go func() {
		defer close(b.frames)
		for {
			f, err := b.ReadFrame()
			if err != nil {
				return
			}
			// Frames are good until the next one is read.
			h := f.Header()
			g := got{kind: h.Type, flags: h.Flags, id: h.StreamID, length: h.Length}
			switch f := f.(type) {
			case *http2.DataFrame:
				g.data = string(f.Data())
			case *http2.MetaHeadersFrame:
				g.fields = f.Fields
			case *http2.WindowUpdateFrame:
				g.more = f.Increment
			case *http2.RSTStreamFrame:
				g.code = f.ErrCode
			case *http2.GoAwayFrame:
				g.code = f.ErrCode
			case *http2.PingFrame:
				g.ping = f.Data
			}
			b.frames <- g
		}
	}()
	t.Cleanup(func() {
		c.fail(&ConnError{Reason: "the test is over"})
		_ = far.Close()
	})
	return c, b
}

// got is a frame that came.
type got struct {
	kind   http2.FrameType
	flags  http2.Flags
	id     uint32
	length uint32
	data   string
	fields []hpack.HeaderField
	more   uint32
	code   http2.ErrCode
	ping   [8]byte
}

// over stands for the connection's end.
const over = 0xff

func (g *got) end() bool { return g.flags.Has(http2.FlagDataEndStream) }

func (g *got) value(name string) string {
	for _, f := range g.fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

func (b *backend) do(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// next returns the next frame.
func (b *backend) next() got {
	b.t.Helper()
	select {
	case f, ok := <-b.frames:
		if !ok {
			return got{kind: over}
		}
		return f
	case <-time.After(limit):
		b.t.Fatal("no frame came")
		return got{}
	}
}

// await waits until something is so.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// of returns the next frame of a type.
func (b *backend) of(k http2.FrameType) got {
	b.t.Helper()
	for {
		f := b.next()
		if f.kind == k {
			return f
		}
		if f.kind == over {
			b.t.Fatalf("the connection ended before a frame of type %s", k)
		}
	}
}

// end reads until the connection ends, and returns the code of GOAWAY; "" for none.
func (b *backend) end() string {
	b.t.Helper()
	code := ""
	for {
		switch f := b.next(); f.kind {
		case http2.FrameGoAway:
			code = f.code.String()
		case over:
			return code
		}
	}
}

func (b *backend) fields(pairs ...string) []byte {
	b.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		_ = b.encoder.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(b.block.Bytes())
}

func (b *backend) answer(id uint32, end bool, pairs ...string) {
	b.t.Helper()
	b.do(b.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: end, EndHeaders: true, BlockFragment: b.fields(pairs...)}))
}

func get(path string, pairs ...string) *Request {
	return &Request{Method: "GET", Authority: "a.test", Path: path, Header: header(pairs...), End: true}
}

func header(pairs ...string) func(func(string, string) bool) {
	return func(yield func(string, string) bool) {
		for i := 0; i < len(pairs); i += 2 {
			if !yield(pairs[i], pairs[i+1]) {
				return
			}
		}
	}
}

func open(t *testing.T, c *Conn, r *Request) *Stream {
	t.Helper()
	s, err := c.Open(r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// outcome waits for the answer: its status and body, or the error.
func outcome(s *Stream) string {
	for {
		h, err := s.Head(nil)
		if err != nil {
			return err.Error()
		}
		if h.Status < 200 {
			continue
		}
		var body []byte
		for {
			p, err := s.Next(nil)
			body = append(body, p...)
			if err == io.EOF {
				return fmt.Sprintf("%d %s", h.Status, body)
			}
			if err != nil {
				return fmt.Sprintf("%d %s: %v", h.Status, body, err)
			}
		}
	}
}

// TestTable: what is sent again is short, but on connections where two fields
// have got one place in the encoder's tables.
func TestTable(t *testing.T) {
	var sizes []uint32
	for range 10 {
		c, b := pipe(t)
		for i := range 4 {
			open(t, c, get("/x?y", "X-Request-Id", fmt.Sprint(i), "Accept", "*/*", "X-Custom", "same", "Cookie", "secret"))
			f := b.of(http2.FrameHeaders)
			if i == 3 {
				sizes = append(sizes, f.length)
			}
		}
	}
	if slices.Min(sizes) > 40 {
		t.Errorf("the fourth header takes %d bytes", sizes)
	}
}

func TestRequestsAndAnswers(t *testing.T) {
	c, b := pipe(t)
	// What comes again is told by the table; what must not be in one is not.
	for i := range 4 {
		s := open(t, c, get("/x?y", "X-Request-Id", fmt.Sprint(i), "Accept", "*/*", "X-Custom", "same", "Cookie", "secret"))
		f := b.of(http2.FrameHeaders)
		var got []string
		for _, h := range f.fields {
			got = append(got, h.Name+"="+h.Value)
			if h.Name == "cookie" && !h.Sensitive {
				t.Error("a cookie goes to the table")
			}
		}
		want := fmt.Sprintf(":method=GET :scheme=http :path=/x?y :authority=a.test x-request-id=%d accept=*/* x-custom=same cookie=secret", i)
		if strings.Join(got, " ") != want || !f.end() {
			t.Fatalf("got %q, want %q", got, want)
		}
		b.answer(f.id, false, ":status", "103", "link", "</x>")
		b.answer(f.id, false, ":status", "200", "content-length", "5", "x-custom", "same")
		b.do(b.WriteData(f.id, false, []byte("he")))
		b.do(b.WriteDataPadded(f.id, false, []byte("llo"), make([]byte, 9)))
		b.answer(f.id, true, "grpc-status", "0")
		h, err := s.Head(nil)
		if err != nil || h.Status != 103 || len(h.Fields) != 1 {
			t.Fatalf("interim: %v, %v", h, err)
		}
		if got := outcome(s); got != "200 hello" {
			t.Fatalf("got %q", got)
		}
		if tr := s.Trailer(); len(tr) != 1 || tr[0].Name != "grpc-status" || tr[0].Value != "0" {
			t.Errorf("trailers %v", tr)
		}
		if c.Streams() != 0 {
			t.Error("the stream is still there")
		}
		s.Close()
	}
	// Trailers only.
	s := open(t, c, get("/"))
	id := b.of(http2.FrameHeaders).id
	b.answer(id, true, ":status", "200", "grpc-status", "12")
	h, err := s.Head(nil)
	if err != nil || !h.End || h.Length != 0 || len(h.Fields) != 1 {
		t.Errorf("trailers only: %+v, %v", h, err)
	}
	// Neither HEAD nor 304 has a body, whatever the header says of one.
	for method, status := range map[string]string{"HEAD": "200", "GET": "304", "BREW": "204"} {
		r := get("/")
		r.Method = method
		s := open(t, c, r)
		f := b.of(http2.FrameHeaders)
		b.answer(f.id, false, ":status", status, "content-length", "1000")
		b.do(b.WriteData(f.id, true, nil))
		if got := outcome(s); got != status+" " || f.value(":method") != method {
			t.Errorf("%s: %q", method, got)
		}
	}
}

// TestBodies sends a body and trailers, while the answer comes.
func TestBodies(t *testing.T) {
	c, b := pipe(t)
	s := open(t, c, &Request{Method: "POST", Authority: "a", Path: "/", Secure: true, Header: header("Content-Type", "application/grpc")})
	f := b.of(http2.FrameHeaders)
	if f.end() || f.value(":scheme") != "https" {
		t.Errorf("got %v", f.fields)
	}
	b.answer(f.id, false, ":status", "200")
	if h, err := s.Head(nil); err != nil || h.Status != 200 || h.Length != -1 {
		t.Fatalf("%v, %v", h, err)
	}
	for _, text := range []string{"one", "two"} {
		if err := s.Send([]byte(text), false); err != nil {
			t.Fatal(err)
		}
		d := b.of(http2.FrameData)
		if d.data != text {
			t.Errorf("got %q", d.data)
		}
		b.do(b.WriteData(f.id, false, []byte(d.data)))
		if p, err := s.Next(nil); err != nil || string(p) != text {
			t.Errorf("got %q, %v", p, err)
		}
	}
	if err := s.SendTrailer(header("X-Sum", "7")); err != nil {
		t.Fatal(err)
	}
	tr := b.of(http2.FrameHeaders)
	if len(tr.fields) != 1 || tr.fields[0].Name != "x-sum" || !tr.end() {
		t.Errorf("trailers %v", tr.fields)
	}
	b.do(b.WriteData(f.id, true, nil))
	if _, err := s.Next(nil); err != io.EOF {
		t.Errorf("end: %v", err)
	}
	// A header larger than a frame goes out in several.
	big := strings.Repeat("x", 40<<10)
	open(t, c, get("/", "X-Big", big))
	f = b.of(http2.FrameHeaders)
	if v := f.fields[len(f.fields)-1].Value; v != big {
		t.Errorf("%d bytes of %d", len(v), len(big))
	}
}

// TestFlowControl: no more is sent than the backend allows, no more is taken
// than nobody reads, and streams do not wait for each other.
func TestFlowControl(t *testing.T) {
	c, b := pipe(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	s := open(t, c, &Request{Method: "POST", Authority: "a", Path: "/", Header: header()})
	id := b.of(http2.FrameHeaders).id
	sent := make(chan error, 1)
	go func() { sent <- s.Send([]byte("0123456789abcdefghij"), true) }()
	if d := b.of(http2.FrameData); d.data != "0123456789" || d.end() {
		t.Fatalf("got %q", d.data)
	}
	b.do(b.WriteWindowUpdate(id, 4))
	if d := b.of(http2.FrameData); d.data != "abcd" {
		t.Fatalf("got %q", d.data)
	}
	// Settings change the windows of streams that there are, to below nothing.
	b.do(b.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	b.of(http2.FrameSettings)
	b.do(b.WriteWindowUpdate(id, 10))
	b.do(b.WriteWindowUpdate(id, 2))
	if d := b.of(http2.FrameData); d.data != "ef" {
		t.Fatalf("got %q", d.data)
	}
	b.do(b.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100}))
	if d := b.of(http2.FrameData); d.data != "ghij" || !d.end() {
		t.Fatalf("got %q", d.data)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	// The backend may fill the stream's window, of which it gets back what was read.
	b.answer(id, false, ":status", "200")
	piece := make([]byte, maxFrame)
	for range firstStreamWindow / maxFrame {
		b.do(b.WriteData(id, false, piece))
	}
	other := open(t, c, get("/"))
	o := b.of(http2.FrameHeaders).id
	b.answer(o, false, ":status", "200")
	b.do(b.WriteData(o, true, []byte("ok")))
	if got := outcome(other); got != "200 ok" {
		t.Errorf("another stream: %q", got)
	}
	if _, err := s.Head(nil); err != nil {
		t.Fatal(err)
	}
	got := 0
	for got < firstStreamWindow {
		p, err := s.Next(nil)
		if err != nil {
			t.Fatal(err)
		}
		got += len(p)
	}
	if _, err := s.NextReady(); err != nil { // says that all was used
		t.Fatal(err)
	}
	back := uint32(0)
	for back < streamWindow {
		if w := b.of(http2.FrameWindowUpdate); w.id == id {
			back += w.more
		}
	}
	if back != streamWindow {
		t.Errorf("%d bytes come back", back)
	}
	b.do(b.WriteData(id, true, []byte("x")))
	if p, err := s.Next(nil); err != nil || string(p) != "x" {
		t.Errorf("%q, %v", p, err)
	}
}

// TestSpaceAroundValues: net/http's server sends values as they were set, and
// clients by HTTP/2 take space around one for malformed (RFC 9113, 8.2.1).
func TestSpaceAroundValues(t *testing.T) {
	c, b := pipe(t)
	s := open(t, c, get("/"))
	b.of(http2.FrameHeaders)
	b.answer(1, true, ":status", "200", "a", " x \ty\t ", "b", " ", "c", "")
	h, err := s.Head(nil)
	if err != nil || len(h.Fields) != 3 || h.Fields[0].Value != "x \ty" || h.Fields[1].Value != "" || h.Fields[2].Value != "" {
		t.Errorf("%+v, %v", h.Fields, err)
	}
	s.Close()
}

// TestLengthGivenTwice: it is passed on once, as that of HTTP/1.1's backends.
func TestLengthGivenTwice(t *testing.T) {
	c, b := pipe(t)
	s := open(t, c, get("/"))
	id := b.of(http2.FrameHeaders).id
	b.answer(id, false, ":status", "200", "content-length", "2", "a", "b", "content-length", "2", "content-length", "2", "c", "d")
	h, err := s.Head(nil)
	if err != nil || h.Length != 2 {
		t.Fatal(h, err)
	}
	var got []string
	for _, f := range h.Fields {
		got = append(got, f.Name+"="+f.Value)
	}
	if strings.Join(got, " ") != "content-length=2 a=b c=d" {
		t.Errorf("got %q", got)
	}
}

// TestHeld: who does not read has little sent ahead, and less while much waits
// for others; beyond a limit streams end, which is nobody's fault but theirs who
// do not read.
func TestHeld(t *testing.T) {
	held := shed.NewHeld(16*100<<10, func() bool { return false }) // 100 KiB
	c, b := pipeWith(t, Options{MaxHeader: 64 << 10, Held: held})
	fill := func(n int) (*Stream, uint32) {
		s := open(t, c, get("/"))
		id := b.of(http2.FrameHeaders).id
		b.answer(id, false, ":status", "200")
		for ; n > 0; n -= maxFrame {
			b.do(b.WriteData(id, false, make([]byte, min(n, maxFrame))))
		}
		if _, err := s.Head(nil); err != nil {
			t.Fatal(err)
		}
		return s, id
	}
	waits := func(n int64) {
		t.Helper()
		await(t, fmt.Sprintf("%d bytes wait", n), func() bool { return held.Bytes() == n })
	}
	read := func(s *Stream) (n int, err error) {
		for {
			p, err := s.NextReady()
			if n += len(p); len(p) == 0 {
				return n, err
			}
		}
	}
	more := func(id uint32) int {
		for {
			if w := b.of(http2.FrameWindowUpdate); w.id == id {
				return int(w.more)
			}
		}
	}
	s, id := fill(firstStreamWindow)
	waits(firstStreamWindow)
	if n, err := read(s); n != firstStreamWindow || err != nil {
		t.Fatal(n, err)
	}
	waits(0)
	if n := more(id); n != streamWindow {
		t.Errorf("who reads gets %d more", n)
	}
	slow, _ := fill(40 << 10)
	waits(40 << 10)
	for range streamWindow / maxFrame {
		b.do(b.WriteData(id, false, make([]byte, maxFrame)))
	}
	// At 150 KiB the one that has most of them ends, and what waits is let go.
	if f := b.of(http2.FrameRSTStream); f.id != id || f.code != http2.ErrCodeCancel {
		t.Errorf("%v of %d", f.code, f.id)
	}
	waits(40 << 10)
	if n, err := read(s); n != 0 || !errors.Is(err, shed.ErrFull) || held.Cut() != 1 {
		t.Errorf("%d bytes, %v, %d cut", n, err, held.Cut())
	}
	s.Close()
	// While much waits, those that read get less.
	other, id := fill(firstStreamWindow)
	waits(104 << 10)
	p, err := other.NextReady()
	if len(p) == 0 || err != nil {
		t.Fatal(len(p), err)
	}
	held.Add(100 << 10)
	if n, err := read(other); n > firstStreamWindow-len(p) || err != nil {
		t.Fatal(n, err)
	}
	if n := more(id); n != shortStreamWindow {
		t.Errorf("%d more while much waits", n)
	}
	held.Add(-100 << 10)
	slow.Close()
	other.Close()
	waits(0)
}

// TestEndNeedsNoRoom: the end of a request goes out although the backend has
// taken back more of the window than was left of it.
func TestEndNeedsNoRoom(t *testing.T) {
	c, b := pipe(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000})
	s := open(t, c, &Request{Method: "POST", Authority: "a", Path: "/", Header: header()})
	if err := s.Send(make([]byte, 1000), false); err != nil {
		t.Fatal(err)
	}
	b.of(http2.FrameData)
	b.do(b.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}))
	await(t, "the settings are taken", func() bool { return b.of(http2.FrameSettings).flags.Has(http2.FlagSettingsAck) })
	if err := s.Send(nil, true); err != nil {
		t.Fatal(err)
	}
	if f := b.of(http2.FrameData); !f.end() || f.length != 0 {
		t.Errorf("got %+v", f)
	}
}

// TestConnectionWindow is what comes back of the window that all streams share,
// also for data that nobody wants.
func TestConnectionWindow(t *testing.T) {
	c, b := pipe(t)
	s := open(t, c, get("/"))
	id := b.of(http2.FrameHeaders).id
	s.Close()
	b.of(http2.FrameRSTStream)
	piece := make([]byte, maxFrame)
	for range connWindow/maxFrame + 100 {
		b.do(b.WriteData(id, false, piece))
	}
	if w := b.of(http2.FrameWindowUpdate); w.id != 0 || w.more < connWindow/2 {
		t.Errorf("%v", w)
	}
}

// TestLengthOfNothing: answers that cannot have a body do not tell of its length
// (RFC 9110, 8.6); some clients take that for malformed.
func TestLengthOfNothing(t *testing.T) {
	c, b := pipe(t)
	for _, status := range []string{"204", "304"} {
		s := open(t, c, get("/"))
		id := b.of(http2.FrameHeaders).id
		b.answer(id, false, ":status", "103", "content-length", "5", "link", "</x>")
		b.answer(id, true, ":status", status, "content-length", "5", "etag", "x")
		for _, want := range []int{1, map[string]int{"204": 1, "304": 2}[status]} {
			if h, err := s.Head(nil); err != nil || len(h.Fields) != want {
				t.Errorf("got %+v, %v", h, err)
			}
		}
	}
}

// TestHeaderAfterTheEnd: what comes behind the end of an answer is no part of it.
func TestHeaderAfterTheEnd(t *testing.T) {
	c, b := pipe(t)
	s := open(t, c, &Request{Method: "POST", Authority: "a", Path: "/", Header: header()})
	id := b.of(http2.FrameHeaders).id
	b.answer(id, false, ":status", "200")
	b.answer(id, true, "grpc-status", "0")
	b.answer(id, true, "grpc-status", "5")
	if f := b.of(http2.FrameRSTStream); f.id != id {
		t.Errorf("got %+v", f)
	}
	if got := outcome(s); got != "200 " {
		t.Errorf("got %q", got)
	}
	if tr := s.Trailer(); len(tr) != 1 || tr[0].Value != "0" {
		t.Errorf("trailers %v", tr)
	}
}

// TestRefusals is what becomes of requests that the backend does not process.
func TestRefusals(t *testing.T) {
	t.Run("REFUSED_STREAM", func(t *testing.T) {
		c, b := pipe(t)
		s := open(t, c, get("/"))
		b.do(b.WriteRSTStream(b.of(http2.FrameHeaders).id, http2.ErrCodeRefusedStream))
		if _, err := s.Head(nil); !errors.Is(err, ErrUnprocessed) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another reset", func(t *testing.T) {
		c, b := pipe(t)
		s := open(t, c, get("/"))
		b.do(b.WriteRSTStream(b.of(http2.FrameHeaders).id, http2.ErrCodeInternal))
		if _, err := s.Head(nil); err == nil || errors.Is(err, ErrUnprocessed) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("GOAWAY", func(t *testing.T) {
		c, b := pipe(t)
		first, second := open(t, c, get("/1")), open(t, c, get("/2"))
		b.of(http2.FrameHeaders)
		b.of(http2.FrameHeaders)
		b.do(b.WriteGoAway(1, http2.ErrCodeNo, nil))
		if _, err := second.Head(nil); !errors.Is(err, ErrUnprocessed) {
			t.Errorf("got %v", err)
		}
		if _, err := c.Open(get("/3")); err != ErrClosing {
			t.Errorf("got %v", err)
		}
		b.answer(1, true, ":status", "200")
		if got := outcome(first); got != "200 " {
			t.Errorf("what it still answers: %q", got)
		}
		if got := b.end(); got != "NO_ERROR" {
			t.Errorf("the connection ends with %q", got)
		}
	})
	t.Run("the connection breaks", func(t *testing.T) {
		c, b := pipe(t)
		s := open(t, c, get("/"))
		b.of(http2.FrameHeaders)
		_ = b.conn.Close()
		if _, err := s.Head(nil); err == nil || errors.Is(err, ErrUnprocessed) {
			t.Errorf("got %v", err)
		}
		if _, err := c.Open(get("/")); err != ErrClosing {
			t.Errorf("got %v", err)
		}
	})
	t.Run("before anything went out", func(t *testing.T) {
		p := &broken{may: make(chan struct{}), closed: make(chan struct{})}
		c := New(p, Options{MaxHeader: 1 << 10, tick: time.Hour})
		s := open(t, c, get("/"))
		close(p.may)
		if _, err := s.Head(nil); !errors.Is(err, ErrUnprocessed) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("while it is being written", func(t *testing.T) {
		p := &stuck{began: make(chan struct{}), may: make(chan struct{}), end: make(chan struct{})}
		c := New(p, Options{MaxHeader: 1 << 10, tick: time.Hour})
		<-p.began
		close(p.may) // the greeting goes through
		s := open(t, c, get("/"))
		<-p.began
		close(p.end) // which the reader notices
		if _, err := s.Head(nil); err == nil || errors.Is(err, ErrUnprocessed) {
			t.Errorf("got %v: it may have arrived", err)
		}
	})
	t.Run("full", func(t *testing.T) {
		room := make(chan struct{}, 100)
		c, b := pipeWith(t, Options{MaxHeader: 1 << 10, OnRoom: func() { room <- struct{}{} }}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		s := open(t, c, get("/"))
		if _, err := c.Open(get("/")); err != ErrFull {
			t.Errorf("got %v", err)
		}
		for len(room) > 0 {
			<-room
		}
		b.answer(1, true, ":status", "200")
		if got := outcome(s); got != "200 " {
			t.Error(got)
		}
		<-room
		open(t, c, get("/"))
	})
	t.Run("malformed", func(t *testing.T) {
		c, b := pipe(t)
		for _, r := range []*Request{
			get("/", "x", "a\r\nb: c"), get("/", "x y", "z"), get("/", "", "z"), get("/ HTTP/1.1\r\nx: y"), get(""), get("/", ":path", "/evil"),
			{Method: "GET /", Path: "/", Header: header(), End: true}, {Method: "GET", Path: "/", Authority: "a\nb", Header: header(), End: true},
		} {
			if _, err := c.Open(r); err != ErrHeader {
				t.Errorf("%+v: %v", r, err)
			}
		}
		s := open(t, c, &Request{Method: "POST", Path: "/", Header: header()})
		b.of(http2.FrameHeaders)
		if err := s.SendTrailer(header("x", "a\nb")); err != ErrHeader {
			t.Errorf("trailers: %v", err)
		}
	})
}

// stuck is a connection that tells of each write, and does not come back from
// the second one.
type stuck struct {
	net.Conn
	began, may, end chan struct{}
	writes          int
}

// Read implements io.Reader.
func (s *stuck) Read([]byte) (int, error) {
	<-s.end
	return 0, io.EOF
}

// Write implements io.Writer.
func (s *stuck) Write(p []byte) (int, error) {
	s.began <- struct{}{}
	if s.writes++; s.writes == 1 {
		<-s.may
		return len(p), nil
	}
	select {}
}

// Close implements io.Closer.
func (s *stuck) Close() error { return nil }

// broken is a connection that takes nothing, and may say so.
type broken struct {
	net.Conn
	may, closed chan struct{}
}

// Read implements io.Reader.
func (b *broken) Read([]byte) (int, error) {
	<-b.closed
	return 0, net.ErrClosed
}

// Write implements io.Writer.
func (b *broken) Write(p []byte) (int, error) {
	<-b.may
	return 0, syscall.EPIPE
}

// Close implements io.Closer.
func (b *broken) Close() error {
	select {
	case <-b.closed:
	default:
		close(b.closed)
	}
	return nil
}

// TestGivenUp: whoever does not wait tells the backend so, and whoever sends is told.
func TestGivenUp(t *testing.T) {
	c, b := pipe(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
	s := open(t, c, &Request{Method: "POST", Authority: "a", Path: "/", Header: header()})
	sent, cause := make(chan error, 1), errors.New("too late")
	go func() { sent <- s.Send([]byte("0123456789"), true) }()
	b.of(http2.FrameData)
	s.Cancel(cause)
	if err := <-sent; err != cause {
		t.Errorf("sending ends with %v", err)
	}
	if _, err := s.Head(nil); err != cause {
		t.Errorf("waiting ends with %v", err)
	}
	if r := b.of(http2.FrameRSTStream); r.code != http2.ErrCodeCancel {
		t.Errorf("the backend is told %s", r.code)
	}
	stop := make(chan struct{})
	close(stop)
	s = open(t, c, get("/"))
	if _, err := s.Head(stop); err != ErrCanceled {
		t.Errorf("got %v", err)
	}
	s.Close()
	b.of(http2.FrameRSTStream)
	// An answer that is complete before the request is ends the sending.
	s = open(t, c, &Request{Method: "POST", Authority: "a", Path: "/", Header: header()})
	go func() { sent <- s.Send([]byte("0123456789"), true) }()
	id := b.of(http2.FrameData).id
	b.answer(id, true, ":status", "413")
	b.do(b.WriteRSTStream(id, http2.ErrCodeNo))
	if got := outcome(s); got != "413 " {
		t.Errorf("got %q", got)
	}
	if err := <-sent; err == nil {
		t.Error("all was sent")
	}
}

// TestHostileBackends has backends do what they must not, or what makes work
// for nothing. Each ends its own connection, and costs no memory.
func TestHostileBackends(t *testing.T) {
	many := func(n int, f func(i int) error) func(b *backend) {
		return func(b *backend) {
			for i := range n {
				if f(i) != nil {
					return
				}
			}
		}
	}
	tests := map[string]struct {
		do   func(b *backend)
		want string // code of GOAWAY
	}{
		"pings":        {func(b *backend) { many(2*maxChores, func(int) error { return b.WritePing(false, [8]byte{}) })(b) }, "ENHANCE_YOUR_CALM"},
		"settings":     {func(b *backend) { many(2*maxChores, func(int) error { return b.WriteSettings() })(b) }, "ENHANCE_YOUR_CALM"},
		"big settings": {func(b *backend) { b.do(b.WriteSettings(slices.Repeat([]http2.Setting{{ID: 0x99}}, 1000)...)) }, "ENHANCE_YOUR_CALM"},
		"empty data": {func(b *backend) {
			b.answer(1, false, ":status", "200")
			many(2*maxChores, func(int) error { return b.WriteData(1, false, nil) })(b)
		}, "ENHANCE_YOUR_CALM"},
		"priorities": {func(b *backend) {
			many(2*maxChores, func(int) error { return b.WritePriority(1, http2.PriorityParam{Weight: 1}) })(b)
		}, "ENHANCE_YOUR_CALM"},
		"unknown frames": {func(b *backend) { many(2*maxChores, func(int) error { return b.WriteRawFrame(0xfe, 0, 1, nil) })(b) }, "ENHANCE_YOUR_CALM"},
		"small windows":  {func(b *backend) { many(2*maxChores, func(int) error { return b.WriteWindowUpdate(0, 1) })(b) }, "ENHANCE_YOUR_CALM"},
		"resets":         {func(b *backend) { many(2*maxChores, func(int) error { return b.WriteRSTStream(1, 0) })(b) }, "ENHANCE_YOUR_CALM"},
		"CONTINUATION without end": {func(b *backend) {
			b.do(b.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b.fields(":status", "200")}))
			many(2*maxChores, func(int) error { return b.WriteContinuation(1, false, nil) })(b)
		}, "ENHANCE_YOUR_CALM"},
		"large CONTINUATION": {func(b *backend) {
			b.do(b.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b.fields(":status", "200")}))
			many(20, func(i int) error { return b.WriteContinuation(1, false, make([]byte, maxFrame)) })(b)
		}, "ENHANCE_YOUR_CALM"},
		"CONTINUATION of nothing": {func(b *backend) { b.do(b.WriteContinuation(1, true, nil)) }, "PROTOCOL_ERROR"},
		"a header that is interrupted": {func(b *backend) {
			b.do(b.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b.fields(":status", "200")}))
			b.do(b.WritePing(false, [8]byte{}))
		}, "PROTOCOL_ERROR"},
		"a header that is no HPACK": {func(b *backend) { b.do(b.WriteRawFrame(http2.FrameHeaders, 0x4, 1, []byte{0xff, 0xff, 0xff, 0xff})) }, "COMPRESSION_ERROR"},
		"more than the stream's window": {func(b *backend) {
			b.answer(1, false, ":status", "200")
			many(connWindow/maxFrame+1, func(int) error { return b.WriteData(1, false, make([]byte, maxFrame)) })(b)
		}, "reset FLOW_CONTROL_ERROR"},
		"a window that overflows":          {func(b *backend) { b.do(b.WriteWindowUpdate(0, 1<<31-1)) }, "FLOW_CONTROL_ERROR"},
		"a stream's window that overflows": {func(b *backend) { b.do(b.WriteWindowUpdate(1, 1<<31-1)) }, "reset FLOW_CONTROL_ERROR"},
		"a window that grows by nothing":   {func(b *backend) { b.do(b.WriteWindowUpdate(0, 0)) }, "FLOW_CONTROL_ERROR"},
		"a window of settings too large": {func(b *backend) {
			b.do(b.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}))
		}, "FLOW_CONTROL_ERROR"},
		"frames of settings too small": {func(b *backend) { b.do(b.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1})) }, "PROTOCOL_ERROR"},
		"settings cut off":             {func(b *backend) { b.do(b.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5))) }, "FRAME_SIZE_ERROR"},
		"settings of a stream":         {func(b *backend) { b.do(b.WriteRawFrame(http2.FrameSettings, 0, 1, nil)) }, "PROTOCOL_ERROR"},
		"a frame too large":            {func(b *backend) { b.do(b.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, maxFrame+1))) }, "FRAME_SIZE_ERROR"},
		"a ping cut off":               {func(b *backend) { b.do(b.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7))) }, "FRAME_SIZE_ERROR"},
		"a push":                       {func(b *backend) { b.do(b.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 4))) }, "PROTOCOL_ERROR"},
		"an answer to nothing":         {func(b *backend) { b.answer(3, true, ":status", "200") }, "PROTOCOL_ERROR"},
		"an answer to stream 0":        {func(b *backend) { b.answer(0, true, ":status", "200") }, "PROTOCOL_ERROR"},
		"an even stream":               {func(b *backend) { b.answer(2, true, ":status", "200") }, "PROTOCOL_ERROR"},
		"padding too long":             {func(b *backend) { b.do(b.WriteRawFrame(http2.FrameData, 0x8, 1, []byte{5, 1})) }, "PROTOCOL_ERROR"},
		"data before the header":       {func(b *backend) { b.do(b.WriteData(1, true, []byte("x"))) }, "reset PROTOCOL_ERROR"},
		"no status":                    {func(b *backend) { b.answer(1, true, "x", "y") }, "reset PROTOCOL_ERROR"},
		"two statuses":                 {func(b *backend) { b.answer(1, true, ":status", "200", ":status", "204") }, "reset PROTOCOL_ERROR"},
		"a status of words":            {func(b *backend) { b.answer(1, true, ":status", "2OO") }, "reset PROTOCOL_ERROR"},
		"101":                          {func(b *backend) { b.answer(1, false, ":status", "101") }, "reset PROTOCOL_ERROR"},
		"a late status":                {func(b *backend) { b.answer(1, true, "x", "y", ":status", "200") }, "reset PROTOCOL_ERROR"},
		"a path in an answer":          {func(b *backend) { b.answer(1, true, ":status", "200", ":path", "/") }, "reset PROTOCOL_ERROR"},
		"a name with a capital":        {func(b *backend) { b.answer(1, true, ":status", "200", "X", "y") }, "reset PROTOCOL_ERROR"},
		"a value with a line break":    {func(b *backend) { b.answer(1, true, ":status", "200", "x", "y\r\nz: a") }, "reset PROTOCOL_ERROR"},
		"interim answers without end": {func(b *backend) {
			many(maxInterim+1, func(int) error { b.answer(1, false, ":status", "103"); return nil })(b)
		}, "reset PROTOCOL_ERROR"},
		"an interim answer that ends": {func(b *backend) { b.answer(1, true, ":status", "103") }, "reset PROTOCOL_ERROR"},
		"a body too long": {func(b *backend) {
			b.answer(1, false, ":status", "200", "content-length", "1")
			b.do(b.WriteData(1, true, []byte("xx")))
		}, "reset PROTOCOL_ERROR"},
		"a body too short": {func(b *backend) {
			b.answer(1, false, ":status", "200", "content-length", "3")
			b.do(b.WriteData(1, true, []byte("xx")))
		}, "reset PROTOCOL_ERROR"},
		"a length of words":    {func(b *backend) { b.answer(1, true, ":status", "200", "content-length", "+1") }, "reset PROTOCOL_ERROR"},
		"two lengths":          {func(b *backend) { b.answer(1, true, ":status", "200", "content-length", "1", "content-length", "2") }, "reset PROTOCOL_ERROR"},
		"trailers without end": {func(b *backend) { b.answer(1, false, ":status", "200"); b.answer(1, false, "x", "y") }, "reset PROTOCOL_ERROR"},
		"a status in trailers": {func(b *backend) { b.answer(1, false, ":status", "200"); b.answer(1, true, ":status", "200") }, "reset PROTOCOL_ERROR"},
		"a header of 100 KB":   {func(b *backend) { many(1, func(int) error { return bigHeader(b, 100) })(b) }, "reset PROTOCOL_ERROR"},
		"a bomb of 64 MB":      {func(b *backend) { b.do(bomb(b)) }, "reset PROTOCOL_ERROR"},
		"HTTP/1.1":             {nil, "PROTOCOL_ERROR"},
		"no SETTINGS":          {nil, "PROTOCOL_ERROR"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var c *Conn
			var b *backend
			if tt.do == nil {
				c, b = ungreeted(t, Options{MaxHeader: 64 << 10})
			} else {
				c, b = pipe(t)
			}
			s := open(t, c, get("/"))
			b.of(http2.FrameHeaders)
			switch name {
			case "HTTP/1.1":
				_, _ = io.WriteString(b.conn, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
			case "no SETTINGS":
				b.do(b.WritePing(false, [8]byte{}))
			default:
				// A backend that is cut off while it writes is as good.
				go tt.do(b)
			}
			if code, isReset := strings.CutPrefix(tt.want, "reset "); isReset {
				if r := b.of(http2.FrameRSTStream); r.code.String() != code {
					t.Errorf("the stream ends with %s, want %s", r.code, code)
				}
				if got := outcome(s); !strings.Contains(got, "malformed") {
					t.Errorf("the answer is %q", got)
				}
				if c.Closing() {
					t.Error("the connection has ended, and not only the stream")
				}
				return
			}
			// GOAWAY may be lost where the backend goes on sending.
			b.end()
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.err == nil || c.err.Code.String() != tt.want {
				t.Errorf("the connection ends with %v, want %s", c.err, tt.want)
			}
			if got := outcome(s); !strings.Contains(got, "connection") && name != "resets" {
				t.Errorf("the answer is %q", got)
			}
		})
	}
}

func bigHeader(b *backend, kb int) error {
	pairs := []string{":status", "200"}
	for range kb {
		pairs = append(pairs, "x", strings.Repeat("y", 1024))
	}
	block := b.fields(pairs...)
	first := true
	for len(block) > 0 {
		part := block[:min(len(block), maxFrame)]
		block = block[len(part):]
		var err error
		if first {
			err = b.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: len(block) == 0, BlockFragment: part})
		} else {
			err = b.WriteContinuation(1, len(block) == 0, part)
		}
		if first = false; err != nil {
			return err
		}
	}
	return nil
}

// bomb is a small header that decodes to a large one.
func bomb(b *backend) error {
	block := b.fields(":status", "200", "x", strings.Repeat("y", 4000))
	block = append(block, bytes.Repeat([]byte{0x80 | 62}, 16000-len(block))...)
	return b.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: block})
}

// TestDeadConnections has time pass.
func TestDeadConnections(t *testing.T) {
	ticks := func(c *Conn, n int) {
		await(t, "nothing is being written", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.idle || c.err != nil })
		for range n {
			c.tick()
		}
	}
	t.Run("a backend that is silent is asked, and given up", func(t *testing.T) {
		c, b := pipe(t)
		await(t, "it was heard", c.heard.Load)
		s := open(t, c, get("/"))
		b.of(http2.FrameHeaders)
		ticks(c, 1+pingAfter)
		if c.Closing() {
			t.Fatal("given up too soon")
		}
		ticks(c, 1)
		b.of(http2.FramePing)
		ticks(c, deadAfter)
		if c.Closing() {
			t.Fatal("given up too soon")
		}
		ticks(c, 1)
		if got := outcome(s); !strings.Contains(got, "does not answer PING") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("also while requests go on to be sent", func(t *testing.T) {
		c, b := pipe(t)
		await(t, "it was heard", c.heard.Load)
		dead := func() {
			t.Helper()
			for range 2 + pingAfter {
				open(t, c, get("/"))
				b.of(http2.FrameHeaders)
				ticks(c, 1)
			}
		}
		dead()
		f := b.of(http2.FramePing)
		b.do(b.WritePing(true, f.ping))
		await(t, "it has answered", c.heard.Load)
		// One that goes on to answer need not be spared of PING.
		s := open(t, c, get("/last"))
		for f = b.of(http2.FrameHeaders); f.value(":path") != "/last"; {
			f = b.of(http2.FrameHeaders)
		}
		b.answer(f.id, true, ":status", "200")
		if got := outcome(s); got != "200 " {
			t.Errorf("got %q", got)
		}
		dead()
		b.of(http2.FramePing)
		for range deadAfter + 1 {
			_, _ = c.Open(get("/"))
			ticks(c, 1)
		}
		if !c.Closing() {
			t.Error("it is not given up")
		}
	})
	t.Run("one that has answered before is asked again, by what gRPC servers do not count", func(t *testing.T) {
		c, b := pipe(t)
		await(t, "it was heard", c.heard.Load)
		s := open(t, c, get("/"))
		b.of(http2.FrameHeaders)
		ticks(c, 2+pingAfter)
		f := b.of(http2.FramePing)
		b.do(b.WritePing(true, f.ping))
		await(t, "the answer came", c.heard.Load)
		_ = open(t, c, get("/"))
		for range askAgain + 2 {
			_, _ = c.Open(get("/"))
			ticks(c, 1)
		}
		for f = b.next(); f.kind != http2.FrameSettings || f.flags.Has(http2.FlagSettingsAck); {
			f = b.next()
		}
		ticks(c, deadAfter+1)
		if got := outcome(s); !strings.Contains(got, "does not acknowledge SETTINGS") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a stream may be silent for ever", func(t *testing.T) {
		c, b := pipe(t)
		s := open(t, c, get("/"))
		b.of(http2.FrameHeaders)
		ticks(c, 2+pingAfter)
		f := b.of(http2.FramePing)
		b.do(b.WritePing(true, f.ping))
		await(t, "the answer came", c.heard.Load)
		pings := 0
		for range 1000 / 20 {
			for range 20 {
				ticks(c, 1)
				c.mu.Lock()
				asking := c.asking
				c.mu.Unlock()
				if !asking {
					continue
				}
				switch f := b.next(); f.kind {
				case http2.FramePing:
					pings++
					b.do(b.WritePing(true, f.ping))
				case http2.FrameSettings:
					b.do(b.WriteSettingsAck())
				}
				await(t, "the answer came", c.heard.Load)
			}
		}
		if pings > 1000/pingAgain {
			t.Errorf("%d PINGs: gRPC servers would have ended the connection", pings)
		}
		if c.Closing() {
			t.Fatal("given up although it answered")
		}
		b.answer(1, true, ":status", "200")
		if got := outcome(s); got != "200 " {
			t.Errorf("got %q", got)
		}
	})
	t.Run("one without streams is closed", func(t *testing.T) {
		c, b := pipe(t)
		ticks(c, idleAfter)
		if c.Closing() {
			t.Fatal("too soon")
		}
		ticks(c, 1)
		if got := b.end(); got != "NO_ERROR" {
			t.Errorf("it ends with %q", got)
		}
	})
	t.Run("a backend that does not read is given up", func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		c := New(near, Options{MaxHeader: 1 << 10, tick: time.Hour})
		s := open(t, c, get("/"))
		await(t, "the writer waits", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.writing != 0 })
		for range stuckAfter + 1 {
			c.tick()
		}
		if _, err := s.Head(nil); err == nil || !strings.Contains(err.Error(), "does not read") {
			t.Errorf("got %v", err)
		}
	})
}

// TestAgainstNetHTTP has net/http serve many streams at once, with bodies in
// both directions.
func TestAgainstNetHTTP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: echoHandler{}, Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := New(near, Options{MaxHeader: 64 << 10})
	t.Cleanup(func() { c.fail(&ConnError{Reason: "the test is over"}) })
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			body := bytes.Repeat([]byte{byte(i)}, i*4001)
			s, err := c.Open(&Request{Method: "POST", Authority: "a", Path: fmt.Sprintf("/%d", i), Header: header("X-I", fmt.Sprint(i), "Trailer", "X-End")})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			go func() {
				if err := s.Send(body, false); err != nil {
					t.Error(err)
				}
				if err := s.SendTrailer(header("X-End", fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			}()
			h, err := s.Head(nil)
			if err != nil {
				t.Error(err)
				return
			}
			var got []byte
			for {
				p, err := s.Next(nil)
				got = append(got, p...)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
			if !bytes.Equal(got, body) {
				t.Errorf("%d: %d bytes of %d", i, len(got), len(body))
			}
			at := slices.IndexFunc(h.Fields, func(f hpack.HeaderField) bool { return f.Name == "x-i" })
			if tr := s.Trailer(); at < 0 || h.Fields[at].Value != fmt.Sprint(i) || len(tr) != 1 || tr[0].Value != fmt.Sprint(i) {
				t.Errorf("%d: %v, trailers %v", i, h.Fields, tr)
			}
		})
	}
	all.Wait()
	if n := c.Streams(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}
