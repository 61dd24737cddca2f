package http1

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Timeouts limit an exchange with a backend; zero is no limit.
type Timeouts struct {
	// Answer limits the wait for the answer to begin once all is sent, Read the
	// time between two reads of it, Send the time between two writes of the
	// request; without it Answer limits that as well.
	Answer, Read, Send time.Duration
	// Total is when all has to be over.
	Total time.Time
}

// Repeatable reports whether the request can be sent again when a connection
// breaks before the answer: a safe one without body, that wants no other
// protocol.
func (c *Conn) Repeatable() bool {
	r := &c.Request
	if r.Length != 0 || r.Upgrade != "" {
		return false
	}
	return Safe(r.Method)
}

// Safe reports whether a request of that method changes nothing (RFC 9110, 9.2.1).
func Safe(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE":
		return true
	}
	return false
}

// MayRepeat judges a failed [Conn.Send]: whether the request may be sent again
// without harm if it is served twice. Unsent tells that nothing of it was sent.
func (c *Conn) MayRepeat(err error, unsent bool) bool {
	switch {
	case c.broken || c.began || c.Body.read > 0 || errors.Is(err, ErrClient):
		return false
	}
	return unsent || c.Repeatable()
}

// Last makes the answer the last one of its connection.
func (c *Conn) Last() { c.last = true }

// Send sends the request whose head is given, with the client's body, and
// reads the head of the answer into b.Response. Interim answers go to the
// client. After an error the exchange may be tried with another Backend,
// if [Conn.MayRepeat].
func (c *Conn) Send(b *Backend, head []byte, t Timeouts) error {
	b.begin(c, t)
	c.began = false
	c.backend.Store(b)
	c.waiting.Store(c.server.clock.Load())
	if err := c.sendRequest(b, head, t); err != nil {
		c.Release()
		if c.hasGone() {
			return ErrGone
		}
		return err
	}
	if err := c.await(b); err != nil {
		c.stopPump(b)
		c.Release()
		return err
	}
	b.limit = t.Read
	return nil
}

// WhileWaited calls connect with a context that ends if the client is found to
// have left meanwhile, and reports whether it has.
func (c *Conn) WhileWaited(connect func(context.Context)) (gone bool) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.cancel.Store(&cancel)
	c.waiting.Store(c.server.clock.Load())
	connect(ctx)
	c.cancel.Store(nil)
	return c.hasGone()
}

// Release ends the connection's hold of its Backend.
func (c *Conn) Release() { c.backend.Store(nil) }

func (c *Conn) sendRequest(b *Backend, head []byte, t Timeouts) error {
	body := &c.Body
	switch {
	case body.done():
	case body.buffered() && len(head)+int(body.left) <= cap(head):
		head = append(head, body.peek()...)
	case body.buffered():
		head = append(head[:len(head):len(head)], body.peek()...)
	default:
		if err := b.write(head, t.Send); err != nil {
			return b.failed(err)
		}
		b.pumps()
		c.pumping = make(chan error, 1)
		c.pumped.Store(false)
		go func() { c.pumping <- c.pump(b, t) }()
		return nil
	}
	if b.Reused && b.wire != nil {
		b.asking, b.send = head, t.Send
		return nil
	}
	if err := b.write(head, t.Send); err != nil {
		return b.failed(err)
	}
	return nil
}

// pump sends the client's body.
func (c *Conn) pump(b *Backend, t Timeouts) error {
	body := &c.Body
	return b.pump(t, body.chunked, func() ([]byte, error) {
		data, err := body.next(bufferSize)
		if body.done() {
			c.pumped.Store(true)
		}
		return data, err
	}, func(out []byte) []byte { return appendTrailers(out, body.dec.trailers, TrailerGoes) })
}

