package http1

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/certs"
)

// What a connection is at.
const (
	idle  int32 = iota // between requests: may be closed at any time
	asked              // the same, and the janitor has asked it to be parked
	busy
	closed
)

// patience is how long an exchange goes on before anybody looks whether its
// client is still there.
const patience = time.Second

// lingering is how long a client may go on sending what nobody reads, while it
// gets its answer (lingering_timeout of nginx).
const lingering = 5 * time.Second

// shortWait is how long a connection may be without request while memory is short.
const shortWait = 5 * time.Second

// gone stands in Conn.waiting once the client was found to have left.
const gone = -1

// Conn is a client's connection, and the request that it is at. Requests of a
// connection are served one after the other.
type Conn struct {
	// Request is the head of the request.
	Request Request
	// Body is its body.
	Body Body
	// Secure tells that the connection is encrypted.
	Secure bool
	// Peer is the other end, Port the port that it connected to.
	Peer netip.AddrPort
	Port uint16
	// Status and Bytes are the status and the length of the body that have been
	// sent in answer; 0 if none.
	Status int
	Bytes  int64
	// Scratch is the handler's, and stays with the connection.
	Scratch any

	server *Server
	conn   net.Conn
	sock   *Socket
	front  *front                // nil if what is on top of sock is not plain
	fronts *front                // the one that the Conn has had, for the next connection
	turn   func(fd uintptr) bool // is takeTurn
	kept   bool                  // it has served before

	buf      *[]byte // nil while there is nothing in it
	have     int     // bytes in it
	taken    bool    // takeTurn has taken a request that is not served yet,
	answered bool    // or served one whose exchange is to be finished,
	ended    bool    // or found that the connection ends
	parks    bool    // the connection is to be parked
	until    int64   // when the wait for a request ends, from before it was parked on; else 0
	fail     error   // and why

	out     []byte      // what is to be written
	served  int         // requests
	last    bool        // the connection ends with this answer
	broken  bool        // nothing more can be written
	handed  bool        // somebody else serves the connection
	shared  bool        // somebody else may know the Conn
	faulty  bool        // the handler panicked
	began   bool        // an interim answer has gone to the client since the last Send
	pumping chan error  // gets the pump's end; nil while there is none
	pumped  atomic.Bool // the pump has all of the body

	reading, writing alarm
	pace             Pace // the janitor's
	state            atomic.Int32
	asking           sync.Mutex   // for what ends a wait between requests
	seen, since      int64        // the janitor's: until when it waits for a request, and since when that is so
	waiting          atomic.Int64 // since when for a backend; 0 if not
	backend          atomic.Pointer[Backend]
	tunnel           atomic.Pointer[tunnel]
	isCut            atomic.Bool                        // before tunnel was looked at
	cancel           atomic.Pointer[context.CancelFunc] // ends an exchange that has no Backend
}

// LocalAddr is the address that the client connected to. It may ask the kernel.
func (c *Conn) LocalAddr() net.Addr { return c.conn.LocalAddr() }

// Client is the client if it was asked for a certificate; nil if it was not.
func (c *Conn) Client() *certs.Client { return certs.ClientOf(c.conn) }

// newConn readies a Conn, an old one if there is one: with its buffers, fields
// and the handler's scratch it takes about thirty pieces of memory.
func newConn(s *Server, conn net.Conn, sock *Socket, secure bool, peer netip.AddrPort, port uint16) *Conn {
	c, ok := s.old.Get().(*Conn)
	if !ok {
		c = new(Conn)
		c.turn = c.takeTurn
	}
	*c = Conn{
		server: s, conn: conn, sock: sock, Secure: secure, Peer: peer, Port: port, turn: c.turn, fronts: c.fronts, out: c.out[:0], Scratch: c.Scratch,
		Request: Request{Fields: c.Request.Fields[:0], listed: c.Request.listed[:0]},
	}
	if conn != sock {
		return c
	}
	if c.fronts == nil {
		c.fronts = newFront()
	}
	c.fronts.reset(sock)
	c.front, c.conn = c.fronts, c.fronts
	return c
}

