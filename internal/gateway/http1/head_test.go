package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// parseHead parses a request's head as a connection does.
func parseHead(in string) (*Request, error) {
	b := []byte(in)
	end, err := headEnd(b, 0)
	if err != nil {
		return nil, err
	}
	if end == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	r := &Request{}
	return r, r.parse(b[:end])
}

const get = "GET / HTTP/1.1\r\nHost: a\r\n"

func TestParseRequest(t *testing.T) {
	long := strings.Repeat("x", MaxTarget+1)
	tests := []struct {
		name, in string
		status   int // 0: it is fine
	}{
		{"plain", get + "\r\n", 0},
		{"value with spaces, tabs and obs-text", get + "X:  a\tb \xe9 \t\r\n\r\n", 0},
		{"empty value", get + "X:\r\n\r\n", 0},
		{"HTTP/1.0 without Host", "GET / HTTP/1.0\r\n\r\n", 0},
		{"absolute form", "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"length", get + "Content-Length: 007\r\n\r\n", 0},
		{"chunked", get + "Transfer-Encoding: Chunked\r\n\r\n", 0},
		{"unusual method", "M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n", 0},

		{"no Host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"two Hosts", get + "host: a\r\n\r\n", 400},
		{"CL and TE", get + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		{"TE and CL", get + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400},
		{"two lengths", get + "Content-Length: 3\r\nContent-Length: 4\r\n\r\n", 400},
		{"the same length twice", get + "Content-Length: 3\r\nContent-Length: 3\r\n\r\n", 400},
		{"list of lengths", get + "Content-Length: 3, 3\r\n\r\n", 400},
		{"signed length", get + "Content-Length: +3\r\n\r\n", 400},
		{"negative length", get + "Content-Length: -3\r\n\r\n", 400},
		{"hexadecimal length", get + "Content-Length: 0x3\r\n\r\n", 400},
		{"empty length", get + "Content-Length: \r\n\r\n", 400},
		{"length that overflows", get + "Content-Length: 99999999999999999999\r\n\r\n", 400},
		{"space in the length", get + "Content-Length: 3 3\r\n\r\n", 400},
		{"TE twice", get + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501},
		{"TE identity", get + "Transfer-Encoding: identity\r\n\r\n", 501},
		{"TE list", get + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501},
		{"TE chunked is not last", get + "Transfer-Encoding: chunked, identity\r\n\r\n", 501},
		{"TE with a parameter", get + "Transfer-Encoding: chunked;q=1\r\n\r\n", 501},
		{"TE in quotes", get + "Transfer-Encoding: \"chunked\"\r\n\r\n", 501},
		{"TE empty", get + "Transfer-Encoding:\r\n\r\n", 501},
		{"TE xchunked", get + "Transfer-Encoding: xchunked\r\n\r\n", 501},
		{"TE with a vertical tab", get + "Transfer-Encoding: \x0bchunked\r\n\r\n", 400},
		{"TE in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		{"space before the colon", get + "Transfer-Encoding : chunked\r\n\r\n", 400},
		{"tab before the colon", get + "Content-Length\t: 3\r\n\r\n", 400},
		{"space in the name", get + "Content Length: 3\r\n\r\n", 400},
		{"obs-fold", get + "X: a\r\n b\r\n\r\n", 400},
		{"obs-fold of TE", get + "Transfer-Encoding:\r\n chunked\r\n\r\n", 501},
		{"first line folded", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400},
		{"no colon", get + "Nothing\r\n\r\n", 400},
		{"no name", get + ": a\r\n\r\n", 400},
		{"NUL in a value", get + "X: a\x00b\r\n\r\n", 400},
		{"NUL in a name", get + "X\x00: a\r\n\r\n", 400},
		{"bare CR in a value", get + "X: a\rContent-Length: 3\r\n\r\n", 400},
		{"CR before the name", get + "\rX: a\r\n\r\n", 400},
		{"DEL in a value", get + "X: a\x7f\r\n\r\n", 400},
		{"bare LF ends a line", get + "X: a\nY: b\r\n\r\n", 400},
		{"bare LF everywhere", "GET / HTTP/1.1\nHost: a\n\n", 400},
		{"obs-text in a name", get + "X\xe9: a\r\n\r\n", 400},

		{"HTTP/0.9", "GET /\r\n\r\n", 400},
		{"HTTP/2 as text", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505},
		{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505},
		{"http in lower case", "GET / http/1.1\r\nHost: a\r\n\r\n", 400},
		{"no version number", "GET / HTTP/1\r\nHost: a\r\n\r\n", 400},
		{"two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"tab for a space", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"space behind the version", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400},
		{"fragment", "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"NUL in the target", "GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"method with a delimiter", "GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"no method", " / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"long target", "GET /" + long + " HTTP/1.1\r\nHost: a\r\n\r\n", 414},
		{"many fields", get + strings.Repeat("X: a\r\n", maxFields) + "\r\n", 431},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseHead(tt.in)
			var e *Error
			if errors.As(err, &e) {
				if e.Status != tt.status {
					t.Errorf("got %d %v, want %d", e.Status, err, tt.status)
				}
			} else if err != nil || tt.status != 0 {
				t.Errorf("got %v, want %d", err, tt.status)
			}
		})
	}
}

func TestRequestIsUnderstood(t *testing.T) {
	if r, err := parseHead("GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"); err != nil || r.Upgrade != "" {
		t.Errorf("HTTP/1.0 upgrades: %v", err)
	}
	r, err := parseHead("POST /x?y HTTP/1.1\r\nhOST: A:1\r\nConnection: close, X-Hop, upgrade\r\nUpgrade: websocket\r\nX-Hop: 1\r\nExpect: 100-Continue\r\nContent-Length: 12\r\nCookie: a=b\r\ncookie: c\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	if r.Method != "POST" || r.Target != "/x?y" || r.Host != "A:1" || r.Length != 12 || !r.ExpectContinue || r.Upgrade != "websocket" || !r.close || r.Minor != 1 {
		t.Errorf("got %+v", r)
	}
	if got := r.Values("Cookie"); len(got) != 2 || got[1] != "c" {
		t.Errorf("cookies %q", got)
	}
	var passed []string
	for i := range r.Fields {
		if f := &r.Fields[i]; !r.ends(f) {
			passed = append(passed, f.Name)
		}
	}
	if got := strings.Join(passed, " "); got != "hOST Expect Cookie cookie" {
		t.Errorf("passed on: %s", got)
	}
	old, err := parseHead("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
	if err != nil || old.close {
		t.Errorf("an old client that wants to go on: %+v, %v", old, err)
	}
}

// TestHeadComesInPieces: wherever a head is cut, it is found at its end, and
// lines that end in LF alone are refused at once.
func TestHeadComesInPieces(t *testing.T) {
	in := []byte(get + "X: y\r\n\r\nrest")
	want := len(in) - len("rest")
	for step := 1; step < 9; step++ {
		seen := 0
		for n := step; ; n += step {
			n = min(n, len(in))
			end, err := headEnd(in[:n], seen)
			if err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			if end > 0 {
				if end != want || n < want {
					t.Errorf("step %d: end %d after %d bytes", step, end, n)
				}
				break
			}
			seen = n
		}
	}
	if _, err := headEnd([]byte("GET / HTTP/1.1\n"), 0); err != errBareLF {
		t.Errorf("got %v", err)
	}
	if _, err := headEnd([]byte("GET / HTTP/1.1\r\nHost: a\n"), 17); err != errBareLF {
		t.Errorf("got %v", err)
	}
}

func parseAnswer(in string) (*Response, error) {
	b := []byte(in)
	end, err := headEnd(b, 0)
	if err != nil || end == 0 {
		return nil, errors.Join(err, io.ErrUnexpectedEOF)
	}
	r := &Response{}
	return r, r.parse(b[:end])
}

func TestParseResponse(t *testing.T) {
	tests := []struct {
		name, in string
		ok       bool
	}{
		{"plain", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true},
		{"no reason", "HTTP/1.1 204 \r\n\r\n", true},
		{"no reason and no space", "HTTP/1.1 204\r\n\r\n", true},
		{"own status", "HTTP/1.0 799 Sure thing\r\n\r\n", true},
		{"space before the colon is taken away", "HTTP/1.1 200 OK\r\nX : y\r\n\r\n", true},
		{"the same length twice", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", true},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", false},
		{"CL and TE", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", false},
		{"TE in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false},
		{"other coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", false},
		{"garbage", "garbage\r\n\r\n", false},
		{"no status", "HTTP/1.1 OK\r\n\r\n", false},
		{"status of two digits", "HTTP/1.1 20 OK\r\n\r\n", false},
		{"status of four digits", "HTTP/1.1 2000 OK\r\n\r\n", false},
		{"HTTP/2", "HTTP/2.0 200 OK\r\n\r\n", false},
		{"fold", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", false},
		{"control character in the reason", "HTTP/1.1 200 O\x01K\r\n\r\n", false},
		{"NUL", "HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n", false},
	}
	for _, tt := range tests {
		if r, err := parseAnswer(tt.in); (err == nil) != tt.ok {
			t.Errorf("%s: %+v, %v", tt.name, r, err)
		} else if tt.ok && tt.name == "space before the colon is taken away" && r.Fields[0].Name != "X" {
			t.Errorf("name %q", r.Fields[0].Name)
		}
	}
}

// decodeAll decodes a chunked body that comes in pieces of n bytes.
func decodeAll(in string, n int) (body, trailers string, rest int, err error) {
	s := &source{conn: io.MultiReader(pieces(in, n)...)}
	defer s.release()
	var c chunked
	var out []byte
	for {
		data, err := c.next(s, 1<<20)
		out = append(out, data...)
		if err == io.EOF {
			left, _ := io.ReadAll(s.conn)
			return string(out), string(c.trailers), len(s.buf) + len(left), nil
		}
		if err != nil {
			return string(out), "", 0, err
		}
	}
}

func pieces(in string, n int) []io.Reader {
	var list []io.Reader
	for len(in) > 0 {
		k := min(n, len(in))
		list = append(list, strings.NewReader(in[:k]))
		in = in[k:]
	}
	return list
}

func TestChunked(t *testing.T) {
	tests := []struct {
		name, in, body, trailers string
		ok                       bool
	}{
		{"plain", "3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", "abc0123456789", "", true},
		{"empty", "0\r\n\r\n", "", "", true},
		{"extension", "3;a=b;c=\"d\"\r\nabc\r\n0;x\r\n\r\n", "abc", "", true},
		{"space before the extension", "3 ;a\r\nabc\r\n0\r\n\r\n", "abc", "", true},
		{"trailers", "0\r\nX: y\r\nZ: 1\r\n\r\n", "", "X: y\r\nZ: 1\r\n\r\n", true},
		{"leading zeros", "0003\r\nabc\r\n000\r\n\r\n", "abc", "", true},
		{"no size", "\r\nabc\r\n0\r\n\r\n", "", "", false},
		{"sign", "+3\r\nabc\r\n0\r\n\r\n", "", "", false},
		{"0x", "0x3\r\nabc\r\n0\r\n\r\n", "", "", false},
		{"space in front", " 3\r\nabc\r\n0\r\n\r\n", "", "", false},
		{"space behind", "3 \r\nabc\r\n0\r\n\r\n", "", "", false},
		{"underscore", "1_0\r\nabc\r\n0\r\n\r\n", "", "", false},
		{"overflow", "10000000000000003\r\nabc\r\n0\r\n\r\n", "", "", false},
		{"size ends in LF", "3\nabc\r\n0\r\n\r\n", "", "", false},
		{"size ends in CR", "3\rabc\r\n0\r\n\r\n", "", "", false},
		{"data is longer", "3\r\nabcd\r\n0\r\n\r\n", "", "", false},
		{"data ends in LF", "3\r\nabc\n0\r\n\r\n", "", "", false},
		{"LF in an extension", "3;a\nabc\r\n0\r\n\r\n", "", "", false},
		{"control character in an extension", "3;\x01\r\nabc\r\n0\r\n\r\n", "", "", false},
		{"long extension", "3;" + strings.Repeat("a", 300) + "\r\nabc\r\n0\r\n\r\n", "", "", false},
		{"trailer ends in LF", "0\r\nX: y\n\r\n", "", "", false},
		{"trailer folds", "0\r\nX: y\r\n z\r\n\r\n", "", "", false},
		{"end ends in LF", "0\r\n\n", "", "", false},
		{"cut off", "3\r\nab", "", "", false},
	}
	for _, tt := range tests {
		for n := 1; n <= 40; n += 3 {
			body, trailers, rest, err := decodeAll(tt.in+"REST", n)
			if tt.name == "cut off" {
				_, _, _, err = decodeAll(tt.in, n)
			}
			if (err == nil) != tt.ok || tt.ok && (body != tt.body || trailers != tt.trailers || rest != 4) {
				t.Errorf("%s in pieces of %d: %q, %q, %d left, %v", tt.name, n, body, trailers, rest, err)
			}
		}
	}
}

func TestTrailersThatMayNotPass(t *testing.T) {
	in := "X-Sum: 1\r\nContent-Length: 3\r\nHost: b\r\nTransfer-Encoding: chunked\r\nAuthorization: x\r\nX-Forwarded-For: 1.2.3.4\r\nConnection: close\r\nCookie: a\r\n\r\n"
	if got := string(appendTrailers(nil, []byte(in), TrailerGoes)); got != "X-Sum: 1\r\n" {
		t.Errorf("got %q", got)
	}
}

// FuzzRequest holds the parser against net/http's: what it accepts must mean
// the same there. It may refuse more.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		get + "\r\n", get + "Content-Length: 3\r\n\r\nabc", get + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
		"POST http://b/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		get + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", get + "X: a\r\n b\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		end, err := headEnd(in, 0)
		if err != nil || end == 0 {
			return
		}
		var r Request
		if r.parse(bytes.Clone(in[:end])) != nil {
			return
		}
		std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			// net/http parses targets as URLs and Hosts as such; the gateway does that later, by its own rules.
			if s := err.Error(); strings.Contains(s, "parse \"") || strings.Contains(s, "invalid URI") || strings.Contains(s, "malformed Host") || strings.Contains(s, "invalid method") {
				return
			}
			t.Fatalf("accepted %q, which net/http refuses: %v", in[:end], err)
		}
		if std.Method != r.Method || std.RequestURI != r.Target || std.ProtoMinor != r.Minor || std.ContentLength != r.Length {
			t.Fatalf("%q: got %+v, net/http %+v", in[:end], r, std)
		}
		n := 0
		for _, list := range std.Header {
			n += len(list)
		}
		for i := range r.Fields {
			fld := &r.Fields[i]
			if fld.kind == hostField || fld.kind == lengthField || fld.kind == encodingField || fld.kind == trailerField {
				if fld.kind != lengthField {
					n++
				}
				continue
			}
			if fld.kind == plainField && !contains(std.Header.Values(fld.Name), fld.Value) {
				t.Fatalf("%q: %s: %q, net/http has %q", in[:end], fld.Name, fld.Value, std.Header.Values(fld.Name))
			}
		}
		body := in[end:]
		want, stdErr := io.ReadAll(std.Body)
		got, rest, err := readBody(&r, body)
		if err == nil && (stdErr != nil || !bytes.Equal(got, want)) {
			t.Fatalf("%q: body %q with %d left, net/http %q, %v", in, got, rest, want, stdErr)
		}
	})
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if strings.Trim(v, " \t") == s {
			return true
		}
	}
	return false
}

func readBody(r *Request, in []byte) (body []byte, rest int, err error) {
	if r.Length >= 0 {
		if int64(len(in)) < r.Length {
			return nil, 0, io.ErrUnexpectedEOF
		}
		return in[:r.Length], len(in) - int(r.Length), nil
	}
	b, _, rest, err := decodeAll(string(in), 1<<20)
	return []byte(b), rest, err
}

// FuzzResponse: an answer that is passed on looks the same to net/http.
func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.0 302\r\nX : y\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		end, err := headEnd(in, 0)
		if err != nil || end == 0 {
			return
		}
		var r Response
		if r.parse(bytes.Clone(in[:end])) != nil {
			return
		}
		c := &Conn{server: &Server{}, Request: Request{Method: "GET", Minor: 1}}
		head := c.relayHead(&r, nil, asIs)
		std, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), nil)
		if err != nil {
			t.Fatalf("%q became %q, which net/http refuses: %v", in[:end], head, err)
		}
		if std.StatusCode != r.Status || r.length >= 0 && !r.chunked && r.Status >= 200 && r.Status != 204 && r.Status != 304 && std.ContentLength != r.length {
			t.Fatalf("%q became %q: %+v", in[:end], head, std)
		}
	})
}

// TestPlainText looks for every byte at every place of values of some lengths.
func TestPlainText(t *testing.T) {
	for n := range 26 {
		for at := range n {
			for c := range 256 {
				b := bytes.Repeat([]byte{'x'}, n)
				b[at] = byte(c)
				if want := c != '\t' && class[c]&valueByte != 0; plainText(b) != want {
					t.Fatalf("%q: %t", b, !want)
				}
			}
		}
	}
	if !plainText([]byte("\u00e9\xff ~ and 0x20 beside 0x80: \x80 ")) {
		t.Error("a byte beyond ASCII, or a space, is refused")
	}
}
