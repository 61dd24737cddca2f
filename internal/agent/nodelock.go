package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The node role holds a lock on its network namespace while it runs, and a
// cleanup while it is at work: what two of them write they would take from each
// other. The lock is an abstract address of a Unix socket, of which the kernel
// has one set for each network namespace, whatever file systems a container
// sees, and which ends with the process.

// nodeLock is the address.
const nodeLock = "@fairway-node"

const (
	// nodeWaits is how long a node role waits for the one before it, which may
	// have connections to end still, and cleanupWaits how long a cleanup does.
	nodeWaits    = 15 * time.Second
	cleanupWaits = 2 * time.Second
	lockPause    = 20 * time.Millisecond
)

// errNoLock is why there is no lock: the address is that of somebody else's
// program, which must not keep a node from its work.
var errNoLock = errors.New("a process that is not Fairway's has the address " + nodeLock + " in this network namespace")

// holdNode takes the lock of a node role that runs, until it is closed. Another
// role that runs is waited for, since it may be just ending; then that is an error.
func holdNode(ctx context.Context, logger *slog.Logger) (io.Closer, error) {
	lock, err := lockNode(ctx, nodeWaits, func(who holder) {
		logger.Warn("another fairway node is running in this network namespace; waiting a moment for it to end", "process", who.pid)
	})
	switch holds := (*heldError)(nil); {
	case errors.As(err, &holds):
		return nil, fmt.Errorf("another fairway node is running in this network namespace (%w): both would write the same rules and listen at the same ports; stop it first, or run this one with --cleanup once it has ended", holds)
	case errors.Is(err, errNoLock):
		logger.Warn("a second fairway node in this network namespace cannot be kept from writing the same rules", "error", err)
		return io.NopCloser(nil), nil
	}
	return lock, err
}

// withoutNode calls fn while no node role runs in this network namespace; if one
// does, it fails and names it.
func withoutNode(fn func() error) error {
	lock, err := lockNode(context.Background(), cleanupWaits, func(holder) {})
	switch holds := (*heldError)(nil); {
	case errors.As(err, &holds):
		return fmt.Errorf("fairway node is running in this network namespace and would make again what is removed: stop %w first", holds)
	case errors.Is(err, errNoLock):
		return fn()
	case err != nil:
		return err
	}
	defer lock.Close()
	return fn()
}

// holder is who holds the lock.
type holder struct {
	pid int32 // 0 where it cannot be seen from this PID namespace
	uid uint32
}

// heldError is the error of a lock that another process of Fairway's holds.
type heldError struct{ holder }

// Error implements error.
func (e *heldError) Error() string {
	if e.pid == 0 {
		return "a process in another PID namespace"
	}
	return fmt.Sprintf("process %d", e.pid)
}

// lockNode takes the lock, for which it waits as long; waits is called once if
// it has to.
func lockNode(ctx context.Context, patience time.Duration, waits func(holder)) (io.Closer, error) {
	told := false
	for deadline := time.Now().Add(patience); ; {
		// Not by context, for whoever is told to end does so by itself.
		l, err := net.Listen("unix", nodeLock)
		if err == nil {
			go accept(l)
			return l, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("lock %s: %w", nodeLock, err)
		}
		who, err := nodeHolder()
		switch {
		case err != nil && time.Now().Before(deadline): // it is just ending
		case err != nil:
			return nil, fmt.Errorf("lock %s: %w", nodeLock, err)
		case who.uid != 0 && who.uid != uint32(os.Geteuid()):
			return nil, fmt.Errorf("%w: process %d of user %d", errNoLock, who.pid, who.uid)
		case time.Now().After(deadline):
			return nil, &heldError{who}
		case !told:
			told = true
			waits(who)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPause):
		}
	}
}

// accept lets others ask who holds the lock, until it is closed.
func accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no file descriptors: they ask again
			time.Sleep(lockPause)
			continue
		}
		_ = c.Close()
	}
}

// nodeHolder asks the kernel who listens at the address.
func nodeHolder() (holder, error) {
	c, err := net.DialTimeout("unix", nodeLock, time.Second)
	if err != nil {
		return holder{}, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return holder{}, err
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return holder{}, err
	}
	if failed != nil {
		return holder{}, failed
	}
	return holder{cred.Pid, cred.Uid}, nil
}