// recycle keeps a Conn for another connection, unless somebody may know it
// still.
func (c *Conn) recycle() {
	if c.shared || c.handed || cap(c.out) > 2*bufferSize {
		return
	}
	clear(c.Request.Fields) // views into buffers
	c.conn, c.sock, c.front = nil, nil, nil
	if c.fronts != nil {
		c.fronts.reset(nil)
	}
	c.server.old.Put(c)
}

// serve answers requests until the connection ends, or is parked.
func (c *Conn) serve() (parked bool) {
	defer func() {
		if !parked {
			c.close()
		}
	}()
	for {
		ok, err := c.readHead()
		if c.parks {
			c.parks = false
			if c.server.park(c) {
				return true
			}
			continue
		}
		if err != nil {
			c.refuse(err)
			return false
		}
		if !ok {
			return false
		}
		if !c.answered {
			c.handle()
		}
		c.answered = false
		if !c.finish() {
			return false
		}
	}
}

// handle has a fault in the handler cost the one connection.
func (c *Conn) handle() {
	c.served++
	defer func() {
		if p := recover(); p != nil {
			c.faulty, c.shared, c.last = true, true, true
			c.server.Logger.Error("request failed by a fault in the gateway", "panic", p, "stack", string(debug.Stack()))
			c.apologise()
		}
	}()
	c.server.Handler.ServeHTTP1(c)
}

// apologise answers for a handler that panicked, if nothing of an answer has
// been sent and nobody else is at the connection.
func (c *Conn) apologise() {
	defer func() {
		if recover() != nil {
			c.broken = true
		}
	}()
	if c.Status != 0 || c.broken || c.pumping != nil {
		c.broken = true
		return
	}
	if h, ok := c.server.Handler.(interface{ Failed(*Conn) }); ok {
		h.Failed(c)
	} else {
		c.Answer(http.StatusInternalServerError, nil, "a fault in the gateway\n")
	}
}

// wait is how long the client has until its next request.
func (c *Conn) wait() time.Duration {
	limit := c.server.HeaderTimeout
	if c.served > 0 && c.have == 0 {
		limit = c.server.IdleTimeout
	}
	if short := c.server.Short; short != nil && short() {
		limit = min(limit, shortWait)
	}
	return limit
}

// readHead reads the next request's head; false if there is none.
func (c *Conn) readHead() (bool, error) {
	limit := c.wait()
	if c.until != 0 {
		// It goes on: what woke the connection up may have been empty lines, which
		// would keep it open for ever. A request that comes late has its second.
		limit = min(limit, max(time.Duration(c.until-c.server.clock.Load()), time.Second))
	}
	c.reading.set(&c.server.clock, limit, c.conn.SetReadDeadline)
	ok, err := c.readWhole()
	switch at := c.reading.at.Load(); {
	case ok:
		c.until = 0
	case c.until == 0 || at > 0 && at < c.until:
		c.until = at
	}
	if c.reading.clear(c.conn.SetReadDeadline) {
		c.parks = false
		return false, nil
	}
	return ok, err
}

func (c *Conn) readWhole() (bool, error) {
	seen := 0
	for {
		for c.have >= 2 && seen == 0 && (*c.buf)[0] == '\r' && (*c.buf)[1] == '\n' {
			c.have = copy(*c.buf, (*c.buf)[2:c.have]) // RFC 9112, 2.2
		}
		if halfEmptyLine := c.have == 1 && (*c.buf)[0] == '\r'; c.have > 0 && !halfEmptyLine {
			if seen == 0 {
				if err := mayBegin((*c.buf)[0]); err != nil {
					return false, err
				}
			}
			end, err := headEnd((*c.buf)[:c.have], seen)
			if err != nil {
				return false, err
			}
			if end > 0 {
				return c.take(end)
			}
			if c.have >= MaxHead {
				return false, errTooLarge
			}
			if seen == 0 && (c.served > 0 || c.until != 0) {
				// It was a pause between requests; from here on it is a header.
				c.reading.clear(c.conn.SetReadDeadline)
				c.reading.set(&c.server.clock, c.server.HeaderTimeout, c.conn.SetReadDeadline)
			}
			seen = c.have
		}
		if err := c.readSome(); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && c.wasAsked(idle) {
				if c.have > 0 {
					continue // it has begun a header
				}
				c.parks = true
			}
			return false, nil // nobody is there to be told, or it took too long
		}
		if c.taken || c.ended {
			ok := c.taken
			c.taken = false
			return ok, c.fail
		}
	}
}

