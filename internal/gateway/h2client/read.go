package h2client

import (
	"bytes"
	"encoding/binary"
	"io"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http2/hpack"
)

// readBuffer holds one frame of the largest size at least.
const readBuffer = 32 << 10

// maxContinuations bounds the frames of one header.
const maxContinuations = 32

// maxChores is how many frames may come in a tick that bring no request
// forward. Data that is sent and answers that come make up for some.
const maxChores = 10000

// maxSettings is how many settings one frame may have.
const maxSettings = 32

// maxInterim is how many interim answers one request may get.
const maxInterim = 32

// reader reads what the backend sends. All is its goroutine's, but for
// chores and answered.
type reader struct {
	c       *Conn
	buf     []byte
	window  int64 // what may come, of all streams
	taken   int   // of which the backend has not been told
	greeted bool
	decoder *hpack.Decoder
	touched []*Stream // to be woken

	// The header that is coming.
	block     []byte
	stream    uint32 // 0 if there is none
	parts     int
	end       bool
	fields    []hpack.HeaderField
	size      int
	status    int
	problem   malformed
	trailer   bool
	regular   bool // fields that are no pseudo fields have come
	forgetful bool // nobody wants the fields

	chores   atomic.Int64
	answered atomic.Bool // some of an answer has come since the last PING
}

// run reads until the connection ends.
func (r *reader) run() {
	c := r.c
	have := 0
	for {
		n, err := c.conn.Read(r.buf[have:])
		if n > 0 {
			if !c.heard.Load() {
				c.heard.Store(true)
			}
			have += n
			used, violation := r.frames(r.buf[:have])
			r.flush()
			if violation != nil {
				c.fail(violation)
				return
			}
			have = copy(r.buf, r.buf[used:have])
		}
		if err != nil {
			reason := "it broke"
			if err == io.EOF {
				reason = "the backend closed it"
			}
			c.fail(&ConnError{Reason: reason, Err: err})
			return
		}
	}
}

// flush wakes whoever waits for what has come, all at once.
func (r *reader) flush() {
	for i, s := range r.touched {
		s.touched = false
		notify(s.answered)
		r.touched[i] = nil
	}
	r.touched = r.touched[:0]
	if r.taken > connWindow/2 {
		r.window += int64(r.taken)
		c := r.c
		c.mu.Lock()
		c.out = appendWindow(c.out, 0, r.taken)
		c.kick()
		c.mu.Unlock()
		r.taken = 0
	}
}

// touch has a stream woken.
func (r *reader) touch(s *Stream) {
	if !s.touched {
		s.touched = true
		r.touched = append(r.touched, s)
	}
}

// frames takes whole frames, and returns how much that was.
func (r *reader) frames(b []byte) (used int, err *ConnError) {
	for len(b)-used >= frameHeader {
		head := b[used:]
		length := int(binary.BigEndian.Uint32(head) >> 8)
		k, flags := kind(head[3]), head[4]
		stream := binary.BigEndian.Uint32(head[5:]) &^ (1 << 31)
		if !r.greeted {
			if bytes.HasPrefix(head, []byte("HTTP/1.")) {
				return used, violation(CodeProtocol, "the backend speaks HTTP/1.1 and not HTTP/2")
			}
			if k != settingsFrame || flags&flagAck != 0 {
				return used, violation(CodeProtocol, "the backend does not begin with SETTINGS: it may not speak HTTP/2")
			}
		}
		if length > maxFrame {
			return used, violation(CodeFrameSize, "a frame of %d bytes", length)
		}
		if len(head) < frameHeader+length {
			break
		}
		if err := r.frame(k, flags, stream, head[frameHeader:frameHeader+length]); err != nil {
			return used, err
		}
		used += frameHeader + length
	}
	return used, nil
}

// chore counts a frame that brings no request forward.
func (r *reader) chore(k kind) *ConnError {
	if r.chores.Add(1) > maxChores {
		return violation(CodeEnhanceYourCalm, "too many frames of type %d", k)
	}
	return nil
}

