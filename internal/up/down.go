package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"fairway.dev/fairway/internal/up/supervise"
)

const (
	// stopTimeout is how long a supervisor may take to stop everything; it has limits of its own for each process.
	stopTimeout = 75 * time.Second
	// dieTimeout is how long the kernel may take to end a killed one.
	dieTimeout = 10 * time.Second
)

// Down stops the cluster in dataDir and waits until it has gone, or clears what one that crashed left behind. found says
// whether there was anything.
func Down(ctx context.Context, dataDir string, progress *Progress) (found bool, err error) {
	if os.Geteuid() != 0 {
		return false, errors.New("fairway down needs root; try: sudo fairway down")
	}
	d := dir(dataDir)
	if _, err := os.Stat(d.path("run")); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	release, err := d.acquire()
	if errors.Is(err, errLocked) {
		found = true
		release, err = d.stopHolder(ctx, progress)
	}
	if err != nil {
		return found, err
	}
	defer release()
	// A supervisor that stopped in order leaves no state.
	state, err := d.readState()
	if err != nil {
		return found, err
	}
	return found || state != nil, clearCrashed(ctx, d, progress)
}

// stopHolder asks the process that holds the lock to stop, waits until it has, and takes the lock.
func (d dir) stopHolder(ctx context.Context, progress *Progress) (release func(), err error) {
	holder := d.holder()
	done := progress.Step(fmt.Sprintf("stopping fairway (pid %d)", holder.PID))
	defer done("")
	process, err := os.FindProcess(holder.PID)
	if err != nil || !holder.Alive() {
		// It ended between our try for the lock and now, or it is about to say who it is.
		return d.acquireWithin(ctx, dieTimeout)
	}
	defer process.Release()
	if err := process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return nil, fmt.Errorf("stopping fairway (pid %d): %w", holder.PID, err)
	}
	if holder.Halted() == supervise.BySignal {
		progress.Note("fairway (pid %d) was stopped by a signal; it is continued, to end in good order", holder.PID)
	}
	// One that is stopped would not see the other signal. An error means that it has ended.
	_ = process.Signal(syscall.SIGCONT)
	if holder.Halted() == supervise.ByDebugger {
		progress.Note("fairway (pid %d) is stopped by a debugger: let the debugger continue it or detach", holder.PID)
	}
	release, err = d.acquireWithin(ctx, stopTimeout)
	if errors.Is(err, errLocked) {
		progress.Note("fairway (pid %d) did not stop within %s, killing it", holder.PID, stopTimeout)
		_ = process.Kill() // an error means that it has ended
		release, err = d.acquireWithin(ctx, dieTimeout)
	}
	if err != nil {
		return nil, err
	}
	done("fairway stopped")
	return release, nil
}

// acquireWithin tries for the lock again and again.
func (d dir) acquireWithin(ctx context.Context, limit time.Duration) (release func(), err error) {
	for deadline := time.Now().Add(limit); ; {
		release, err = d.acquire()
		if !errors.Is(err, errLocked) || time.Now().After(deadline) {
			return release, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.New("interrupted while waiting for fairway to stop; it goes on stopping")
		case <-time.After(20 * time.Millisecond):
		}
	}
}
