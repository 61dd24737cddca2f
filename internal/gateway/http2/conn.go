package http2

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/shed"
)

const (
	// readSize holds a frame and a record of TLS.
	readSize = 2*maxFrame + frameHeader
	// smallSize is what a connection without request keeps: it holds what most
	// begin with.
	smallSize = 512
	// farewellTime is how long a client may take to hear that its connection ends.
	farewellTime = time.Second
	// farewellBytes is how much of what it goes on to send is read meanwhile.
	farewellBytes = 1 << 20
	// maxString is what the strings of a header block decode to at most, of which a
	// bit pattern of 5 may become a byte: one that is too large for a header costs
	// its request and not the connection, whose table stays right.
	maxString = (1 + maxContinuations) * maxFrame * 8 / 5
	// maxSettings bounds one SETTINGS frame; there are seven in use.
	maxSettings = 100
	// forgotten is how many streams are remembered that were closed before their
	// client had ended them: what it sent before it heard of that is no error.
	forgotten = 128
)

var buffers = sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}

// leaving is how far a connection has come towards its end.
type leaving uint8

const (
	staying leaving = iota
	warned          // the client was asked to begin no more requests
	left            // no more are taken
)

// leavePing is the payload of the PING whose answer tells that the client has
// been warned.
var leavePing = [8]byte{'l', 'e', 'a', 'v', 'i', 'n', 'g'}

// Conn is a client's connection.
type Conn struct {
	// Secure tells that the connection is encrypted.
	Secure bool
	// Peer is the other end, Port the port that it connected to.
	Peer netip.AddrPort
	Port uint16

	server *Server
	conn   net.Conn
	begun  int64

	// Of the goroutine that reads.
	small   [smallSize]byte
	space   *[]byte // pooled; nil while small is enough
	in      []byte  // one of both
	r, w    int     // what is in it
	took    bool    // a whole frame since the last read
	decoder *hpack.Decoder
	block   block
	resets  budget
	chores  budget
	heads   budget

	handlers sync.WaitGroup

	mu      sync.Mutex
	streams map[uint32]*Stream
	last    uint32   // the latest stream; changed by the one who reads
	final   uint32   // the last stream that is served, once the connection has left
	open    int      // streams that are not reset
	running int      // handlers
	closed  []uint32 // the latest that were closed early
	nClosed int
	settled bool // the client's SETTINGS have come
	leaving leaving
	warned  int64 // when
	ending  bool

	send, firstSend int64 // windows for what is sent
	peerFrame       int
	recv, owed      int64 // window of what may come, and what it is to be opened by

	out        *outBuffer
	generation uint64 // of out
	writing    bool
	idleWriter *sync.Cond // writing is false, or there is room
	sized      bool       // HPACK's table was given up
	paying     int64      // how much has been sent that pays for what the client does
	failed     error
	waiters    []*Stream // for room, or for the connection's window

	writeSince, partialSince, idleSince int64
	partialLimit                        time.Duration

	// How fast the client takes answers, for the janitor.
	sock    *http1.Socket // nil if it is not known
	pace    http1.Pace
	trickle trickle
	passed  int64 // bytes of bodies that were sent
	swept   int64 // when it has looked
}

// LocalAddr is the address that the client connected to. It may ask the kernel.
func (c *Conn) LocalAddr() net.Addr { return c.conn.LocalAddr() }

// Client is the client if it was asked for a certificate; nil if it was not.
func (c *Conn) Client() *certs.Client { return certs.ClientOf(c.conn) }

func newConn(s *Server, conn net.Conn, secure bool) *Conn {
	now := s.Clock.Load()
	c := &Conn{
		server: s, conn: conn, sock: http1.SocketOf(conn), Secure: secure, Peer: addrPort(conn.RemoteAddr()), Port: addrPort(conn.LocalAddr()).Port(),
		begun: now, idleSince: now, swept: now, streams: map[uint32]*Stream{}, resets: newResets(), chores: newChores(), heads: s.heads,
		send: firstWindow, firstSend: firstWindow, peerFrame: maxFrame, recv: s.ConnectionWindow,
	}
	c.idleWriter = sync.NewCond(&c.mu)
	c.in = c.small[:]
	c.decoder = hpack.NewDecoder(4096, c.field)
	c.decoder.SetMaxStringLength(maxString)
	// Nothing may come before it, nor does: who else knows the connection adds to it.
	out := c.output()
	out.b = appendSettings(out.b,
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(s.MaxStreams)},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(s.StreamWindow)},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: uint32(s.MaxHeaderBytes)})
	if more := s.ConnectionWindow - firstWindow; more > 0 {
		out.b = appendWindowUpdate(out.b, 0, int(more))
	}
	return c
}

