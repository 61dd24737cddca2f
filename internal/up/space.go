package up

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What must be free on the data directory's file system, in bytes. etcd sets 64 MiB aside for each of two files of its log
// when it is new, and again for each file that it begins later, and panics where it cannot.
const (
	spaceForNew  = 256 << 20
	spaceForMore = 64 << 20
)

// inodesForMore is how many files must have room, of which etcd, logs and volumes of Pods make some all the time.
const inodesForMore = 500

// free is how many bytes anybody can still write on d's file system.
func (d dir) free() (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(string(d), &s); err != nil {
		return 0, fmt.Errorf("free space of the data directory %s: %w", d, err)
	}
	return s.Bavail * uint64(s.Bsize), nil
}

// checkInodes says that few or no more files can be made on d's file system, though it has space.
func (d dir) checkInodes() error {
	var s unix.Statfs_t
	if err := unix.Statfs(string(d), &s); err != nil {
		return fmt.Errorf("inodes of the data directory %s: %w", d, err)
	}
	if s.Files == 0 || s.Ffree >= inodesForMore { // some file systems have no limit, and say 0
		return nil
	}
	return fmt.Errorf("data directory %s: only %d more files can be made on its file system (df -i shows it), %d are needed: delete some, or choose another directory with --data-dir",
		d, s.Ffree, inodesForMore)
}

// checkSpace refuses a file system that is too full to start on. A directory that already has a cluster needs less.
func (d dir) checkSpace() error {
	need := uint64(spaceForMore)
	if _, err := os.Stat(filepath.Join(d.etcd(), "member")); errors.Is(err, os.ErrNotExist) {
		need = spaceForNew
	}
	free, err := d.free()
	if err != nil {
		return err
	}
	if free < need {
		return fmt.Errorf("data directory %s: only %d MiB are free on its file system, %d MiB are needed: make room, or choose another directory with --data-dir",
			d, free>>20, need>>20)
	}
	return d.checkInodes()
}
