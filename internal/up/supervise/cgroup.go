package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Cgroup is a cgroup v2 directory. It is used to find and end every process that a child started, however these moved
// between sessions and parents; no controller is enabled in it.
type Cgroup string

// Make creates the directory.
func (c Cgroup) Make() error { return os.MkdirAll(string(c), 0o755) }

// Sub is a cgroup below c.
func (c Cgroup) Sub(name string) Cgroup { return Cgroup(filepath.Join(string(c), name)) }

// Processes lists the ids of all processes in c and below.
func (c Cgroup) Processes() ([]int, error) {
	var pids []int
	err := c.walk(func(dir string) error {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return err
		}
		for _, field := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			pids = append(pids, pid)
		}
		return nil
	})
	return pids, err
}

// walk calls f for c and all cgroups below, children after their parents. What disappears meanwhile is no error.
func (c Cgroup) walk(f func(dir string) error) error {
	err := filepath.WalkDir(string(c), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = f(path)
		}
		if isGone(err) {
			return nil
		}
		return err
	})
	if isGone(err) {
		return nil
	}
	return err
}

func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) // ENODEV: removed between open and read
}

// Kill ends every process in c and below and waits until none is left.
func (c Cgroup) Kill() error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		pids, err := c.Processes()
		if err != nil {
			return fmt.Errorf("listing processes of cgroup %s: %w", c, err)
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of cgroup %s survive SIGKILL", pids, c)
		}
		// One write that no fork can outrun, since Linux 5.14; before that, again until nothing is left.
		if err := os.WriteFile(filepath.Join(string(c), "cgroup.kill"), []byte("1"), 0); err != nil {
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL) // gone already is what we want
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Remove kills what is left in c and removes it with all cgroups below.
func (c Cgroup) Remove() error {
	if err := c.Kill(); err != nil {
		return err
	}
	var dirs []string
	if err := c.walk(func(dir string) error { dirs = append(dirs, dir); return nil }); err != nil {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		if err := removeCgroup(dir); err != nil {
			return fmt.Errorf("removing cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// removeCgroup retries, for a killed process leaves its cgroup only after it has become invisible there.
func removeCgroup(dir string) error {
	for try := 0; ; try++ {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || try > 200 {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
