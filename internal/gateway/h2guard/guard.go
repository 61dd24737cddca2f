package h2guard

import (
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// MaxFrameSize is the largest frame that clients may send, which the server
// behind must announce: 16 KiB, the least that RFC 9113 allows.
const MaxFrameSize = 16 << 10

const (
	frameHeader = 9
	// maxContinuations bounds the frames of one header block. Four of them hold
	// the 64 KiB that a header may have.
	maxContinuations = 8
	// tableSize is the decoder's table that the server behind announces.
	tableSize = 4096
	// smallBuffer is what an idle connection keeps.
	smallBuffer = 4 << 10
)

// ErrFlood ends a connection whose client makes the gateway work for nothing.
var ErrFlood = errors.New("flood by the client")

// Options configure a [Conn].
type Options struct {
	// MaxHeaderBytes limits what is looked at of a decoded header; the server
	// behind refuses more. Required.
	MaxHeaderBytes int
	// OnFlood is told why a connection is ended. Optional.
	OnFlood func(*Flood)
}

// Conn is a client's connection as the server shall see it.
type Conn struct {
	net.Conn
	options Options

	space   []byte // where buf lies
	buf     []byte // what was read and not handed on
	judged  int    // bytes at its beginning that may be handed on
	pass    int    // bytes after these that need no look: payload
	blind   bool   // the server behind will end the connection: no more looks
	greeted bool   // the preface is there
	failed  error

	decoder *hpack.Decoder
	block   block
	resets  budget
	chores  budget
	written atomic.Int64
	latest  uint32 // stream
	ended   atomic.Bool
	out     out
}

// block is a header block under way.
type block struct {
	open          bool
	stream        uint32
	continuations int
	size          int
	malformed     bool
	authority     string
	host          string
	length        string
}

// New returns a guarded connection, which begins with the client's preface.
func New(conn net.Conn, o Options) *Conn {
	c := &Conn{Conn: conn, options: o}
	c.decoder = hpack.NewDecoder(tableSize, c.field)
	c.decoder.SetMaxStringLength(o.MaxHeaderBytes)
	// Streams that are given up are normal: pages that are left, hedged calls.
	c.resets = budget{most: 500, perSecond: 100, perByte: 1. / 256}
	// gRPC measures round trips by PING while it receives.
	c.chores = budget{most: 1000, perSecond: 200, perByte: 1. / 32}
	return c
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch {
		case c.judged > 0:
			n := copy(p, c.buf[:c.judged])
			c.buf, c.judged = c.buf[n:], c.judged-n
			return n, nil
		case c.failed != nil:
			return 0, c.failed
		case c.blind && len(c.buf) == 0:
			return c.Conn.Read(p)
		case c.blind:
			c.judged = len(c.buf)
		case c.pass > 0 && len(c.buf) > 0:
			c.judged = min(c.pass, len(c.buf))
			c.pass -= c.judged
		case c.pass > 0:
			n, err := c.Conn.Read(p[:min(len(p), c.pass)])
			c.pass -= n
			return n, err
		default:
			need, err := c.judge()
			if err != nil {
				c.failed = err
				c.end(err)
				if c.options.OnFlood != nil {
					c.options.OnFlood(err)
				}
			} else if need > 0 {
				if err := c.fill(need); err != nil {
					return 0, err
				}
			}
		}
	}
}

// fill reads until the buffer has need bytes. What is there of a frame that
// breaks off is handed on.
func (c *Conn) fill(need int) error {
	if need > len(c.space) || len(c.buf) == 0 && len(c.space) != smallBuffer {
		c.space = make([]byte, max(need, smallBuffer))
	}
	if len(c.buf) == 0 || cap(c.buf) < need {
		c.buf = append(c.space[:0], c.buf...)
	}
	n, err := c.Conn.Read(c.buf[len(c.buf):cap(c.buf)])
	c.buf = c.buf[:len(c.buf)+n]
	if n > 0 {
		return nil
	}
	if err != nil && len(c.buf) > 0 {
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			c.blind = true
			return nil
		}
	}
	return err
}

