package http1

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestPace: a client that takes an answer slowly gets it, and so does one whose
// backend pauses; one that takes nothing, or hardly anything, does not. All of
// it is one body that the kernel carries.
func TestPace(t *testing.T) {
	const size = 16 << 20
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = backend.Close() })
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
				_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", size)
				_, _ = c.Write(make([]byte, 1000))
				if r.URL.Path == "/pause" {
					time.Sleep(exact + 2*time.Second)
				}
				_, _ = c.Write(make([]byte, size-1000))
				_, _ = io.Copy(io.Discard, c) // until the gateway ends it
			}()
		}
	}()
	l := openLobby(t, Options{Handler: &toBackend{addr: backend.Addr().String()}, WriteTimeout: exact}, nil)
	for path, tt := range map[string]struct {
		piece  int64
		served bool
	}{"/pause": {-1, true}, "/slow": {64 << 10, true}, "/hardly": {1, false}, "/nothing": {0, false}} {
		t.Run(path[1:], func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", l.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.(*net.TCPConn).SetReadBuffer(16 << 10)
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", path); err != nil {
				t.Fatal(err)
			}
			// For longer than two limits, since what comes at first may count for the
			// first of them; then all that comes. How much a client takes is known by
			// its window, which opens by large pieces.
			total := int64(0)
			for begun := time.Now(); time.Since(begun) < exact*5/2 && tt.piece >= 0; time.Sleep(250 * time.Millisecond) {
				n, err := io.CopyN(io.Discard, conn, tt.piece)
				if total += n; err != nil {
					break
				}
			}
			n, err := io.Copy(io.Discard, conn)
			if total += n; (total > size) != tt.served {
				t.Errorf("got %d bytes, %v", total, err)
			}
		})
	}
}
