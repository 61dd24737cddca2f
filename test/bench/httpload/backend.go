package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	network     = "10.99.0.1/16"
	backendPort = 8080
)

// backend is a server at an address of its own.
type backend struct {
	addr   string
	server *http.Server
	raw    net.Listener // of a sick one
	served atomic.Int64 // requests, by the server
}

func backendAt(i int) *backend { return &backend{addr: fmt.Sprintf("10.99.1.%d", 1+i)} }

func (b *backend) listen() (net.Listener, error) {
	return net.Listen("tcp", fmt.Sprintf("%s:%d", b.addr, backendPort))
}

// start serves as a healthy one.
func (b *backend) start() error {
	l, err := b.listen()
	if err != nil {
		return err
	}
	b.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.served.Add(1)
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprintf(w, "%s %s %d\n", b.addr, r.Method, n)
	})}
	go func() { _ = b.server.Serve(l) }()
	return nil
}

// stop ends it as Kubernetes ends Pods: what is under way is answered.
func (b *backend) stop() error {
	if b.raw != nil {
		err := b.raw.Close()
		b.raw = nil
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return b.server.Shutdown(ctx)
}

// Sick endpoints, by what each does with a connection on which something came,
// and which requests may fail.
var sicknesses = []struct {
	name string
	may  mercy
	do   func(net.Conn)
}{
	{"hangs", sentOnce, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }},
	{"resets", sentOnce, func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }},
	{"answers garbage", sentOnce, func(c net.Conn) { _, _ = io.WriteString(c, "\x00\x01garbage\r\n\r\n") }},
	{"breaks its answers off", begun, func(c net.Conn) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
	}},
}

// mercy is for requests that nobody could have saved.
type mercy struct {
	has func(*client) bool
	why string
}

var (
	sentOnce = mercy{func(c *client) bool { return !c.repeatable },
		"a POST that the sick endpoint got may have had its effect, and must not be sent again"}
	begun = mercy{func(*client) bool { return true },
		"the answer that the sick endpoint broke off had begun to reach the client"}
)

// patients are what a sick endpoint was asked.
type patients struct{ all, posts atomic.Int64 }

// sicken makes it serve in another way; connections that it has end as they
// would with a process that died.
func (b *backend) sicken(do func(net.Conn), served *patients) error {
	if err := b.server.Close(); err != nil {
		return err
	}
	l, err := b.listen()
	if err != nil {
		return err
	}
	b.raw = l
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			go func() {
				defer c.Close()
				head := make([]byte, 4096)
				if n, err := c.Read(head); err == nil {
					served.all.Add(1)
					if bytes.HasPrefix(head[:n], []byte("POST ")) {
						served.posts.Add(1)
					}
					do(c)
				}
			}()
		}
	}()
	return nil
}