// judge looks at the next frame. It returns how many bytes it needs for that,
// 0 once it is done.
func (c *Conn) judge() (need int, err *Flood) {
	if !c.greeted {
		n := min(len(c.buf), len(http2.ClientPreface))
		if string(c.buf[:n]) != http2.ClientPreface[:n] {
			c.blind = true
			return 0, nil
		}
		if n < len(http2.ClientPreface) {
			return len(http2.ClientPreface), nil
		}
		c.greeted, c.judged = true, n
		return 0, nil
	}
	if len(c.buf) < frameHeader {
		return frameHeader, nil
	}
	length := int(binary.BigEndian.Uint32(c.buf) >> 8)
	kind, flags := http2.FrameType(c.buf[3]), http2.Flags(c.buf[4])
	stream := binary.BigEndian.Uint32(c.buf[5:]) &^ (1 << 31)
	if length > MaxFrameSize || c.block.open != (kind == http2.FrameContinuation) || c.block.open && stream != c.block.stream {
		c.blind = true // the server behind calls it an error of the connection
		return 0, nil
	}
	switch kind {
	case http2.FrameHeaders, http2.FrameContinuation, http2.FrameSettings:
		if len(c.buf) < frameHeader+length {
			return frameHeader + length, nil
		}
		c.judged = frameHeader + length
		frame := c.buf[:c.judged]
		switch {
		case kind != http2.FrameSettings:
			return 0, c.headers(frame, kind, flags, stream)
		case flags.Has(http2.FlagSettingsAck):
			return 0, nil
		}
		c.settings(frame)
		return 0, c.charge(&c.chores, 1, Frames, kind)
	}
	c.judged, c.pass = frameHeader, length
	switch {
	case kind == http2.FrameRSTStream:
		err = c.charge(&c.resets, 1, Resets, kind)
	case kind == http2.FrameData && (length > 0 || flags.Has(http2.FlagDataEndStream)):
		// A body: the windows bound it.
	case kind == http2.FrameWindowUpdate:
		// Up to two for each frame of an answer are normal.
		err = c.charge(&c.chores, 0.25, Frames, kind)
	default:
		err = c.charge(&c.chores, 1, Frames, kind)
	}
	return 0, err
}

func (c *Conn) charge(b *budget, cost float64, reason string, kind http2.FrameType) *Flood {
	if b.take(cost, time.Now(), c.written.Load()) {
		return nil
	}
	return tooMany(reason, "too many %s frames", kind)
}

// settings drops all but the last value of what a frame sets more than once:
// net/http ends connections for that. The table of HPACK is left alone, whose
// smallest size counts as well, and so are values that are errors.
func (c *Conn) settings(frame []byte) {
	payload := frame[frameHeader:]
	if len(payload)%6 != 0 || len(payload) > 6*100 {
		return
	}
	last := map[http2.SettingID]int{}
	for at := 0; at < len(payload); at += 6 {
		s := http2.Setting{ID: http2.SettingID(binary.BigEndian.Uint16(payload[at:])), Val: binary.BigEndian.Uint32(payload[at+2:])}
		if _, again := last[s.ID]; again && s.ID == http2.SettingHeaderTableSize || s.Valid() != nil {
			return
		}
		last[s.ID] = at
	}
	kept := payload[:0]
	for at := 0; at < len(payload); at += 6 {
		if last[http2.SettingID(binary.BigEndian.Uint16(payload[at:]))] == at {
			kept = append(kept, payload[at:at+6]...)
		}
	}
	c.replace(frame, len(kept))
}

// replace makes the payload of the frame at the buffer's beginning shorter.
func (c *Conn) replace(frame []byte, length int) {
	c.buf = append(frame[:frameHeader+length], c.buf[len(frame):]...)
	c.setLength(length)
}

