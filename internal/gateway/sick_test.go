package gateway

import (
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
		{"hangs", "GET", true, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			well, sick := "10.99.30."+string(rune('1'+i))+":8080", "10.99.31."+string(rune('1'+i))+":8080"
			backendServer(t, well, nil)
			var asked atomic.Int32
			serve(t, sick, func(l net.Listener) error {
				for {
					c, err := l.Accept()
					if err != nil {
						return err
					}
					go func() {
						defer c.Close()
						if n, _ := c.Read(make([]byte, 4096)); n > 0 {
							asked.Add(1)
							test.answer(c)
						}
					}()
				}
			})
			w := newWorld(t, func(o *Options) { o.AnswerTimeout = time.Second })
			w.service("a", "", well, sick)
			w.route(ingress("main", rule("", "/", "a")))
			failed := 0
			begin := time.Now()
			for range 60 {
				resp, _ := w.do(test.method, "a", "/", strings.NewReader(strings.Repeat("x", len(test.method)-3)))
				if resp.StatusCode != http.StatusOK {
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
