package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/standalone/internal/atomicfile"
)

// dataDir is the data directory, held by this process alone until it is closed.
type dataDir struct {
	path string
	lock *os.File
}

// settings are what the data in a directory was made with and depends on.
type settings struct {
	ServiceCIDRs string `json:"serviceCIDRs"`
}

// openDataDir makes the directory if need be and takes its lock. The kernel frees the lock when the process ends, in
// whatever way.
func openDataDir(path string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("data directory %s cannot be made (choose another with --data-dir): %w", path, err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "control.lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory %s is not writable (choose another with --data-dir): %w", path, err)
	}
	if err := flock(lock); err != nil {
		defer lock.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock data directory %s: %w", path, err)
		}
		holder, _ := os.ReadFile(lock.Name())
		return nil, fmt.Errorf("data directory %s is in use by another control plane (process %s): stop that one, or give "+
			"another directory with --data-dir", path, strings.TrimSpace(string(holder)))
	}
	d := &dataDir{path: path, lock: lock}
	if err := errors.Join(lock.Truncate(0), write(lock, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		d.close()
		return nil, fmt.Errorf("data directory %s is not writable: %w", path, err)
	}
	return d, nil
}

// lockPatience is how long the kernel may take to free the lock of a process that was killed while it held much memory.
const lockPatience = 2 * time.Second

// flock takes the lock or fails with EWOULDBLOCK.
func flock(file *os.File) error {
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

func write(file *os.File, text string) error {
	_, err := file.WriteAt([]byte(text), 0)
	return err
}

func (d *dataDir) close() { d.lock.Close() }

func (d *dataDir) join(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// etcd is the directory of the cluster's data.
func (d *dataDir) etcd() string { return d.join("etcd") }

// empty reports whether there is no cluster's data yet. etcd makes this directory with its first write.
func (d *dataDir) empty() bool {
	_, err := os.Stat(filepath.Join(d.etcd(), "member"))
	return errors.Is(err, fs.ErrNotExist)
}

// checkSettings refuses settings that do not fit the data that is already there, and keeps them with new data.
func (d *dataDir) checkSettings(want settings) error {
	path := d.join("control.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || d.empty() {
		if data, err = json.Marshal(want); err != nil {
			return fmt.Errorf("encode %s: %w", path, err)
		}
		return atomicfile.Write(path, append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	var have settings
	if err := json.Unmarshal(data, &have); err != nil {
		return fmt.Errorf("%s is damaged (remove it, and give the same flags as before): %w", path, err)
	}
	if have.ServiceCIDRs != want.ServiceCIDRs {
		return fmt.Errorf("data directory %s holds a cluster with the Service addresses %s, which cannot be changed to %s: give "+
			"--service-cidr %s, or another directory with --data-dir", d.path, have.ServiceCIDRs, want.ServiceCIDRs, have.ServiceCIDRs)
	}
	return nil
}
