package runtime

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairway.dev/fairway/standalone/internal/runtime/initspec"
)

// standardPath is searched for commands first, then the node's own PATH: the
// file system is the machine's, and so are the places of its programs.
const standardPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// startSpec translates a container to what its init needs to know.
func (r *Runtime) startSpec(c *container) (*initspec.Start, error) {
	security := c.config.GetLinux().GetSecurityContext()
	if p := security.GetSeccomp(); p.GetProfileType() == runtimeapi.SecurityProfile_Localhost {
		return nil, fmt.Errorf("seccompProfile type Localhost (%s) is not supported by standalone nodes: use RuntimeDefault or Unconfined", p.GetLocalhostRef())
	}
	process, err := r.process(c, security)
	if err != nil {
		return nil, err
	}
	mounts, err := r.mounts(c)
	if err != nil {
		return nil, err
	}
	hidden := append([]string{r.opts.Dir}, r.opts.Hide...)
	lowers, err := machineFileSystems(hidden)
	if err != nil {
		return nil, err
	}
	start := &initspec.Start{Process: process, Root: initspec.Root{
		Scratch: r.scratchDir(), Lowers: lowers, Hide: hidden, Mounts: mounts,
		ReadOnly: security.GetReadonlyRootfs(), Privileged: security.GetPrivileged(),
		CgroupMount: r.cgroups.mount == "/sys/fs/cgroup",
	}}
	if !security.GetPrivileged() {
		start.Root.MaskedPaths, start.Root.ReadonlyPaths = security.GetMaskedPaths(), security.GetReadonlyPaths()
	}
	for _, d := range c.config.GetDevices() {
		start.Root.Devices = append(start.Root.Devices, initspec.Device{Source: d.GetHostPath(), Target: d.GetContainerPath()})
	}
	return start, nil
}

// process settles who runs the command, with which rights and variables.
func (r *Runtime) process(c *container, security *runtimeapi.LinuxContainerSecurityContext) (initspec.Process, error) {
	p := initspec.Process{
		Args: c.command.args, Cwd: "/", Terminal: c.config.GetTty(), NoNewPrivileges: security.GetNoNewPrivs(),
		OOMScoreAdj: int(c.config.GetLinux().GetResources().GetOomScoreAdj()),
	}
	if dir := c.config.GetWorkingDir(); dir != "" {
		p.Cwd = filepath.Join("/", dir)
	}
	account, err := resolveUser(security)
	if err != nil {
		return p, err
	}
	p.UID, p.GID, p.Groups = account.uid, account.gid, account.groups
	if p.Capabilities, err = capabilities(security); err != nil {
		return p, err
	}
	p.Env = environment(c.config, c.sandbox.hostname, account.home)
	return p, nil
}

// environment has the variables that every container starts with, then those
// of the Pod spec.
func environment(config *runtimeapi.ContainerConfig, hostname, home string) []string {
	own := map[string]bool{}
	var env []string
	for _, kv := range config.GetEnvs() {
		own[kv.GetKey()] = true
		env = append(env, kv.GetKey()+"="+string(kv.GetValue()))
	}
	defaults := [][2]string{{"PATH", searchPath(os.Getenv("PATH"))}, {"HOSTNAME", hostname}, {"HOME", home}}
	if config.GetTty() {
		defaults = append(defaults, [2]string{"TERM", "xterm"})
	}
	for _, d := range slices.Backward(defaults) {
		if !own[d[0]] {
			env = append([]string{d[0] + "=" + d[1]}, env...)
		}
	}
	return env
}

// searchPath appends the directories of a PATH that the standard one lacks.
func searchPath(nodePath string) string {
	dirs := strings.Split(standardPath, ":")
	for _, dir := range strings.Split(nodePath, ":") {
		if filepath.IsAbs(dir) && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return strings.Join(dirs, ":")
}

type account struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// resolveUser finds user and groups; names and memberships are the machine's,
// as its /etc is the container's.
func resolveUser(security *runtimeapi.LinuxContainerSecurityContext) (account, error) {
	a := account{home: "/"}
	var entry *user.User
	var err error
	switch {
	case security.GetRunAsUser() != nil:
		a.uid = uint32(security.GetRunAsUser().GetValue())
		entry, err = user.LookupId(strconv.Itoa(int(a.uid)))
		if err != nil {
			entry = nil // a user does not need an entry
		}
	case security.GetRunAsUsername() != "":
		if entry, err = user.Lookup(security.GetRunAsUsername()); err != nil {
			return a, fmt.Errorf("user %q: %w", security.GetRunAsUsername(), err)
		}
	default:
		entry, _ = user.LookupId("0")
	}
	if entry != nil {
		if a.uid, err = parseID(entry.Uid); err != nil {
			return a, err
		}
		if a.gid, err = parseID(entry.Gid); err != nil {
			return a, err
		}
		a.home = entry.HomeDir
	}
	if security.GetRunAsGroup() != nil {
		a.gid = uint32(security.GetRunAsGroup().GetValue())
	}
	a.groups = []uint32{a.gid}
	add := func(gid uint32) {
		if !slices.Contains(a.groups, gid) {
			a.groups = append(a.groups, gid)
		}
	}
	// KEP-3619: Strict leaves out what /etc/group says.
	if entry != nil && security.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge {
		ids, _ := entry.GroupIds()
		for _, id := range ids {
			// The primary group of /etc/passwd is no membership of /etc/group.
			if gid, err := parseID(id); err == nil && id != entry.Gid {
				add(gid)
			}
		}
	}
	for _, gid := range security.GetSupplementalGroups() {
		add(uint32(gid))
	}
	return a, nil
}

func parseID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	return uint32(id), err
}

