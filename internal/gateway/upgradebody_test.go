package gateway

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestUpgradeWithBody: a backend may agree to switch protocols before it has
// seen all of the request. What the client sends until the end of its body is
// the request's, and what comes then is of the new protocol; nothing of it is
// read for somebody else once the connection has ended.
func TestUpgradeWithBody(t *testing.T) {
	serveConns(t, "10.99.74.1:80", func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if line == "\r\n" {
				break
			}
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(c, r)
	})
	w := newWorld(t, nil)
	w.service("a", "", "10.99.74.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	dial := func(secure bool) net.Conn {
		t.Helper()
		var c net.Conn
		var err error
		if secure {
			c, err = tls.Dial("tcp", w.g.HTTPSAddr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		} else {
			c, err = net.Dial("tcp", w.g.HTTPAddr().String())
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		return c
	}
	upgrade := func(c net.Conn, framing string) *bufio.Reader {
		t.Helper()
		_, _ = fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a.example.com\r\nConnection: Upgrade\r\nUpgrade: echo\r\n%s\r\n\r\n", framing)
		r := bufio.NewReader(c)
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				t.Fatalf("no switch: %v", err)
			}
		}
		return r
	}
	for _, secure := range []bool{false, true} {
		for framing, body := range map[string]string{"Content-Length: 13": "a\r\n0123456789", "Transfer-Encoding: chunked": "a\r\n0123456789\r\n0\r\n\r\n"} {
			c := dial(secure)
			r := upgrade(c, framing)
			_, _ = io.WriteString(c, body[:3]) // of chunks, all but data
			time.Sleep(5 * time.Millisecond)   // most likely it is on its way then
			_, _ = io.WriteString(c, body[3:]+"hello")
			got := make([]byte, len(body)+5)
			if _, err := io.ReadFull(r, got); err != nil || string(got) != body+"hello" {
				t.Errorf("secure %t, %s: the backend got %q, %v", secure, framing, got, err)
			}
			_ = c.Close()
		}
		// Those that leave in the midst of it.
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				c := dial(secure)
				defer c.Close()
				upgrade(c, "Content-Length: 1000")
				_, _ = io.WriteString(c, "some")
			})
		}
		all.Wait()
	}
	if strings.Contains(w.log.String(), "a fault in the gateway") {
		t.Error("a fault in the gateway")
	}
}
