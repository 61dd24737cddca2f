package runtime

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaces are those that the containers of a Pod share. Nothing but these
// descriptors and the containers' processes keep them: if the runtime is killed
// they go by themselves.
type namespaces struct {
	network, uts, ipc *os.File
	// pid is nil unless the Pod shares its processes.
	pid *os.File
}

// own are the namespaces of the calling thread.
func ownNamespaces() (*namespaces, error) {
	ns := &namespaces{}
	for _, f := range []struct {
		file **os.File
		name string
	}{{&ns.network, "net"}, {&ns.uts, "uts"}, {&ns.ipc, "ipc"}, {&ns.pid, "pid"}} {
		file, err := os.Open("/proc/thread-self/ns/" + f.name)
		if err != nil {
			ns.close()
			return nil, err
		}
		*f.file = file
	}
	return ns, nil
}

// newNamespaces makes the namespaces of a Pod; those of the machine are used
// where the Pod asks for them.
func newNamespaces(hostname string, hostNetwork, hostIPC bool) (*namespaces, error) {
	flags := unix.CLONE_NEWUTS
	if !hostNetwork {
		flags |= unix.CLONE_NEWNET
	}
	if !hostIPC {
		flags |= unix.CLONE_NEWIPC
	}
	var made *namespaces
	err := onThread(func() error {
		if err := unix.Unshare(flags); err != nil {
			return fmt.Errorf("make namespaces: %w", err)
		}
		if err := unix.Sethostname([]byte(hostname)); err != nil {
			return fmt.Errorf("hostname %q: %w", hostname, err)
		}
		var err error
		if made, err = ownNamespaces(); err != nil {
			return err
		}
		made.pid.Close()
		made.pid = nil
		return nil
	})
	return made, err
}

// do calls f on a thread that is in the namespaces; processes that f starts are
// in the PID namespace, too.
func (ns *namespaces) do(f func() error) error {
	return onThread(func() error {
		if err := ns.enter(); err != nil {
			return err
		}
		return f()
	})
}

func (ns *namespaces) enter() error {
	for _, n := range []struct {
		file *os.File
		kind int
	}{{ns.network, unix.CLONE_NEWNET}, {ns.uts, unix.CLONE_NEWUTS}, {ns.ipc, unix.CLONE_NEWIPC}, {ns.pid, unix.CLONE_NEWPID}} {
		if n.file == nil {
			continue
		}
		if err := unix.Setns(int(n.file.Fd()), n.kind); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
	}
	return nil
}

func (ns *namespaces) close() error {
	var errs []error
	for _, f := range []*os.File{ns.network, ns.uts, ns.ipc, ns.pid} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// onThread calls f on a thread of its own and brings that back to the
// namespaces it had. A thread that cannot come back ends with its goroutine.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		goruntime.LockOSThread()
		own, err := ownNamespaces()
		if err != nil {
			goruntime.UnlockOSThread()
			result <- err
			return
		}
		err = f()
		if own.enter() == nil {
			goruntime.UnlockOSThread()
		}
		own.close()
		result <- err
	}()
	return <-result
}

// startInit starts fairway-init as the first process of a container: in the
// Pod's namespaces, a mount namespace of its own and, if newPID, a PID namespace
// of its own; in the cgroup from its first instruction on.
func (ns *namespaces) startInit(path string, control, cgroup *os.File, newPID bool) (*os.Process, error) {
	flags := uintptr(unix.CLONE_NEWNS)
	if newPID {
		flags |= unix.CLONE_NEWPID
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	var process *os.Process
	err = ns.do(func() (err error) {
		process, err = os.StartProcess(path, []string{"fairway-init"}, &os.ProcAttr{
			Dir: "/", Env: []string{"GOMAXPROCS=1", "GOGC=20"}, Files: []*os.File{null, null, os.Stderr, control},
			Sys: &syscall.SysProcAttr{Cloneflags: flags, UseCgroupFD: true, CgroupFD: int(cgroup.Fd())},
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return process, nil
}
