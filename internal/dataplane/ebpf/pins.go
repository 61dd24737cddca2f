package ebpf

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane"
)

// DefaultPins is where the directories with what is pinned are, by default.
const DefaultPins = "/sys/fs/bpf/fairway"

// bpfMount is where a BPF file system is mounted where there is none.
const bpfMount = "/sys/fs/bpf"

// namespacePrefix begins the name of the directory for a network namespace; its
// cookie follows.
const namespacePrefix = "netns-"

// Within the directory of a network namespace:
//
//	maps-<layout>/<name>   the maps
//	links/<name>           the links of programs, see attachment, interfaces and hangSign
const (
	mapsPrefix = "maps-"
	linksDir   = "links"
)

// pins is the directory with what is pinned for one network namespace.
type pins string

// pinsOf returns the directory for a network namespace. Its cookie is unique
// on the machine until the next boot, and pins do not outlive that either.
func pinsOf(parent string, cookie uint64) pins {
	if parent == "" {
		parent = DefaultPins
	}
	return pins(filepath.Join(parent, namespacePrefix+strconv.FormatUint(cookie, 10)))
}

// prepare sees to it that the directory exists, on a BPF file system.
func (p pins) prepare() error {
	parent := filepath.Dir(string(p))
	if filepath.Dir(parent) == bpfMount {
		if err := mountBPF(); err != nil {
			return err
		}
	}
	err := fs.ErrNotExist
	for tries := 0; tries < 3 && errors.Is(err, fs.ErrNotExist); tries++ {
		// Another process may remove the parent at that moment, for it was empty.
		err = os.MkdirAll(filepath.Join(string(p), linksDir), 0o700)
	}
	if err != nil {
		return fmt.Errorf("directory for pinned BPF objects: %w", err)
	}
	if !onBPF(string(p)) {
		return fmt.Errorf("directory for pinned BPF objects: %s is not on a BPF file system; mount one with: mount -t bpf bpf %s", p, bpfMount)
	}
	return nil
}

func onBPF(path string) bool {
	var s unix.Statfs_t
	return unix.Statfs(path, &s) == nil && uint64(s.Type) == unix.BPF_FS_MAGIC
}

func mountBPF() error {
	if onBPF(bpfMount) {
		return nil
	}
	if err := unix.Mount("bpf", bpfMount, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("no BPF file system is mounted at %s, and mounting one failed: %w; in a container, share the host's", bpfMount, err)
	}
	return nil
}

// layoutOf names a set of maps by their shape: a process finds only maps that
// its programs can use.
func layoutOf(specs map[string]*ebpf.MapSpec) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		s := specs[name]
		fmt.Fprintf(h, "%s %d %d %d %d %d\n", name, s.Type, s.KeySize, s.ValueSize, s.MaxEntries, s.Flags)
	}
	fmt.Fprintf(h, "meaning %d\n", layoutVersion)
	return mapsPrefix + hex.EncodeToString(h.Sum(nil)[:6])
}

// layoutVersion changes when the bytes in the maps mean something else though
// they are as many.
const layoutVersion = 1

// openMaps opens pinned maps, and makes those that are missing.
func (p pins) openMaps(specs map[string]*ebpf.MapSpec) (map[string]*ebpf.Map, error) {
	dir := filepath.Join(string(p), layoutOf(specs))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory for pinned maps: %w", err)
	}
	out := map[string]*ebpf.Map{}
	for name, spec := range specs {
		spec.Pinning = ebpf.PinByName
		m, err := ebpf.NewMapWithOptions(spec, ebpf.MapOptions{PinPath: dir})
		if err != nil {
			closeAll(out)
			return nil, fmt.Errorf("map %s: %w", name, err)
		}
		out[name] = m
	}
	return out, nil
}

// pinMapsAgain makes the directories again that somebody removed, and pins the
// maps in them that the process has open: an empty directory would have the
// next process begin with nothing.
func (p pins) pinMapsAgain(maps map[string]*ebpf.Map, layout string, fixed dataplane.Repairs) error {
	if err := p.prepare(); err != nil {
		return err
	}
	dir := filepath.Join(string(p), layout)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("directory for pinned maps: %w", err)
	}
	var errs []error
	for name, m := range maps {
		errs = append(errs, pinAgain(m, filepath.Join(dir, name), fixed))
	}
	return errors.Join(errs...)
}

// pinAgain pins what the process has open and somebody has unpinned.
func pinAgain(o interface {
	Pin(path string) error
	Unpin() error
}, path string, fixed dataplane.Repairs) error {
	switch _, err := os.Stat(path); {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	// It takes itself for pinned there until told otherwise.
	if err := errors.Join(o.Unpin(), o.Pin(path)); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	fixed.Add(repairedPins, 1)
	return nil
}

func closeAll(m map[string]*ebpf.Map) {
	for _, each := range m {
		_ = each.Close()
	}
}

// removeOtherMaps removes the maps of other layouts.
func (p pins) removeOtherMaps(keep string) error {
	entries, err := os.ReadDir(string(p))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), mapsPrefix) && e.Name() != keep {
			errs = append(errs, os.RemoveAll(filepath.Join(string(p), e.Name())))
		}
	}
	return errors.Join(errs...)
}

// remove removes everything that is pinned, and with it, but for what others
// hold open, the programs. The links go first: no program without its maps.
func (p pins) remove() error {
	err := errors.Join(os.RemoveAll(filepath.Join(string(p), linksDir)), os.RemoveAll(string(p)))
	if err != nil {
		return fmt.Errorf("removing what is pinned: %w", err)
	}
	// The parent is ours as well; it stays while there are other network namespaces.
	if err := os.Remove(filepath.Dir(string(p))); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("removing what is pinned: %w", err)
	}
	return nil
}

// Cleanup removes everything of Fairway's that is pinned for the network
// namespace, which detaches its programs, and what is left of namespaces that
// have gone.
func Cleanup(o Options) error {
	cookie, err := netnsCookie(o.NetNS)
	if err != nil {
		return err
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p := pinsOf(o.Pins, cookie)
	return errors.Join(p.removeStale(log), removeIngress(o.NetNS, p), p.remove())
}

// inNetns runs fn on a thread in a network namespace; 0 is the caller's own.
func inNetns(fd int, fn func() error) error {
	if fd == 0 {
		return fn()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this
		err := netns.Set(netns.NsHandle(fd))
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// netnsCookie returns the number by which the kernel knows a network namespace.
func netnsCookie(fd int) (cookie uint64, err error) {
	err = inNetns(fd, func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		cookie, err = unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("network namespace: %w", err)
	}
	return cookie, nil
}
