package http1

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// MaxInterims is how many interim answers (1xx) one request may get.
const MaxInterims = 32

// ErrInterims means that a backend has sent more of them.
var ErrInterims = errors.New("the backend sends interim answers without end")

// Backend is a connection to a backend, kept between exchanges.
type Backend struct {
	// Response is the head of its answer.
	Response Response
	// Reused tells that the connection has served before: it may turn out dead
	// although the backend is well.
	Reused bool

	conn net.Conn
	tcp  *net.TCPConn // nil if what is beneath is no TCP
	wire *Wire        // nil if what is on top of tcp is not plain
	idle time.Time    // since when

	buf   *[]byte
	room  int // how much of buf, up to the first bytes of the body, has been read
	src   source
	limit time.Duration // between two reads
	total time.Time     // end of the whole exchange; zero for none

	// The body of the answer.
	left    int64 // of one with a length; -1 for one that ends with the connection
	dec     chunked
	decode  bool
	bodyErr error

	interims         int // answers of 1xx so far
	clock            *clock
	reading, writing alarm
	cause            atomic.Pointer[error] // why the exchange was ended from outside
	asking           []byte                // a request that goes out with the wait for its answer
	send             time.Duration         // between two writes of it
	look             sync.Mutex            // for the next three
	blind, woken     bool                  // the end of the connection may go unnoticed; lookAgain has seen it
	answered         bool                  // the wait for the answer to begin has ended
	spoiled          bool                  // not to be used again
}

// NewBackend takes a connection over.
func NewBackend(conn net.Conn) *Backend {
	b := &Backend{conn: conn}
	if tcp, ok := conn.(*net.TCPConn); ok {
		b.tcp, b.wire = tcp, NewWire(tcp)
		b.conn = b.wire
	}
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		switch below := t.NetConn().(type) {
		case *Wire:
			b.tcp = below.TCPConn
		case *net.TCPConn:
			b.tcp = below
		}
	}
	return b
}

// Close closes the connection.
func (b *Backend) Close() { _ = b.conn.Close() }

// IdleSince returns when the last exchange ended.
func (b *Backend) IdleSince() time.Time { return b.idle }

// detach closes b and returns its connection as a Socket, which the runtime's
// poller does not know; nil if it is not plain.
func (b *Backend) detach() *Socket {
	if b.wire == nil {
		return nil
	}
	sock := duplicate(b.tcp)
	if sock != nil {
		b.Close()
	}
	return sock
}

// Alive asks the kernel whether an idle connection is still open: nothing has
// come, not even its end.
func (b *Backend) Alive() bool {
	if b.tcp == nil {
		return true
	}
	raw, err := b.tcp.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	_ = raw.Control(func(fd uintptr) {
		var one [1]byte
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		alive = errors.Is(err, syscall.EAGAIN)
	})
	return alive
}

// Done ends an exchange and reports whether the connection can serve another.
func (b *Backend) Done(now time.Time) bool {
	ok := !b.spoiled && b.bodyErr == io.EOF && !b.Response.close && len(b.src.buf) == 0 && b.cause.Load() == nil
	b.src.release()
	b.buf = nil
	b.Reused, b.idle = true, now
	return ok
}

// begin readies the connection for an exchange.
func (b *Backend) begin(c *Conn, t Timeouts) {
	b.clock, b.limit, b.total = &c.server.clock, t.Answer, t.Total
	b.bodyErr, b.left, b.decode, b.asking, b.interims = nil, 0, false, nil, 0
}

// abort ends the exchange from another goroutine.
func (b *Backend) abort(cause error) {
	b.cause.CompareAndSwap(nil, &cause)
	_ = b.conn.SetDeadline(past)
}

// pumps begins the sending of a body while the answer is waited for: the limit
// on that wait begins when all is sent, see allSent.
func (b *Backend) pumps() {
	b.look.Lock()
	b.answered, b.limit = false, 0
	b.look.Unlock()
}

