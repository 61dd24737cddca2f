package runtime

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cgroupTree is the node's part of the cgroup v2 hierarchy:
// <mount>/<parent>/<node>/pod<uid>/<container>.
type cgroupTree struct {
	mount string
	root  string
	// madeParent is true where the parent is nobody else's.
	madeParent bool
	// controllers are those that limits can be set with. There are none where
	// cgroup v1 has them.
	controllers []string
}

// newCgroupTree ends what an earlier run left in the node's cgroup and makes it
// anew. A parent that is given stays when the node's goes: programs of others
// may be on it. Without one it is "fairway".
func newCgroupTree(parent, node string) (*cgroupTree, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("find cgroup v2: %w", err)
	}
	if len(mounts) == 0 {
		return nil, errors.New("no cgroup v2 is mounted; mount it with: mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2")
	}
	// A machine may have more than one; the usual place comes first.
	slices.SortFunc(mounts, func(a, b *mountinfo.Info) int {
		return cmp.Compare(len(a.Mountpoint), len(b.Mountpoint))
	})
	if i := slices.IndexFunc(mounts, func(m *mountinfo.Info) bool { return below(m.Mountpoint, "/sys/fs/cgroup") }); i > 0 {
		mounts[0] = mounts[i]
	}
	t := &cgroupTree{mount: mounts[0].Mountpoint, madeParent: parent == ""}
	t.root = filepath.Join(t.mount, cmp.Or(parent, "fairway"), node)
	if _, err := os.Stat(t.root); err == nil {
		if err := t.kill(t.root); err != nil {
			return nil, err
		}
		if err := t.removeAll(); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(t.root, 0o755); err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	t.delegate()
	return t, nil
}

// delegate turns on the controllers from the mount down to the node, as far as
// the machine lets us. Without them Pods run without limits.
func (t *cgroupTree) delegate() {
	data, err := os.ReadFile(filepath.Join(t.mount, "cgroup.controllers"))
	if err != nil {
		return
	}
	var dirs []string
	for dir := t.root; below(dir, t.mount); dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
	}
	for _, c := range strings.Fields(string(data)) {
		if c != "cpu" && c != "memory" && c != "pids" {
			continue
		}
		enabled := true
		for _, dir := range slices.Backward(dirs) {
			enabled = enabled && enableController(dir, c) == nil
		}
		if enabled {
			t.controllers = append(t.controllers, c)
		}
	}
}

func enableController(dir, name string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0)
}

// pod makes a Pod's cgroup. Sandboxes of one Pod share it.
func (t *cgroupTree) pod(uid string) (string, error) {
	dir := filepath.Join(t.root, "pod"+uid)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("cgroup of Pod: %w", err)
	}
	for _, c := range t.controllers {
		if err := enableController(dir, c); err != nil {
			return "", fmt.Errorf("cgroup of Pod: %w", err)
		}
	}
	return dir, nil
}

// container makes a container's cgroup with its limits and opens it, for
// processes to be born in.
func (t *cgroupTree) container(pod, id string, limits *runtimeapi.LinuxContainerResources) (string, *os.File, error) {
	dir := filepath.Join(pod, id)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", nil, fmt.Errorf("cgroup of container: %w", err)
	}
	if err := t.limit(dir, limits); err != nil {
		return "", nil, errors.Join(err, os.Remove(dir))
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", nil, errors.Join(err, os.Remove(dir))
	}
	return dir, f, nil
}

// limit sets limits, those whose controllers the machine gives us.
func (t *cgroupTree) limit(dir string, limits *runtimeapi.LinuxContainerResources) error {
	values := limitValues(limits)
	for _, v := range values {
		controller, _, _ := strings.Cut(v.file, ".")
		if !t.has(controller) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, v.file), []byte(v.value), 0); err != nil {
			return fmt.Errorf("limit %s=%s: %w", v.file, v.value, err)
		}
	}
	return nil
}

type cgroupValue struct{ file, value string }

// limitValues translates limits to the files of cgroup v2.
func limitValues(limits *runtimeapi.LinuxContainerResources) []cgroupValue {
	var out []cgroupValue
	if limits == nil {
		return nil
	}
	if limits.MemoryLimitInBytes > 0 {
		out = append(out, cgroupValue{"memory.max", strconv.FormatInt(limits.MemoryLimitInBytes, 10)})
	}
	if limits.CpuQuota > 0 && limits.CpuPeriod > 0 {
		out = append(out, cgroupValue{"cpu.max", fmt.Sprintf("%d %d", limits.CpuQuota, limits.CpuPeriod)})
	} else if limits.CpuQuota < 0 {
		out = append(out, cgroupValue{"cpu.max", "max"})
	}
	if limits.CpuShares > 0 {
		// KEP-2254: shares 2..262144 to weight 1..10000.
		shares := min(max(limits.CpuShares, 2), 262144)
		out = append(out, cgroupValue{"cpu.weight", strconv.FormatInt(1+(shares-2)*9999/262142, 10)})
	}
	for file, value := range limits.Unified {
		out = append(out, cgroupValue{file, value})
	}
	return out
}

func (t *cgroupTree) has(controller string) bool {
	return slices.Contains(t.controllers, controller)
}

// kill ends every process in a cgroup and those below, and waits for their end.
func (t *cgroupTree) kill(dir string) error {
	const patience = 10 * time.Second
	kill := filepath.Join(dir, "cgroup.kill") // since Linux 5.14
	_, err := os.Stat(kill)
	old := errors.Is(err, fs.ErrNotExist)
	for deadline := time.Now().Add(patience); ; {
		if old {
			killEach(dir)
		} else if err := os.WriteFile(kill, []byte("1"), 0); err != nil && !gone(err) {
			return fmt.Errorf("kill cgroup: %w", err)
		}
		if !populated(dir) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroup %s: processes do not end", dir)
		}
		time.Sleep(time.Millisecond)
	}
}

// killEach does without cgroup.kill.
func killEach(dir string) {
	for _, pid := range processes(dir) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// processes are the process ids in a cgroup and those below.
func processes(dir string) []int {
	var pids []int
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		data, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, line := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(line); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

func populated(dir string) bool {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err == nil && strings.Contains(string(data), "populated 1")
}

// remove removes an empty cgroup, with those below.
func (t *cgroupTree) remove(dir string) error {
	entries, err := os.ReadDir(dir)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := t.remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for range 1000 {
		// For a moment after the last process the cgroup is still busy.
		if err = os.Remove(dir); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if gone(err) {
		return nil
	}
	return err
}

// removeAll removes the node's cgroup, and with the last of them the parent, if
// nobody else made it.
func (t *cgroupTree) removeAll() error {
	if err := t.remove(t.root); err != nil {
		return err
	}
	if t.madeParent {
		_ = os.Remove(filepath.Dir(t.root)) // fails as long as there are others
	}
	return nil
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
