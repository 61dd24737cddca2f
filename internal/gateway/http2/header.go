package http2

import (
	"context"
	"log/slog"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"fairway.dev/fairway/internal/gateway/http1"
)

// maxFields bounds the work per request, like HTTP/1's.
const maxFields = 512

// block is a header block under way.
type block struct {
	open bool
	id   uint32
	end  bool // END_STREAM
	what blockKind
	code http2.ErrCode // of discarded ones, which are then answered by a reset

	stream        *Stream // whose header, or trailers, it is
	trailers      []http1.Field
	continuations int
	coded         int // as it comes
	size, fields  int
	tooLarge      bool
	malformed     string // why it is

	regular                          bool // there was a field that is no pseudo-header field
	method, scheme, path             string
	hasMethod, hasScheme, hasPath    bool
	authority, host                  string
	hasAuthority, hasHost, hasLength bool
	length                           int64
	lengthText                       string
	cookie                           int // index + 1 of the field
	crumbs                           []string
}

type blockKind uint8

const (
	newRequest blockKind = iota
	trailerBlock
	discarded // decoded for the sake of HPACK's table alone
)

// headers begins a header block.
func (c *Conn) headers(f *frame) error {
	if f.stream&1 == 0 {
		return protocolError("HEADERS on stream %d", f.stream)
	}
	if !f.unpad() {
		return protocolError("HEADERS with more padding than bytes")
	}
	dependsOnItself := false
	if f.flags.Has(http2.FlagHeadersPriority) {
		if len(f.payload) < 5 {
			return broken(http2.ErrCodeFrameSize, "HEADERS too short for its priority")
		}
		dependsOnItself = streamID(f.payload) == f.stream
		f.payload = f.payload[5:]
	}
	c.block = block{open: true, id: f.stream, end: f.flags.Has(http2.FlagHeadersEndStream), trailers: c.block.trailers[:0], crumbs: c.block.crumbs[:0], length: -1}
	if err := c.classify(f.stream); err != nil {
		return err
	}
	if dependsOnItself {
		c.block.malformed = "the stream depends on itself"
	}
	c.decoder.SetEmitEnabled(c.block.what != discarded)
	return c.fragment(f)
}

// classify finds out what a header block is for.
func (c *Conn) classify(id uint32) error {
	b := &c.block
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[id]; s != nil {
		switch {
		case s.resetByUs:
			b.what = discarded
		case s.remoteEnd || s.gone:
			b.what, b.code = discarded, http2.ErrCodeStreamClosed
		default:
			b.what, b.stream = trailerBlock, s
			if !b.end {
				b.malformed = "trailers that do not end the stream"
			}
		}
		return nil
	}
	if id <= c.last {
		if !c.forgotten(id) {
			return broken(http2.ErrCodeStreamClosed, "HEADERS on stream %d, which is closed", id)
		}
		b.what = discarded
		return nil
	}
	c.last = id
	switch {
	case c.leaving == left:
		b.what = discarded // it was told to go elsewhere
		c.remember(id)     // and what follows of the request is ignored (6.8)
	case c.open >= c.server.MaxStreams || c.running >= 2*c.server.MaxStreams:
		b.what, b.code = discarded, http2.ErrCodeRefusedStream
	default:
		b.stream = c.server.newStream(c, id)
	}
	return nil
}

func (c *Conn) continuation(f *frame) error {
	if !c.block.open || f.stream != c.block.id {
		return protocolError("CONTINUATION without a header")
	}
	if c.block.continuations++; c.block.continuations > maxContinuations {
		return c.flood(Continuations, "a header in more than %d CONTINUATION frames", maxContinuations)
	}
	return c.fragment(f)
}

// fragment decodes a piece of a header block, and ends it with its last one.
func (c *Conn) fragment(f *frame) error {
	more := max(c.block.coded, plainHeader)
	c.block.coded += len(f.payload)
	if more = c.block.coded - more; more > 0 && !c.heads.take(float64(more), c.server.Clock.Load(), c.earned()) {
		return c.flood(Headers, "too many large headers")
	}
	if _, err := c.decoder.Write(f.payload); err != nil {
		return broken(http2.ErrCodeCompression, "a header cannot be decoded: %v", err)
	}
	if !f.flags.Has(http2.FlagHeadersEndHeaders) { // the same bit in both
		return nil
	}
	c.block.open = false
	if err := c.decoder.Close(); err != nil {
		return broken(http2.ErrCodeCompression, "a header cannot be decoded: %v", err)
	}
	switch b := &c.block; b.what {
	case discarded:
		if b.code != 0 {
			return c.resetStream(b.id, b.code, "")
		}
		return c.charge(&c.chores, 1, Frames, http2.FrameHeaders)
	case trailerBlock:
		return c.endTrailers()
	}
	return c.begin()
}