// take parses a whole head; false if the connection speaks HTTP/2.
func (c *Conn) take(end int) (bool, error) {
	if !c.state.CompareAndSwap(idle, busy) && !c.wasAsked(busy) {
		return false, nil
	}
	head := (*c.buf)[:end]
	if c.served == 0 && !c.Secure && c.server.HTTP2 != nil && bytes.HasPrefix(head, []byte("PRI * HTTP/2.0\r\n\r\n")) {
		begun := bytes.Clone((*c.buf)[:c.have])
		c.dropBuffer()
		c.handed = true
		conn := c.conn
		if c.front != nil {
			conn = c.sock
		}
		c.server.HTTP2(Begun(conn, begun))
		return false, nil
	}
	if err := c.Request.parse(head); err != nil {
		return false, err
	}
	c.Body.start(c, (*c.buf)[end:c.have])
	c.last, c.Status, c.Bytes, c.until = c.Request.close, 0, 0, 0
	return true, nil
}

// readSome reads into the buffer. Between requests there is none.
func (c *Conn) readSome() error {
	if c.buf == nil && c.front != nil {
		if c.sock.file.Load() == nil && c.turn(uintptr(c.sock.fd)) {
			return nil
		}
		if err := c.front.ready(); err != nil {
			return err
		}
		return c.front.wire.raw.Read(c.turn)
	}
	if c.buf == nil {
		// What is encrypted has a buffer of its own, that is filled by the first byte.
		var one [1]byte
		if n, err := c.conn.Read(one[:]); n == 0 {
			return cmpErr(err, io.EOF)
		}
		c.buf = getBuffer()
		(*c.buf)[0] = one[0]
		c.have = 1
	}
	if c.have == len(*c.buf) {
		larger := make([]byte, 2*len(*c.buf))
		copy(larger, *c.buf)
		putBuffer(c.buf)
		c.buf = &larger
	}
	n, err := c.conn.Read((*c.buf)[c.have:])
	c.have += n
	if n > 0 {
		return nil
	}
	return cmpErr(err, io.EOF)
}

func cmpErr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// takeTurn is what the runtime calls when the connection may have something.
// It serves requests that want no more of the client than has come, and goes
// back to waiting: what comes meanwhile is known to the runtime then, while each
// new wait would begin with a system call to look for it. It returns true when
// there is something in the buffer, or when taken, answered or ended tell why.
//
// A read that does not fill the buffer has taken all that had come, and that
// there is more from then on the runtime is told. But for the end, which it may
// have been told of together with what was read. So after the first request it
// looks once more: there are clients that send one and close their half. If one
// does so with a later request, that is noticed when the connection is parked.
//
// Meanwhile the connection cannot be read.
func (c *Conn) takeTurn(fd uintptr) bool {
	for {
		n, errno := c.receive(fd)
		switch {
		case errno == syscall.EAGAIN:
			return false
		case errno != 0 || n == 0:
			c.ended = true
			return true
		}
		if !c.serveHere() {
			return true
		}
		if c.kept && n < bufferSize {
			return false
		}
		c.kept = true
	}
}

// receive fills a buffer that is taken only if there is something.
func (c *Conn) receive(fd uintptr) (int, syscall.Errno) {
	b := getBuffer()
	n, errno := receive(fd, *b)
	if errno != 0 || n == 0 {
		putBuffer(b)
		return 0, errno
	}
	c.buf, c.have = b, n
	return n, 0
}

