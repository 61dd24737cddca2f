package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// lenient is a backend that reads what it gets in every way that makes a
// request out of it: it takes LF for a line's end, the last Content-Length, and
// "chunked" wherever it stands in a Transfer-Encoding; lengths go before chunks,
// and "_" is "-".
type lenient struct {
	mu   sync.Mutex
	seen []string // request lines
}

func (l *lenient) serve(listener net.Listener) error {
	for {
		c, err := listener.Accept()
		if err != nil {
			return err
		}
		go l.conn(c)
	}
}

func (l *lenient) conn(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		l.mu.Lock()
		l.seen = append(l.seen, line)
		l.mu.Unlock()
		length, chunked := -1, false
		for {
			field, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if field = strings.ReplaceAll(strings.ToLower(strings.TrimSpace(field)), "_", "-"); field == "" {
				break
			}
			if strings.Contains(field, "content-length") {
				length, _ = strconv.Atoi(regexp.MustCompile(`\d+`).FindString(field))
			}
			chunked = chunked || strings.Contains(field, "transfer-encoding") && strings.Contains(field, "chunked")
		}
		switch {
		case length >= 0:
			_, _ = io.CopyN(io.Discard, r, int64(length))
		case chunked:
			for {
				size, err := r.ReadString('\n')
				n, _ := strconv.ParseInt(strings.TrimSpace(strings.Split(size, ";")[0]), 16, 64)
				if err != nil || n == 0 {
					_, _ = r.ReadString('\n')
					break
				}
				_, _ = io.CopyN(io.Discard, r, n)
				_, _ = r.ReadString('\n')
			}
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

func (l *lenient) requests() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.seen, "\n")
}