func (c *Conn) setLength(length int) {
	c.buf[0], c.buf[1], c.buf[2] = byte(length>>16), byte(length>>8), byte(length)
	c.judged = frameHeader + length
}

// headers reads a part of a header block.
func (c *Conn) headers(frame []byte, kind http2.FrameType, flags http2.Flags, stream uint32) *Flood {
	b := &c.block
	fragment, padding := frame[frameHeader:], 0
	if kind == http2.FrameHeaders {
		*b = block{open: true, stream: stream}
		c.latest = max(c.latest, stream)
		if flags.Has(http2.FlagHeadersPadded) && len(fragment) > 0 {
			padding, fragment = int(fragment[0]), fragment[1:]
		}
		if flags.Has(http2.FlagHeadersPriority) {
			fragment = fragment[min(5, len(fragment)):]
		}
		if padding > len(fragment) {
			c.blind = true
			return nil
		}
		fragment = fragment[:len(fragment)-padding]
		c.decoder.SetEmitEnabled(true)
	} else if b.continuations++; b.continuations > maxContinuations {
		return tooMany(Continuations, "a header in more than %d CONTINUATION frames", maxContinuations)
	}
	if _, err := c.decoder.Write(fragment); err != nil {
		c.blind = true // the server behind comes to the same end
		return nil
	}
	if !flags.Has(http2.FlagHeadersEndHeaders) {
		return nil
	}
	b.open = false
	if c.decoder.Close() != nil {
		c.blind = true
		return nil
	}
	if b.malformed || b.host != "" && b.authority != "" && b.host != b.authority {
		c.spoil(len(frame) - padding)
	}
	return nil
}

// spoiled is a field that no header may have, for its name has a capital: the
// server behind resets the stream, and HPACK's state is not touched.
var spoiled = []byte{0, 1, 'X', 0}

// spoil makes the server behind refuse the header block, which ends at a byte
// of the frame at the buffer's beginning.
func (c *Conn) spoil(end int) {
	length := c.judged - frameHeader + len(spoiled)
	if length > MaxFrameSize {
		c.judged = 0
		c.failed = errors.New("a malformed header fills its frame")
		return
	}
	c.space = make([]byte, max(len(c.buf)+len(spoiled), smallBuffer))
	c.buf = append(append(append(c.space[:0], c.buf[:end]...), spoiled...), c.buf[end:]...)
	c.setLength(length)
}

// field looks at one field of a header.
func (c *Conn) field(f hpack.HeaderField) {
	b := &c.block
	if b.size += int(f.Size()); b.size > c.options.MaxHeaderBytes {
		c.decoder.SetEmitEnabled(false)
		return
	}
	switch f.Name {
	case ":authority":
		b.authority = f.Value
	case "host":
		if b.host != "" && b.host != f.Value {
			b.malformed = true
		}
		b.host = f.Value
	case "content-length":
		// net/http takes what is no number for 0, and the first of several.
		if b.length != "" && b.length != f.Value || f.Value == "" || strings.Trim(f.Value, "0123456789") != "" {
			b.malformed = true
		}
		b.length = f.Value
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		b.malformed = true
	case "te":
		if f.Value != "trailers" {
			b.malformed = true
		}
	}
}

// budget is what a client may do that costs it little. It comes back with time
// and with what is sent to the client.
type budget struct {
	most, perSecond, perByte float64

	left float64
	last time.Time
	seen int64
}

// take spends cost, if there is as much.
func (b *budget) take(cost float64, now time.Time, written int64) bool {
	if b.last.IsZero() {
		b.left = b.most
	} else {
		b.left = min(b.most, b.left+now.Sub(b.last).Seconds()*b.perSecond+float64(written-b.seen)*b.perByte)
	}
	b.last, b.seen = now, written
	if b.left < cost {
		return false
	}
	b.left -= cost
	return true
}
