package h2client

import (
	"encoding/binary"
	"iter"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"

	"fairway.dev/fairway/internal/gateway/shed"
)

// What a backend may send before somebody has read it: for a stream at first,
// once its client has shown that it reads, and while much is held for clients
// that do not; and for all streams together, which is given back as it comes.
const (
	firstStreamWindow = 64 << 10
	streamWindow      = 256 << 10
	shortStreamWindow = 32 << 10
	connWindow        = 16 << 20
)

// firstWindow is what both sides may send before settings say otherwise.
const firstWindow = 65535

// maxWindow is the largest window that there can be.
const maxWindow = 1<<31 - 1

// maxUnsent is how much data waits for the network; more waits with its stream.
const maxUnsent = 128 << 10

// firstStreams is how many streams a backend gets before its settings have
// come, mostStreams how many at most: one connection is one goroutine's work.
const (
	firstStreams = 100
	mostStreams  = 250
)

// How time limits a connection, in ticks.
const (
	tick       = 5 * time.Second
	pingAfter  = 3  // of silence, after something was sent
	pingAgain  = 62 // unless it has answered since: more makes gRPC servers end the connection
	askAgain   = 12 // by SETTINGS meanwhile, which have to be acknowledged as well (RFC 9113, 6.5.3)
	deadAfter  = 3  // of silence after a PING or SETTINGS
	stuckAfter = 6  // for one write
	idleAfter  = 12 // without a stream: less than the 75 s after which nginx closes
)

// Options configure a [Conn].
type Options struct {
	// MaxHeader limits the header of an answer, counted as RFC 9113, 6.5.2 does.
	// Required.
	MaxHeader int
	// OnRoom is told that there is room for a stream again, or that the
	// connection has ended. It must not block, nor call the connection. Optional.
	OnRoom func()
	// Held counts what waits for clients, and says when that is too much: then
	// streams end with [shed.ErrFull]. Optional.
	Held *shed.Held

	tick time.Duration // for tests
}

// Conn is a connection to a backend.
type Conn struct {
	options Options
	conn    net.Conn

	mu         sync.Mutex
	streams    map[uint32]*Stream
	nextID     uint32
	maxStreams uint32
	window     int64 // what may be sent, of all streams
	first      int64 // what may be sent of a new stream
	encoder    *encoder
	scratch    []byte
	out, spare []byte
	written    uint32 // no stream with a higher number went out,
	attempted  uint32 // nor is one being written
	idle       bool   // the writer waits
	writing    uint32 // since which tick, and 1; 0 for not
	wake       chan struct{}
	waiting    []*Stream  // that have more to send than they may
	closing    bool       // no more streams
	last       bool       // to be closed once out is written
	err        *ConnError // how it ended
	ticks      uint32
	sent       uint32 // in which tick a stream last sent something
	quiet      uint32 // since which tick there are no streams
	pinged     uint32 // in which tick, and 1; 0 for never
	asked      uint32 // in which tick it was last asked, by PING or SETTINGS, and 1
	asking     bool   // no frame has come since
	timer      *time.Timer

	heard   atomic.Bool // something was read since the last tick
	silent  uint32      // in which tick that was last so
	unheard uint32      // ticks in a row since, with a stream that may wait for something

	r reader
}

