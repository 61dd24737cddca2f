package podnet

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// InNamespace calls f on a thread that is in the network namespace.
func InNamespace(namespace *os.File, f func() error) error {
	result := make(chan error, 1)
	go func() {
		result <- enter(namespace, f)
	}()
	return <-result
}

// enter runs f in the namespace on the calling goroutine's thread and brings
// the thread back. If it cannot, the thread stays locked and ends with its
// goroutine.
func enter(namespace *os.File, f func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer func() {
		if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}