func (r *reader) frame(k kind, flags byte, stream uint32, p []byte) *ConnError {
	if (r.stream != 0) != (k == continuationFrame) || r.stream != 0 && stream != r.stream {
		return violation(CodeProtocol, "a header that is interrupted by a frame of type %d", k)
	}
	switch k {
	case dataFrame:
		return r.data(flags, stream, p)
	case headersFrame:
		return r.headers(flags, stream, p)
	case continuationFrame:
		if r.parts++; r.parts > maxContinuations {
			return violation(CodeEnhanceYourCalm, "a header in more than %d CONTINUATION frames", maxContinuations)
		}
		return r.fragment(flags, p)
	case resetFrame:
		return r.reset(stream, p)
	case settingsFrame:
		return r.settings(flags, stream, p)
	case pingFrame:
		return r.ping(flags, stream, p)
	case goAwayFrame:
		return r.goAway(stream, p)
	case windowFrame:
		return r.windowUpdate(stream, p)
	case pushFrame:
		return violation(CodeProtocol, "PUSH_PROMISE, which was forbidden")
	}
	return r.chore(k) // PRIORITY means nothing to a client, and what is not known is to be ignored
}

// known reports whether a stream with this number has ever been.
func (c *Conn) known(id uint32) bool { return id%2 == 1 && id < c.nextID }

// find returns the stream that a frame is for; nil if it has ended.
func (r *reader) find(id uint32, k kind) (*Stream, *ConnError) {
	c := r.c
	c.mu.Lock()
	s, known := c.streams[id], c.known(id)
	c.mu.Unlock()
	if !known {
		return nil, violation(CodeProtocol, "a frame of type %d for stream %d, which is not open", k, id)
	}
	return s, nil
}

// padded takes padding off.
func padded(flags byte, p []byte) ([]byte, *ConnError) {
	if flags&flagPadded == 0 {
		return p, nil
	}
	if len(p) == 0 || int(p[0]) >= len(p) {
		return nil, violation(CodeProtocol, "padding that is longer than its frame")
	}
	return p[1 : len(p)-int(p[0])], nil
}

func (r *reader) data(flags byte, stream uint32, p []byte) *ConnError {
	s, err := r.find(stream, dataFrame)
	if err != nil {
		return err
	}
	all := len(p)
	if r.window -= int64(all); r.window < 0 {
		return violation(CodeFlowControl, "more data than the connection's window allows")
	}
	r.taken += all
	if p, err = padded(flags, p); err != nil {
		return err
	}
	end := flags&flagEndStream != 0
	switch {
	case s == nil:
		return r.chore(dataFrame)
	case len(p) == 0 && !end:
		if err := r.chore(dataFrame); err != nil {
			return err
		}
	default:
		r.brings(1 + len(p)/1024)
	}
	if problem, code := s.takeData(p, all, end); problem != "" {
		s.spoil(code, problem)
	}
	r.touch(s)
	return nil
}

// brings notes a piece of an answer.
func (r *reader) brings(n int) {
	if !r.answered.Load() {
		r.answered.Store(true)
	}
	r.earn(n)
}

// earn makes up for chores.
func (r *reader) earn(n int) {
	if r.chores.Load() > 0 {
		r.chores.Add(-int64(n))
	}
}

func (r *reader) headers(flags byte, stream uint32, p []byte) *ConnError {
	s, err := r.find(stream, headersFrame)
	if err != nil {
		return err
	}
	if p, err = padded(flags, p); err != nil {
		return err
	}
	if flags&flagPriority != 0 {
		if len(p) < 5 {
			return violation(CodeFrameSize, "a priority that is cut off")
		}
		p = p[5:]
	}
	r.stream, r.parts, r.end = stream, 0, flags&flagEndStream != 0
	r.fields, r.size, r.status, r.problem, r.regular = nil, 0, 0, "", false
	r.forgetful, r.trailer = s == nil, s != nil && s.begun
	r.block = r.block[:0]
	r.decoder.SetEmitEnabled(true)
	return r.fragment(flags, p)
}

