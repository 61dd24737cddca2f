package http1

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unsafe"
)

// kind tells header fields that the engine has to know apart.
type kind uint8

const (
	plainField kind = iota
	hostField
	lengthField
	encodingField
	connectionField
	hopField // ends at this hop (RFC 9110, 7.6.1)
	teField
	trailerField
	upgradeField
	expectField
	dateField
)

// Field is one line of a header. The name is spelled as it came.
type Field struct {
	Name, Value string

	kind kind
}

// Error says why a message was refused.
type Error struct {
	// Status is what a client is told: 400, 414, 431, 501 or 505.
	Status int
	Reason string
}

// Error implements error.
func (e *Error) Error() string { return e.Reason }

func refuse(reason string) *Error { return &Error{400, reason} }

// Limits of a message's head.
const (
	// MaxHead is the size of a request's whole head.
	MaxHead = 64 << 10
	// MaxAnswerHead leaves room for large authentication headers.
	MaxAnswerHead = 256 << 10
	// maxFields bounds the work per request; nginx has no such limit, but no
	// client in use comes near.
	maxFields = 512
	// MaxTarget is the length of a request's target, by whatever protocol.
	MaxTarget = 32 << 10
)

// Why heads are refused. They are values so that refusing costs nothing.
var (
	errBareLF      = refuse("a line of the header ends without CR")
	errControl     = refuse("the header has a control character")
	errRequestLine = refuse("the request line is malformed")
	errTLS         = refuse("the client speaks TLS to the HTTP port")
	errMethod      = refuse("the method is not a token")
	errTarget      = refuse("the request target has a character that must be escaped")
	errTargetLong  = &Error{414, "the request target is too long"}
	errVersion     = &Error{505, "only HTTP/1.0 and HTTP/1.1 are spoken here"}
	errFold        = refuse("a header line begins with space")
	errName        = refuse("a header name is malformed")
	errTooLarge    = &Error{431, "the header is too large"}
	errLength      = refuse("Content-Length is not one plain number")
	errEncoding    = &Error{501, "the only Transfer-Encoding known here is chunked"}
	errBoth        = refuse("both Content-Length and Transfer-Encoding are given")
	errOldEncoding = refuse("HTTP/1.0 has no Transfer-Encoding")
	errNoHost      = refuse("the Host header is missing")
	errTwoHosts    = refuse("there is more than one Host header")
	errStatusLine  = refuse("the status line is malformed")
)

// Byte classes: tokens (RFC 9110, 5.6.2), bytes of a request target, and of a
// field value (visible, space, tab, and obs-text).
const (
	tokenByte = 1 << iota
	targetByte
	valueByte
)

var class = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0 && c != 0:
			t[c] |= tokenByte
		}
		if c > ' ' && c != 0x7f && c != '#' {
			t[c] |= targetByte
		}
		if c >= ' ' && c != 0x7f || c == '\t' {
			t[c] |= valueByte
		}
	}
	return t
}()

// plainText reports whether there are only bytes in b that a field value may
// have, and no tab: eight at a time.
func plainText(b []byte) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for ; len(b) >= 8; b = b[8:] {
		x := binary.LittleEndian.Uint64(b)
		del := x ^ ones*0x7f
		if ((x-ones*' ')&^x|(del-ones)&^del)&highs != 0 { // one below space, or DEL
			return false
		}
	}
	for _, c := range b {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

func all(b []byte, want uint8) bool {
	for _, c := range b {
		if class[c]&want == 0 {
			return false
		}
	}
	return true
}

// Text is a view of b: it is only as good as b is left alone.
func Text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// mayBegin refuses what no request begins with: the client may wait for an answer
// to it and send no more, as one does that speaks TLS.
func mayBegin(first byte) error {
	switch {
	case class[first]&tokenByte != 0:
		return nil
	case first == 0x16: // a record of a handshake
		return errTLS
	case first == '\n':
		return errBareLF
	}
	return errRequestLine
}

// headEnd returns the length of the head at the start of b, with its empty
// line, 0 if it has not come yet. Seen is how much of b was looked at before.
func headEnd(b []byte, seen int) (int, error) {
	if i := bytes.Index(b[max(0, seen-3):], []byte("\r\n\r\n")); i >= 0 {
		return max(0, seen-3) + i + 4, nil
	}
	// A client that ends lines with LF alone would wait for its answer until
	// the time is up.
	for i := max(0, seen-1); ; i++ {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return 0, nil
		}
		if i += n; i == 0 || b[i-1] != '\r' {
			return 0, errBareLF
		}
	}
}

