package http1

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// TestSocketEnds: a Socket tells of its end as net.Conn does, whether the
// runtime's poller knows it or not.
func TestSocketEnds(t *testing.T) {
	for _, polled := range []bool{false, true} {
		start := func() (*net.TCPConn, *Socket) {
			client, server := tcpPair(t)
			s := socketOf(t, server)
			_ = server.Close()
			if polled {
				if _, err := s.polled(); err != nil {
					t.Fatal(err)
				}
			}
			return client, s
		}
		client, s := start()
		if err := s.CloseWrite(); err != nil {
			t.Error(err)
		}
		if _, err := client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("after CloseWrite: %v", err)
		}
		if _, err := client.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if n, err := s.Read(make([]byte, 2)); n != 1 || err != nil {
			t.Errorf("the other half: %d, %v", n, err)
		}
		if s.established() {
			t.Error("what is half closed counts as open")
		}

		client, s = start()
		s.Reset()
		if _, err := client.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("after Reset: %v", err)
		}
		if s.established() {
			t.Error("what is closed counts as open")
		}

		client, s = start()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("after Close: %v", err)
		}
		for what, err := range map[string]error{"Close": s.Close(), "CloseWrite": s.CloseWrite(), "SetDeadline": s.SetDeadline(past)} {
			if !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s after Close: %v", what, err)
			}
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read after Close: %v", err)
		}

		_, s = start()
		done := make(chan error, 1)
		go func() {
			_, err := s.Read(make([]byte, 1))
			done <- err
		}()
		for s.file.Load() == nil {
			time.Sleep(time.Millisecond)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read that waits for the end of Close: %v", err)
		}

		_, s = start()
		_ = s.SetReadDeadline(past)
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read after its deadline: %v", err)
		}
		if _, err := s.Write([]byte("x")); err != nil {
			t.Error(err)
		}
	}
}

// TestFrontWaits writes more than the kernel takes at once, and reads what has
// not come yet.
func TestFrontWaits(t *testing.T) {
	client, server := tcpPair(t)
	f := newFront()
	f.reset(socketOf(t, server))
	const size = 32 << 20
	sent := make(chan error, 1)
	go func() {
		_, err := f.Write(make([]byte, size))
		sent <- err
	}()
	got := make(chan error, 1)
	go func() {
		_, err := f.Read(make([]byte, 1))
		got <- err
	}()
	if _, err := io.CopyN(io.Discard, client, size); err != nil {
		t.Error(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	_, _ = client.Write([]byte("x"))
	if err := <-got; err != nil {
		t.Error(err)
	}
}