// mounts are Fairway's own, the image's and kubelet's, parents before children.
// Of one place kubelet's counts, then Fairway's.
func (r *Runtime) mounts(c *container) ([]initspec.Mount, error) {
	s := c.sandbox
	readOnly := c.config.GetLinux().GetSecurityContext().GetReadonlyRootfs()
	shm := r.shmDir(s)
	if s.options().GetIpc() == runtimeapi.NamespaceMode_NODE {
		shm = "/dev/shm"
	}
	own := []initspec.Mount{
		{Source: shm, Target: "/dev/shm"},
		{Source: filepath.Join(r.sandboxDir(s.id), "hostname"), Target: "/etc/hostname", ReadOnly: readOnly},
		{Source: filepath.Join(r.sandboxDir(s.id), "resolv.conf"), Target: "/etc/resolv.conf", ReadOnly: readOnly},
		{Source: r.opts.BinDir, Target: containerBinDir, ReadOnly: true},
		{Source: r.opts.InitPath, Target: containerInit, ReadOnly: true},
	}
	var out []initspec.Mount
	taken := map[string]bool{}
	for _, m := range c.config.GetMounts() {
		mount, err := volumeMount(m)
		if err != nil {
			return nil, err
		}
		taken[mount.Target] = true
		out = append(out, mount)
	}
	files, err := r.images.mounts(c.image.ref)
	if err != nil {
		return nil, err
	}
	for _, m := range append(own, files...) {
		if !taken[m.Target] {
			taken[m.Target] = true
			out = append(out, m)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return depth(out[i].Target) < depth(out[j].Target) })
	return out, nil
}

func depth(path string) int { return strings.Count(path, "/") }

func volumeMount(m *runtimeapi.Mount) (initspec.Mount, error) {
	out := initspec.Mount{
		Source: m.GetHostPath(), Target: filepath.Join("/", m.GetContainerPath()), ReadOnly: m.GetReadonly(),
		Recursive: m.GetRecursiveReadOnly(), Options: m.GetMountOptions(),
	}
	if m.GetImage().GetImage() != "" {
		return out, fmt.Errorf("mount %s: volumes made of images are not supported by standalone nodes, which pull no images", out.Target)
	}
	switch m.GetPropagation() {
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		out.Propagation = initspec.PropagationHostToContainer
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		out.Propagation = initspec.PropagationBidirectional
	}
	if out.Target == "/" {
		return out, errors.New("mount on /: the root cannot be replaced")
	}
	// As other runtimes do with volumes that are not there yet.
	if _, err := os.Stat(out.Source); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(out.Source, 0o755); err != nil {
			return out, fmt.Errorf("mount %s: %w", out.Target, err)
		}
	}
	return out, nil
}

// defaultCapabilities are those of other runtimes for containers that ask for
// nothing.
var defaultCapabilities = []string{
	"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
	"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
}

// capabilityNames is in the order of the kernel's numbers
// (include/uapi/linux/capability.h).
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
	"SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
	"AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
	"PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// capabilities are the numbers of those that the container keeps.
func capabilities(security *runtimeapi.LinuxContainerSecurityContext) ([]int, error) {
	set := map[int]bool{}
	each := func(names []string, value bool) error {
		for _, name := range names {
			name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
			if name == "ALL" {
				for c := range capabilityNames {
					set[c] = value
				}
				continue
			}
			c := slices.Index(capabilityNames, name)
			if c < 0 {
				return fmt.Errorf("capability %q is unknown", name)
			}
			set[c] = value
		}
		return nil
	}
	base := defaultCapabilities
	if security.GetPrivileged() {
		base = []string{"ALL"}
	}
	requested := security.GetCapabilities()
	all := func(name string) bool { return strings.EqualFold(strings.TrimPrefix(name, "CAP_"), "ALL") }
	steps := []struct {
		names []string
		value bool
	}{{base, true}, {requested.GetAddCapabilities(), true}, {requested.GetDropCapabilities(), false}}
	if slices.ContainsFunc(requested.GetDropCapabilities(), all) {
		// "Drop ALL, add X" leaves X.
		steps[1], steps[2] = steps[2], steps[1]
	}
	for _, step := range steps {
		if err := each(step.names, step.value); err != nil {
			return nil, err
		}
	}
	var out []int
	for c, keep := range set {
		if keep && c <= unix.CAP_LAST_CAP {
			out = append(out, c)
		}
	}
	slices.Sort(out)
	return out, nil
}