// Request is the head of a request.
type Request struct {
	Method, Target string
	// Minor is the minor version: 0 or 1.
	Minor int
	// Host is the value of the Host header.
	Host   string
	Fields []Field
	// Length is the length of the body; -1 if it is chunked.
	Length int64
	// ExpectContinue tells that the client waits for 100 before it sends its body.
	ExpectContinue bool
	// Upgrade is the value of the Upgrade header where Connection asks for it.
	Upgrade string

	close  bool     // the client will not send another request
	listed []string // further names in Connection, whose fields end here
}

// First returns the first value of a header, whose name is given in any case,
// and whether there is one.
func (r *Request) First(name string) (string, bool) { return first(r.Fields, name) }

func first(fields []Field, name string) (string, bool) {
	for i := range fields {
		if f := &fields[i]; len(f.Name) == len(name) && strings.EqualFold(f.Name, name) {
			return f.Value, true
		}
	}
	return "", false
}

// Values returns all values of a header; nil for none.
func (r *Request) Values(name string) []string {
	var list []string
	for i := range r.Fields {
		if f := &r.Fields[i]; len(f.Name) == len(name) && strings.EqualFold(f.Name, name) {
			list = append(list, f.Value)
		}
	}
	return list
}

// parseRequest reads a whole head, which ends with an empty line.
func (r *Request) parse(b []byte) error {
	*r = Request{Fields: r.Fields[:0], listed: r.listed[:0]}
	line, rest := cutLine(b)
	if err := r.requestLine(line); err != nil {
		return err
	}
	f := framing{length: -1}
	hosts := 0
	for {
		if line, rest = cutLine(rest); len(line) == 0 {
			break
		}
		field, err := parseField(line, false)
		if err != nil {
			return err
		}
		switch field.kind {
		case hostField:
			hosts++
			r.Host = field.Value
		case connectionField:
			r.connection(field.Value)
		case expectField:
			r.ExpectContinue = r.Minor == 1 && strings.EqualFold(field.Value, "100-continue")
		case lengthField, encodingField:
			if err := f.add(&field, false); err != nil {
				return err
			}
		}
		if len(r.Fields) == maxFields {
			return errTooLarge
		}
		r.Fields = append(r.Fields, field)
	}
	switch {
	case hosts > 1:
		return errTwoHosts
	case hosts == 0 && r.Minor == 1:
		return errNoHost
	case f.chunked && r.Minor == 0:
		return errOldEncoding
	case f.chunked && f.length >= 0:
		return errBoth
	case f.chunked:
		r.Length = -1
	default:
		r.Length = max(f.length, 0)
	}
	switch {
	case r.Upgrade == "":
	case r.Minor == 0: // to be ignored (RFC 9110, 7.8)
		r.Upgrade = ""
	default:
		r.Upgrade, _ = r.First("Upgrade")
	}
	return nil
}

func cutLine(b []byte) (line, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 {
		return nil, nil
	}
	// A line that ends with LF alone keeps it, and is refused for it.
	if b[i-1] != '\r' {
		return b[:i+1], b[i+1:]
	}
	return b[:i-1], b[i+1:]
}