// serveHere serves the request in the buffer if nothing of it is missing;
// false if the rest is for others to do.
func (c *Conn) serveHere() bool {
	head := (*c.buf)[:c.have]
	end, err := headEnd(head, 0)
	if err != nil || end == 0 || head[0] == '\r' {
		return false
	}
	if c.reading.clear(c.conn.SetReadDeadline) {
		c.ended = true
		return false
	}
	c.taken, c.fail = c.take(end)
	if !c.taken {
		c.ended = true
		return false
	}
	if c.Request.Upgrade != "" || !c.Body.done() && !c.Body.buffered() {
		return false
	}
	c.handle()
	c.answered = true
	if c.last || c.broken || !c.Body.done() || len(c.Body.src.buf) > 0 || !c.finish() {
		return false
	}
	c.taken, c.answered = false, false
	c.reading.set(&c.server.clock, c.wait(), c.conn.SetReadDeadline)
	return true
}

func (c *Conn) dropBuffer() {
	if c.buf != nil {
		putBuffer(c.buf)
		c.buf = nil
	}
	c.have = 0
}

// Read reads more of the client's body.
func (c *Conn) Read(p []byte) (int, error) {
	c.reading.set(&c.server.clock, c.server.BodyTimeout, c.conn.SetReadDeadline)
	n, err := c.conn.Read(p)
	if c.reading.clear(c.conn.SetReadDeadline) {
		c.last = true
	}
	return n, err
}

// write sends bytes to the client.
func (c *Conn) write(p []byte) error {
	if c.broken || c.isCut.Load() {
		c.broken, c.last = true, true
		return ErrGone
	}
	c.writing.set(&c.server.clock, c.server.WriteTimeout, c.conn.SetWriteDeadline)
	_, err := c.conn.Write(p)
	if c.writing.clear(c.conn.SetWriteDeadline) || err != nil {
		c.broken, c.last = true, true
		return errors.Join(ErrGone, err)
	}
	return nil
}

// finish ends an exchange; false if the connection ends with it.
func (c *Conn) finish() bool {
	if c.Status == 0 && !c.broken {
		c.broken = true // the handler gave up: cut off
	}
	if c.broken {
		return false
	}
	if !c.Body.done() && !c.discardBody() {
		c.linger()
		return false
	}
	if c.last {
		c.linger()
		return false
	}
	rest := c.Body.src.buf
	if len(rest) > 0 {
		c.have = copy(*c.buf, rest)
	} else {
		c.dropBuffer()
	}
	c.Body.src.release()
	if !c.state.CompareAndSwap(busy, idle) {
		return false
	}
	// The drain that closed what was idle has not seen this one.
	return !c.server.idling.Load() || !c.state.CompareAndSwap(idle, closed)
}

// discardBody reads the rest of a body that nobody wanted, if it is about to
// come and short: the connection can go on then.
func (c *Conn) discardBody() bool {
	const most = 64 << 10
	b := &c.Body
	if c.last || c.Request.ExpectContinue || b.err != nil || b.left > most {
		return false
	}
	for total := 0; total <= most; {
		data, err := b.next(bufferSize)
		if err != nil {
			return err == io.EOF
		}
		total += len(data)
	}
	return false
}

// linger closes a connection whose client may still be sending: at once, the
// kernel would answer that with a reset, which takes the answer away again.
func (c *Conn) linger() {
	if c.Body.done() && len(c.Body.src.buf) == 0 {
		return
	}
	closeWrite(c.conn)
	_ = c.sock.CloseWrite()
	_ = c.sock.SetReadDeadline(time.Now().Add(lingering))
	b := getBuffer()
	defer putBuffer(b)
	for {
		if _, err := c.sock.Read(*b); err != nil {
			return
		}
	}
}

// refuse answers a head that is no request, and ends the connection.
func (c *Conn) refuse(err error) {
	var e *Error
	if !errors.As(err, &e) {
		return
	}
	c.state.Store(busy)
	c.server.Logger.LogAttrs(context.Background(), slog.LevelDebug, "request refused", slog.String("client", c.Peer.String()), slog.String("reason", e.Reason))
	c.Request = Request{Method: "?", close: true}
	c.Body.start(c, nil)
	c.Body.err = e
	c.last, c.Status = true, 0
	if h, ok := c.server.Handler.(interface{ Refused(*Conn, *Error) }); ok {
		h.Refused(c, e)
	} else {
		c.Answer(e.Status, nil, e.Reason+"\n")
	}
	c.linger()
}

