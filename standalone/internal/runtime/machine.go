package runtime

import (
	"fmt"
	"sort"
	"strings"

	"github.com/moby/sys/mountinfo"

	"fairway.dev/fairway/standalone/internal/runtime/initspec"
)

// kernelTypes are file systems that are windows into the kernel: containers get
// their own or none.
var kernelTypes = map[string]bool{
	"autofs": true, "binfmt_misc": true, "bpf": true, "cgroup": true, "cgroup2": true, "configfs": true, "debugfs": true,
	"devpts": true, "devtmpfs": true, "efivarfs": true, "fusectl": true, "hugetlbfs": true, "mqueue": true, "nsfs": true,
	"proc": true, "pstore": true, "ramfs": true, "rpc_pipefs": true, "securityfs": true, "selinuxfs": true, "sysfs": true,
	"tracefs": true, "nfsd": true, "resctrl": true,
}

// otherRuntimes keep the file systems of their containers here.
var otherRuntimes = []string{"/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/var/lib/kubelet"}

// machineFileSystems are those that make up the machine's file tree, parents
// before children, "/" first.
func machineFileSystems(hidden []string) ([]initspec.Lower, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read the machine's mounts: %w", err)
	}
	return visibleFileSystems(mounts, hidden), nil
}

// visibleFileSystems picks from all mounts those with files of the machine that
// can be seen. The order of the mounts means nothing; that of the paths in the
// result does.
func visibleFileSystems(mounts []*mountinfo.Info, hidden []string) []initspec.Lower {
	skip := append([]string{"/proc", "/sys", "/dev", "/run"}, hidden...)
	skip = append(skip, otherRuntimes...)
	t := newMountTree(mounts)
	out := []initspec.Lower{{Path: "/"}}
	for _, m := range mounts {
		path := m.Mountpoint
		if path == "/" || kernelTypes[m.FSType] || belowAny(path, skip) || strings.Contains(path, "//deleted") {
			continue
		}
		if t.reachable(m) && !t.covered(m) {
			out = append(out, initspec.Lower{Path: path, ReadOnly: hasOption(m.Options, "ro") || hasOption(m.VFSOptions, "ro")})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out
}

// mountTree knows which mounts cover others.
type mountTree struct {
	byID     map[int]*mountinfo.Info
	children map[int][]*mountinfo.Info
}

func newMountTree(mounts []*mountinfo.Info) mountTree {
	t := mountTree{byID: map[int]*mountinfo.Info{}, children: map[int][]*mountinfo.Info{}}
	for _, m := range mounts {
		t.byID[m.ID] = m
		t.children[m.Parent] = append(t.children[m.Parent], m)
	}
	return t
}

// covered tells that another mount lies on top of m.
func (t mountTree) covered(m *mountinfo.Info) bool {
	for _, c := range t.children[m.ID] {
		if c.Mountpoint == m.Mountpoint {
			return true
		}
	}
	return false
}

// reachable tells that a path leads to m.
func (t mountTree) reachable(m *mountinfo.Info) bool {
	parent, ok := t.byID[m.Parent]
	if !ok || parent == m {
		return true // the root
	}
	for _, sibling := range t.children[m.Parent] {
		// Had the sibling been there first, m would be its child.
		if sibling.Mountpoint != m.Mountpoint && below(m.Mountpoint, sibling.Mountpoint) {
			return false
		}
	}
	return t.reachable(parent) && (m.Mountpoint == parent.Mountpoint || !t.covered(parent))
}

func below(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func belowAny(path string, dirs []string) bool {
	for _, dir := range dirs {
		if below(path, dir) {
			return true
		}
	}
	return false
}

func hasOption(options, name string) bool {
	for _, o := range strings.Split(options, ",") {
		if o == name {
			return true
		}
	}
	return false
}
