package gateway

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
)

// adapting reaches a backend by net/http's types that is not there at all.
type adapting struct{}

// ServeHTTP1 implements http1.Handler.
func (adapting) ServeHTTP1(c *http1.Conn) {
	h := &http1Client{conn: c}
	h.adapt(&h.transaction, &backend{})
}

// TestFaultBehindAdapter: a fault beyond net/http's types is told as one, unlike
// an answer that is cut off.
func TestFaultBehindAdapter(t *testing.T) {
	var log bytes.Buffer
	server, err := http1.NewServer(http1.Options{Handler: adapting{}, Logger: slog.New(slog.NewTextHandler(&log, nil)), Ended: func(*http1.Socket, bool) {}})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	theirs, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	door, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ours *http1.Socket
	var errno syscall.Errno
	if err := door.Read(func(fd uintptr) bool {
		ours, errno = http1.Accept(fd, 0)
		return errno != syscall.EAGAIN
	}); err != nil || errno != 0 {
		t.Fatal(err, errno)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.ServeConn(ours, ours, false)
	}()
	_ = theirs.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(theirs, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na")
	_, _ = io.ReadAll(theirs)
	<-served
	server.Drain(t.Context())
	if !strings.Contains(log.String(), "fault") || !strings.Contains(log.String(), "adapt_test.go") {
		t.Errorf("the log says %q", log.String())
	}
}
