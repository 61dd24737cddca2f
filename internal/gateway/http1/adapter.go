package http1

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Adapter lets code written for net/http answer a request: backends that speak
// HTTP/2 are reached through its types.
type Adapter struct {
	// Request is the client's, with a body that is closed by Close. Its URL is empty.
	Request *http.Request

	c       *Conn
	cancel  context.CancelFunc
	header  http.Header
	frame   bodyFraming
	nobody  bool // the answer has none
	trailer []string
	body    *adaptedBody
}

var errBodyClosed = errors.New("the body of the request has been closed")

// Adapt returns an Adapter for the request. End it with Close.
func (c *Conn) Adapt() *Adapter {
	ctx, cancel := context.WithCancel(context.Background())
	c.shared = true // what net/http started may outlive the connection
	r := &c.Request
	header := make(http.Header, len(r.Fields))
	for i := range r.Fields {
		f := &r.Fields[i]
		switch f.kind {
		case hostField, lengthField, encodingField:
			continue
		}
		// What net/http starts may outlive the exchange, and so the buffer.
		name := http.CanonicalHeaderKey(strings.Clone(f.Name))
		header[name] = append(header[name], strings.Clone(f.Value))
	}
	a := &Adapter{c: c, cancel: cancel, header: http.Header{}}
	a.Request = (&http.Request{
		Method: strings.Clone(r.Method), URL: &url.URL{}, RequestURI: strings.Clone(r.Target), Host: strings.Clone(r.Host),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: r.Minor, Header: header, ContentLength: r.Length, Body: http.NoBody,
	}).WithContext(ctx)
	if !c.Body.done() {
		a.body = &adaptedBody{c: c, request: a.Request}
		a.Request.Body = a.body
		if r.Length < 0 {
			a.Request.Trailer = http.Header{}
			for _, line := range header["Trailer"] {
				for name := range strings.SplitSeq(line, ",") {
					if name = http.CanonicalHeaderKey(trim(name)); TrailerGoes(name) {
						a.Request.Trailer[name] = nil
					}
				}
			}
		}
	}
	delete(header, "Trailer")
	c.cancel.Store(&a.cancel)
	c.waiting.Store(c.server.clock.Load())
	return a
}

// Close ends the exchange: what is left of the answer is sent. Without ok the
// answer is cut off.
func (a *Adapter) Close(ok bool) {
	c := a.c
	if a.body != nil {
		_ = a.body.Close()
	}
	if c.waiting.Swap(0) == gone {
		c.broken, c.last = true, true
	}
	c.cancel.Store(nil)
	a.cancel()
	if !ok || c.Status == 0 {
		c.broken, c.last = true, true
		return
	}
	if a.frame == chunks && !a.nobody {
		c.out = append(c.out, "0\r\n"...)
		for name, values := range a.header {
			plain, isTrailer := strings.CutPrefix(name, http.TrailerPrefix)
			if !isTrailer && !containsFold(a.trailer, name) || !trailerAllowed(plain) {
				continue
			}
			for _, v := range values {
				c.out = appendField(c.out, plain, clean(v))
			}
		}
		c.out = append(c.out, "\r\n"...)
	}
	c.ends()
	_ = c.flush() // the client may be gone
}

// Gone reports whether the client has left.
func (a *Adapter) Gone() bool { return a.c.waiting.Load() == gone || a.c.broken }

// Header implements http.ResponseWriter.
func (a *Adapter) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *Adapter) WriteHeader(status int) {
	c := a.c
	if c.Status != 0 || status < 200 && c.Request.Minor == 0 {
		return
	}
	out := appendStatus(c.out[:0], status, "")
	if status < 200 {
		c.out = append(appendHeader(out, a.header), "\r\n"...)
		_ = c.flush() // the next write tells as well
		return
	}
	c.Status = status
	for _, line := range a.header["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			a.trailer = append(a.trailer, trim(name))
		}
	}
	a.nobody = c.Request.Method == http.MethodHead || status == 204 || status == 304
	_, hasLength := parseLength(a.header.Get("Content-Length"))
	if len(a.trailer) > 0 && c.Request.Minor == 1 && !a.nobody {
		delete(a.header, "Content-Length") // only chunks have trailers
		hasLength = false
	}
	switch {
	case a.nobody || hasLength:
		delete(a.header, "Trailer")
	case c.Request.Minor == 1:
		a.frame = chunks
	default:
		a.frame, c.last = toClose, true
	}
	delete(a.header, "Transfer-Encoding")
	delete(a.header, "Connection")
	out = appendHeader(out, a.header)
	if len(a.header["Date"]) == 0 {
		out = appendDate(out)
	}
	if a.frame == chunks {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	c.out = append(c.appendConnection(out), "\r\n"...)
}

func appendHeader(out []byte, header http.Header) []byte {
	for name, values := range header {
		if strings.HasPrefix(name, http.TrailerPrefix) || !all([]byte(name), tokenByte) {
			continue
		}
		for _, v := range values {
			out = appendField(out, name, clean(v))
		}
	}
	return out
}

// clean keeps a value from ending its line: HTTP/2 can carry any byte.
func clean(v string) string {
	if all([]byte(v), valueByte) {
		return v
	}
	b := []byte(v)
	for i, c := range b {
		if class[c]&valueByte == 0 {
			b[i] = ' '
		}
	}
	return string(b)
}

// Write implements http.ResponseWriter.
func (a *Adapter) Write(p []byte) (int, error) {
	c := a.c
	if c.Status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if a.nobody {
		return 0, http.ErrBodyNotAllowed
	}
	if len(p) == 0 {
		return 0, nil
	}
	c.Bytes += int64(len(p))
	if a.frame == chunks {
		c.out = appendChunk(c.out, p)
	} else {
		c.out = append(c.out, p...)
	}
	if len(c.out) >= bufferSize {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// FlushError is for http.ResponseController.
func (a *Adapter) FlushError() error {
	if a.c.Status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	return a.c.flush()
}

func containsFold(list []string, name string) bool {
	for _, s := range list {
		if strings.EqualFold(s, name) {
			return true
		}
	}
	return false
}

// adaptedBody is a request body that may be closed while it is read.
type adaptedBody struct {
	c       *Conn
	request *http.Request
	reading atomic.Bool // somebody is in Read
	closing atomic.Bool // nobody may go on to read

	mu     sync.Mutex
	closed bool
}

func (b *adaptedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, errBodyClosed
	}
	b.reading.Store(true)
	defer b.reading.Store(false)
	if b.closing.Load() {
		return 0, errBodyClosed
	}
	n, err := b.c.Body.Read(p)
	if err == io.EOF && b.request.Trailer != nil {
		b.trailers()
	}
	return n, err
}

// trailers fills the request's trailers in, once the body is at its end.
func (b *adaptedBody) trailers() {
	rest := b.c.Body.dec.trailers
	for {
		var line []byte
		if line, rest = cutLine(rest); len(line) == 0 {
			return
		}
		if f, err := parseField(line, false); err == nil && TrailerGoes(f.Name) {
			name := http.CanonicalHeaderKey(strings.Clone(f.Name))
			b.request.Trailer[name] = append(b.request.Trailer[name], strings.Clone(f.Value))
		}
	}
}

// Close makes further reads fail, and the one under way.
func (b *adaptedBody) Close() error {
	b.closing.Store(true)
	if b.reading.Load() {
		_ = b.c.sock.SetReadDeadline(past)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.closed = true
		_ = b.c.sock.SetReadDeadline(time.Time{})
	}
	return nil
}
