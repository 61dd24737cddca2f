package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/standalone/internal/runtime/initspec"
)

// rootBuilder makes the file system of a container. It works in the container's
// mount namespace, which is still a copy of the machine's, and ends by making
// root the only thing in it.
type rootBuilder struct {
	spec *initspec.Root
	// root is where the container's file system is put together.
	root string
	// trees are the sources of mounts that stay linked with the machine.
	trees map[int]int
	// layers are the mounts that make up the machine's file system, for a
	// read-only root.
	layers []string
	// uppers counts the overlays.
	uppers int
}

// buildRoot makes the file system and moves this process into it.
func buildRoot(spec *initspec.Root) error {
	defer unix.Umask(unix.Umask(0))
	b := &rootBuilder{spec: spec, root: filepath.Join(spec.Scratch, "root"), trees: map[int]int{}}
	steps := []func() error{
		b.openTrees, b.scratch, b.machine, b.runtimeDirs, b.kernel, b.devices,
		b.hide, b.mounts, b.protect, b.readOnly, b.enter,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// openTrees clones the sources of mounts that later mounts shall pass through,
// while they are still linked with the machine's.
func (b *rootBuilder) openTrees() error {
	for i, m := range b.spec.Mounts {
		if m.Propagation == initspec.PropagationPrivate {
			continue
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.Source, m.Target, err)
		}
		b.trees[i] = fd
	}
	return nil
}

// scratch mounts the memory that takes the container's changes.
func (b *rootBuilder) scratch() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make the machine's mounts private: %w", err)
	}
	if err := unix.Mount("fairway", b.spec.Scratch, "tmpfs", unix.MS_NOSUID, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", b.spec.Scratch, err)
	}
	return os.Mkdir(b.root, 0o755)
}

// machine puts the machine's file systems into the root, changes going to the
// scratch memory.
func (b *rootBuilder) machine() error {
	for _, l := range b.spec.Lowers {
		err := b.layer(l)
		if err == nil {
			continue
		}
		if l.Path == "/" {
			return err
		}
		// A part of the machine that cannot be shown (a network file system
		// that is away, a path of another namespace) must not stop containers
		// that have no use for it.
		continue
	}
	return nil
}

func (b *rootBuilder) layer(l initspec.Lower) error {
	info, err := os.Stat(l.Path)
	if err != nil {
		return err
	}
	at := b.root
	if l.Path != "/" {
		if at, err = b.resolve(l.Path, info.IsDir()); err != nil {
			return err
		}
	}
	if info.IsDir() && !l.ReadOnly && !b.spec.NoOverlay {
		if err = b.overlay(l.Path, at); err == nil {
			b.layers = append(b.layers, at)
			return nil
		}
	}
	if l.Path == "/" {
		return b.farm(err)
	}
	if err := unix.Mount(l.Path, at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", l.Path, err)
	}
	return remountReadOnly(at)
}

