package http1

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/testenv"
)

// TestEndWithAnswer: the end of a connection goes out with the last answer, in
// one packet, and where it does not, for the process was stopped between the
// two, nothing is missing.
func TestEndWithAnswer(t *testing.T) {
	fallback, err := certs.SelfSigned("a", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	secure := certs.NewResolver(certs.NewIndex(fallback)).ServerConfig("http/1.1")
	body := strings.Repeat("x", 10<<10)
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	go func() {
		for {
			c, err := backend.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = c.Read(make([]byte, 1<<10))
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10240\r\n\r\n"+body)
			}()
		}
	}()
	relays := &toBackend{addr: backend.Addr().String()}
	adapts := handlerFunc(func(c *Conn) {
		a := c.Adapt()
		a.Header().Set("Content-Length", "10240")
		_, _ = io.WriteString(a, body)
		a.Close(true)
	})
	for _, tt := range []struct {
		name    string
		handler Handler
		config  *tls.Config
		body    string
	}{
		{"an answer of its own", handlerFunc(func(c *Conn) { c.Answer(200, nil, "own") }), nil, "own"},
		{"an answer of its own, TLS", handlerFunc(func(c *Conn) { c.Answer(200, nil, "own") }), secure, "own"},
		{"relayed", relays, nil, body},
		{"relayed, TLS", relays, secure, body},
		{"adapted", adapts, nil, body},
		{"adapted, TLS", adapts, secure, body},
	} {
		l := openLobby(t, Options{Handler: tt.handler}, tt.config)
		once := func() (together bool) {
			tcp, err := net.Dial("tcp", l.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer tcp.Close()
			_ = tcp.SetDeadline(time.Now().Add(time.Minute))
			c := tcp
			if tt.config != nil {
				c = tls.Client(tcp, &tls.Config{InsecureSkipVerify: true})
				if err := c.(*tls.Conn).Handshake(); err != nil {
					t.Fatal(err)
				}
			}
			before := testenv.TCPInfo(t, tcp)
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			if err != nil || !strings.HasSuffix(string(got), "\r\n\r\n"+tt.body) {
				t.Fatalf("%s: got %d bytes, %v", tt.name, len(got), err)
			}
			after := testenv.TCPInfo(t, tcp)
			// The request has been acknowledged before, or with the answer.
			return after.Segs_in-before.Segs_in <= 2 && after.Data_segs_in-before.Data_segs_in == 1
		}
		tries := 0
		for !once() {
			if tries++; tries == 10 {
				t.Errorf("%s: the end came in a packet of its own, %d times", tt.name, tries)
				break
			}
		}
		l.drain()
	}
}
