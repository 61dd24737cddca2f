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

// free is how many bytes anybody can still write on d's file system.
func (d dir) free() (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(string(d), &s); err != nil {
		return 0, fmt.Errorf("free space of the data directory %s: %w", d, err)
	}
	return s.Bavail * uint64(s.Bsize), nil
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
	return nil
}