// serve reads the connection to its end.
func (c *Conn) serve() {
	c.mu.Lock()
	c.flush()
	if c.server.draining.Load() {
		c.leave()
	}
	c.mu.Unlock()
	err := c.greet()
	for err == nil {
		err = c.step()
	}
	c.end(err)
	c.handlers.Wait()
}

func (c *Conn) greet() error {
	const preface = http2.ClientPreface
	for c.w < len(preface) {
		if string(c.in[:c.w]) != preface[:c.w] {
			break
		}
		if err := c.fill(len(preface)); err != nil {
			return err
		}
	}
	if n := min(c.w, len(preface)); string(c.in[:n]) != preface[:n] {
		return protocolError("the connection does not begin with HTTP/2's preface")
	}
	c.r = len(preface)
	return nil
}

// step does what the next frame asks for.
func (c *Conn) step() error {
	for c.w-c.r < frameHeader {
		if err := c.fill(frameHeader); err != nil {
			return err
		}
	}
	head := c.in[c.r:]
	length := int(binary.BigEndian.Uint32(head) >> 8)
	f := frame{kind: http2.FrameType(head[3]), flags: http2.Flags(head[4]), stream: streamID(head[5:])}
	if length > maxFrame {
		return broken(http2.ErrCodeFrameSize, "a frame of %d bytes", length)
	}
	for c.w-c.r < frameHeader+length {
		if err := c.fill(frameHeader + length); err != nil {
			return err
		}
	}
	f.payload = c.in[c.r+frameHeader:][:length:length]
	c.r += frameHeader + length
	c.took = true
	return c.take(&f)
}

func streamID(b []byte) uint32 { return binary.BigEndian.Uint32(b) &^ (1 << 31) }

