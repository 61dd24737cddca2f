package http2

import (
	"runtime"
	"sync"

	"golang.org/x/net/http2"

	"fairway.dev/fairway/internal/gateway/http1"
)

const (
	// outLimit is how much waits to be written before streams wait for it.
	outLimit = 64 << 10
	// heldLimit is how much waits, answers to frames included, before no more is
	// read of a client that takes nothing.
	heldLimit = 4 * outLimit
	// outSize is what a buffer begins with, and outKeep the largest that is kept.
	outSize, outKeep = 8 << 10, 128 << 10
)

type outBuffer struct {
	b      []byte
	unpaid int // of that, what pays for nothing that the client does
}

var outBuffers = sync.Pool{New: func() any { return &outBuffer{b: make([]byte, 0, outSize)} }}

// output is where frames are appended, which go out by flush.
func (c *Conn) output() *outBuffer {
	if c.out == nil {
		c.out = outBuffers.Get().(*outBuffer)
		c.generation++
	}
	return c.out
}

// unpaidOutput is output for a frame with so many bytes that pays for nothing:
// the client has it sent by one that costs it as little.
func (c *Conn) unpaidOutput(size int) *outBuffer {
	out := c.output()
	out.unpaid += frameHeader + size
	return out
}

func putOutput(o *outBuffer) {
	if cap(o.b) <= outKeep {
		o.b, o.unpaid = o.b[:0], 0
		outBuffers.Put(o)
	}
}

func (c *Conn) discardOutput() {
	if c.out != nil {
		putOutput(c.out)
		c.out = nil
	}
}

// flush writes what is to be sent, or leaves it to the one who writes already.
// Others that have something to send at the same moment get the chance to add
// it. The lock is held, but not while writing.
func (c *Conn) flush() {
	if c.writing || c.out == nil || c.failed != nil {
		return
	}
	c.writing = true
	c.mu.Unlock()
	runtime.Gosched()
	c.mu.Lock()
	for round := 0; c.out != nil && c.failed == nil; round++ {
		if round == 4 {
			// Others keep it busy; it is not for this stream to serve them all.
			go func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				for c.out != nil && c.failed == nil {
					c.writeOut()
				}
				c.wrote()
			}()
			return
		}
		c.writeOut()
	}
	c.wrote()
}

func (c *Conn) wrote() {
	c.writing, c.writeSince = false, 0
	c.idleWriter.Broadcast()
	c.wakeWaiters()
}

func (c *Conn) writeOut() {
	out := c.out
	c.out = nil
	c.writeSince = c.server.Clock.Load()
	c.wakeWaiters() // there is room
	c.idleWriter.Broadcast()
	c.mu.Unlock()
	_, err := c.conn.Write(out.b)
	c.mu.Lock()
	c.paying += int64(len(out.b) - out.unpaid)
	putOutput(out)
	if err != nil {
		c.fail(err)
	}
}