// field takes one field of a header.
func (c *Conn) field(f hpack.HeaderField) {
	b := &c.block
	b.fields++
	if b.size += int(f.Size()); b.size > c.server.MaxHeaderBytes || b.fields > maxFields {
		b.tooLarge = true
		c.decoder.SetEmitEnabled(false)
		return
	}
	if b.malformed != "" {
		return
	}
	if !valid(f.Value, &valueBytes) || f.Value != "" && (isSpace(f.Value[0]) || isSpace(f.Value[len(f.Value)-1])) {
		b.malformed = "a field value has a control character, or space around it"
		return
	}
	if strings.HasPrefix(f.Name, ":") {
		b.pseudo(f)
		return
	}
	b.regular = true
	if f.Name == "" || !valid(f.Name, &nameBytes) {
		b.malformed = "a field name is no token in small letters"
		return
	}
	if !b.allowed(f) {
		return
	}
	if b.what == trailerBlock {
		b.trailers = append(b.trailers, http1.Field{Name: f.Name, Value: f.Value})
		return
	}
	b.add(&b.stream.Request, f)
}

// allowed refuses what frames say in another way (RFC 9113, 8.2.2).
func (b *block) allowed(f hpack.HeaderField) bool {
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		b.malformed = "there is a field of HTTP/1.1's connections"
	case "te":
		if f.Value != "trailers" {
			b.malformed = "TE is not trailers"
		}
	}
	return b.malformed == ""
}

func (b *block) pseudo(f hpack.HeaderField) {
	set := func(value *string, has *bool) {
		if *has {
			b.malformed = "a pseudo-header field is given twice"
		}
		*value, *has = f.Value, true
	}
	switch {
	case b.regular:
		b.malformed = "a pseudo-header field comes late"
	case b.what == trailerBlock:
		b.malformed = "there is a pseudo-header field in trailers"
	case f.Name == ":method":
		set(&b.method, &b.hasMethod)
	case f.Name == ":scheme":
		set(&b.scheme, &b.hasScheme)
	case f.Name == ":path":
		set(&b.path, &b.hasPath)
	case f.Name == ":authority":
		set(&b.authority, &b.hasAuthority)
	default:
		b.malformed = "there is an unknown pseudo-header field"
	}
}

// add adds a field to a request.
func (b *block) add(r *http1.Request, f hpack.HeaderField) {
	switch f.Name {
	case "host":
		if b.hasHost && b.host != f.Value {
			b.malformed = "there are two hosts"
		}
		b.host, b.hasHost = f.Value, true
		return // it is the authority
	case "content-length":
		n, ok := number(f.Value)
		if !ok || b.hasLength && b.lengthText != f.Value {
			b.malformed = "Content-Length is not one plain number"
		}
		if b.hasLength {
			return
		}
		b.length, b.lengthText, b.hasLength = n, f.Value, true
	case "expect":
		if strings.EqualFold(f.Value, "100-continue") {
			r.ExpectContinue = true
			return // met when the body is asked for
		}
	case "cookie":
		if f.Value == "" {
			return // nothing to join
		}
		b.crumbs = append(b.crumbs, f.Value)
		if b.cookie > 0 { // they come apart to be compressed (8.2.3)
			return
		}
		b.cookie = len(r.Fields) + 1
	}
	r.Add(f.Name, f.Value)
}

// Why requests are refused that people send, rather than programs: they get an
// answer.
var (
	errPath     = &http1.Error{Status: 400, Reason: "the path does not begin with a slash"}
	errTooLarge = &http1.Error{Status: 431, Reason: "the header is too large"}
)

