package http1

import (
	"bytes"
	"errors"
	"io"
)

// source is bytes that have come, and where more come from.
type source struct {
	buf  []byte // what is left of them
	conn io.Reader
	own  *[]byte // a pooled buffer, once the first bytes are used up
	// nowait makes it say errNothing rather than wait.
	nowait bool
}

// errNothing means that nothing has come, and nobody wanted to wait.
var errNothing = errors.New("nothing has come yet")

// fill reads more when nothing is left.
func (s *source) fill() error {
	if len(s.buf) > 0 {
		return nil
	}
	if s.nowait {
		return errNothing
	}
	if s.own == nil {
		s.own = getBuffer()
	}
	n, err := s.conn.Read(*s.own)
	s.buf = (*s.own)[:n]
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

func (s *source) release() {
	if s.own != nil {
		putBuffer(s.own)
		s.own = nil
	}
	s.buf = nil
}

// chunkState is where a chunked body stands.
type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkData
	chunkEnd // the line break after data
	chunkTrailers
	chunkDone
)

// Limits of what stands between the data of a chunked body.
const (
	// maxSizeLine is for a size and its extensions, which are dropped.
	maxSizeLine = 256
	// maxTrailers is for all trailers.
	maxTrailers = 16 << 10
)

var (
	errChunkSize = refuse("a chunk size is not a plain hexadecimal number")
	errChunkEnd  = refuse("a chunk is not as long as it says")
	errTrailers  = refuse("the trailers are malformed")
)

// chunked decodes a chunked body (RFC 9112, 7.1).
type chunked struct {
	state    chunkState
	left     int64  // of the chunk
	line     []byte // a line that has come in part
	trailers []byte // whole, with their empty line
}

// next returns the next data, a view that is good until the next call; io.EOF
// at the end of the body, after the trailers.
func (c *chunked) next(s *source, limit int) ([]byte, error) {
	for {
		if c.state == chunkDone {
			return nil, io.EOF
		}
		if err := s.fill(); err != nil {
			return nil, unexpected(err)
		}
		if c.state == chunkData {
			n := int(min(c.left, int64(len(s.buf)), int64(limit)))
			data := s.buf[:n]
			s.buf = s.buf[n:]
			if c.left -= int64(n); c.left == 0 {
				c.state = chunkEnd
			}
			return data, nil
		}
		line, ok, err := c.readLine(s)
		if err != nil {
			return nil, err
		}
		if ok {
			err = c.take(line)
			c.line = c.line[:0]
		}
		if err != nil {
			return nil, err
		}
	}
}

// take acts on a line, without its line break.
func (c *chunked) take(line []byte) error {
	switch c.state {
	case chunkSize:
		n, err := parseChunkSize(line)
		if err != nil {
			return err
		}
		if c.left, c.state = n, chunkData; n == 0 {
			c.state = chunkTrailers
		}
	case chunkEnd:
		if len(line) > 0 {
			return errChunkEnd
		}
		c.state = chunkSize
	case chunkTrailers:
		if len(line) == 0 {
			c.state = chunkDone
		} else if _, err := parseField(line, false); err != nil {
			return errTrailers
		}
		if len(c.trailers)+len(line)+2 > maxTrailers {
			return errTooLarge
		}
		if len(line) > 0 || len(c.trailers) > 0 {
			c.trailers = append(append(c.trailers, line...), "\r\n"...)
		}
	}
	return nil
}

// readLine returns the next line once it is whole.
func (c *chunked) readLine(s *source) (line []byte, ok bool, err error) {
	limit := maxSizeLine
	if c.state == chunkTrailers {
		limit = maxTrailers
	}
	i := bytes.IndexByte(s.buf, '\n')
	end := i + 1
	if i < 0 {
		end = len(s.buf)
	}
	if len(c.line)+end > limit {
		if c.state == chunkEnd {
			return nil, false, errChunkEnd
		}
		return nil, false, errTooLarge
	}
	if i < 0 || len(c.line) > 0 {
		c.line = append(c.line, s.buf[:end]...)
		line = c.line
	} else {
		line = s.buf[:end]
	}
	s.buf = s.buf[end:]
	if i < 0 {
		return nil, false, nil
	}
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return nil, false, errBareLF
	}
	return line[:len(line)-2], true, nil
}

// parseChunkSize reads a size; extensions after ";" are checked and ignored.
func parseChunkSize(line []byte) (int64, error) {
	size := line
	if i := bytes.IndexByte(line, ';'); i >= 0 {
		if !all(line[i:], valueByte) {
			return 0, errControl
		}
		size = bytes.TrimRight(line[:i], " \t") // "bad whitespace" that RFC 9112, 7.1.1 allows
	}
	if len(size) == 0 || len(size) > 15 {
		return 0, errChunkSize
	}
	var n int64
	for _, c := range size {
		switch {
		case '0' <= c && c <= '9':
			n = n<<4 | int64(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			n = n<<4 | int64(c|0x20-'a'+10)
		default:
			return 0, errChunkSize
		}
	}
	return n, nil
}

// appendTrailers appends trailers that may be passed on, as goes tells: those
// that say how a message is read, routed or authorised may not (RFC 9110, 6.5.1).
func appendTrailers(dst, trailers []byte, goes func(name string) bool) []byte {
	for {
		var line []byte
		if line, trailers = cutLine(trailers); len(line) == 0 {
			return dst
		}
		f, err := parseField(line, false)
		if err != nil || f.kind != plainField && f.kind != dateField || !goes(f.Name) {
			continue
		}
		dst = append(dst, f.Name...)
		dst = append(dst, ": "...)
		dst = append(dst, f.Value...)
		dst = append(dst, "\r\n"...)
	}
}
