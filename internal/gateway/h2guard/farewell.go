package h2guard

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// Reasons of floods.
const (
	// Resets are streams that their client resets.
	Resets = "resets"
	// Frames are PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty and unknown ones.
	Frames = "frames"
	// Continuations are those of one header block.
	Continuations = "continuations"
)

// Flood tells why a connection was ended. It is an [ErrFlood].
type Flood struct {
	// Reason is one of the reasons above.
	Reason string
	what   string
}

// Error implements error.
func (f *Flood) Error() string { return ErrFlood.Error() + ": " + f.what }

// Unwrap makes it an ErrFlood.
func (f *Flood) Unwrap() error { return ErrFlood }

const (
	// farewellTime is how long a client may take to hear that its connection ends.
	farewellTime = time.Second
	// farewellBytes is how much of what it goes on to send is read meanwhile.
	farewellBytes = 1 << 20
)

// out follows the frames that are sent to the client: between two of them is
// room for a last one. The server behind writes one after the other, but not in
// the goroutine in which it reads.
type out struct {
	mu       sync.Mutex
	header   [frameHeader]byte
	have     int // bytes of the header of a frame under way
	left     int // bytes of its payload that are missing
	writing  bool
	farewell []byte // nil as long as all is well
	said     bool
	lingers  bool
}

// follow takes what has been sent.
func (o *out) follow(p []byte) {
	for len(p) > 0 {
		if o.have < frameHeader {
			n := copy(o.header[o.have:], p)
			o.have, p = o.have+n, p[n:]
			if o.have < frameHeader {
				return
			}
			o.left = int(binary.BigEndian.Uint32(o.header[:]) >> 8)
		}
		n := min(o.left, len(p))
		o.left, p = o.left-n, p[n:]
		if o.left == 0 {
			o.have = 0
		}
	}
}

// missing is how many bytes of p belong to the frame under way; more than there
// are if that cannot be told yet.
func (o *out) missing(p []byte) int {
	switch {
	case o.have == 0:
		return 0
	case o.have == frameHeader:
		return o.left
	}
	rest := frameHeader - o.have
	if len(p) < rest {
		return len(p) + 1
	}
	header := o.header
	copy(header[o.have:], p)
	return rest + int(binary.BigEndian.Uint32(header[:])>>8)
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	o := &c.out
	o.mu.Lock()
	if o.farewell != nil {
		defer o.mu.Unlock()
		return c.writeLast(p)
	}
	o.writing = true
	o.mu.Unlock()
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	o.mu.Lock()
	o.follow(p[:n])
	o.writing = false
	if o.farewell != nil {
		c.say()
	}
	o.mu.Unlock()
	return n, err
}

// writeLast writes no more than the frame under way needs.
func (c *Conn) writeLast(p []byte) (int, error) {
	n := 0
	if missing := c.out.missing(p); !c.out.said && missing > 0 {
		var err error
		n, err = c.Conn.Write(p[:min(missing, len(p))])
		c.out.follow(p[:n])
		if err != nil {
			return n, err
		}
	}
	c.say()
	if n < len(p) {
		return n, ErrFlood
	}
	return n, nil
}

// say sends the farewell, if it would not stand within another frame.
func (c *Conn) say() {
	if c.out.have == 0 && !c.out.writing && !c.out.said {
		c.out.said = true
		_, _ = c.Conn.Write(c.out.farewell) // who floods may not listen
		if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}
}

// end tells the client that it is too much (RFC 9113, 7: ENHANCE_YOUR_CALM).
func (c *Conn) end(f *Flood) {
	goAway := binary.BigEndian.AppendUint32(nil, c.latest)
	goAway = binary.BigEndian.AppendUint32(goAway, uint32(http2.ErrCodeEnhanceYourCalm))
	goAway = append(goAway, f.what...)
	frame := append([]byte{0, 0, byte(len(goAway)), byte(http2.FrameGoAway), 0, 0, 0, 0, 0}, goAway...)
	c.ended.Store(true)
	_ = c.Conn.SetWriteDeadline(time.Now().Add(farewellTime)) // also for the write under way
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	o.farewell = frame
	c.say()
}

// SetWriteDeadline implements net.Conn. The farewell has its own.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.ended.Load() {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// Close implements net.Conn. After a flood it takes a moment, in the
// background: if something has come that nobody has read, the kernel resets
// the connection, and the client does not hear why it ends.
func (c *Conn) Close() error {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.farewell == nil:
		return c.Conn.Close()
	case o.lingers:
		return net.ErrClosed
	}
	o.lingers = true
	go c.linger()
	return nil
}

func (c *Conn) linger() {
	until := time.Now().Add(farewellTime)
	_ = c.Conn.SetReadDeadline(until)
	buf := make([]byte, smallBuffer)
	for n := 0; n < farewellBytes; {
		m, err := c.Conn.Read(buf)
		if err != nil {
			_ = c.Conn.Close()
			return
		}
		n += m
	}
	time.AfterFunc(time.Until(until), func() { _ = c.Conn.Close() }) // what it sends now waits at its side
}

func tooMany(reason, format string, args ...any) *Flood {
	return &Flood{Reason: reason, what: fmt.Sprintf(format, args...)}
}
