package gateway

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestSickEndpoint has one endpoint of two do something wrong with each request. Clients notice nothing where the request
// may be repeated, and soon the endpoint gets no requests: for a second, after which it gets one.
func TestSickEndpoint(t *testing.T) {
	for i, test := range []struct {
		name, method string
		// noticed is whether requests fail until the endpoint is ejected.
		noticed bool
		answer  func(c net.Conn)
	}{
		{"resets", "GET", false, func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }},
		{"closes", "GET", false, func(net.Conn) {}},
		{"talks garbage", "GET", false, func(c net.Conn) { _, _ = c.Write([]byte("garbage\r\n\r\n")) }},
		{"closes, and the request may not be repeated", "POST", true, func(net.Conn) {}},
		{"hangs", "GET", false, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }},
		{"hangs, and the request may not be repeated", "POST", true, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }},
		{"breaks its answers off", "GET", true, func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")) }},
	} {
		// By HTTP/1.1 requests take the gateway's own way through it, by HTTP/3 that for other protocols.
		for j, protocol := range []string{"HTTP/1.1", "HTTP/3"} {
			t.Run(test.name+", "+protocol, func(t *testing.T) {
				t.Parallel() // most of it is waiting
				well, sick := fmt.Sprintf("10.99.30.%d:8080", 1+2*i+j), fmt.Sprintf("10.99.31.%d:8080", 1+2*i+j)
				backendServer(t, well, nil)
				var asked atomic.Int32
				serveConns(t, sick, func(c net.Conn) {
					if n, _ := c.Read(make([]byte, 4096)); n > 0 {
						asked.Add(1)
						test.answer(c)
					}
				})
				impatient := func(o *Options) { o.AnswerTimeout = time.Second }
				client, url := plainClient, ""
				if protocol == "HTTP/3" {
					w, pair := http3World(t, fmt.Sprintf("10.99.32.%d:443", 1+i), "", well, impatient)
					w.endpoints("a", well, sick)
					client, url = http3Client(t, w.g.HTTPSAddr().String(), pair), "https://a.test/"
				} else {
					w := newWorld(t, impatient)
					w.service("a", "", well, sick)
					w.route(ingress("main", rule("", "/", "a")))
					url = w.url("/")
				}
				failed := 0
				begin := time.Now()
				for range 60 {
					req, err := http.NewRequest(test.method, url, strings.NewReader(strings.Repeat("x", len(test.method)-3)))
					if err != nil {
						t.Fatal(err)
					}
					resp, err := client.Do(req)
					if err == nil {
						_, err = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
					if err != nil || resp.StatusCode != http.StatusOK {
						failed++
					}
				}
				// 5 until it is ejected, and one for each time that it is tried again.
				most := int32(5 + time.Since(begin)/time.Second)
				if n := asked.Load(); n < 5 || n > most {
					t.Errorf("the sick endpoint got %d of 60 requests, want at least 5 and at most %d", n, most)
				}
				if want := int(asked.Load()); !test.noticed && failed > 0 || test.noticed && failed != want {
					t.Errorf("%d of 60 requests failed, with %d sent to the sick endpoint", failed, want)
				}
			})
		}
	}
}
