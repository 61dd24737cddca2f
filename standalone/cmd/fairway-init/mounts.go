package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/standalone/internal/runtime/initspec"
)

// mounts makes the mounts of the container's volumes.
func (b *rootBuilder) mounts() error {
	for i, m := range b.spec.Mounts {
		if err := b.mount(i, m); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.Source, m.Target, err)
		}
	}
	return nil
}

func (b *rootBuilder) mount(i int, m initspec.Mount) error {
	info, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	target, err := b.open(m.Target, info.IsDir())
	if err != nil {
		return err
	}
	defer target.Close()
	if tree, ok := b.trees[i]; ok {
		err = unix.MoveMount(tree, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
		unix.Close(tree)
	} else {
		err = unix.Mount(m.Source, procPath(target), "", unix.MS_BIND|unix.MS_REC, "")
	}
	if err != nil {
		return err
	}
	// The descriptor is that of the covered directory: open what covers it.
	mounted, err := b.open(m.Target, info.IsDir())
	if err != nil {
		return err
	}
	defer mounted.Close()
	at := procPath(mounted)
	if m.Propagation == initspec.PropagationHostToContainer {
		if err := unix.Mount("", at, "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return err
		}
	}
	flags, err := optionFlags(m.Options)
	if err != nil {
		return err
	}
	if m.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if flags != 0 {
		if err := remount(at, flags); err != nil {
			return err
		}
	}
	if m.ReadOnly && m.Recursive {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(int(mounted.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
			return fmt.Errorf("recursively read-only (needs Linux 5.12): %w", err)
		}
	}
	return nil
}

func optionFlags(options []string) (uintptr, error) {
	var flags uintptr
	for _, o := range options {
		switch o {
		case "noexec":
			flags |= unix.MS_NOEXEC
		case "nosuid":
			flags |= unix.MS_NOSUID
		case "nodev":
			flags |= unix.MS_NODEV
		default:
			return 0, fmt.Errorf("mount option %q is unknown; known are noexec, nosuid, nodev", o)
		}
	}
	return flags, nil
}

// kernel mounts /proc and /sys.
func (b *rootBuilder) kernel() error {
	proc, err := b.resolve("/proc", true)
	if err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", proc, "proc", flags, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	sys, err := b.resolve("/sys", true)
	if err != nil {
		return err
	}
	var readOnly uintptr = unix.MS_RDONLY
	if b.spec.Privileged {
		readOnly = 0
	}
	if err := unix.Mount("sysfs", sys, "sysfs", flags|readOnly, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if !b.spec.CgroupMount {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("cgroup namespace: %w", err)
	}
	at := filepath.Join(sys, "fs/cgroup")
	if _, err := os.Stat(at); err != nil {
		return nil
	}
	if err := unix.Mount("cgroup2", at, "cgroup2", flags|readOnly, ""); err != nil {
		return fmt.Errorf("mount /sys/fs/cgroup: %w", err)
	}
	return nil
}

// devices makes /dev.
func (b *rootBuilder) devices() error {
	dev, err := b.resolve("/dev", true)
	if err != nil {
		return err
	}
	if !b.spec.Privileged || b.overlay("/dev", dev) != nil {
		if err := unix.Mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID, "mode=0755,size=64m"); err != nil {
			return fmt.Errorf("mount /dev: %w", err)
		}
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := b.device(initspec.Device{Source: "/dev/" + name, Target: "/dev/" + name}); err != nil {
			return err
		}
	}
	for _, dir := range []struct{ path, fs, options string }{
		{"pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"mqueue", "mqueue", ""},
		{"shm", "", ""}, // a mount of the Pod's
	} {
		at := filepath.Join(dev, dir.path)
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if dir.fs == "" {
			continue
		}
		if err := unix.Mount(dir.fs, at, dir.fs, unix.MS_NOSUID|unix.MS_NOEXEC, dir.options); err != nil && dir.fs != "mqueue" {
			return fmt.Errorf("mount /dev/%s: %w", dir.path, err)
		}
	}
	links := map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	}
	for name, to := range links {
		at := filepath.Join(dev, name)
		if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(to, at); err != nil {
			return err
		}
	}
	for _, d := range b.spec.Devices {
		if err := b.device(d); err != nil {
			return err
		}
	}
	return nil
}

// device shows a device of the machine, by a node of its own or, where the
// kernel does not let us make one, by binding the machine's.
func (b *rootBuilder) device(d initspec.Device) error {
	var st unix.Stat_t
	if err := unix.Stat(d.Source, &st); err != nil {
		return fmt.Errorf("device %s: %w", d.Source, err)
	}
	dir, err := b.resolve(filepath.Dir(d.Target), true)
	if err != nil {
		return err
	}
	at := filepath.Join(dir, filepath.Base(d.Target))
	if _, err := os.Lstat(at); err == nil {
		return nil // privileged containers have them all
	}
	if err := unix.Mknod(at, st.Mode, int(st.Rdev)); err == nil {
		return unix.Chown(at, int(st.Uid), int(st.Gid))
	}
	if err := os.WriteFile(at, nil, 0o666); err != nil {
		return fmt.Errorf("device %s: %w", d.Target, err)
	}
	if err := unix.Mount(d.Source, at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("device %s: %w", d.Target, err)
	}
	return nil
}

// open returns the mount point for a path of the container, made if missing.
// Whatever other containers of the Pod do to shared volumes meanwhile, it lies
// within the root.
func (b *rootBuilder) open(path string, dir bool) (*os.File, error) {
	at, err := b.resolve(path, dir)
	if err != nil {
		return nil, err
	}
	root, err := os.Open(b.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	inside := strings.TrimPrefix(strings.TrimPrefix(at, b.root), "/")
	if inside == "" {
		return nil, errors.New("the container's root cannot be a mount point")
	}
	fd, err := unix.Openat2(int(root.Fd()), inside, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// maxLinks is how many symbolic links a path may lead through, as in Linux.
const maxLinks = 40

// resolve follows a path of the container within its root and makes what is
// missing: directories, at the end a file if dir is false. It returns the path
// on the machine.
func (b *rootBuilder) resolve(path string, dir bool) (string, error) {
	at, rest, links := "/", strings.Split(path, "/"), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		info, err := os.Lstat(filepath.Join(b.root, next))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := b.make(next, dir || len(rest) > 0); err != nil {
				return "", err
			}
		case err != nil:
			return "", err
		case info.Mode()&os.ModeSymlink != 0:
			if links++; links > maxLinks {
				return "", fmt.Errorf("%s: %w", path, unix.ELOOP)
			}
			to, err := os.Readlink(filepath.Join(b.root, next))
			if err != nil {
				return "", err
			}
			if filepath.IsAbs(to) {
				at = "/"
			}
			rest = append(strings.Split(to, "/"), rest...)
			continue
		}
		at = next
	}
	return filepath.Join(b.root, at), nil
}

// make makes a directory or an empty file. In a read-only file system, which
// only a root without overlay has, its parent is first rebuilt in memory.
func (b *rootBuilder) make(path string, dir bool) error {
	at := filepath.Join(b.root, path)
	try := func() error {
		if dir {
			return os.Mkdir(at, 0o755)
		}
		return os.WriteFile(at, nil, 0o644)
	}
	err := try()
	if !errors.Is(err, unix.EROFS) {
		return err
	}
	parent := filepath.Dir(at)
	covered, err := os.Open(parent)
	if err != nil {
		return err
	}
	defer covered.Close()
	if err := unix.Mount("tmpfs", parent, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	if err := copyEntries(procPath(covered), parent); err != nil {
		return err
	}
	return try()
}
