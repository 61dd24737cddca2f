package http2

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/net/http2"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/shed"
)

// Exchange is what a handler does for a request at a backend. Both methods may
// be called at any time between two calls of [Stream.Hold]; they must not wait,
// nor call the Stream.
type Exchange interface {
	// Abandon ends it: nobody waits for the answer.
	Abandon()
	// Sweep is called four times a second with the time in nanoseconds.
	Sweep(now int64)
}

// Stream is a request and its answer. Its methods are for the handler: one
// goroutine may read the body while one writes the answer.
type Stream struct {
	// Request is the request's header; the strings may be kept. Length is -1 for
	// a body that is not announced.
	Request http1.Request
	// Refused tells why the request is to be refused; nil if it is not. The
	// connection goes on. Of a header that is too large there are no fields.
	Refused *http1.Error
	// Status and Bytes are the status and the length of the body that have been
	// sent in answer; 0 if none.
	Status int
	Bytes  int64
	// Scratch is the handler's, and stays with the Stream for further requests.
	Scratch any

	conn     *Conn
	id       uint32
	rpc      bool
	shared   bool // somebody else may know the Stream
	readable chan struct{}
	writable chan struct{}

	// Of the one who answers.
	block   []byte // a header block
	pending int    // the status in it

	// Under the connection's lock.
	remoteEnd, localEnd bool
	resetByUs           bool
	unpaid              bool // what is sent pays for nothing
	gone                bool // the client, or its interest; nothing is sent any more
	exchange            Exchange
	send, recv          int64 // windows
	owed                int64 // what the second is to be opened by
	got                 int64 // bytes of the body
	body                []chunk
	lent                int   // bytes that the reader of the body looks at
	bodyErr             error // why there is no more of it
	unwanted            bool  // nobody reads it any more
	continued           bool
	trailers            []http1.Field
	at                  int // where the last frame is in generation
	generation          uint64
	waits               bool // is among the waiters
	readSince           int64
	stuckSince          int64
	trickle             trickle
}

// chunk is a piece of a body.
type chunk struct {
	b    *[]byte
	r, w int
}

const chunkSize = 16 << 10

var chunks = sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }}

var (
	// errEnd stands for the end of a body.
	errEnd = io.EOF
	// errBodyLate means that a client took too long to send more.
	errBodyLate = fmt.Errorf("%w: %w", http1.ErrClient, os.ErrDeadlineExceeded)
	errClosed   = fmt.Errorf("%w: the body has been closed", http1.ErrClient)
)

// Conn returns the client's connection.
func (s *Stream) Conn() *Conn { return s.conn }

// Clock is what a janitor sets, for exchanges to measure their time by.
func (s *Stream) Clock() *http1.Clock { return &s.conn.server.Clock }

// Timed holds an RPC to the limits of other requests, where the backend speaks
// no HTTP/2: by HTTP/1.1 no call is silent for long, whatever Content-Type says.
func (s *Stream) Timed() {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	s.rpc = false
}

// Hold tells what is to hear of the client's going; nil for nothing. If it has
// gone already, it hears at once.
func (s *Stream) Hold(x Exchange) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	s.exchange = x
	if x != nil && s.gone {
		x.Abandon()
	}
}

// Gone reports whether the client has left, or given the request up.
func (s *Stream) Gone() bool {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.gone
}

// Cut reports whether the request was given up because memory is short.
func (s *Stream) Cut() bool {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.bodyErr == shed.ErrFull
}

// abandon ends a stream that its client has reset, or that was reset.
func (s *Stream) abandon(err error) {
	if s.gone {
		return
	}
	s.gone = true
	s.conn.open--
	s.bodyErr = err
	if s.exchange != nil {
		s.exchange.Abandon()
	}
	wake(s.readable)
	wake(s.writable)
}

// ended notes the end of the request.
func (s *Stream) ended() {
	s.remoteEnd = true
	if s.bodyErr == nil {
		s.bodyErr = errEnd
	}
	wake(s.readable)
}

// keep takes in a piece of the body.
func (s *Stream) keep(data []byte) {
	for len(data) > 0 {
		if n := len(s.body); n == 0 || s.body[n-1].w == chunkSize {
			s.body = append(s.body, chunk{b: chunks.Get().(*[]byte)})
			s.conn.server.Held.Add(chunkSize)
		}
		last := &s.body[len(s.body)-1]
		n := copy((*last.b)[last.w:], data)
		last.w += n
		data = data[n:]
	}
}