// check holds a whole header to RFC 9113, 8.3.1.
func (b *block) check() {
	refuse := func(reason string) {
		if b.malformed == "" {
			b.malformed = reason
		}
	}
	if b.method == "" {
		refuse("there is no method")
	}
	switch {
	case b.method == "CONNECT":
		if b.hasScheme || b.hasPath || b.authority == "" {
			refuse("CONNECT has a scheme or path, or no authority")
		}
		b.path = b.authority
	case b.scheme != "http" && b.scheme != "https":
		refuse("the scheme is neither http nor https")
	case b.path == "":
		refuse("there is no path")
	case b.path[0] != '/' && (b.path != "*" || b.method != "OPTIONS"):
		b.stream.Refused = errPath
	}
	switch {
	case b.hasHost && b.authority != "" && !strings.EqualFold(b.host, b.authority):
		refuse("Host is not the authority")
	case b.authority == "":
		b.authority = b.host
	}
	if b.end && b.length > 0 {
		refuse("the body is not as long as Content-Length says")
	}
}

// begin hands a request to its handler.
func (c *Conn) begin() error {
	b := &c.block
	s := b.stream
	if !b.tooLarge {
		if len(b.crumbs) > 1 {
			s.Request.Fields[b.cookie-1].Value = strings.Join(b.crumbs, "; ")
		}
		b.check()
	}
	b.stream = nil
	if b.malformed != "" {
		c.server.drop(s)
		c.logRefused(b.malformed)
		return c.resetStream(b.id, http2.ErrCodeProtocol, b.malformed)
	}
	r := &s.Request
	r.Minor = 1
	r.Method, r.Target, r.Host = b.method, b.path, b.authority
	r.Length = b.length
	if r.Length < 0 && b.end {
		r.Length = 0
	}
	if b.tooLarge {
		s.Refused, r.Fields = errTooLarge, r.Fields[:0]
		if err := c.charge(&c.resets, 1, Resets, http2.FrameHeaders); err != nil {
			c.server.drop(s)
			return err
		}
	}
	if kind, ok := r.First("content-type"); ok {
		s.rpc = maySayNothing(kind)
	}
	c.mu.Lock()
	if c.failed != nil {
		c.mu.Unlock()
		c.server.drop(s)
		return nil
	}
	s.send = c.firstSend
	s.recv = c.server.StreamWindow
	if s.remoteEnd = b.end; b.end {
		s.bodyErr = errEnd
	}
	c.streams[s.id] = s
	c.open++
	c.running++
	c.handlers.Add(1)
	c.idleSince = 0
	c.mu.Unlock()
	c.server.run(s)
	return nil
}

// maySayNothing tells RPCs, whose calls may be silent for as long as they like.
func maySayNothing(contentType string) bool {
	return strings.HasPrefix(contentType, "application/grpc") || strings.HasPrefix(contentType, "application/connect+")
}

// endTrailers ends a body.
func (c *Conn) endTrailers() error {
	b := &c.block
	s := b.stream
	b.stream = nil
	if b.malformed != "" || b.tooLarge {
		reason := b.malformed
		if b.tooLarge {
			reason = "the trailers are too large"
		}
		c.logRefused(reason)
		return c.resetStream(b.id, http2.ErrCodeProtocol, reason)
	}
	c.mu.Lock()
	if c.streams[b.id] != s || s.gone || s.resetByUs {
		c.mu.Unlock()
		return nil
	}
	if s.Request.Length >= 0 && s.got != s.Request.Length {
		c.mu.Unlock()
		return c.resetStream(b.id, http2.ErrCodeProtocol, "the body is not as long as Content-Length says")
	}
	s.trailers = append(s.trailers[:0], b.trailers...)
	s.ended()
	c.mu.Unlock()
	return nil
}

func (c *Conn) logRefused(reason string) {
	c.server.Logger.LogAttrs(context.Background(), slog.LevelDebug, "request refused", slog.String("client", c.Peer.String()), slog.String("reason", reason))
}

// nameBytes are those of tokens (RFC 9110, 5.6.2) without capitals, valueBytes
// those of field values.
var nameBytes, valueBytes = func() (name, value [256]bool) {
	for i := range 256 {
		c := byte(i)
		name[i] = 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c != 0 && strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
		value[i] = c >= ' ' && c != 0x7f || c == '\t'
	}
	return name, value
}()

func valid(s string, set *[256]bool) bool {
	for i := range len(s) {
		if !set[s[i]] {
			return false
		}
	}
	return true
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

func number(s string) (int64, bool) {
	if s == "" || len(s) > 18 { // no overflow
		return 0, false
	}
	var n int64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = 10*n + int64(s[i]-'0')
	}
	return n, true
}
