package machine

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespaceDir is where iproute2 and everybody else pins named network namespaces.
const namespaceDir = "/run/netns"

// Namespace is a network namespace together with an operating-system thread that lives in it.
//
// The thread exists until Close. That makes it the right parent for children that shall die with this process: Linux
// sends PR_SET_PDEATHSIG when the *thread* that forked a child ends, so children must come from a thread that lasts.
type Namespace struct {
	name   string
	calls  chan func()
	closed chan struct{}
	links  *netlink.Handle
	inode  uint64
	fd     netns.NsHandle
	// masquerade is what the kernel had of that table when it was made; see readMasquerade.
	masquerade map[string]string
}

// Current returns the namespace the calling process was started in.
func Current() (*Namespace, error) {
	return newNamespace("", func() error { return nil })
}

// OpenPath returns the namespace that the file at path refers to, such as /run/netns/blue or /proc/7/ns/net.
func OpenPath(path string) (*Namespace, error) {
	return newNamespace("", func() error {
		fd, err := netns.GetFromPath(path)
		if err != nil {
			return fmt.Errorf("opening %s: %w", path, err)
		}
		defer fd.Close()
		return netns.Set(fd)
	})
}

// Create makes a namespace, pins it at /run/netns/<name> and sets its loopback interface up.
func Create(journal Journal, name string) (*Namespace, error) {
	if err := journal.Record(Thing{Kind: KindNamespace, Name: name}); err != nil {
		return nil, err
	}
	ns, err := newNamespace(name, func() error {
		_, err := netns.NewNamed(name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making network namespace %s: %w", name, err)
	}
	if err := ns.setLoopbackUp(nil); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// newNamespace starts the thread, lets enter move it to its namespace, and opens a netlink handle there.
func newNamespace(name string, enter func() error) (*Namespace, error) {
	n := &Namespace{name: name, calls: make(chan func()), closed: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine instead of reusing it in a foreign namespace.
		runtime.LockOSThread()
		err := enter()
		started <- err
		if err != nil {
			return
		}
		for {
			select {
			case f := <-n.calls:
				f()
			case <-n.closed:
				return
			}
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	err := n.Do(func() error {
		var err error
		if n.fd, err = netns.Get(); err != nil {
			return err
		}
		n.inode, err = currentInode()
		return err
	})
	if err == nil {
		n.links, err = netlink.NewHandleAt(n.fd)
	}
	if err != nil {
		close(n.closed)
		return nil, fmt.Errorf("opening the network namespace: %w", err)
	}
	return n, nil
}

func currentInode() (uint64, error) { return inodeOf("/proc/thread-self/ns/net") }

func inodeOf(path string) (uint64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("no inode number for %s", path)
	}
	return stat.Ino, nil
}

// Name is the name below /run/netns, or "" for the namespace this process was started in.
func (n *Namespace) Name() string { return n.name }

// Inode identifies the namespace while it exists.
func (n *Namespace) Inode() uint64 { return n.inode }

// Do calls f on the namespace's own thread and returns its error. Calls are served one after the other; after Close they
// fail.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	select {
	case n.calls <- func() { done <- f() }:
		return <-done
	case <-n.closed:
		return errors.New("network namespace was closed")
	}
}

// Close ends the thread, and with it (see PR_SET_PDEATHSIG) the children that were started from it. It does not remove
// the namespace.
func (n *Namespace) Close() {
	close(n.closed)
	n.links.Close()
	n.fd.Close()
}

func removeNamespace(name string) error {
	path := filepath.Join(namespaceDir, name)
	for {
		// A crash between mounting twice cannot happen, but a bind mount made by somebody else on top can.
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Find returns the namespace with that inode number, looking at the caller's own, at the named ones, and at those of
// running processes. It returns nil when the namespace is gone, and with it all that was in it.
func Find(inode uint64) (*Namespace, error) {
	own, err := Current()
	if err != nil {
		return nil, err
	}
	if own.inode == inode {
		return own, nil
	}
	own.Close()
	for _, pattern := range []string{namespaceDir + "/*", "/proc/[0-9]*/ns/net"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			// A process may end between listing and looking; what cannot be looked at is not ours.
			if found, err := inodeOf(path); err == nil && found == inode {
				return OpenPath(path)
			}
		}
	}
	return nil, nil
}

func (n *Namespace) setLoopbackUp(journal Journal) error {
	lo, err := n.links.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking for lo: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if journal != nil {
		if err := journal.Record(Thing{Kind: KindLoopback, Name: "lo"}); err != nil {
			return err
		}
	}
	return n.links.LinkSetUp(lo)
}
