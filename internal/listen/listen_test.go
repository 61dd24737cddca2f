package listen

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"fairway.dev/fairway/internal/testenv"
)

// TestFree has open fail for as long as an address is in use, and otherwise.
func TestFree(t *testing.T) {
	inUse := &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	var log testenv.Log
	free := func(ctx context.Context, open func() ([]int, error)) ([]int, error) {
		return Free(ctx, slog.New(slog.NewTextHandler(&log, nil)), "nothing is served", "end it", open)
	}
	tries := 0
	got, err := free(t.Context(), func() ([]int, error) {
		if tries++; tries < 6 {
			return nil, inUse
		}
		return []int{1}, nil
	})
	if len(got) != 1 || err != nil || tries != 6 {
		t.Errorf("%v, %v after %d tries", got, err, tries)
	}
	if log.Count("level=WARN") != 1 || log.Count("nothing is served") != 1 || log.Count("cure=\"end it\"") != 1 {
		t.Errorf("the log says %s", &log)
	}
	other := errors.New("other")
	if _, err := free(t.Context(), func() ([]int, error) { return nil, other }); !errors.Is(err, other) {
		t.Errorf("another error: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if got, err := free(ctx, func() ([]int, error) { return nil, inUse }); got != nil || err != nil {
		t.Errorf("told to end: %v, %v", got, err)
	}
}

// TestFreebind listens at addresses that no interface has.
func TestFreebind(t *testing.T) {
	node := testenv.NewLab(t).Netns("node")
	for _, at := range []string{"192.0.2.1:80", "[2001:db8::1]:80"} {
		for control, want := range map[bool]error{true: nil, false: syscall.EADDRNOTAVAIL} {
			err := node.Do(func() error {
				var config net.ListenConfig
				if control {
					config.Control = Freebind
				}
				l, err := config.Listen(t.Context(), "tcp", at)
				if err == nil {
					_ = l.Close()
				}
				return err
			})
			if !errors.Is(err, want) {
				t.Errorf("%s, with Freebind %t: %v", at, control, err)
			}
		}
	}
}
