package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// cleanupWaits is how long a cleanup waits for a node role that is just ending.
const cleanupWaits = 2 * time.Second

// The node role holds a lock while it runs, in a file of --run-dir for its
// network namespace, so that nobody cleans up beneath it. It is one that several
// may hold, for a successor starts before the other ends; and one of fcntl, of
// which the kernel says who holds it, and which ends with the process.

// lockFile is where the node role of this network namespace has its lock.
func lockFile(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("--run-dir is empty: name a directory")
	}
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return "", fmt.Errorf("network namespace: %w", err)
	}
	return filepath.Join(dir, fmt.Sprintf("node-%d.lock", ns.Ino)), nil
}

// openLock opens the file and calls lock with it, once more if another cleanup
// has removed the file meanwhile.
func openLock(path string, lock func(*os.File) error) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := lock(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		is, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(is, now) {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// holdNode takes the lock of a node role that runs, until it is closed. A
// cleanup that is at work is waited for.
func holdNode(dir string) (io.Closer, error) {
	path, err := lockFile(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return openLock(path, func(f *os.File) error {
		for {
			err := unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_RDLCK})
			if err == nil {
				return nil
			}
			if !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("lock %s: %w", path, err)
			}
		}
	})
}

// withoutNode calls fn while no node role runs with that --run-dir in this
// network namespace; if one does, it fails and names it.
func withoutNode(dir string, fn func() error) error {
	path, err := lockFile(dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fn() // none has run here
	}
	f, err := openLock(path, func(f *os.File) error {
		for deadline := time.Now().Add(cleanupWaits); ; time.Sleep(20 * time.Millisecond) {
			err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
			if err == nil || !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
				return err
			}
			if time.Now().Before(deadline) {
				continue
			}
			holder := unix.Flock_t{Type: unix.F_WRLCK}
			if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &holder); err != nil {
				return err
			}
			switch {
			case holder.Type == unix.F_UNLCK:
				continue // it has ended just now
			case holder.Pid == 0:
				return fmt.Errorf("fairway node is running in this network namespace, in another PID namespace, and would make again what is removed: stop it first (it holds %s)", path)
			}
			return fmt.Errorf("fairway node is running in this network namespace and would make again what is removed: stop process %d first (it holds %s)", holder.Pid, path)
		}
	})
	if err != nil {
		return err
	}
	defer f.Close()
	if err := fn(); err != nil {
		return err
	}
	return os.Remove(path)
}
