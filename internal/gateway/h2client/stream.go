package h2client

import (
	"io"
	"iter"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/net/http2/hpack"

	"fairway.dev/fairway/internal/gateway/shed"
)

// Stream is one request and its answer. One goroutine may send and another
// one receive; Cancel and Close may be called by any.
type Stream struct {
	c      *Conn
	id     uint32
	method string

	// Under the connection's lock.
	sendWindow int64
	sentEnd    bool
	waits      bool // is among those that wait for room

	answered chan struct{} // something has come
	room     chan struct{} // there may be room to send

	// The reader's.
	touched bool
	begun   bool // the final header has come

	mu      sync.Mutex
	heads   []Head
	interim int
	trailer []hpack.HeaderField
	length  int64 // what is left of the body by its Content-Length; -1 if it has none
	nobody  bool
	pending []byte // of the body, what nobody has seen
	view    []byte // what Next has returned
	window  int    // what may come
	taken   int    // what was seen, of which the backend has not been told
	held    int    // what counts as held: pending and view, until Close
	ended   bool   // the answer is complete
	err     error
}

// Head is the head of an answer, or of an interim one (1xx). Names are in lower case.
type Head struct {
	Status int
	Fields []hpack.HeaderField
	// End tells that no body follows.
	End bool
	// Length is the length of the body; -1 if it is not known.
	Length int64
}

// Head returns the next head of the answer, waiting for it; the last one has a
// status of 200 or more. It fails with [ErrCanceled] once stop is closed.
func (s *Stream) Head(stop <-chan struct{}) (Head, error) {
	for {
		s.mu.Lock()
		if len(s.heads) > 0 {
			h := s.heads[0]
			s.heads = s.heads[1:]
			s.mu.Unlock()
			return h, nil
		}
		err := s.err
		s.mu.Unlock()
		if err != nil {
			return Head{}, err
		}
		select {
		case <-s.answered:
		case <-stop:
			return Head{}, ErrCanceled
		}
	}
}

// Next returns the next bytes of the body, a view that is good until the next
// call, waiting for them; io.EOF at the end. It fails with [ErrCanceled] once
// stop is closed.
func (s *Stream) Next(stop <-chan struct{}) ([]byte, error) {
	for {
		data, err := s.NextReady()
		if len(data) > 0 || err != nil {
			return data, err
		}
		select {
		case <-s.answered:
		case <-stop:
			return nil, ErrCanceled
		}
	}
}

// NextReady is as [Stream.Next], but returns nothing rather than wait.
func (s *Stream) NextReady() ([]byte, error) {
	s.mu.Lock()
	if len(s.view) > 0 { // has been used by now
		s.taken += len(s.view)
		s.hold(-min(s.held, len(s.view)))
		s.view = s.view[:0]
	}
	more := 0
	if s.taken > 0 && !s.ended && s.err == nil {
		if more = s.due(); more > 0 {
			s.taken = 0
			s.window += more
		}
	}
	var err error
	if len(s.pending) > 0 {
		s.view, s.pending = s.pending, s.view
	} else if err = s.err; s.ended {
		err = io.EOF
	}
	data := s.view
	s.mu.Unlock()
	if more > 0 {
		s.credit(more)
	}
	return data, err
}

// due returns how much more the backend may send now, once half of what it was
// allowed has been seen.
func (s *Stream) due() int {
	held := len(s.pending)
	if 2*s.taken < s.window+held+s.taken {
		return 0
	}
	most := streamWindow
	if s.c.options.Held.Much() {
		most = shortStreamWindow
	}
	return max(0, most-s.window-held)
}

// hold counts n more bytes that wait, or fewer.
func (s *Stream) hold(n int) {
	s.held += n
	s.c.options.Held.Add(n)
}

// credit lets the backend send more.
func (s *Stream) credit(n int) {
	c := s.c
	c.mu.Lock()
	if c.streams[s.id] == s {
		c.out = appendWindow(c.out, s.id, n)
		c.kick()
	}
	c.mu.Unlock()
}

