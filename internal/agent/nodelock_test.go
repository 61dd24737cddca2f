package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/testenv"
)

// TestNodeLock checks who gets the lock of a network namespace, and what those
// are told who do not.
func TestNodeLock(t *testing.T) {
	lab := testenv.NewLab(t)
	node, other := lab.Netns("node"), lab.Netns("other")
	lock := func(ns *testenv.Netns, patience time.Duration) (c io.Closer, waited bool, err error) {
		t.Helper()
		_ = ns.Do(func() error {
			c, err = lockNode(t.Context(), patience, func(holder) { waited = true })
			return nil
		})
		return c, waited, err
	}
	held, waited, err := lock(node, 0)
	if err != nil || waited {
		t.Fatalf("nobody has it: waited %v, %v", waited, err)
	}
	for range 3 { // whoever asks must not keep others from asking
		_, _, err = lock(node, 0)
		if want := (&heldError{holder{pid: int32(os.Getpid())}}).Error(); err == nil || err.Error() != want {
			t.Errorf("a second one is told %v, want %q", err, want)
		}
	}
	elsewhere, _, err := lock(other, 0)
	if err != nil {
		t.Fatalf("in another network namespace: %v", err)
	}
	defer elsewhere.Close()

	// A quick restart: the one before is still closing.
	before := held
	time.AfterFunc(5*lockPause, func() { _ = before.Close() })
	held, waited, err = lock(node, time.Minute)
	if err != nil || !waited {
		t.Fatalf("after the one before has ended: waited %v, %v", waited, err)
	}
	defer held.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_ = node.Do(func() error {
		if _, err = lockNode(ended, time.Minute, func(holder) {}); !errors.Is(err, context.Canceled) {
			t.Errorf("told to end while it waits: %v", err)
		}
		err = withoutNode(func() error { return errors.New("cleaned up beneath a node") })
		return nil
	})
	if want := fmt.Sprintf("stop process %d first", os.Getpid()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a cleanup is told %v, want %q", err, want)
	}
}

// TestNodeLockOfOthers checks that a user of the machine cannot keep a node from
// its work by taking the address.
func TestNodeLockOfOthers(t *testing.T) {
	ns := testenv.NewLab(t).Netns("node")
	err := ns.Do(func() error {
		const as, nobody = ^uintptr(0), 65534
		become := func(uid uintptr) error { // this thread alone
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, as, uid, as); errno != 0 {
				return errno
			}
			return nil
		}
		if err := become(nobody); err != nil {
			return err
		}
		l, err := net.Listen("unix", nodeLock)
		if back := become(0); err != nil || back != nil {
			return errors.Join(err, back)
		}
		defer l.Close()
		go accept(l)
		lock, err := holdNode(t.Context(), quiet)
		if err != nil {
			return fmt.Errorf("a node: %w", err)
		}
		_ = lock.Close()
		cleaned := false
		if err := withoutNode(func() error { cleaned = true; return nil }); err != nil || !cleaned {
			t.Errorf("a cleanup is kept from its work: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