// fragment takes a part of a header, and all of it at its end.
func (r *reader) fragment(flags byte, p []byte) *ConnError {
	if flags&flagEndHeaders == 0 {
		if len(r.block)+len(p) > 2*r.c.options.MaxHeader {
			return violation(CodeEnhanceYourCalm, "a header of more than %d bytes", len(r.block))
		}
		r.block = append(r.block, p...)
		return nil
	}
	if len(r.block) > 0 {
		r.block = append(r.block, p...)
		p = r.block
	}
	_, err := r.decoder.Write(p)
	if err == nil {
		err = r.decoder.Close()
	}
	if err != nil {
		return violation(CodeCompression, "a header that cannot be decoded: %v", err)
	}
	if cap(r.block) > maxFrame {
		r.block = nil
	}
	stream := r.stream
	r.stream = 0
	s, violation := r.find(stream, headersFrame)
	switch {
	case violation != nil:
		return violation
	case s == nil:
		return r.chore(headersFrame)
	}
	r.brings(4)
	if r.problem == "" {
		r.problem = s.takeHeader(r.status, r.fields, r.end)
	}
	if r.problem != "" {
		s.spoil(CodeProtocol, r.problem)
	}
	r.fields = nil
	r.touch(s)
	return nil
}

// field takes one field of a header.
func (r *reader) field(f hpack.HeaderField) {
	if r.size += int(f.Size()); r.size > r.c.options.MaxHeader {
		r.problem = malformed("a header of more than " + strconv.Itoa(r.c.options.MaxHeader) + " bytes")
		r.decoder.SetEmitEnabled(false)
		return
	}
	if r.forgetful {
		return
	}
	if strings.HasPrefix(f.Name, ":") {
		status, ok := parseStatus(f.Value)
		if f.Name != ":status" || r.regular || r.trailer || r.status != 0 || !ok {
			r.problem = malformed("pseudo header field " + strconv.Quote(f.Name))
		}
		r.status = status
		return
	}
	r.regular = true
	switch {
	case f.Name == "" || !all(f.Name, lowerByte) || !all(f.Value, valueByte):
		r.problem = malformed("header field " + strconv.Quote(f.Name))
	case isHop(f.Name):
	case f.Name == "content-length" && (r.status < 200 || r.status == 204): // may not stand there, nor in trailers
	default:
		// Space around a value may not be there (RFC 9113, 8.2.1), and clients refuse
		// the answer for it. But servers send what was set, net/http's for one.
		if v := f.Value; v != "" && (v[0] <= ' ' || v[len(v)-1] <= ' ') {
			f.Value = strings.Trim(v, " \t")
		}
		if r.fields == nil {
			r.fields = make([]hpack.HeaderField, 0, 8)
		}
		r.fields = append(r.fields, f)
	}
}

// parseStatus reads a status of three digits.
func parseStatus(s string) (int, bool) {
	if len(s) != 3 || s[0] < '1' || s[0] > '9' || s[1] < '0' || s[1] > '9' || s[2] < '0' || s[2] > '9' || s == "101" {
		return 0, false
	}
	return int(s[0]-'0')*100 + int(s[1]-'0')*10 + int(s[2]-'0'), true
}

func (r *reader) reset(stream uint32, p []byte) *ConnError {
	s, err := r.find(stream, resetFrame)
	switch {
	case err != nil:
		return err
	case len(p) != 4:
		return violation(CodeFrameSize, "RST_STREAM of %d bytes", len(p))
	case s == nil:
		return r.chore(resetFrame)
	}
	s.wasReset(Code(binary.BigEndian.Uint32(p)))
	r.touch(s)
	return r.chore(resetFrame)
}