func (r *Request) requestLine(line []byte) error {
	if len(line) > 0 && line[len(line)-1] == '\n' {
		return errBareLF
	}
	i := bytes.IndexByte(line, ' ')
	j := bytes.LastIndexByte(line, ' ')
	if i <= 0 || j <= i+1 {
		return errRequestLine
	}
	method, target, version := line[:i], line[i+1:j], line[j+1:]
	if !all(method, tokenByte) {
		return errMethod
	}
	if len(target) > MaxTarget {
		return errTargetLong
	}
	if !all(target, targetByte) {
		return errTarget
	}
	if len(version) != 8 || string(version[:5]) != "HTTP/" {
		return errRequestLine
	}
	if string(version[5:7]) != "1." || version[7] > '1' || version[7] < '0' {
		return errVersion
	}
	r.Method, r.Target, r.Minor = Text(method), Text(target), int(version[7]-'0')
	r.close = r.Minor == 0
	return nil
}

// connection reads the options of a Connection header.
func (r *Request) connection(value string) {
	for value != "" {
		var option string
		option, value, _ = strings.Cut(value, ",")
		switch option = trim(option); {
		case option == "":
		case strings.EqualFold(option, "close"):
			r.close = true
		case strings.EqualFold(option, "keep-alive"):
			if r.Minor == 0 {
				r.close = false
			}
		case strings.EqualFold(option, "upgrade"):
			r.Upgrade = "?" // its header may come later
		default:
			r.listed = append(r.listed, option)
		}
	}
}

// ends reports whether a field ends at this hop: the fields that always do,
// and those that Connection names.
func (r *Request) ends(f *Field) bool { return endsHere(f, r.listed) }

func endsHere(f *Field, listed []string) bool {
	switch f.kind {
	case connectionField, hopField, encodingField, lengthField, teField, upgradeField:
		return true
	case hostField:
		return false
	}
	for _, name := range listed {
		if len(name) == len(f.Name) && strings.EqualFold(name, f.Name) {
			return true
		}
	}
	return false
}

// parseField reads a line of a header. Answers may have space before the
// colon, which a proxy removes (RFC 9112, 5.1).
func parseField(line []byte, answer bool) (Field, error) {
	if line[0] == ' ' || line[0] == '\t' {
		return Field{}, errFold
	}
	i := bytes.IndexByte(line, ':')
	if i <= 0 {
		return Field{}, errName
	}
	name, value := line[:i], line[i+1:]
	for answer && len(name) > 0 && (name[len(name)-1] == ' ' || name[len(name)-1] == '\t') {
		name = name[:len(name)-1]
	}
	if !all(name, tokenByte) || len(name) == 0 {
		return Field{}, errName
	}
	if !plainText(value) && !all(value, valueByte) {
		if line[len(line)-1] == '\n' {
			return Field{}, errBareLF
		}
		return Field{}, errControl
	}
	f := Field{Name: Text(name), Value: trim(Text(value))}
	f.kind = kindOf(f.Name)
	return f, nil
}

func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// kindOf looks at the length first: most names are told apart by it.
func kindOf(name string) kind {
	is := func(want string, k kind) kind {
		if strings.EqualFold(name, want) {
			return k
		}
		return plainField
	}
	switch len(name) {
	case 2:
		return is("Te", teField)
	case 4:
		switch name[0] | 0x20 {
		case 'h':
			return is("Host", hostField)
		case 'd':
			return is("Date", dateField)
		}
	case 6:
		return is("Expect", expectField)
	case 7:
		if name[0]|0x20 == 'u' {
			return is("Upgrade", upgradeField)
		}
		return is("Trailer", trailerField)
	case 10:
		if name[0]|0x20 == 'k' {
			return is("Keep-Alive", hopField)
		}
		return is("Connection", connectionField)
	case 14:
		if name[0]|0x20 == 'h' {
			return is("Http2-Settings", hopField)
		}
		return is("Content-Length", lengthField)
	case 16:
		return is("Proxy-Connection", hopField)
	case 17:
		return is("Transfer-Encoding", encodingField)
	case 18:
		return is("Proxy-Authenticate", hopField)
	case 19:
		return is("Proxy-Authorization", hopField)
	}
	return plainField
}

