package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// toBackend carries every request to a new connection to addr.
type toBackend struct {
	addr  string
	extra []Field
}

func (h *toBackend) ServeHTTP1(c *Conn) {
	conn, err := net.Dial("tcp", h.addr)
	if err != nil {
		c.Answer(502, nil, err.Error())
		return
	}
	b := NewBackend(conn)
	defer b.Close()
	head := c.AppendHead(nil, &Forward{Path: c.Request.Target, Host: c.Request.Host})
	if err := c.Send(b, head, Timeouts{}); err != nil {
		c.Answer(502, nil, err.Error())
		return
	}
	_ = c.Relay(b, h.extra)
	b.Done(time.Now())
}

// TestRelayInPlace: heads and bodies of all sizes come out as they are, whether
// what the client gets has room where the backend's head was or not.
func TestRelayInPlace(t *testing.T) {
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	body := make([]byte, 3*spliceFrom)
	for i := range body {
		body[i] = byte(i * 7)
	}
	go func() {
		for {
			c, err := backend.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				var size, pad, pieces int
				_, _ = fmt.Sscanf(r.URL.Path, "/%d/%d/%d", &size, &pad, &pieces)
				answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nX-Pad: %s\r\nContent-Length: %d\r\nX-Last: here\r\n\r\n", strings.Repeat("p", pad), size)
				answer = append(answer, body[:size]...)
				for i := range pieces {
					_, _ = c.Write(answer[i*len(answer)/pieces : (i+1)*len(answer)/pieces])
					time.Sleep(time.Duration(pieces-1) * time.Millisecond)
				}
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	for name, extra := range map[string][]Field{"short": nil, "long": {{Name: "X-Extra", Value: strings.Repeat("e", 300)}}} {
		h := &toBackend{addr: backend.Addr().String(), extra: extra}
		l := openLobby(t, Options{Handler: h}, nil)
		c, err := net.Dial("tcp", l.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		r := bufio.NewReader(c)
		for _, size := range []int{0, 1, worthSparing - 1, worthSparing, 10 << 10, bufferSize - 200, bufferSize, 40 << 10, len(body)} {
			for _, pad := range []int{0, 200, 400} {
				for _, pieces := range []int{1, 3} {
					what := fmt.Sprintf("%s, %d bytes behind %d in %d pieces", name, size, pad, pieces)
					if _, err := fmt.Fprintf(c, "GET /%d/%d/%d HTTP/1.1\r\nHost: a\r\n\r\n", size, pad, pieces); err != nil {
						t.Fatal(err)
					}
					resp, err := http.ReadResponse(r, nil)
					if err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					got, err := io.ReadAll(resp.Body)
					if err != nil || !bytes.Equal(got, body[:size]) {
						t.Fatalf("%s: other bytes came out, %v", what, err)
					}
					if resp.Header.Get("X-Pad") != strings.Repeat("p", pad) || resp.Header.Get("X-Last") != "here" || (resp.Header.Get("X-Extra") != "") != (extra != nil) {
						t.Fatalf("%s: the header is %v", what, resp.Header)
					}
				}
			}
		}
	}
}

// TestEndBehindRequest: a client that closes its half right behind a request
// gets its answer, and the end of the connection soon, not after the idle time.
func TestEndBehindRequest(t *testing.T) {
	l := openLobby(t, Options{IdleTimeout: time.Hour, HeaderTimeout: time.Hour}, nil)
	for _, before := range []int{0, 1} {
		conn, err := net.Dial("tcp", l.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := conn.(*net.TCPConn)
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		for range before {
			if _, err := ask(c); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || !bytes.Contains(got, []byte("200 OK")) {
			t.Errorf("after %d requests: %q, %v", before, got, err)
		}
	}
}

// lastMoment is a backend's connection whose last bytes come at the moment when
// the janitor finds that the client has left.
type lastMoment struct {
	net.Conn
	client *Conn
	reads  int
}

func (l *lastMoment) Read(p []byte) (int, error) {
	if l.reads++; l.reads == 1 {
		return copy(p, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), nil
	}
	l.client.waiting.Store(gone)
	return copy(p, "hello"), nil
}

func (*lastMoment) Write(p []byte) (int, error)      { return len(p), nil }
func (*lastMoment) SetDeadline(time.Time) error      { return nil }
func (*lastMoment) SetReadDeadline(time.Time) error  { return nil }
func (*lastMoment) SetWriteDeadline(time.Time) error { return nil }

type leaving chan bool

func (ok leaving) ServeHTTP1(c *Conn) {
	b := NewBackend(&lastMoment{client: c})
	if err := c.Send(b, []byte("GET / HTTP/1.1\r\n\r\n"), Timeouts{}); err != nil {
		ok <- true
		return
	}
	_ = c.Relay(b, nil)
	ok <- b.Done(time.Now())
}

// TestLeftAtTheEnd: the janitor that finds a client to have left ends its exchange
// in a moment. The backend's connection serves nobody else then, though the answer
// has come to its end meanwhile.
func TestLeftAtTheEnd(t *testing.T) {
	kept := make(leaving, 1)
	l := openLobby(t, Options{Handler: kept}, nil)
	c, err := net.Dial("tcp", l.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if <-kept {
		t.Error("the connection is kept")
	}
}
