package initspec

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	local, remote, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	other := NewConn(remote)
	t.Cleanup(func() {
		local.Close()
		other.Close()
	})
	return local, other
}

// TestMessagesArriveInOrder sends messages of all sizes, with and without files.
func TestMessagesArriveInOrder(t *testing.T) {
	local, remote := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sent := []Request{
		{Signal: &Signal{ID: 3, Number: 15}},
		{Start: &Start{Process: Process{Args: []string{"sh"}, Env: []string{strings.Repeat("x", 3<<20)}}}},
		{Exec: &Exec{ID: 7, Args: []string{"ls"}, Terminal: true}},
	}
	failed := make(chan error, 1)
	go func() {
		failed <- errors.Join(local.Send(sent[0]), local.Send(sent[1], r, w, w), local.Send(sent[2]), w.Close())
	}()
	for i, want := range sent {
		var got Request
		files, err := remote.Receive(&got)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("message %d: %s", i, diff)
		}
		if wantFiles := []int{0, 3, 0}[i]; len(files) != wantFiles {
			t.Fatalf("message %d has %d files, want %d", i, len(files), wantFiles)
		}
		if len(files) > 0 {
			if _, err := files[1].WriteString("through"); err != nil {
				t.Error(err)
			}
			closeAll(files)
		}
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); string(got) != "through" {
		t.Errorf("the passed file is another one: %q %v", got, err)
	}
}

// TestTheEndIsSeen is what ends a container when the runtime is gone.
func TestTheEndIsSeen(t *testing.T) {
	local, remote := pair(t)
	got := make(chan error, 1)
	go func() {
		_, err := remote.Receive(&Request{})
		got <- err
	}()
	local.Close()
	if err := <-got; !errors.Is(err, io.EOF) {
		t.Errorf("error %v", err)
	}
	if err := remote.Send(Reply{}); err == nil {
		t.Error("sent to nobody")
	}
}

// TestCloseWakesTheReader lets the runtime give up on an init that is silent.
func TestCloseWakesTheReader(t *testing.T) {
	local, _ := pair(t)
	got := make(chan error, 1)
	go func() {
		_, err := local.Receive(&Reply{})
		got <- err
	}()
	time.Sleep(10 * time.Millisecond)
	local.Close()
	select {
	case err := <-got:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(5 * time.Second):
		t.Error("the reader still waits")
	}
}

// TestTooLong refuses what exec(2) would refuse, on both sides.
func TestTooLong(t *testing.T) {
	local, remote := pair(t)
	if err := local.Send(strings.Repeat("x", maxMessage)); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("send: %v", err)
	}
	if _, err := local.file.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Receive(&Request{}); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("receive: %v", err)
	}
}