// New takes over a connection to a backend that speaks HTTP/2.
func New(conn net.Conn, o Options) *Conn {
	if o.tick == 0 {
		o.tick = tick
	}
	c := &Conn{
		options: o, conn: conn, streams: map[uint32]*Stream{}, nextID: 1, maxStreams: firstStreams, window: firstWindow, first: firstWindow,
		encoder: newEncoder(), wake: make(chan struct{}, 1),
	}
	c.out = append(c.out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"...)
	c.out = appendFrame(c.out, 4*6, settingsFrame, 0, 0)
	c.out = appendSetting(c.out, settingPush, 0)
	c.out = appendSetting(c.out, settingInitialWindow, firstStreamWindow)
	c.out = appendSetting(c.out, settingMaxHeaderList, uint32(o.MaxHeader))
	c.out = appendSetting(c.out, settingTableSize, tableSize)
	c.out = appendWindow(c.out, 0, connWindow-firstWindow)
	c.r = reader{c: c, window: connWindow, buf: make([]byte, readBuffer)}
	c.r.decoder = hpack.NewDecoder(tableSize, c.r.field)
	c.r.decoder.SetMaxStringLength(o.MaxHeader)
	c.timer = time.AfterFunc(o.tick, c.tick)
	go c.write()
	go c.r.run()
	return c
}

// Request is the head of a request.
type Request struct {
	Method, Authority, Path string
	// Secure tells that the scheme is https.
	Secure bool
	// Header yields names, which may have capitals, and values. It is called
	// more than once, and must not block. Fields of HTTP/1's connections are left out.
	Header iter.Seq2[string, string]
	// End tells that neither body nor trailers follow.
	End bool
}

// check refuses what would be another request where it is written out as HTTP/1.1.
func (r *Request) check() error {
	if !all(r.Method, tokenByte) || r.Method == "" || !all(r.Path, valueByte) || r.Path == "" || !all(r.Authority, valueByte) {
		return ErrHeader
	}
	return check(r.Header)
}

func check(header iter.Seq2[string, string]) error {
	for name, value := range header {
		if name == "" || !all(name, tokenByte) || !all(value, valueByte) {
			return ErrHeader
		}
	}
	return nil
}

// Open sends a request's head. The errors are [ErrFull], [ErrClosing] and
// [ErrHeader], after which nothing was sent. End the stream with [Stream.Close].
func (c *Conn) Open(r *Request) (*Stream, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	s := &Stream{c: c, method: r.Method, answered: make(chan struct{}, 1), room: make(chan struct{}, 1), window: firstStreamWindow, length: -1}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closing || c.nextID > maxWindow:
		c.closing = true
		return nil, ErrClosing
	case uint32(len(c.streams)) >= c.maxStreams:
		return nil, ErrFull
	}
	s.id, s.sendWindow, s.sentEnd = c.nextID, c.first, r.End
	c.nextID += 2
	c.streams[s.id] = s
	e, block := c.encoder, c.scratch[:0]
	block = e.begin(block)
	switch r.Method {
	case "GET":
		block = e.static(block, indexGET)
	case "POST":
		block = e.static(block, indexPOST)
	default:
		block = appendLiteral(block, 0, 4, indexGET, "", r.Method)
	}
	if r.Secure {
		block = e.static(block, indexHTTPS)
	} else {
		block = e.static(block, indexHTTP)
	}
	if r.Path == "/" {
		block = e.static(block, indexSlash)
	} else {
		block = e.field(block, ":path", r.Path)
	}
	if r.Authority != "" {
		block = e.field(block, ":authority", r.Authority)
	}
	c.header(s, block, r.Header, r.End)
	return s, nil
}

// header adds the frames of a header or trailer, whose block is begun.
func (c *Conn) header(s *Stream, block []byte, fields iter.Seq2[string, string], end bool) {
	for name, value := range fields {
		block = c.encoder.field(block, name, value)
	}
	c.scratch = block
	k, flags := headersFrame, byte(0)
	if end {
		flags = flagEndStream
	}
	for {
		part := block[:min(len(block), maxFrame)]
		if block = block[len(part):]; len(block) == 0 {
			flags |= flagEndHeaders
		}
		c.out = append(appendFrame(c.out, len(part), k, flags, s.id), part...)
		if len(block) == 0 {
			break
		}
		k, flags = continuationFrame, 0
	}
	c.sent = c.ticks
	c.kick()
}

// kick makes the writer look at out.
func (c *Conn) kick() {
	if c.idle {
		c.idle = false
		c.wake <- struct{}{}
	}
}

// write sends what streams have to send, together.
func (c *Conn) write() {
	for {
		c.mu.Lock()
		for len(c.out) == 0 {
			if c.err != nil || c.last {
				c.mu.Unlock()
				_ = c.conn.Close()
				return
			}
			c.idle = true
			c.mu.Unlock()
			<-c.wake
			// Others that were woken by the same read have something to send
			// as well: it goes out in one write.
			runtime.Gosched()
			c.mu.Lock()
		}
		out, newest := c.out, c.nextID-1
		c.out = c.spare[:0]
		c.spare = nil
		c.writing, c.attempted = c.ticks+1, newest
		c.mu.Unlock()
		n, err := c.conn.Write(out)
		c.mu.Lock()
		c.writing = 0
		if n > 0 {
			c.written = newest
		}
		if cap(out) <= 2*maxUnsent {
			c.spare = out
		}
		c.wakeWaiting()
		c.mu.Unlock()
		if err != nil {
			c.fail(&ConnError{Reason: "it broke", Err: err})
			_ = c.conn.Close()
			return
		}
	}
}