// pump sends a body, which next returns piece by piece, and io.EOF after the
// last. Trailers appends those of a chunked one.
func (b *Backend) pump(t Timeouts, chunked bool, next func() ([]byte, error), trailers func(out []byte) []byte) error {
	var frame []byte
	for {
		data, err := next()
		if err != nil && err != io.EOF {
			b.abort(err)
			return err
		}
		if chunked {
			frame = frame[:0]
			if err == io.EOF {
				frame = append(trailers(append(frame, "0\r\n"...)), "\r\n"...)
			} else {
				frame = appendChunk(frame, data)
			}
			data = frame
		}
		if len(data) > 0 {
			if err := b.write(data, cmp.Or(t.Send, t.Answer)); err != nil {
				if os.IsTimeout(err) {
					b.abort(ErrTimeout)
				}
				// Else the answer may tell why: a backend can refuse a body before
				// it has seen the end of it.
				return fmt.Errorf("%w: %w", ErrBackend, err)
			}
		}
		if err == io.EOF {
			b.allSent(t.Answer)
			return nil
		}
	}
}

// allSent limits the wait for the answer, unless that has begun.
func (b *Backend) allSent(limit time.Duration) {
	b.look.Lock()
	defer b.look.Unlock()
	if limit = b.remaining(limit); limit > 0 && !b.answered {
		_ = b.conn.SetReadDeadline(time.Now().Add(limit))
		b.stayAborted()
	}
}

// begins ends the limit of allSent: the answer has begun.
func (b *Backend) begins() {
	b.look.Lock()
	defer b.look.Unlock()
	b.answered = true
	_ = b.conn.SetReadDeadline(time.Time{})
	b.stayAborted()
}

// stayAborted keeps a limit that was just set from undoing abort.
func (b *Backend) stayAborted() {
	if b.cause.Load() != nil {
		_ = b.conn.SetDeadline(past)
	}
}

// failed says why reading or writing failed, and spoils the connection.
func (b *Backend) failed(err error) error {
	b.spoiled = true
	if cause := b.cause.Load(); cause != nil {
		return *cause
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return ErrTimeout
	}
	return fmt.Errorf("%w: %w", ErrBackend, err)
}

// remaining is the limit on the next read: d, or what is left of the whole.
func (b *Backend) remaining(d time.Duration) time.Duration {
	if b.total.IsZero() {
		return d
	}
	left := max(time.Until(b.total), time.Nanosecond)
	if d <= 0 {
		return left
	}
	return min(d, left)
}

// Read implements io.Reader under the backend's limits.
func (b *Backend) Read(p []byte) (int, error) {
	b.reading.set(b.clock, b.remaining(b.limit), b.conn.SetReadDeadline)
	b.stayAborted()
	n, err := b.conn.Read(p)
	if b.reading.clear(b.conn.SetReadDeadline) {
		b.spoiled = true
	}
	return n, err
}

func (b *Backend) write(p []byte, limit time.Duration) error {
	b.writing.set(b.clock, b.remaining(limit), b.conn.SetWriteDeadline)
	b.stayAborted()
	_, err := b.conn.Write(p)
	if b.writing.clear(b.conn.SetWriteDeadline) {
		b.spoiled = true
	}
	return err
}

// ask sends a request and reads the first bytes of the answer.
func (b *Backend) ask(request, p []byte) (int, error) {
	b.reading.set(b.clock, b.remaining(b.limit), b.conn.SetReadDeadline)
	b.stayAborted()
	b.watch(true)
	n, rest, err := b.wire.ask(request, p)
	woken := b.watch(false)
	if b.reading.clear(b.conn.SetReadDeadline) {
		b.spoiled = true
	}
	switch {
	case woken:
		rang := b.spoiled
		b.spoiled = true
		if err == nil || rang || b.cause.Load() != nil {
			break
		}
		_ = b.conn.SetReadDeadline(time.Time{})
		return b.Read(p)
	case len(rest) > 0 && err == nil:
		if err := b.write(rest, b.send); err != nil {
			return 0, err
		}
		return b.Read(p)
	}
	return n, err
}

// watch begins or ends a time in which lookAgain may interrupt, and reports
// whether it has.
func (b *Backend) watch(on bool) (woken bool) {
	b.look.Lock()
	woken = b.woken
	b.blind, b.woken = on, false
	b.look.Unlock()
	return woken
}

// lookAgain makes a wait for an answer look whether the backend has closed its
// side. Wire.ask does not notice if that came before the request and the
// request is not answered by a reset: the backend closed only that half.
func (b *Backend) lookAgain() {
	b.look.Lock()
	defer b.look.Unlock()
	if b.blind && !b.woken && b.ended() {
		b.woken = true
		_ = b.conn.SetReadDeadline(past)
	}
}