// refund opens the stream's window again.
func (s *Stream) refund(n int64) {
	c := s.conn
	if s.owed += n; s.owed >= c.server.StreamWindow/2 && !s.remoteEnd && !s.gone && c.failed == nil {
		out := c.unpaidOutput(4)
		out.b = appendWindowUpdate(out.b, s.id, int(s.owed))
		s.recv += s.owed
		s.owed = 0
	}
}

// giveBack ends the look at what Next has returned.
func (s *Stream) giveBack() {
	if s.lent == 0 {
		return
	}
	n := int64(s.lent)
	s.lent = 0
	if first := &s.body[0]; first.r == first.w {
		chunks.Put(first.b)
		s.conn.server.Held.Add(-chunkSize)
		s.body = append(s.body[:0], s.body[1:]...)
	}
	s.refund(n)
	s.conn.refund(n)
}

// Next returns the next bytes of the request's body, at most limit, a view that
// is good until the next call; io.EOF at the end. With that call the client may
// send as many more.
func (s *Stream) Next(limit int) ([]byte, error) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	s.giveBack()
	c.flush()
	for {
		if s.bodyErr != nil && s.bodyErr != errEnd {
			return nil, s.bodyErr
		}
		if len(s.body) > 0 {
			first := &s.body[0]
			n := min(limit, first.w-first.r)
			view := (*first.b)[first.r:][:n:n]
			first.r += n
			s.lent = n
			return view, nil
		}
		if s.bodyErr != nil {
			return nil, io.EOF
		}
		if s.Request.ExpectContinue && !s.continued && s.Status == 0 {
			s.continued = true
			s.sayContinue()
			c.flush()
			continue
		}
		s.readSince = c.server.Clock.Load()
		c.mu.Unlock()
		<-s.readable
		c.mu.Lock()
		s.readSince = 0
	}
}

// AppendWhole appends the body to dst and takes it, if all of it has come, no
// trailers behind it, and it is no longer than limit.
func (s *Stream) AppendWhole(dst []byte, limit int) ([]byte, bool) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.bodyErr != errEnd || s.got > int64(limit) || len(s.trailers) > 0 {
		return dst, false
	}
	for _, piece := range s.body {
		dst = append(dst, (*piece.b)[piece.r:piece.w]...)
		c.refund(int64(piece.w - piece.r))
		chunks.Put(piece.b)
	}
	c.server.Held.Add(-len(s.body) * chunkSize)
	clear(s.body)
	s.body = s.body[:0]
	return dst, true
}

func (s *Stream) sayContinue() {
	c := s.conn
	if c.failed != nil {
		return
	}
	out := c.output()
	length := 5
	if !c.sized {
		length++
	}
	out.b = appendHeader(out.b, length, http2.FrameHeaders, http2.FlagHeadersEndHeaders, s.id)
	if !c.sized {
		c.sized = true
		out.b = append(out.b, 0x20)
	}
	out.b = appendStatus(out.b, 100)
}

// Trailers returns the request's trailers, once Next has returned io.EOF.
func (s *Stream) Trailers() []http1.Field {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.trailers
}

// Stop ends reading: what comes of the body is dropped.
func (s *Stream) Stop() {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.bodyErr == nil {
		s.bodyErr = errClosed
	}
	s.unwanted = true
	wake(s.readable)
}

// finish ends a stream whose handler is done.
func (s *Stream) finish() {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.gone && c.failed == nil {
		switch {
		case !s.localEnd:
			s.sendReset(http2.ErrCodeInternal)
		case !s.remoteEnd:
			s.sendReset(http2.ErrCodeNo)
		}
	}
	if !s.remoteEnd && s.resetByUs {
		c.remember(s.id)
	}
	rest := int64(s.lent)
	for _, piece := range s.body {
		rest += int64(piece.w - piece.r)
		if !s.shared { // else somebody may look at it still
			chunks.Put(piece.b)
		}
	}
	c.server.Held.Add(-len(s.body) * chunkSize)
	clear(s.body)
	s.body, s.lent = s.body[:0], 0
	c.refund(rest)
	delete(c.streams, s.id)
	if !s.gone {
		c.open--
	}
	if s.waits {
		for i, w := range c.waiters {
			if w == s {
				c.waiters = append(c.waiters[:i], c.waiters[i+1:]...)
				break
			}
		}
	}
	if c.running--; c.running == 0 {
		c.idleSince = c.server.Clock.Load()
		c.endIfDone()
	}
	c.flush()
}

func (s *Stream) sendReset(code http2.ErrCode) {
	s.resetByUs = true
	out := s.conn.unpaidOutput(4)
	out.b = appendReset(out.b, s.id, code)
}
