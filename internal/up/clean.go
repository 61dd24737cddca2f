package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"fairway.dev/fairway/internal/up/machine"
	"fairway.dev/fairway/internal/up/supervise"
)

// clearCrashed takes away what a run left behind that ended without doing so. The caller holds the lock.
func clearCrashed(ctx context.Context, d dir, progress *Progress) error {
	state, err := d.readState()
	if err != nil || state == nil {
		return err
	}
	done := progress.Step("clearing what a run before left behind")
	awaitEnd(ctx, state)
	notes, err := clean(ctx, d, state)
	if err != nil {
		done("")
		return err
	}
	for _, note := range notes {
		progress.Note("%v", note)
	}
	done("remains of a crash cleared")
	return nil
}

// awaitEnd gives children of a dead supervisor, which were told to end when it died, some time to do so in good order.
func awaitEnd(ctx context.Context, s *State) {
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if !anyLeft(s) {
			return
		}
	}
}

func anyLeft(s *State) bool {
	if s.Cgroup != "" {
		pids, err := s.Cgroup.Processes()
		return err != nil || len(pids) > 0
	}
	for _, p := range s.Processes {
		if p.Alive() {
			return true
		}
	}
	return false
}

// clean takes back what the state lists: processes, mounts, changes to the machine, and at last the state file, unless
// something could not be taken back, so that it can be tried again. notes are about what may be left all the same.
func clean(ctx context.Context, d dir, s *State) (notes []error, err error) {
	var errs []error
	if s.Cgroup != "" {
		errs = append(errs, s.Cgroup.Remove())
	}
	errs = append(errs, killAll(s.Processes))
	things := s.Things
	if s.rebooted() {
		// Settings of the kernel are those of the new boot, and where one is as ours was, whoever set it since wants it so. The
		// first network namespace has the same inode in every boot.
		things = slices.DeleteFunc(slices.Clone(things), func(t machine.Thing) bool {
			return t.Kind == machine.KindSysctl || t.Kind == machine.KindLoopback
		})
		errs = append(errs, removeAll(d.path("run", "sysctl-*.json")))
	}
	node1, err := machine.Find(s.NamespaceInode)
	errs = append(errs, err)
	if node1 != nil {
		defer node1.Close()
		if err := cleanDataplane(ctx, s, node1); err != nil {
			notes = append(notes, err)
		}
	}
	if s.ID != "" {
		// Programs go when nothing is pinned, those of all nodes.
		errs = append(errs, os.RemoveAll(bpfDir(s.ID)))
	}
	errs = append(errs, d.unmount(s.Nodes), machine.Undo(node1, things))
	// Those of further nodes, whose namespaces are gone, with all that was changed in them.
	files := removeAll(d.path("run", "sysctl-*.json"))
	for _, p := range s.Processes {
		if err := os.Remove(d.ready(p.Role, p.Node)); err != nil && !errors.Is(err, os.ErrNotExist) {
			files = errors.Join(files, err)
		}
	}
	if err := d.writable(); err != nil {
		files = err // in place of one for each file
	}
	errs = append(errs, files)
	if err := errors.Join(errs...); err != nil {
		return notes, fmt.Errorf("%w\n(what is left is listed in %s; fairway down --data-dir %s tries again)", err, d.state(), shellWord(s.DataDir))
	}
	return notes, os.Remove(d.state())
}

// unmount takes away what the kubelets of the nodes mounted. What is mounted elsewhere in the data directory, or is the data
// directory itself, is a disk that somebody gave it.
func (d dir) unmount(nodes []Node) error {
	var errs []error
	for _, node := range nodes {
		errs = append(errs, machine.UnmountBelow(d.path("nodes", node.Name)))
	}
	return errors.Join(errs...)
}

// removeAll removes the files that the pattern stands for.
func removeAll(pattern string) error {
	files, err := filepath.Glob(pattern)
	for _, file := range files {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// killAll ends processes that are still alive, where there is no cgroup that has done so.
func killAll(processes []supervise.Status) error {
	var errs []error
	for _, p := range processes {
		if !p.Alive() {
			continue
		}
		handle, err := os.FindProcess(p.PID) // a pidfd: it cannot come to mean another process
		if err == nil && p.Alive() {
			err = handle.Kill()
		}
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("ending %s (pid %d): %w", p.Role, p.PID, err))
		}
	}
	return errors.Join(errs...)
}

// cleanDataplane lets the node role take its tables and programs out of node 1's namespace; those of the other nodes go
// with their namespaces. Nothing is done if that role never ran.
func cleanDataplane(ctx context.Context, s *State, node1 *machine.Namespace) error {
	ran := false
	for _, p := range s.Processes {
		ran = ran || p.Role == roleNode
	}
	if !ran {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.BinDir, "fairway"), "node", "--cleanup", "--bpf-dir", bpfDir(s.ID), "--run-dir", dir(s.DataDir).path("run"))
	cmd.Env = childEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	err := node1.Do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("fairway node --cleanup failed, its tables may be left: %w: %s", err, strings.TrimSpace(output.String()))
	}
	return nil
}
