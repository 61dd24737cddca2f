package sysctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Setter sets parameters and remembers what they were.
type Setter struct {
	log    *slog.Logger
	dir    string
	want   []setting
	told   map[string]bool // parameters whose failure has been logged
	change []change
}

// change is one parameter that has been changed.
type change struct {
	Path   string `json:"path"`
	Before string `json:"before"`
	// Now is what the kernel held after it was set; empty while that is being done.
	Now string `json:"now,omitempty"`
}

// New returns a Setter that has set nothing yet. What was before is remembered
// in dir, which may be common to several network namespaces and has to be gone
// after a boot, as parameters are.
func New(o Options, dir string, logger *slog.Logger) (*Setter, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	cpus, err := onlineCPUs()
	if err != nil {
		cpus = runtime.NumCPU()
	}
	return &Setter{log: logger, dir: dir, want: o.settings(cpus), told: map[string]bool{}}, nil
}

// retry is how soon it is tried again to set what is not there yet: the kernel
// has some parameters only once it tracks connections.
const retry = 5 * time.Second

// Run sets the parameters and ends with ctx. What cannot be set is logged once:
// the node serves all the same.
func (s *Setter) Run(ctx context.Context) error {
	for !s.Set() {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
	<-ctx.Done()
	return nil
}

// Set sets what is not as it shall be, in the network namespace of the calling
// thread, and reports whether there is nothing more to be done.
func (s *Setter) Set() bool {
	file, changes, err := load(s.dir)
	if err != nil {
		s.complain("record of what was before", err)
		return true // without a record nothing is changed
	}
	s.change = changes
	done := true
	for _, w := range s.want {
		err := s.set(file, w)
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrNotExist):
			done = false
		case w.shared && errors.Is(err, fs.ErrPermission):
			s.log.Debug("kernel parameter is the machine's, and left alone", "parameter", w.path)
		default:
			s.complain(w.path, err)
		}
	}
	return done
}

func (s *Setter) complain(what string, err error) {
	if !s.told[what] {
		s.told[what] = true
		s.log.Warn("kernel parameter cannot be set, and stays as it is", "parameter", what, "error", err)
	}
}

func (s *Setter) set(file string, w setting) error {
	now, err := read(w.path)
	if err != nil {
		return err
	}
	value, needed := w.want(now)
	if !needed {
		return nil
	}
	// What was there before our first change is what is put back, unless
	// somebody else has changed it in between.
	i := slices.IndexFunc(s.change, func(c change) bool { return c.Path == w.path })
	if i < 0 {
		i = len(s.change)
		s.change = append(s.change, change{Path: w.path, Before: now})
	} else if c := &s.change[i]; c.Now != now {
		*c = change{Path: w.path, Before: now}
	}
	if err := save(file, s.change); err != nil {
		return err
	}
	if err := write(w.path, value); err != nil {
		s.change = slices.Delete(s.change, i, i+1)
		return errors.Join(err, save(file, s.change))
	}
	if s.change[i].Now, err = read(w.path); err != nil {
		return err
	}
	s.log.Info("kernel parameter set", "parameter", w.path, "value", s.change[i].Now, "before", now)
	return save(file, s.change)
}

// Restore puts back what was changed in the network namespace of the calling
// thread, and forgets it. What somebody else has changed since is left alone.
func Restore(dir string) error {
	file, changes, err := load(dir)
	if err != nil || len(changes) == 0 {
		return err
	}
	var errs []error
	for _, c := range slices.Backward(changes) {
		now, err := read(c.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist), err == nil && c.Now != "" && now != c.Now:
			continue
		case err == nil:
			err = write(c.Path, c.Before)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("putting back kernel parameter %s: %w", c.Path, err))
		}
	}
	if len(errs) == 0 {
		errs = append(errs, os.Remove(file))
	}
	return errors.Join(errs...)
}

// load reads what has been changed in this network namespace, and returns the
// file that it stands in.
func load(dir string) (file string, changes []change, err error) {
	ns, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return "", nil, err
	}
	inode, err := inodeOf(ns)
	if err != nil {
		return "", nil, err
	}
	file = filepath.Join(dir, fmt.Sprintf("sysctl-%d.json", inode))
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return file, nil, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &changes)
	}
	if err != nil {
		return file, nil, fmt.Errorf("record of kernel parameters %s: %w; remove it", file, err)
	}
	return file, changes, nil
}

// save writes the record so that it is whole whenever it is read.
func save(file string, changes []change) error {
	if len(changes) == 0 {
		err := os.Remove(file)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	data, err := json.MarshalIndent(changes, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

const root = "/proc/sys/"

func read(path string) (string, error) {
	data, err := os.ReadFile(root + path)
	return strings.TrimSpace(string(data)), err
}

// write ends with a newline, so that nothing can be written too.
func write(path, value string) error { return os.WriteFile(root+path, []byte(value+"\n"), 0) }