func (c *Conn) close() {
	c.state.Store(closed)
	if !c.faulty { // nobody knows what still uses them
		c.dropBuffer()
		c.Body.src.release()
	}
	if c.handed {
		return
	}
	_ = c.conn.Close()
}

// closeIdle ends a connection that is between requests.
func (c *Conn) closeIdle() {
	c.asking.Lock()
	defer c.asking.Unlock()
	if c.state.CompareAndSwap(idle, closed) || c.state.CompareAndSwap(asked, closed) {
		_ = c.sock.SetReadDeadline(past)
	}
}

// askToPark wakes the goroutine of a connection that is between requests.
func (c *Conn) askToPark() {
	c.asking.Lock()
	defer c.asking.Unlock()
	if c.state.CompareAndSwap(idle, asked) {
		_ = c.sock.SetReadDeadline(past)
	}
}

// wasAsked tells its goroutine that it was woken for that, and goes on with
// the next state.
func (c *Conn) wasAsked(next int32) bool {
	c.asking.Lock()
	defer c.asking.Unlock()
	if !c.state.CompareAndSwap(asked, next) {
		return false
	}
	_ = c.sock.SetReadDeadline(time.Time{})
	return true
}

// cut ends a connection at once.
func (c *Conn) cut() {
	_ = c.sock.SetDeadline(past)
	c.abandon(ErrGone)
	c.isCut.Store(true)
	if t := c.tunnel.Load(); t != nil {
		t.cut()
	}
}

// abandon ends the exchange under way at the backend.
func (c *Conn) abandon(cause error) {
	if b := c.backend.Load(); b != nil {
		b.abort(cause)
	}
	if cancel := c.cancel.Load(); cancel != nil {
		(*cancel)()
	}
}

// sweep is the janitor's look at a connection.
func (c *Conn) sweep(now int64) {
	if c.reading.ring(now) {
		_ = c.sock.SetReadDeadline(past)
	}
	if c.writing.paced(now, c.server.WriteTimeout, &c.pace, c.sock) {
		_ = c.sock.SetWriteDeadline(past)
	}
	if c.state.Load() == idle {
		// Each wait has another end, but for those that begin in one tick.
		switch at := c.reading.at.Load(); {
		case at <= 0: // it is not long
		case at != c.seen:
			c.seen, c.since = at, now
		case now-c.since >= int64(pause):
			c.since = now
			c.askToPark()
		}
	}
	if b := c.backend.Load(); b != nil {
		if b.reading.ring(now) || b.writing.ring(now) {
			b.abort(ErrTimeout)
		}
	}
	if since := c.waiting.Load(); since > 0 && now-since > int64(patience) {
		if c.left() {
			if c.waiting.CompareAndSwap(since, gone) {
				c.abandon(ErrGone)
			}
		} else if b := c.backend.Load(); b != nil {
			b.lookAgain()
		}
	}
}

// left asks the kernel whether the client has closed its side. One that only
// closed that half and still listens has had its second of patience.
func (c *Conn) left() bool { return !c.sock.established() }

// Left reports whether the client has closed its side of the connection.
func (c *Conn) Left() bool { return c.left() }

// established reports whether neither side of a connection has closed it.
func established(fd uintptr) bool {
	const established = 1
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err != nil || info.State == established
}

// Begun returns a connection of which the first bytes have been read already.
func Begun(conn net.Conn, bytes []byte) net.Conn { return &begunConn{conn, bytes} }

type begunConn struct {
	net.Conn
	begun []byte
}

// NetConn is the connection.
func (c *begunConn) NetConn() net.Conn { return c.Conn }

func (c *begunConn) Read(p []byte) (int, error) {
	if len(c.begun) > 0 {
		n := copy(p, c.begun)
		c.begun = c.begun[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}
