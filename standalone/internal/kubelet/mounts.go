package kubelet

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// mountsVariable tells the process that it is already in a mount namespace of its own.
const mountsVariable = "FAIRWAY_NODE_MOUNTS"

// EnterMountNamespace puts the process into a mount namespace of its own, so that no volume that kubelet mounts outlives
// it, however it ends. Mounts that the machine makes later are seen inside; none goes the other way.
//
// The kernel changes the namespace of a single thread only, therefore the process executes itself again from that
// thread, with the same process id. A command calls this before all else, on the first thread if a signal at the end of
// its parent (PR_SET_PDEATHSIG) is to stay in force.
func EnterMountNamespace() error {
	if os.Getenv(mountsVariable) != "" {
		return os.Unsetenv(mountsVariable)
	}
	// Not unlocked: no other goroutine may run on a thread that looks at other mounts.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace (this needs root): %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts inside the mount namespace: %w", err)
	}
	if err := unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), mountsVariable+"=1")); err != nil {
		return fmt.Errorf("execute again in the mount namespace: %w", err)
	}
	return nil
}