// TestDesync sends requests that servers are known to read in different ways
// (CL.TE, TE.CL, TE.TE, CL.0, chunk extensions, request splitting, header
// injection). Whatever the gateway makes of them, no backend may see a request
// that the client did not plainly send.
func TestDesync(t *testing.T) {
	const evil = "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n"
	smuggled := func(header string) string {
		return "POST /x HTTP/1.1\r\nHost: a\r\n" + header + "\r\n"
	}
	chunkedEvil := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(evil), evil)
	tests := map[string]string{
		"CL.TE":                         smuggled(fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n", 5+len(evil))) + "0\r\n\r\n" + evil,
		"TE.CL":                         smuggled("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n") + chunkedEvil,
		"TE.TE, space before the colon": smuggled(fmt.Sprintf("Transfer-Encoding : chunked\r\nContent-Length: %d\r\n", 5+len(evil))) + "0\r\n\r\n" + evil,
		"TE.TE, tab":                    smuggled(fmt.Sprintf("Transfer-Encoding:\tchunked\r\nContent-Length: %d\r\n", 5+len(evil))) + "0\r\n\r\n" + evil,
		"TE.TE, vertical tab":           smuggled(fmt.Sprintf("Transfer-Encoding: \x0bchunked\r\nContent-Length: %d\r\n", 5+len(evil))) + "0\r\n\r\n" + evil,
		"TE.TE, xchunked":               smuggled(fmt.Sprintf("Transfer-Encoding: xchunked\r\nContent-Length: %d\r\n", 5+len(evil))) + "0\r\n\r\n" + evil,
		"TE.TE, twice":                  smuggled(fmt.Sprintf("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\nContent-Length: %d\r\n", 5+len(evil))) + "0\r\n\r\n" + evil,
		"TE.TE, list":                   smuggled("Transfer-Encoding: identity, chunked\r\n") + "0\r\n\r\n" + evil,
		"TE.TE, quoted":                 smuggled(fmt.Sprintf("Transfer-Encoding: \"chunked\"\r\nContent-Length: %d\r\n", 5+len(evil))) + "0\r\n\r\n" + evil,
		"TE.TE, LF in the value":        smuggled(fmt.Sprintf("X: y\nTransfer-Encoding: chunked\r\nContent-Length: %d\r\n", 5+len(evil))) + "0\r\n\r\n" + evil,
		"TE.TE, folded":                 smuggled(fmt.Sprintf("Transfer-Encoding:\r\n chunked\r\nContent-Length: %d\r\n", 5+len(evil))) + "0\r\n\r\n" + evil,
		"TE.TE, underscore":             smuggled("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n") + "0\r\n\r\n",
		"CL.0, underscore":              smuggled("Content_Length: 0\r\nTransfer-Encoding: chunked\r\n") + chunkedEvil,
		"CL.CL":                         smuggled(fmt.Sprintf("Content-Length: 0\r\nContent-Length: %d\r\n", len(evil))) + evil,
		"CL.CL, list":                   smuggled(fmt.Sprintf("Content-Length: 0, %d\r\n", len(evil))) + evil,
		"CL.0 by sign":                  smuggled("Content-Length: -0\r\n") + evil,
		"CL by hex":                     smuggled("Content-Length: 0x0\r\n") + evil,
		"CL hidden by Connection":       smuggled(fmt.Sprintf("Connection: Content-Length\r\nContent-Length: %d\r\n", len(evil))) + evil,
		"TE hidden by Connection":       smuggled("Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n") + chunkedEvil,
		"TE in HTTP/1.0":                "POST /x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n" + chunkedEvil,
		"chunk size by sign":            smuggled("Transfer-Encoding: chunked\r\n") + "+0\r\n\r\n" + evil,
		"chunk size with space":         smuggled("Transfer-Encoding: chunked\r\n") + "0 \r\n\r\n" + evil,
		"chunk size overflows":          smuggled("Transfer-Encoding: chunked\r\n") + "10000000000000000\r\n\r\n" + evil,
		"chunk extension with LF":       smuggled("Transfer-Encoding: chunked\r\n") + "2;\nxx\r\n" + fmt.Sprintf("%x", len(evil)) + "\r\n0\r\n\r\n" + evil,
		"chunk ends in LF":              smuggled("Transfer-Encoding: chunked\r\n") + "1\nx\n0\n\n" + evil,
		"bare CR":                       smuggled("X: y\rTransfer-Encoding: chunked\r\nContent-Length: 0\r\n") + evil,
		"request splitting":             "GET /x\r\nHost: a\r\n\r\nGET /evil HTTP/1.1\r\nHost: a\r\n\r\n",
		"splitting by escapes":          "GET /x%20HTTP/1.1%0d%0aHost:%20a%0d%0a%0d%0aGET%20/evil HTTP/1.1\r\nHost: a\r\n\r\n",
		"NUL":                           smuggled("X\x00: y\r\nContent-Length: 0\r\n") + evil,
		"upgrade to h2c":                "GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		"Expect with a body":            smuggled(fmt.Sprintf("Expect: 100-continue\r\nContent-Length: %d\r\n", len(evil))) + evil,
		"GET with a body":               fmt.Sprintf("GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(evil), evil),
		"HEAD with a body":              fmt.Sprintf("HEAD /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(evil), evil),
		"trailers that frame":           smuggled("Transfer-Encoding: chunked\r\n") + "0\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n",
	}
	l := &lenient{}
	serve(t, "10.99.61.1:80", l.serve)
	var served sync.Map
	backendServer(t, "10.99.61.2:80", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		served.Store(r.Method+" "+r.RequestURI, true)
	})
	w := newWorld(t, nil)
	w.service("lenient", "", "10.99.61.1:80")
	w.service("strict", "", "10.99.61.2:80")
	for _, name := range []string{"lenient", "strict"} {
		w.route(ingress("main", rule("", "/", name)))
		for what, in := range tests {
			t.Run(name+"/"+what, func(t *testing.T) {
				c, err := net.Dial("tcp", w.g.HTTPAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				_, _ = io.WriteString(c, in)
				_ = c.(*net.TCPConn).CloseWrite()
				answer, _ := io.ReadAll(c)
				// "GET /evil" pipelined behind a whole request is no smuggling;
				// these cases all hide it.
				if strings.Contains(l.requests(), "/evil") && !strings.Contains(l.requests(), "%20/evil") {
					t.Fatalf("the lenient backend saw\n%s\nanswer %q", l.requests(), answer)
				}
				if _, ok := served.Load("GET /evil"); ok {
					t.Fatalf("the strict backend served it; answer %q", answer)
				}
				if bytes.Count(answer, []byte("HTTP/1.1 ")) > 1 && !bytes.Contains(answer, []byte("HTTP/1.1 100")) {
					t.Errorf("more than one answer: %q", answer)
				}
			})
		}
	}
}