// overlay shows the directory lower at a path, changes going to memory.
func (b *rootBuilder) overlay(lower, at string) error {
	dir := filepath.Join(b.spec.Scratch, "upper", strconv.Itoa(b.uppers))
	b.uppers++
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	// The upper directory's mode and owner become those of the mount's root.
	var st unix.Stat_t
	if err := unix.Stat(lower, &st); err != nil {
		return err
	}
	if err := errors.Join(unix.Chown(upper, int(st.Uid), int(st.Gid)), unix.Chmod(upper, st.Mode&0o7777)); err != nil {
		return err
	}
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`)
	options := "lowerdir=" + escape.Replace(lower) + ",upperdir=" + escape.Replace(upper) + ",workdir=" + escape.Replace(work)
	if err := unix.Mount("fairway", at, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlay on %s: %w", lower, err)
	}
	return nil
}

// farm is the root where overlayfs does not work, as on top of two overlays: a
// directory in memory that has the machine's directories, read-only.
func (b *rootBuilder) farm(cause error) error {
	if err := unix.Mount(b.root, b.root, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(cause, err)
	}
	if err := copyEntries("/", b.root); err != nil {
		return errors.Join(cause, err)
	}
	for _, dir := range []string{"tmp", "var/tmp"} {
		at, err := b.resolve(dir, true)
		if err != nil {
			return errors.Join(cause, err)
		}
		if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
			return errors.Join(cause, err)
		}
	}
	return nil
}

// copyEntries makes every entry of a directory appear in another one: symbolic
// links as they are, the rest bound read-only.
func copyEntries(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		switch {
		case e.Type()&os.ModeSymlink != 0:
			link, err := os.Readlink(source)
			if err != nil {
				continue
			}
			if err := os.Symlink(link, target); err != nil {
				return err
			}
			continue
		case e.IsDir():
			err = os.Mkdir(target, 0o755)
		default:
			err = os.WriteFile(target, nil, 0o644)
		}
		if err != nil {
			return err
		}
		if unix.Mount(source, target, "", unix.MS_BIND, "") == nil {
			if err := remountReadOnly(target); err != nil {
				return err
			}
		}
	}
	return nil
}

// runtimeDirs gives the container its own /run: the machine's has sockets and
// process ids that mean nothing here.
func (b *rootBuilder) runtimeDirs() error {
	at, err := b.resolve("/run", true)
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	b.layers = append(b.layers, at)
	return os.Mkdir(filepath.Join(at, "lock"), os.ModeSticky|0o777)
}

// hide covers what belongs to the node and not to its containers.
func (b *rootBuilder) hide() error {
	for _, path := range b.spec.Hide {
		info, err := os.Stat(path)
		if err != nil {
			continue // nothing there to hide
		}
		if err := b.mask(path, info.IsDir()); err != nil {
			return err
		}
	}
	return nil
}

// protect masks and write-protects parts of /proc and /sys.
func (b *rootBuilder) protect() error {
	for _, path := range b.spec.MaskedPaths {
		info, err := os.Stat(filepath.Join(b.root, path))
		if err != nil {
			continue // this kernel does not have it
		}
		if err := b.mask(path, info.IsDir()); err != nil {
			return err
		}
	}
	for _, path := range b.spec.ReadonlyPaths {
		at := filepath.Join(b.root, path)
		if _, err := os.Stat(at); err != nil {
			continue
		}
		if err := unix.Mount(at, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("protect %s: %w", path, err)
		}
		if err := remountReadOnly(at); err != nil {
			return err
		}
	}
	return nil
}

func (b *rootBuilder) mask(path string, dir bool) error {
	at, err := b.resolve(path, dir)
	if err != nil {
		return err
	}
	if dir {
		err = unix.Mount("tmpfs", at, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=0")
	} else {
		err = unix.Mount("/dev/null", at, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("mask %s: %w", path, err)
	}
	return nil
}

// readOnly write-protects the machine's part of the root, after everything that
// is mounted into it has its mount point.
func (b *rootBuilder) readOnly() error {
	if !b.spec.ReadOnly {
		return nil
	}
	for _, at := range slices.Backward(b.layers) {
		if err := remountReadOnly(at); err != nil {
			return err
		}
	}
	return nil
}

// enter makes the new root the only one.
func (b *rootBuilder) enter() error {
	if err := unix.Chdir(b.root); err != nil {
		return err
	}
	// The old root is put over the new one and taken off from there; see
	// pivot_root(2) on pivot_root(".", ".").
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the machine's root: %w", err)
	}
	return unix.Chdir("/")
}

// remountReadOnly write-protects one mount and keeps its other flags.
func remountReadOnly(at string) error {
	return remount(at, unix.MS_RDONLY)
}

func remount(at string, add uintptr) error {
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", at, err)
	}
	// The mount flags of statfs(2) have the values of mount(2) for these.
	keep := uintptr(st.Flags) & (unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME)
	if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|keep|add, ""); err != nil {
		return fmt.Errorf("remount %s: %w", at, err)
	}
	return nil
}
