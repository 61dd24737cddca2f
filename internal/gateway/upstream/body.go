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

	mu      sync.Mutex
	started bool
	current *sentBody
}

// sentBody is the body of one attempt.
type sentBody struct {
	source *source
	dog    *watchdog
}

// next returns the body for a further attempt and shuts the one before out.
func (s *source) next(dog *watchdog) (*sentBody, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return nil, errBodyGone
	}
	s.current = &sentBody{s, dog}
	return s.current, nil
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
	n, err := s.inner.Read(p)
	if err != nil {
		b.dog.arm(&b.dog.reading, b.dog.read)
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