// wakeWaiting lets streams look again at what they may send.
func (c *Conn) wakeWaiting() {
	for i, s := range c.waiting {
		s.waits = false
		notify(s.room)
		c.waiting[i] = nil
	}
	c.waiting = c.waiting[:0]
}

func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Streams returns how many streams there are.
func (c *Conn) Streams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

// Closing reports whether the connection takes no more streams.
func (c *Conn) Closing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

// Close ends the connection once its streams have ended, and takes no more.
func (c *Conn) Close() {
	c.mu.Lock()
	c.closing = true
	c.closeIfDone()
	c.mu.Unlock()
}

// closeIfDone ends a connection that takes no more streams and has none.
func (c *Conn) closeIfDone() {
	if c.closing && len(c.streams) == 0 && c.err == nil && !c.last {
		c.last = true
		c.out = appendGoAway(c.out, CodeNo)
		c.kick()
	}
}

// fail ends the connection and all its streams.
func (c *Conn) fail(err *ConnError) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err, c.closing = err, true
	c.timer.Stop()
	written := c.written
	if c.writing != 0 {
		written = c.attempted
	}
	for id, s := range c.streams {
		if id > written {
			s.end(&unprocessed{err})
		} else {
			s.end(err)
		}
	}
	c.streams = nil
	if err.Code != CodeNo {
		c.out = appendGoAway(c.out[:0], err.Code)
		// The writer sends that and closes; a backend that does not read is not waited for.
		_ = c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	} else {
		c.out = nil
		_ = c.conn.Close()
	}
	c.kick()
	c.roomAgain()
	c.mu.Unlock()
}

// unprocessed is an error of a stream that the backend has not seen, or has
// said that it did nothing for.
type unprocessed struct{ err error }

// Error implements error.
func (u *unprocessed) Error() string { return u.err.Error() }

// Unwrap returns the error and what it means.
func (u *unprocessed) Unwrap() []error { return []error{ErrUnprocessed, u.err} }

// forget takes a stream out.
func (c *Conn) forget(s *Stream) {
	if c.streams[s.id] != s {
		return
	}
	delete(c.streams, s.id)
	if len(c.streams) == 0 {
		c.quiet = c.ticks
	}
	c.closeIfDone()
	c.roomAgain()
}

// roomAgain tells that a stream has ended.
func (c *Conn) roomAgain() {
	if c.options.OnRoom != nil {
		c.options.OnRoom()
	}
}

// tick ends the connection if it is dead or has long been without use.
func (c *Conn) tick() {
	c.mu.Lock()
	c.ticks++
	switch {
	case c.heard.Swap(false):
		c.silent, c.unheard, c.asking = c.ticks, 0, false
	case len(c.streams) > 0 && c.sent+1 >= c.silent:
		c.unheard++
	default:
		c.unheard = 0
	}
	c.r.chores.Store(0)
	var dead *ConnError
	switch {
	case c.err != nil:
		c.mu.Unlock()
		return
	case c.writing != 0 && c.ticks-(c.writing-1) > stuckAfter:
		dead = &ConnError{Reason: "the backend does not read"}
	case c.asking && c.ticks-(c.asked-1) > deadAfter:
		dead = &ConnError{Reason: "the backend does not answer PING"}
		if c.asked != c.pinged {
			dead.Reason = "the backend does not acknowledge SETTINGS"
		}
	case len(c.streams) == 0:
		if c.ticks-c.quiet > idleAfter {
			c.closing = true
			c.closeIfDone()
		}
	case c.asking || c.unheard <= pingAfter:
	case c.pinged == 0 || c.ticks-(c.pinged-1) > pingAgain || c.r.answered.Load():
		c.pinged, c.asked, c.asking = c.ticks+1, c.ticks+1, true
		c.r.answered.Store(false)
		c.out = binary.BigEndian.AppendUint64(appendFrame(c.out, 8, pingFrame, 0, 0), uint64(c.ticks))
		c.kick()
	case c.ticks-(c.asked-1) > askAgain:
		c.asked, c.asking = c.ticks+1, true
		c.out = appendFrame(c.out, 0, settingsFrame, 0, 0) // none has changed
		c.kick()
	}
	c.mu.Unlock()
	if dead != nil {
		c.fail(dead)
		return
	}
	c.timer.Reset(c.options.tick)
}
