package listener

import (
	"log/slog"
	"net"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/model"
)

// TestThroughSilent: a client that says nothing has the time of a handshake once.
func TestThroughSilent(t *testing.T) {
	s := NewStreams(StreamOptions{Logger: slog.New(slog.DiscardHandler)})
	s.Sync(t.Context(), []Stream{{StreamRoute: model.StreamRoute{Protocol: model.TCP, Hosts: []string{"vault.test"}}}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			defer c.Close()
			_, _ = c.Read(make([]byte, 1))
		}
	}()
	sock, err := http1.Dial(t.Context(), addrPort(l.Addr()), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if conn := s.Through(sock, sock, time.Millisecond); conn != nil {
		t.Error("it is to be served still")
	}
	if _, err := sock.Write([]byte("x")); err == nil {
		t.Error("it was left open")
	}
}