// fill reads more, until there may be need bytes in all. Before it waits, what
// has to be sent is sent.
func (c *Conn) fill(need int) error {
	c.mu.Lock()
	c.flush()
	c.awaitRoom()
	partial := c.block.open || c.w > c.r
	if !partial || c.took && !c.block.open {
		c.partialSince = 0
	}
	c.took = false
	if partial && c.partialSince == 0 {
		c.partialSince = c.server.Clock.Load()
	}
	c.partialLimit = c.server.HeaderTimeout
	if !c.block.open && c.w-c.r >= 4 && http2.FrameType(c.in[c.r+3]) == http2.FrameData {
		c.partialLimit = c.server.BodyTimeout
	}
	c.mu.Unlock()
	if c.w == c.r {
		c.r, c.w = 0, 0
	}
	switch {
	case c.space != nil && c.w == 0: // who waits keeps little
		buffers.Put(c.space)
		c.space, c.in = nil, c.small[:]
	case c.space == nil && (need > smallSize || c.w == smallSize):
		c.space = buffers.Get().(*[]byte)
		c.w = copy(*c.space, c.in[c.r:c.w])
		c.r, c.in = 0, *c.space
	case c.r > 0:
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	n, err := c.conn.Read(c.in[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// take does what a frame asks for.
func (c *Conn) take(f *frame) error {
	if c.block.open && f.kind != http2.FrameContinuation {
		return protocolError("%v within a header", f.kind)
	}
	if !c.settled && (f.kind != http2.FrameSettings || f.flags.Has(http2.FlagSettingsAck)) {
		return protocolError("the first frame is %v", f.kind)
	}
	switch f.kind {
	case http2.FrameHeaders:
		return c.headers(f)
	case http2.FrameContinuation:
		return c.continuation(f)
	case http2.FrameData:
		return c.data(f)
	case http2.FrameWindowUpdate:
		if err := c.charge(&c.chores, 0.25, Frames, f.kind); err != nil { // up to two for each frame of an answer are normal
			return err
		}
		return c.windowUpdate(f)
	case http2.FrameRSTStream:
		if err := c.charge(&c.resets, 1, Resets, f.kind); err != nil {
			return err
		}
		return c.reset(f)
	}
	if err := c.charge(&c.chores, 1, Frames, f.kind); err != nil {
		return err
	}
	switch f.kind {
	case http2.FrameSettings:
		return c.settings(f)
	case http2.FramePing:
		return c.ping(f)
	case http2.FramePriority:
		switch {
		case f.stream == 0:
			return protocolError("PRIORITY of the connection")
		case len(f.payload) != 5:
			return broken(http2.ErrCodeFrameSize, "PRIORITY of %d bytes", len(f.payload))
		case streamID(f.payload) == f.stream && c.never(f.stream): // which cannot be reset
			return protocolError("stream %d, which is idle, depends on itself", f.stream)
		case streamID(f.payload) == f.stream:
			return c.resetStream(f.stream, http2.ErrCodeProtocol, "the stream depends on itself")
		}
	case http2.FrameGoAway:
		if f.stream != 0 {
			return protocolError("GOAWAY on stream %d", f.stream)
		}
		if len(f.payload) < 8 {
			return broken(http2.ErrCodeFrameSize, "GOAWAY of %d bytes", len(f.payload))
		}
	case http2.FramePushPromise:
		return protocolError("PUSH_PROMISE by a client")
	}
	return nil
}

// charge ends the connection if the client makes too much work for nothing.
func (c *Conn) charge(b *budget, cost float64, reason string, kind http2.FrameType) error {
	if b.take(cost, c.server.Clock.Load(), c.earned()) {
		return nil
	}
	return c.flood(reason, "too many %s frames", kind)
}

// earned is how much has been sent that pays for what the client does.
func (c *Conn) earned() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.paying
}

func (c *Conn) flood(reason, format string, args ...any) error {
	err := broken(http2.ErrCodeEnhanceYourCalm, format, args...)
	c.server.OnFlood(reason)
	return err
}

func (c *Conn) settings(f *frame) error {
	switch {
	case f.stream != 0:
		return protocolError("SETTINGS on stream %d", f.stream)
	case f.flags.Has(http2.FlagSettingsAck) && len(f.payload) > 0, len(f.payload)%6 != 0:
		return broken(http2.ErrCodeFrameSize, "SETTINGS of %d bytes", len(f.payload))
	case f.flags.Has(http2.FlagSettingsAck):
		return nil
	}
	if len(f.payload) > 6*maxSettings {
		return c.flood(Frames, "SETTINGS with %d of them", len(f.payload)/6)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settled = true
	first := c.firstSend
	for p := f.payload; len(p) > 0; p = p[6:] {
		s := http2.Setting{ID: http2.SettingID(binary.BigEndian.Uint16(p)), Val: binary.BigEndian.Uint32(p[2:])}
		if err := s.Valid(); err != nil {
			code := http2.ErrCodeProtocol
			if s.ID == http2.SettingInitialWindowSize {
				code = http2.ErrCodeFlowControl
			}
			return broken(code, "SETTINGS with %v", s)
		}
		switch s.ID {
		case http2.SettingInitialWindowSize:
			first = int64(s.Val) // the last one counts
		case http2.SettingMaxFrameSize:
			c.peerFrame = int(min(s.Val, maxFrame))
		}
	}
	if more := first - c.firstSend; more != 0 {
		c.firstSend = first
		for _, s := range c.streams {
			if s.send += more; s.send > maxWindow {
				return broken(http2.ErrCodeFlowControl, "SETTINGS make the window of stream %d too large", s.id)
			}
			wake(s.writable)
		}
	}
	out := c.unpaidOutput(0)
	out.b = appendHeader(out.b, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	return nil
}

func (c *Conn) ping(f *frame) error {
	switch {
	case f.stream != 0:
		return protocolError("PING on stream %d", f.stream)
	case len(f.payload) != 8:
		return broken(http2.ErrCodeFrameSize, "PING of %d bytes", len(f.payload))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.flags.Has(http2.FlagPingAck) {
		if c.leaving == warned && [8]byte(f.payload) == leavePing {
			c.goAway()
		}
		return nil
	}
	out := c.unpaidOutput(8)
	out.b = appendPing(out.b, http2.FlagPingAck, f.payload)
	return nil
}

// never tells streams that nobody has opened.
func (c *Conn) never(id uint32) bool { return id > c.last || id&1 == 0 }

func (c *Conn) windowUpdate(f *frame) error {
	if len(f.payload) != 4 {
		return broken(http2.ErrCodeFrameSize, "WINDOW_UPDATE of %d bytes", len(f.payload))
	}
	n := int64(streamID(f.payload))
	switch {
	case f.stream != 0 && c.never(f.stream):
		return protocolError("WINDOW_UPDATE on stream %d, which is idle", f.stream)
	case n == 0 && f.stream != 0:
		return c.resetStream(f.stream, http2.ErrCodeProtocol, "WINDOW_UPDATE by nothing")
	case n == 0:
		return protocolError("WINDOW_UPDATE by nothing")
	}
	c.mu.Lock()
	if f.stream == 0 {
		defer c.mu.Unlock()
		if c.send += n; c.send > maxWindow {
			return broken(http2.ErrCodeFlowControl, "WINDOW_UPDATE makes the connection's window too large")
		}
		c.wakeWaiters()
		return nil
	}
	s := c.streams[f.stream]
	tooLarge := false
	if s != nil {
		if tooLarge = s.send+n > maxWindow; !tooLarge {
			s.send += n
			wake(s.writable)
		}
	}
	c.mu.Unlock()
	if tooLarge {
		return c.resetStream(f.stream, http2.ErrCodeFlowControl, "WINDOW_UPDATE makes the window too large")
	}
	return nil
}

func (c *Conn) reset(f *frame) error {
	switch {
	case f.stream == 0 || c.never(f.stream):
		return protocolError("RST_STREAM on stream %d, which is idle", f.stream)
	case len(f.payload) != 4:
		return broken(http2.ErrCodeFrameSize, "RST_STREAM of %d bytes", len(f.payload))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[f.stream]; s != nil && !s.gone {
		s.abandon(http1.ErrGone)
	}
	return nil
}

// resetStream resets a stream for its client's fault.
func (c *Conn) resetStream(id uint32, code http2.ErrCode, reason string) error {
	cost := 1.
	if code == http2.ErrCodeRefusedStream {
		cost = refusal
	}
	if err := c.charge(&c.resets, cost, Resets, http2.FrameRSTStream); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[id]; s != nil {
		if s.resetByUs {
			return nil
		}
		s.resetByUs = true
		s.abandon(&brokenRequest{reason})
	} else {
		c.remember(id)
	}
	out := c.unpaidOutput(4)
	out.b = appendReset(out.b, id, code)
	return nil
}

// brokenRequest is an error of a request whose stream was reset for it.
type brokenRequest struct{ reason string }

// Error implements error.
func (e *brokenRequest) Error() string { return "the client broke the protocol: " + e.reason }

// Unwrap makes it the client's fault.
func (e *brokenRequest) Unwrap() error { return http1.ErrClient }

// remember keeps frames for a stream that was closed early from being errors.
func (c *Conn) remember(id uint32) {
	if len(c.closed) < forgotten {
		c.closed = append(c.closed, id)
		return
	}
	c.closed[c.nClosed%forgotten] = id
	c.nClosed++
}

func (c *Conn) forgotten(id uint32) bool {
	for _, closed := range c.closed {
		if closed == id {
			return true
		}
	}
	return false
}

// data takes a piece of a body.
func (c *Conn) data(f *frame) error {
	total := int64(len(f.payload))
	end := f.flags.Has(http2.FlagDataEndStream)
	if c.never(f.stream) {
		return protocolError("DATA on stream %d, which is idle", f.stream)
	}
	if !f.unpad() {
		return protocolError("DATA with more padding than bytes")
	}
	if len(f.payload) == 0 && !end {
		if err := c.charge(&c.chores, 1, Frames, f.kind); err != nil {
			return err
		}
	}
	c.mu.Lock()
	if c.recv -= total; c.recv < 0 {
		c.mu.Unlock()
		return broken(http2.ErrCodeFlowControl, "DATA beyond the connection's window")
	}
	code, reason := c.dataFor(c.streams[f.stream], f, total, end)
	if code != 0 {
		c.refund(total)
	}
	c.mu.Unlock()
	if code != 0 && code != ignore {
		return c.resetStream(f.stream, code, reason)
	}
	return nil
}

// ignore stands for DATA that is no error, but nobody wants.
const ignore = http2.ErrCode(1 << 31)

func (c *Conn) dataFor(s *Stream, f *frame, total int64, end bool) (http2.ErrCode, string) {
	switch {
	case s == nil && c.forgotten(f.stream), s != nil && s.resetByUs:
		return ignore, ""
	case s == nil, s.gone, s.remoteEnd:
		return http2.ErrCodeStreamClosed, "DATA after the end"
	}
	data := f.payload
	if s.recv -= total; s.recv < 0 {
		return http2.ErrCodeFlowControl, "DATA beyond the window"
	}
	s.got += int64(len(data))
	if length := s.Request.Length; length >= 0 && (s.got > length || end && s.got < length) {
		return http2.ErrCodeProtocol, "the body is not as long as Content-Length says"
	}
	switch padding := total - int64(len(data)); {
	case s.unwanted:
		c.refund(total)
	case c.server.Held.Full(len(s.body) * chunkSize):
		// The one who sends the body on may wait for the backend for long.
		s.sendReset(http2.ErrCodeEnhanceYourCalm)
		s.abandon(shed.ErrFull)
		return ignore, ""
	default:
		c.refund(padding)
		s.refund(padding)
		s.keep(data)
	}
	if end {
		s.ended()
	}
	wake(s.readable)
	return 0, ""
}

// refund opens the connection's window again.
func (c *Conn) refund(n int64) {
	if c.owed += n; c.owed >= c.server.ConnectionWindow/2 && c.failed == nil {
		out := c.unpaidOutput(4)
		out.b = appendWindowUpdate(out.b, 0, int(c.owed))
		c.recv += c.owed
		c.owed = 0
	}
}

// Leave tells the client to begin no more requests, and ends the connection
// with those that it has begun.
func (c *Conn) Leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave()
	c.flushAside()
}

// flushAside is flush for those who cannot wait.
func (c *Conn) flushAside() {
	if c.out == nil || c.writing || c.failed != nil {
		return
	}
	go func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.flush()
	}()
}

func (c *Conn) leave() {
	if c.leaving != staying || c.failed != nil {
		return
	}
	c.leaving, c.warned = warned, c.server.Clock.Load()
	out := c.output()
	out.b = appendGoAway(out.b, maxWindow, http2.ErrCodeNo, "")
	out.b = appendPing(out.b, 0, leavePing[:])
}

// goAway takes no more requests.
func (c *Conn) goAway() {
	if c.leaving == left || c.failed != nil {
		return
	}
	c.leaving, c.final = left, c.last
	out := c.output()
	out.b = appendGoAway(out.b, c.last, http2.ErrCodeNo, "")
	c.endIfDone()
}

func (c *Conn) endIfDone() {
	if c.leaving == left && c.running == 0 && !c.ending {
		c.ending = true
		_ = c.conn.SetReadDeadline(past)
	}
}

// cut ends the connection at once.
func (c *Conn) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail(http1.ErrGone)
}

// fail ends reading and writing.
func (c *Conn) fail(err error) {
	if c.failed == nil {
		c.failed = err
	}
	_ = c.conn.SetDeadline(past)
	c.idleWriter.Broadcast() // for the one who reads
	for _, s := range c.streams {
		s.abandon(http1.ErrGone)
	}
}

// end tells the client why, if there is something to tell, and closes the
// connection.
func (c *Conn) end(err error) {
	var broke *connError
	c.mu.Lock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(farewellTime)) // also for the write under way
	hold(c.conn)
	switch {
	case c.failed != nil:
	case errors.As(err, &broke):
		c.server.Logger.LogAttrs(context.Background(), slog.LevelDebug, "HTTP/2 connection ended", slog.String("client", c.Peer.String()), slog.String("error", err.Error()))
		last := c.last
		if c.leaving == left {
			last = c.final // which may never grow (6.8)
		}
		out := c.output()
		out.b = appendGoAway(out.b, last, broke.code, broke.reason)
	}
	for _, s := range c.streams {
		s.abandon(http1.ErrGone)
	}
	c.flush()
	for c.writing {
		c.idleWriter.Wait()
	}
	talks := c.failed == nil && (broke != nil || c.ending)
	c.fail(http1.ErrGone)
	c.discardOutput()
	c.mu.Unlock()
	if c.space != nil {
		buffers.Put(c.space)
		c.space, c.in = nil, nil
	}
	if talks {
		c.linger()
	}
	_ = c.conn.Close()
}

// linger closes the gateway's half and waits a moment for the client's: if
// something has come that nobody has read, the kernel would reset the
// connection, and the client would not hear why it ends.
func (c *Conn) linger() {
	_ = c.conn.SetDeadline(time.Now().Add(farewellTime))
	closeWrite(c.conn)
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	for n := 0; n < farewellBytes; {
		m, err := c.conn.Read(*b)
		if err != nil {
			return
		}
		n += m
	}
}

// hold has what is sent from here on go out with the connection's end, if what
// is beneath can.
func hold(conn net.Conn) {
	if s, ok := conn.(interface{ Hold() }); ok {
		s.Hold()
	} else if above, ok := conn.(interface{ NetConn() net.Conn }); ok {
		hold(above.NetConn())
	}
}

// closeWrite tells the other end that nothing more comes, at each layer.
func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	if above, ok := conn.(interface{ NetConn() net.Conn }); ok {
		closeWrite(above.NetConn())
	}
}

// trickle tells whether a window that is opened again and again lets less
// through than a client has to take.
type trickle struct {
	shut int64 // for how long it was, all in all, since
	from int64 // so many bytes had passed
}

// tooLittle is called with whether somebody waits for the window, how many bytes
// have passed it, and how long ago the last call was.
func (t *trickle) tooLittle(shut bool, passed, ago int64, limit time.Duration) bool {
	if !shut {
		return false
	}
	if t.shut == 0 {
		t.from = passed
	}
	if t.shut += ago; t.shut <= int64(limit) {
		return false
	}
	t.shut = 0
	return passed-t.from < http1.Least(limit)
}

// sweep is the janitor's look at a connection.
func (c *Conn) sweep(now int64, idle time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	over := func(since int64, limit time.Duration) bool { return since > 0 && now-since > int64(limit) }
	c.pace.Look(c.writeSince, c.sock)
	if over(c.writeSince, c.server.WriteTimeout) && c.pace.Kept(now, c.server.WriteTimeout, c.sock) {
		c.writeSince = now
	}
	switch {
	case c.failed != nil:
		return
	case over(c.writeSince, c.server.WriteTimeout):
		c.fail(http1.ErrGone)
		return
	case !c.settled && over(c.begun, c.server.HeaderTimeout), over(c.partialSince, c.partialLimit):
		c.fail(http1.ErrGone)
		return
	case c.running == 0 && over(c.idleSince, idle), c.leaving == warned && over(c.warned, farewellTime):
		c.goAway()
	}
	ago := now - c.swept
	c.swept = now
	shut, slow := false, false // the connection's window
	if c.send <= 0 {
		for _, s := range c.streams {
			shut = shut || s.stuckSince > 0
		}
		slow = c.trickle.tooLittle(shut, c.passed, ago, c.server.WriteTimeout)
	}
	for _, s := range c.streams {
		if s.exchange != nil {
			s.exchange.Sweep(now)
		}
		if s.rpc {
			continue
		}
		if over(s.readSince, c.server.BodyTimeout) && s.bodyErr == nil {
			s.bodyErr = errBodyLate
			wake(s.readable)
		}
		stuck := s.stuckSince > 0
		if !s.gone && (over(s.stuckSince, c.server.WriteTimeout) || slow && stuck ||
			s.trickle.tooLittle(stuck && s.send <= 0 && c.send > 0, s.Bytes, ago, c.server.WriteTimeout)) {
			s.sendReset(http2.ErrCodeCancel)
			s.abandon(http1.ErrGone)
		}
	}
	c.flushAside()
}
