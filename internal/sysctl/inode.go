package sysctl

import (
	"fmt"
	"io/fs"
	"syscall"
)

// inodeOf returns the number that identifies a namespace while it exists.
func inodeOf(info fs.FileInfo) (uint64, error) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("%s: no inode", info.Name())
	}
	return stat.Ino, nil
}