func (c *Conn) wakeWaiters() {
	for i, s := range c.waiters {
		s.waits = false
		wake(s.writable)
		c.waiters[i] = nil
	}
	c.waiters = c.waiters[:0]
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// full reports whether streams must wait before they add more.
func (c *Conn) full() bool { return c.out != nil && len(c.out.b) >= outLimit }

// awaitRoom keeps the one who reads from adding to what a client does not take.
func (c *Conn) awaitRoom() {
	for c.writing && c.failed == nil && c.out != nil && len(c.out.b) >= heldLimit {
		c.idleWriter.Wait()
	}
}

// mayWrite waits until there is room; the error tells that nobody listens.
func (s *Stream) mayWrite() error {
	c := s.conn
	for {
		switch {
		case s.gone || s.resetByUs || c.failed != nil:
			return http1.ErrGone
		case !c.full():
			return nil
		case !c.writing:
			c.flush()
		default:
			s.awaitWrite()
		}
	}
}

// awaitWrite waits for a window or for room.
func (s *Stream) awaitWrite() {
	c := s.conn
	if !s.waits && (c.send <= 0 || c.full()) {
		s.waits = true
		c.waiters = append(c.waiters, s)
	}
	if s.stuckSince == 0 {
		s.stuckSince = c.server.Clock.Load()
	}
	c.mu.Unlock()
	<-s.writable
	c.mu.Lock()
}

// Begin begins a header of an answer, or its trailers with status 0. What
// follows are its fields, and one of [Stream.SendHead], [Stream.SendInterim] and
// [Stream.SendTrailers].
func (s *Stream) Begin(status int) {
	s.block = s.block[:0]
	if s.pending = status; status > 0 {
		s.block = appendStatus(s.block, status)
	}
}

// Unpaid tells that what is sent from here on pays for nothing that the client
// does: it is an answer that costs the client as little as the gateway.
func (s *Stream) Unpaid() { s.unpaid = true }

// Field adds a field; its name may have capitals.
func (s *Stream) Field(name, value string) { s.block = appendField(s.block, name, value) }

// SendHead sends the header of the answer, with the next Flush or End.
func (s *Stream) SendHead() error {
	s.conn.mu.Lock()
	s.Status = s.pending // Next looks at it
	s.conn.mu.Unlock()
	return s.sendBlock(0)
}

// SendInterim sends an interim answer (1xx).
func (s *Stream) SendInterim() error {
	if err := s.sendBlock(0); err != nil {
		return err
	}
	return s.Flush()
}

// SendTrailers sends trailers, with which the answer is at its end.
func (s *Stream) SendTrailers() error {
	if err := s.sendBlock(http2.FlagHeadersEndStream); err != nil {
		return err
	}
	s.conn.mu.Lock()
	s.localEnd = true
	s.conn.flush()
	s.conn.mu.Unlock()
	return nil
}

func (s *Stream) sendBlock(flags http2.Flags) error {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.mayWrite(); err != nil {
		return err
	}
	s.stuckSince = 0
	out := c.output()
	s.at, s.generation = len(out.b), c.generation
	first := 0
	if !c.sized {
		c.sized, first = true, 1 // an update of the table's size, to 0 (RFC 7541, 4.2)
	}
	if s.unpaid {
		out.unpaid += frameHeader + len(s.block)
	}
	kind, rest := http2.FrameHeaders, s.block
	for {
		n := min(len(rest), c.peerFrame-first)
		if n == len(rest) {
			flags |= http2.FlagHeadersEndHeaders
		}
		out.b = appendHeader(out.b, n+first, kind, flags, s.id)
		if first > 0 {
			out.b = append(out.b, 0x20)
		}
		out.b = append(out.b, rest[:n]...)
		if rest = rest[n:]; len(rest) == 0 {
			return nil
		}
		kind, flags, first = http2.FrameContinuation, 0, 0
	}
}

// Write sends a piece of the answer's body, with the next Flush or End or when
// much waits. It waits for the client's windows.
func (s *Stream) Write(p []byte) (int, error) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	total := len(p)
	for len(p) > 0 {
		if err := s.mayWrite(); err != nil {
			return total - len(p), err
		}
		n := int(min(int64(len(p)), s.send, c.send, int64(c.peerFrame)))
		if n <= 0 {
			if c.flush(); s.send <= 0 || c.send <= 0 {
				s.awaitWrite()
			}
			continue
		}
		s.stuckSince = 0
		out := c.output()
		s.at, s.generation = len(out.b), c.generation
		out.b = appendHeader(out.b, n, http2.FrameData, 0, s.id)
		out.b = append(out.b, p[:n]...)
		p = p[n:]
		if s.unpaid {
			out.unpaid += frameHeader + n
		}
		s.send -= int64(n)
		c.send -= int64(n)
		s.Bytes += int64(n)
		c.passed += int64(n)
	}
	return total, nil
}

// Flush sends what waits.
func (s *Stream) Flush() error {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flush()
	if s.gone || c.failed != nil {
		return http1.ErrGone
	}
	return nil
}

// End ends the answer and sends what waits. If the last frame of the answer
// still does, the end is told by that.
func (s *Stream) End() error {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.gone || s.resetByUs || c.failed != nil {
		return http1.ErrGone
	}
	if s.localEnd {
		return nil
	}
	s.localEnd = true
	if c.out != nil && s.at >= 0 && s.generation == c.generation {
		c.out.b[s.at+4] |= byte(http2.FlagDataEndStream) // the same bit for HEADERS
	} else {
		out := c.output()
		out.b = appendHeader(out.b, 0, http2.FrameData, http2.FlagDataEndStream, s.id)
	}
	c.flush()
	return nil
}