// Trailer returns the trailers, once Next has come to the end.
func (s *Stream) Trailer() []hpack.HeaderField {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trailer
}

// Send sends a part of the body, waiting until the backend takes it; end tells
// that it is the last and no trailers follow. It fails once the stream has ended.
func (s *Stream) Send(p []byte, end bool) error {
	for {
		n, err := s.trySend(p, end)
		if err != nil {
			return err
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
		<-s.room
	}
}

// trySend sends as much as there is room for.
func (s *Stream) trySend(p []byte, end bool) (n int, err error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[s.id] != s || s.sentEnd {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			return 0, s.err
		}
		return 0, ErrCanceled // the answer is complete: nobody wants the rest
	}
	for {
		// There may be less than none: of a window that was taken back, or where
		// much waits. The end alone needs no room.
		room := max(0, min(int64(len(p)-n), s.sendWindow, c.window, maxUnsent-int64(len(c.out)), maxFrame))
		last := end && room == int64(len(p)-n)
		if room == 0 && !last {
			break
		}
		flags := byte(0)
		if last {
			flags, s.sentEnd = flagEndStream, true
		}
		c.out = append(appendFrame(c.out, int(room), dataFrame, flags, s.id), p[n:n+int(room)]...)
		s.sendWindow -= room
		c.window -= room
		n += int(room)
		if n == len(p) {
			break
		}
	}
	if n > 0 || s.sentEnd {
		c.r.earn(1 + n/1024)
		c.sent = c.ticks
		c.kick()
	}
	if n < len(p) && !s.waits {
		s.waits = true
		c.waiting = append(c.waiting, s)
	}
	if s.sentEnd {
		s.forgetIfDone()
	}
	return n, nil
}