// ended reports whether either side has closed the connection.
func (b *Backend) ended() bool {
	raw, err := b.tcp.SyscallConn()
	ended := err != nil
	if !ended {
		_ = raw.Control(func(fd uintptr) { ended = !established(fd) })
	}
	return ended
}

// readHead reads the head of an answer.
func (b *Backend) readHead() error {
	have, seen := 0, 0
	if b.buf == nil {
		b.buf = getBuffer()
		b.src.conn, b.src.own = b, b.buf
	} else {
		have = copy(*b.buf, b.src.buf) // what came behind an interim answer
	}
	for {
		end, err := headEnd((*b.buf)[:have], seen)
		switch {
		case err != nil:
			return b.failed(err)
		case end > 0:
			b.src.buf, b.room = (*b.buf)[end:have], end
			if err := b.Response.parse((*b.buf)[:end]); err != nil {
				return b.failed(err)
			}
			if status := b.Response.Status; status < 200 && status != 101 {
				if b.interims++; b.interims > MaxInterims {
					return b.failed(ErrInterims)
				}
			}
			return nil
		case have >= MaxAnswerHead:
			return b.failed(errTooLarge)
		case have == len(*b.buf):
			larger := make([]byte, 2*len(*b.buf))
			copy(larger, *b.buf)
			putBuffer(b.buf)
			b.buf = &larger
			b.src.own = b.buf
		}
		seen = have
		var n int
		if request := b.asking; request != nil {
			b.asking = nil
			n, err = b.ask(request, (*b.buf)[have:])
		} else {
			n, err = b.Read((*b.buf)[have:])
		}
		if n == 0 {
			return b.failed(unexpected(cmpErr(err, io.EOF)))
		}
		have += n
	}
}

// expectBody reads from the head how long the body is (RFC 9112, 6.3).
func (b *Backend) expectBody(method string) {
	r := &b.Response
	b.bodyErr, b.decode = nil, false
	switch {
	case method == "HEAD" || r.Status < 200 || r.Status == 204 || r.Status == 304:
		b.bodyErr = io.EOF
	case r.chunked:
		b.decode = true
		b.dec = chunked{line: b.dec.line[:0], trailers: b.dec.trailers[:0]}
	case r.length >= 0:
		b.left = r.length
		if b.left == 0 {
			b.bodyErr = io.EOF
		}
	default:
		b.left, r.close = -1, true
	}
}

// next returns the next bytes of the body, a view that is good until the next
// call; io.EOF at the end.
func (b *Backend) next() ([]byte, error) {
	if b.bodyErr != nil {
		return nil, b.bodyErr
	}
	data, err := b.nextData()
	switch {
	case err == errNothing:
		return nil, err
	case err == io.EOF:
		b.bodyErr = io.EOF
	case err != nil:
		b.bodyErr = b.failed(err)
	case b.left == 0 && !b.decode:
		b.bodyErr = io.EOF
	}
	if len(data) > 0 {
		return data, nil
	}
	return nil, b.bodyErr
}

func (b *Backend) nextData() ([]byte, error) {
	if b.decode {
		return b.dec.next(&b.src, bufferSize)
	}
	if err := b.src.fill(); err != nil {
		if b.left < 0 && err == io.EOF && b.cause.Load() == nil {
			return nil, io.EOF // the end of the connection is the end of the body
		}
		return nil, unexpected(err)
	}
	data := b.src.buf
	if b.left >= 0 {
		data = data[:min(b.left, int64(len(data)))]
		b.left -= int64(len(data))
	}
	b.src.buf = b.src.buf[len(data):]
	return data, nil
}

// nextReady is like next, but says errNothing rather than wait.
func (b *Backend) nextReady() ([]byte, error) {
	b.src.nowait = true
	data, err := b.next()
	b.src.nowait = false
	return data, err
}

// switches reports whether the backend agrees to speak what the client asked for.
func (b *Backend) switches(c *Conn) bool {
	protocol, ok := b.Response.First("Upgrade")
	if !ok || c.Request.Upgrade == "" {
		return false
	}
	for asked := range strings.SplitSeq(c.Request.Upgrade, ",") {
		if strings.EqualFold(trim(asked), protocol) {
			return true
		}
	}
	return false
}
