package upstream

import (
	"errors"
	"io"
	"sync"
)

var errBodyGone = errors.New("the request body has been read by an earlier attempt")

// source is a client's request body, which can be read once. An attempt that
// failed before it read anything leaves it to the next one.
type source struct {
	inner io.ReadCloser
	// keep tells that short bodies are kept, for an attempt after one of which
	// it is certain that the backend has not processed the request.
	keep bool

	mu      sync.Mutex
	started bool
	current *sentBody
	kept    []byte // all that was read
	tooLong bool   // for that
	whole   bool   // nothing comes after it
}

// maxKept is the length of a body that is kept.
const maxKept = 16 << 10

// sentBody is the body of one attempt.
type sentBody struct {
	source *source
	dog    *watchdog
	again  []byte // what an earlier attempt has read and this one has to read
	repeat bool   // that is all
}

// next returns the body for a further attempt and shuts the one before out.
func (s *source) next(dog *watchdog) (*sentBody, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started && !s.whole {
		return nil, errBodyGone
	}
	s.current = &sentBody{source: s, dog: dog, again: s.kept, repeat: s.started}
	return s.current, nil
}

// repeatable reports whether an attempt that was not processed leaves all of
// the body to the next one.
func (s *source) repeatable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.started || s.whole
}

// read notes what an attempt has read.
func (s *source) read(p []byte, end bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.keep || s.tooLong:
		return
	case len(s.kept)+len(p) > maxKept:
		s.tooLong, s.kept = true, nil
		return
	}
	s.kept = append(s.kept, p...)
	s.whole = s.whole || end
}

// finished tells that nothing follows what was read.
func (b *sentBody) finished() {
	if !b.repeat {
		b.source.read(nil, true)
	}
	b.dog.disarm(&b.dog.sending)
	b.dog.sent()
}

// untouched shuts all attempts out and reports whether nothing was read.
func (s *source) untouched() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = nil
	return !s.started
}

func (b *sentBody) Read(p []byte) (int, error) {
	s := b.source
	s.mu.Lock()
	if s.current != b {
		s.mu.Unlock()
		return 0, errBodyGone
	}
	s.started = true
	s.mu.Unlock()
	b.dog.disarm(&b.dog.sending)
	if b.repeat {
		n := copy(p, b.again)
		if b.again = b.again[n:]; len(b.again) > 0 {
			return n, nil
		}
		b.dog.sent()
		return n, io.EOF
	}
	n, err := s.inner.Read(p)
	b.dog.heard()
	if err == nil || err == io.EOF {
		s.read(p[:n], err == io.EOF)
	}
	if err != nil {
		b.dog.sent()
	} else {
		b.dog.arm(&b.dog.sending, b.dog.send)
	}
	return n, err
}

// Close ends the attempt's reading, the one under way too: a transport whose
// connection broke waits for that before it tells anybody. An attempt that has
// read nothing leaves the client's body to the next one.
func (b *sentBody) Close() error {
	s := b.source
	s.mu.Lock()
	mine := s.current == b
	if mine {
		s.current = nil
	}
	started := s.started
	s.mu.Unlock()
	if mine && started {
		return s.inner.Close()
	}
	return nil
}