// SendTrailer ends the request with trailers.
func (s *Stream) SendTrailer(trailer iter.Seq2[string, string]) error {
	if err := check(trailer); err != nil {
		return err
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[s.id] != s || s.sentEnd {
		return ErrCanceled
	}
	s.sentEnd = true
	c.header(s, c.encoder.begin(c.scratch[:0]), trailer, true)
	s.forgetIfDone()
	return nil
}

// forgetIfDone frees the stream's place once both sides have said all. The
// lock of the connection is held.
func (s *Stream) forgetIfDone() {
	s.mu.Lock()
	done := s.ended && s.sentEnd
	s.mu.Unlock()
	if done {
		s.c.forget(s)
	}
}

// Cancel ends the stream at once with err, unless it has ended; the backend is told.
func (s *Stream) Cancel(err error) { s.abort(CodeCancel, err) }

// Close ends the stream. If the answer is not complete, or not all was sent,
// the backend is told.
func (s *Stream) Close() {
	s.abort(CodeCancel, ErrCanceled)
	s.mu.Lock()
	s.hold(-s.held) // nobody looks at it any more, and nothing more comes
	s.pending = nil
	s.mu.Unlock()
}

// spoil ends the stream for what the backend sent.
func (s *Stream) spoil(code Code, problem malformed) { s.abort(code, problem) }

func (s *Stream) abort(code Code, err error) {
	c := s.c
	c.mu.Lock()
	if c.streams[s.id] == s {
		c.out = appendReset(c.out, s.id, code)
		c.kick()
		c.forget(s)
	}
	s.end(err)
	c.mu.Unlock()
}

// end ends the stream for whoever uses it, unless its answer is complete. The
// lock of the connection is held: who sees that the stream is gone sees why.
func (s *Stream) end(err error) {
	s.mu.Lock()
	if s.err == nil && !s.ended {
		s.err = err
		s.heads = nil
	}
	s.mu.Unlock()
	notify(s.answered)
	notify(s.room)
}

// wasReset takes RST_STREAM. After a complete answer it tells that the rest of
// the request is not wanted (RFC 9113, 8.1).
func (s *Stream) wasReset(code Code) {
	c := s.c
	c.mu.Lock()
	c.forget(s)
	s.end(&StreamError{code})
	c.mu.Unlock()
}

// takeHeader takes a header that has come.
func (s *Stream) takeHeader(status int, fields []hpack.HeaderField, end bool) malformed {
	if s.begun {
		if !end {
			return "trailers that are not the end"
		}
		s.mu.Lock()
		if s.ended {
			s.mu.Unlock()
			return "a header after the end"
		}
		s.trailer = fields
		problem := s.complete()
		s.mu.Unlock()
		if problem == "" {
			s.finish()
		}
		return problem
	}
	h := Head{Status: status, Fields: fields, End: end, Length: -1}
	switch {
	case status == 0:
		return "no status"
	case status < 200:
		if end {
			return "an interim answer that is the end"
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.interim++; s.interim > maxInterim {
			return "too many interim answers"
		}
		s.heads = append(s.heads, h)
		return ""
	}
	for i := 0; i < len(h.Fields); i++ {
		f := h.Fields[i]
		if f.Name != "content-length" {
			continue
		}
		n, err := strconv.ParseUint(f.Value, 10, 63)
		if err != nil || h.Length >= 0 && h.Length != int64(n) {
			return "a Content-Length that is not one number"
		}
		if h.Length >= 0 { // the same again, for which clients refuse the answer
			h.Fields = slices.Delete(h.Fields, i, i+1)
			i--
		}
		h.Length = int64(n)
	}
	s.begun = true
	s.mu.Lock()
	s.nobody = s.method == "HEAD" || status == 204 || status == 304
	if !s.nobody {
		s.length = h.Length
	}
	var problem malformed
	if end {
		if problem = s.complete(); problem == "" && h.Length < 0 && !s.nobody {
			h.Length = 0
		}
	}
	if problem == "" {
		s.heads = append(s.heads, h)
	}
	s.mu.Unlock()
	if end && problem == "" {
		s.finish()
	}
	return problem
}

// complete notes the end of the answer.
func (s *Stream) complete() malformed {
	if s.length > 0 {
		return "a body that is shorter than its Content-Length"
	}
	if s.err == nil {
		s.ended = true
	}
	return ""
}

// finish frees the place of a stream whose answer is complete, if its request is.
func (s *Stream) finish() {
	c := s.c
	c.mu.Lock()
	if s.sentEnd {
		c.forget(s)
	}
	c.mu.Unlock()
}

// takeData takes data that has come in a frame with a payload of all bytes.
func (s *Stream) takeData(p []byte, all int, end bool) (malformed, Code) {
	if !s.begun {
		return "a body before the header", CodeProtocol
	}
	s.mu.Lock()
	switch {
	case s.nobody && len(p) > 0:
		s.mu.Unlock()
		return "a body where none may be", CodeProtocol
	case s.ended:
		s.mu.Unlock()
		return "data after the end", CodeStreamClosed
	}
	if s.window -= all; s.window < 0 {
		s.mu.Unlock()
		return "more data than its window allows", CodeFlowControl
	}
	s.taken += all - len(p)
	if s.length >= 0 {
		if s.length -= int64(len(p)); s.length < 0 {
			s.mu.Unlock()
			return "a body that is longer than its Content-Length", CodeProtocol
		}
	}
	if s.err == nil {
		if s.c.options.Held.Full(s.held) {
			// Whoever reads may be waiting for the client for long, with what it has.
			s.hold(-len(s.pending))
			s.pending = nil
			s.mu.Unlock()
			s.abort(CodeCancel, shed.ErrFull)
			return "", CodeNo
		}
		s.pending = append(s.pending, p...)
		s.hold(len(p))
	}
	var problem malformed
	if end {
		problem = s.complete()
	}
	s.mu.Unlock()
	if end && problem == "" {
		s.finish()
	}
	return problem, CodeProtocol
}
