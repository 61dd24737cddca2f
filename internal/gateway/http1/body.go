package http1

import (
	"errors"
	"fmt"
	"io"
)

// Where an exchange failed, and why. Errors of a body or an exchange wrap
// [ErrClient] or [ErrBackend].
var (
	// ErrClient marks failures at the client's side.
	ErrClient = errors.New("client")
	// ErrBackend marks failures at the backend's side.
	ErrBackend = errors.New("backend")
	// ErrGone means that the client did not wait for its answer.
	ErrGone = fmt.Errorf("%w did not wait", ErrClient)
	// ErrTimeout means that a backend took longer than it may.
	ErrTimeout = fmt.Errorf("%w did not answer in time", ErrBackend)
	// ErrBodyTooLarge means that a request's body is longer than its limit.
	ErrBodyTooLarge = errors.New("the body is larger than it may be")
)

// Body is the body of a request, read as it comes. One goroutine reads it.
type Body struct {
	// Limit bounds its size in bytes; 0 for no limit.
	Limit int64

	c       *Conn
	src     source
	left    int64 // of a body with a length
	chunked bool
	dec     chunked
	read    int64
	err     error // why reading ended; io.EOF at the end
}

func (b *Body) start(c *Conn, rest []byte) {
	b.c, b.Limit, b.read, b.err = c, 0, 0, nil
	b.src.buf, b.src.conn = rest, c
	b.left, b.chunked = c.Request.Length, c.Request.Length < 0
	if b.chunked {
		b.dec = chunked{line: b.dec.line[:0], trailers: b.dec.trailers[:0]}
	}
	if b.left == 0 {
		b.err = io.EOF
	}
}

// buffered reports whether all of the body has come and has a length: such a
// body goes with the head, and can be sent again.
func (b *Body) buffered() bool {
	return b.err == nil && !b.chunked && b.left <= int64(len(b.src.buf)) && b.left <= bufferSize
}

// Here reports whether nothing of the body is waited for, before any of it was taken.
func (b *Body) Here() bool { return b.done() || b.buffered() }

// peek returns a buffered body without taking it.
func (b *Body) peek() []byte { return b.src.buf[:b.left] }

// done reports whether all of the body has been read.
func (b *Body) done() bool { return b.err == io.EOF }

// next returns the next bytes, at most limit, as a view that is good until the
// next call; io.EOF at the end.
func (b *Body) next(limit int) ([]byte, error) {
	if b.err != nil {
		return nil, b.err
	}
	data, err := b.decode(limit)
	b.read += int64(len(data))
	switch {
	case err == io.EOF:
		b.err = io.EOF
	case err != nil:
		b.err = fmt.Errorf("%w: %w", ErrClient, err)
	case b.Limit > 0 && b.read > b.Limit:
		b.err = ErrBodyTooLarge
	case b.left == 0 && !b.chunked:
		b.err = io.EOF // with the next call
	}
	if len(data) > 0 && (b.err == nil || b.err == io.EOF) {
		return data, nil
	}
	return nil, b.err
}

func (b *Body) decode(limit int) ([]byte, error) {
	if b.chunked {
		return b.dec.next(&b.src, limit)
	}
	if err := b.src.fill(); err != nil {
		return nil, unexpected(err)
	}
	n := min(b.left, int64(len(b.src.buf)), int64(limit))
	data := b.src.buf[:n]
	b.src.buf = b.src.buf[n:]
	b.left -= n
	return data, nil
}

// Read implements io.Reader.
func (b *Body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	data, err := b.next(len(p))
	return copy(p, data), err
}

// unexpected turns the end of a connection into an error.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