func (r *reader) settings(flags byte, stream uint32, p []byte) *ConnError {
	switch {
	case stream != 0:
		return violation(CodeProtocol, "SETTINGS for a stream")
	case flags&flagAck != 0 && len(p) != 0, len(p)%6 != 0:
		return violation(CodeFrameSize, "SETTINGS of %d bytes", len(p))
	case flags&flagAck != 0:
		return r.chore(settingsFrame)
	}
	if len(p) > 6*maxSettings {
		return violation(CodeEnhanceYourCalm, "SETTINGS of %d bytes", len(p))
	}
	c := r.c
	c.mu.Lock()
	if !r.greeted {
		r.greeted = true
		c.maxStreams = mostStreams
	}
	for ; len(p) > 0; p = p[6:] {
		value := binary.BigEndian.Uint32(p[2:])
		switch binary.BigEndian.Uint16(p) {
		case settingTableSize:
			c.encoder.limit(value)
		case settingMaxStreams:
			c.maxStreams = min(value, mostStreams)
		case settingInitialWindow:
			if value > maxWindow {
				c.mu.Unlock()
				return violation(CodeFlowControl, "SETTINGS with a window of %d", value)
			}
			more := int64(value) - c.first
			c.first = int64(value)
			for _, s := range c.streams {
				if s.sendWindow += more; s.sendWindow > maxWindow {
					c.mu.Unlock()
					return violation(CodeFlowControl, "SETTINGS that make a window too large")
				}
			}
			c.wakeWaiting()
		case settingMaxFrame:
			if value < maxFrame || value >= 1<<24 {
				c.mu.Unlock()
				return violation(CodeProtocol, "SETTINGS with frames of %d bytes", value)
			}
		}
	}
	c.out = appendFrame(c.out, 0, settingsFrame, flagAck, 0)
	c.kick()
	c.mu.Unlock()
	c.roomAgain()
	return r.chore(settingsFrame)
}

func (r *reader) ping(flags byte, stream uint32, p []byte) *ConnError {
	switch {
	case stream != 0:
		return violation(CodeProtocol, "PING for a stream")
	case len(p) != 8:
		return violation(CodeFrameSize, "PING of %d bytes", len(p))
	case flags&flagAck == 0:
		c := r.c
		c.mu.Lock()
		c.out = append(appendFrame(c.out, 8, pingFrame, flagAck, 0), p...)
		c.kick()
		c.mu.Unlock()
	}
	return r.chore(pingFrame)
}

// goAway lets what the backend still answers go on.
func (r *reader) goAway(stream uint32, p []byte) *ConnError {
	switch {
	case stream != 0:
		return violation(CodeProtocol, "GOAWAY for a stream")
	case len(p) < 8:
		return violation(CodeFrameSize, "GOAWAY of %d bytes", len(p))
	}
	last, code := binary.BigEndian.Uint32(p)&^(1<<31), Code(binary.BigEndian.Uint32(p[4:]))
	c := r.c
	c.mu.Lock()
	c.closing = true
	for id, s := range c.streams {
		if id > last {
			c.forget(s)
			s.end(&unprocessed{&ConnError{Code: code, Reason: "the backend ends it"}})
		}
	}
	c.closeIfDone()
	c.roomAgain()
	c.mu.Unlock()
	return r.chore(goAwayFrame)
}

func (r *reader) windowUpdate(stream uint32, p []byte) *ConnError {
	if len(p) != 4 {
		return violation(CodeFrameSize, "WINDOW_UPDATE of %d bytes", len(p))
	}
	more := int64(binary.BigEndian.Uint32(p) &^ (1 << 31))
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if stream == 0 {
		if c.window += more; more == 0 || c.window > maxWindow {
			return violation(CodeFlowControl, "WINDOW_UPDATE that makes the window %d", c.window)
		}
		c.wakeWaiting()
		return r.chore(windowFrame)
	}
	if !c.known(stream) {
		return violation(CodeProtocol, "WINDOW_UPDATE for stream %d, which is not open", stream)
	}
	if s := c.streams[stream]; s != nil {
		if s.sendWindow += more; more == 0 || s.sendWindow > maxWindow {
			c.mu.Unlock()
			s.spoil(CodeFlowControl, "WINDOW_UPDATE that is too large")
			r.touch(s)
			c.mu.Lock()
			return r.chore(windowFrame)
		}
		if s.waits {
			notify(s.room)
		}
	}
	return r.chore(windowFrame)
}