// framing is what a header says about the length of the body.
type framing struct {
	length  int64 // -1 if not given
	chunked bool
}

// add takes in a Content-Length or Transfer-Encoding. Requests give each once
// at most; backends may repeat the same length (RFC 9110, 8.6).
func (f *framing) add(field *Field, answer bool) error {
	if field.kind == encodingField {
		if f.chunked {
			return errEncoding
		}
		if !strings.EqualFold(field.Value, "chunked") {
			return errEncoding
		}
		f.chunked = true
		return nil
	}
	n, ok := parseLength(field.Value)
	if !ok || f.length >= 0 && (!answer || f.length != n) {
		return errLength
	}
	f.length = n
	return nil
}

func parseLength(s string) (int64, bool) {
	if s == "" || len(s) > 18 { // no overflow
		return 0, false
	}
	var n int64
	for i := range len(s) {
		c := s[i] - '0'
		if c > 9 {
			return 0, false
		}
		n = 10*n + int64(c)
	}
	return n, true
}

// Response is the head of a backend's answer.
type Response struct {
	Status int
	// Reason is the text after the status.
	Reason string
	Minor  int
	Fields []Field

	framing
	close  bool
	dated  bool
	listed []string
}

// Dated reports whether the backend says when it answered. If not, whoever passes
// the answer on does (RFC 9110, 6.6.1).
func (r *Response) Dated() bool { return r.dated }

// First returns the first value of a header, and whether there is one.
func (r *Response) First(name string) (string, bool) { return first(r.Fields, name) }

func (r *Response) parse(b []byte) error {
	*r = Response{Fields: r.Fields[:0], listed: r.listed[:0], framing: framing{length: -1}}
	line, rest := cutLine(b)
	if err := r.statusLine(line); err != nil {
		return err
	}
	for {
		if line, rest = cutLine(rest); len(line) == 0 {
			break
		}
		field, err := parseField(line, true)
		if err != nil {
			return err
		}
		switch field.kind {
		case connectionField:
			r.connection(field.Value)
		case dateField:
			r.dated = true
		case lengthField, encodingField:
			known := r.length >= 0
			if err := r.add(&field, true); err != nil {
				return err
			}
			if known && field.kind == lengthField {
				continue // the same again, which is said once
			}
		}
		if len(r.Fields) == 4*maxFields {
			return errTooLarge
		}
		r.Fields = append(r.Fields, field)
	}
	switch {
	case r.chunked && r.length >= 0:
		return errBoth
	case r.chunked && r.Minor == 0:
		return errOldEncoding
	}
	return nil
}

func (r *Response) statusLine(line []byte) error {
	// "HTTP/1.1 200 OK"; the reason may be empty, and with it some leave its space out.
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[7] < '0' || line[7] > '1' || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return errStatusLine
	}
	status, ok := parseLength(Text(line[9:12]))
	if !ok || status < 100 {
		return errStatusLine
	}
	if len(line) > 13 {
		if !all(line[13:], valueByte) {
			return errStatusLine
		}
		r.Reason = Text(line[13:])
	}
	r.Status, r.Minor = int(status), int(line[7]-'0')
	r.close = r.Minor == 0
	return nil
}

func (r *Response) connection(value string) {
	for value != "" {
		var option string
		option, value, _ = strings.Cut(value, ",")
		switch option = trim(option); {
		case option == "":
		case strings.EqualFold(option, "close"):
			r.close = true
		case strings.EqualFold(option, "keep-alive"):
			if r.Minor == 0 {
				r.close = false
			}
		case strings.EqualFold(option, "upgrade"):
		default:
			r.listed = append(r.listed, option)
		}
	}
}

// String is for logs.
func (r *Response) String() string { return fmt.Sprintf("%d %s", r.Status, r.Reason) }