// stopPump waits until the client's body is sent. One that the backend did not
// wait for is given up, and with it the backend's connection; the client's as
// well, if not all of it has come.
func (c *Conn) stopPump(b *Backend) {
	if c.pumping == nil {
		return
	}
	if c.pumped.Load() {
		// Most likely it has just written the end.
		select {
		case err := <-c.pumping:
			b.spoiled = b.spoiled || err != nil
			c.pumping = nil
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	select {
	case err := <-c.pumping:
		b.spoiled, c.last = b.spoiled || err != nil, c.last || !c.pumped.Load()
	default:
		b.spoiled, c.last = true, c.last || !c.pumped.Load()
		_ = c.sock.SetReadDeadline(past)
		b.abort(ErrBackend)
		<-c.pumping
		_ = c.sock.SetReadDeadline(time.Time{})
	}
	c.pumping = nil
}

// allPumped waits until the client's body is sent: a client goes on by another
// protocol once it has sent all of its request (RFC 9110, 7.8), to which a backend
// may agree before it has seen the body.
func (c *Conn) allPumped() error {
	if c.pumping == nil {
		return nil
	}
	err := <-c.pumping
	c.pumping = nil
	return err
}

// await reads the head of the answer.
func (c *Conn) await(b *Backend) error {
	for {
		err := b.readHead()
		if c.hasGone() {
			return ErrGone
		}
		if err != nil {
			return err
		}
		switch status := b.Response.Status; {
		case status == 101:
			if !b.switches(c) {
				return b.failed(errors.New("the backend switched to a protocol that nobody asked for"))
			}
		case status < 200:
			if c.Request.Minor == 1 {
				if err := c.interim(b); err != nil {
					return err
				}
			}
			c.waiting.Store(c.server.clock.Load())
			continue
		}
		b.expectBody(c.Request.Method)
		if c.pumping != nil {
			b.begins()
		}
		if c.pumping == nil && c.Body.buffered() && !c.Body.done() {
			_, _ = c.Body.next(bufferSize) // it has been sent with the head
		}
		return nil
	}
}

// hasGone ends a wait for the backend, and reports whether the client left meanwhile.
func (c *Conn) hasGone() bool {
	if c.waiting.Swap(0) != gone {
		return false
	}
	c.last, c.broken = true, true
	return true
}

// interim passes an answer of 1xx on.
func (c *Conn) interim(b *Backend) error {
	out := appendStatus(c.out[:0], b.Response.Status, b.Response.Reason)
	for i := range b.Response.Fields {
		if f := &b.Response.Fields[i]; !endsHere(f, b.Response.listed) {
			out = appendField(out, f.Name, f.Value)
		}
	}
	c.out = append(out, "\r\n"...)
	c.began = true
	return c.write(c.out)
}

// framingOf says how an answer's body goes to the client.
type bodyFraming uint8

const (
	asIs    bodyFraming = iota // its length is known, or there is none
	chunks                     // in chunks
	toClose                    // it ends with the connection
)

// Relay sends the backend's answer to the client, as it comes, with further
// header fields in front, which the backend's give way to ([Replaces]). An error wraps [ErrClient] or [ErrBackend]; the
// client's connection ends then, if the answer has begun.
func (c *Conn) Relay(b *Backend, extra []Field) error {
	defer c.Release()
	r := &b.Response
	c.Status = r.Status
	frame := asIs
	switch {
	case b.bodyErr == io.EOF || r.length >= 0 && !r.chunked:
	case c.Request.Minor == 1:
		frame = chunks
	default:
		frame, c.last = toClose, true
	}
	if c.pumping != nil && !c.pumped.Load() {
		c.last = true // whether the rest of the body comes is up to the client
	}
	c.out = c.relayHead(r, extra, frame)
	err := c.relayBody(b, frame)
	c.stopPump(b)
	if err != nil {
		c.broken, c.last = true, true
	}
	return err
}

// Replaces reports whether what the gateway says itself takes the place of a
// backend's field of that name. A cookie stands beside others; two Alt-Svc would
// be taken together, and a backend's tells of ports that are not the gateway's.
func Replaces(own []Field, name string) bool {
	for i := range own {
		if f := own[i].Name; len(f) == len(name) && strings.EqualFold(f, name) && f != "Set-Cookie" {
			return true
		}
	}
	return false
}

func (c *Conn) relayHead(r *Response, extra []Field, frame bodyFraming) []byte {
	out := appendStatus(c.out[:0], r.Status, r.Reason)
	for i := range extra {
		out = appendField(out, extra[i].Name, extra[i].Value)
	}
	for i := range r.Fields {
		f := &r.Fields[i]
		switch f.kind {
		case lengthField:
			// With 204 and 1xx there is none (RFC 9110, 8.6); with HEAD and 304
			// it tells of the body that there could be.
			if frame != asIs || r.Status == 204 {
				continue
			}
		case trailerField:
			if frame != chunks {
				continue
			}
		case upgradeField:
			if r.Status != 426 {
				continue
			}
		default:
			if endsHere(f, r.listed) || Replaces(extra, f.Name) {
				continue
			}
		}
		out = appendField(out, f.Name, f.Value)
	}
	if !r.dated {
		out = appendDate(out)
	}
	if frame == chunks {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	return append(c.appendConnection(out), "\r\n"...)
}

func (c *Conn) appendConnection(out []byte) []byte {
	c.last = c.last || c.server.draining.Load()
	switch {
	case c.last:
		return append(out, "Connection: close\r\n"...)
	case c.Request.Minor == 0:
		return append(out, "Connection: keep-alive\r\n"...)
	}
	return out
}

// spliceFrom is the length from which the kernel moves a body between two
// sockets by itself.
const spliceFrom = 64 << 10

// relayBody sends c.out and the body behind it. What has come goes out
// together; nothing is held back to wait for more.
func (c *Conn) relayBody(b *Backend, frame bodyFraming) error {
	for {
		data, err := b.nextReady()
		if err == errNothing {
			if err := c.flush(); err != nil {
				return err
			}
			if frame == asIs && b.left >= spliceFrom && !b.decode {
				if done, err := c.splice(b); done || err != nil {
					return err
				}
			}
			c.waiting.Store(c.server.clock.Load())
			data, err = b.next()
			if c.hasGone() {
				err, b.spoiled = ErrGone, true // the janitor is about to abort it
			}
		}
		c.Bytes += int64(len(data))
		switch {
		case err == io.EOF:
			if frame == chunks {
				c.out = append(appendTrailers(append(c.out, "0\r\n"...), b.trailers(), trailerAllowed), "\r\n"...)
			}
			c.ends()
			return c.flush()
		case err != nil:
			_ = c.flush() // what came before is true all the same
			return err
		case frame == chunks:
			c.out = appendChunk(c.out, data)
		case len(data) >= worthSparing:
			if b.bodyErr == io.EOF && frame == asIs {
				c.ends()
			}
			if err := c.writeWith(b, data); err != nil {
				return err
			}
		default:
			c.out = append(c.out, data...)
		}
		if len(c.out) >= bufferSize {
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
}

// ends tells that what is written next is the end of an answer. Behind the last
// one of a connection its own end follows at once, unless a body has to be
// waited for that is still being sent to the backend.
func (c *Conn) ends() {
	if c.last && c.pumping == nil {
		c.sock.Hold()
	}
}

// worthSparing is from how many bytes on a piece of a body is sent from where it
// lies rather than copied behind what goes before it.
const worthSparing = 4 << 10

// writeWith sends c.out and a piece of the body behind it. Most often c.out is
// the head that goes before the first piece: there is room for it where the
// backend's own head has been, which ends to be readable by that.
func (c *Conn) writeWith(b *Backend, data []byte) error {
	head := len(c.out)
	if head == 0 {
		return c.write(data)
	}
	if head > b.room || &data[0] != &(*b.buf)[b.room] {
		c.out = append(c.out, data...)
		return c.flush()
	}
	b.Response.Fields, b.Response.Reason, b.Response.listed = b.Response.Fields[:0], "", b.Response.listed[:0]
	whole := (*b.buf)[b.room-head : b.room+len(data)]
	copy(whole, c.out)
	c.out, b.room = c.out[:0], 0
	return c.write(whole)
}

func (b *Backend) trailers() []byte {
	if b.decode {
		return b.dec.trailers
	}
	return nil
}

func (c *Conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	err := c.write(c.out)
	c.out = c.out[:0]
	return err
}

// splice lets the kernel carry the rest of a body between two plain
// connections. It goes piece by piece, for each of which the limits hold.
func (c *Conn) splice(b *Backend) (done bool, err error) {
	if c.front == nil || b.wire == nil {
		return false, nil
	}
	for b.left > 0 {
		piece := io.LimitedReader{R: b.tcp, N: min(b.left, spliceFrom)}
		c.writing.set(&c.server.clock, c.server.WriteTimeout, c.sock.SetWriteDeadline)
		b.reading.set(b.clock, b.remaining(b.limit), b.tcp.SetReadDeadline)
		b.stayAborted()
		c.waiting.Store(c.server.clock.Load())
		n, err := c.sock.ReadFrom(&piece)
		if c.hasGone() {
			err = ErrGone
		}
		rang := b.reading.clear(b.tcp.SetReadDeadline)
		stuck := c.writing.clear(c.sock.SetWriteDeadline)
		b.left -= n
		c.Bytes += n
		switch {
		case errors.Is(err, ErrGone), stuck:
			c.broken = true
			b.spoiled = true
			return true, ErrGone
		case rang || err != nil:
			return true, c.spliceFailed(b, err)
		case n == 0:
			return true, b.failed(io.ErrUnexpectedEOF)
		}
	}
	b.bodyErr = io.EOF
	return true, nil
}

// spliceFailed tells whose fault it was: a write that fails has no more to
// send to the client, whatever the backend does.
func (c *Conn) spliceFailed(b *Backend, err error) error {
	if b.cause.Load() == nil {
		var op interface{ Timeout() bool }
		if !(errors.As(err, &op) && op.Timeout()) && c.left() {
			b.spoiled = true
			return errors.Join(ErrGone, err)
		}
	}
	return b.failed(err)
}

// Answer sends an answer of the gateway's own. Date is added.
func (c *Conn) Answer(status int, fields []Field, body string) {
	out := appendStatus(c.out[:0], status, "")
	for i := range fields {
		out = appendField(out, fields[i].Name, fields[i].Value)
	}
	out = appendDate(out)
	if status != 204 && status != 304 {
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, int64(len(body)), 10)
		out = append(out, "\r\n"...)
	}
	if !c.Body.done() && (c.Request.ExpectContinue || c.Body.err != nil) {
		c.last = true // whether a body follows is up to the client
	}
	out = append(c.appendConnection(out), "\r\n"...)
	c.Status = status
	if c.Request.Method != "HEAD" {
		out = append(out, body...)
		c.Bytes = int64(len(body))
	}
	c.out = out
	c.ends()
	_ = c.flush() // the client may be gone
}

// Tunnel sends the backend's consent to switch protocols, and then carries
// bytes both ways until both sides have ended, or nothing has been for as long as
// there may be between two reads of an answer. Extra are further header fields.
func (c *Conn) Tunnel(b *Backend, extra []Field) error {
	defer c.Release()
	r := &b.Response
	c.Status, c.last, b.spoiled = r.Status, true, true
	out := appendStatus(c.out[:0], r.Status, r.Reason)
	for i := range extra {
		out = appendField(out, extra[i].Name, extra[i].Value)
	}
	for i := range r.Fields {
		if f := &r.Fields[i]; f.kind == upgradeField || !endsHere(f, r.listed) && !Replaces(extra, f.Name) {
			out = appendField(out, f.Name, f.Value)
		}
	}
	out = append(out, "Connection: Upgrade\r\n\r\n"...)
	c.out = append(out, b.src.buf...)
	c.Bytes += int64(len(b.src.buf))
	if err := c.flush(); err != nil {
		c.stopPump(b)
		return err
	}
	if err := c.allPumped(); err != nil {
		c.broken = true
		return err
	}
	begun := c.Body.src.buf
	c.Body.src.buf = nil
	if !c.ferried(b, begun) {
		c.Bytes += c.between(b, begun)
	}
	c.broken = true // nothing of HTTP goes on from here
	return nil
}

// between carries a tunnel where one of the connections is not plain.
func (c *Conn) between(b *Backend, begun []byte) int64 {
	client := c.sock // c may be another's once it has ended
	defer watchSilence(b.limit, func() {
		_ = client.SetDeadline(past)
		_ = b.conn.SetDeadline(past)
	}, controlOf(b.conn))()
	return between(c.conn, b.conn, begun)
}

// ferried has a ferry carry a tunnel between two plain connections, of which
// the runtime's poller knows nothing any more then. False if they are not plain.
func (c *Conn) ferried(b *Backend, begun []byte) bool {
	if c.front == nil || !c.sock.unpoll() {
		return false
	}
	c.front.wire.raw = nil
	limit := b.limit
	far := b.detach()
	if far == nil {
		return false
	}
	defer far.Close()
	t := newTunnel(c.sock, far)
	c.tunnel.Store(t)
	defer c.tunnel.Store(nil)
	if c.isCut.Load() {
		t.cut()
	}
	defer watchSilence(limit, t.cut, far.with)()
	c.Bytes += t.carry(&c.server.ferries, begun)
	return true
}

func appendStatus(out []byte, status int, reason string) []byte {
	out = append(out, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, ' ')
	if reason == "" {
		reason = statusText(status)
	}
	out = append(out, reason...)
	return append(out, "\r\n"...)
}

// appendDate appends the Date of now.
func appendDate(out []byte) []byte {
	out = time.Now().UTC().AppendFormat(append(out, "Date: "...), http.TimeFormat)
	return append(out, "\r\n"...)
}

// appendField appends a line of a header.
func appendField(out []byte, name, value string) []byte {
	out = append(out, name...)
	out = append(out, ": "...)
	out = append(out, value...)
	return append(out, "\r\n"...)
}

func appendChunk(out, data []byte) []byte {
	out = strconv.AppendUint(out, uint64(len(data)), 16)
	out = append(out, "\r\n"...)
	out = append(out, data...)
	return append(out, "\r\n"...)
}
