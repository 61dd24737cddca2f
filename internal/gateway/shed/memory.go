package shed

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Memory reads what the process uses of the memory that it may use.
type Memory struct {
	goLimit uint64 // 0 for none
	group   *cgroup
	samples []metrics.Sample
}

// NewMemory looks for the limits of this process: what SetMemoryLimit or
// GOMEMLIMIT has set, and that of the nearest cgroup which has one. Without any,
// it returns nil.
func NewMemory() (*Memory, error) {
	group, err := findCgroup("/proc/self/cgroup", "/sys/fs/cgroup")
	if err != nil {
		return nil, err
	}
	m := &Memory{group: group}
	for _, name := range runtimeMetrics {
		m.samples = append(m.samples, metrics.Sample{Name: name})
	}
	if limit := debug.SetMemoryLimit(-1); limit != math.MaxInt64 { // it only asks
		m.goLimit = uint64(limit)
	}
	if m.goLimit == 0 && group == nil {
		return nil, nil
	}
	return m, nil
}

// Limit returns how many bytes the process may use: the nearest limit, or where
// there is none, as for a nil Memory, what the machine has.
func (m *Memory) Limit() uint64 {
	var limit uint64
	if m != nil {
		limit = m.goLimit
		if m.group != nil && (limit == 0 || m.group.limit < limit) {
			limit = m.group.limit
		}
	}
	var machine unix.Sysinfo_t
	if limit == 0 && unix.Sysinfo(&machine) == nil {
		limit = machine.Totalram * uint64(machine.Unit)
	}
	if limit == 0 {
		limit = math.MaxInt64
	}
	return limit
}

// LimitRuntime tells the runtime to collect its garbage before that fills the
// cgroup up to a share, unless it has been told a limit. Share goes on to judge
// by the cgroup.
func (m *Memory) LimitRuntime(share float64) {
	if m != nil && m.goLimit == 0 && m.group != nil {
		debug.SetMemoryLimit(int64(share * float64(m.group.limit)))
	}
}

// runtimeMetrics are the runtime's memory, and those parts of it that do not
// press: given back; free for anything; free for objects of a size; objects,
// which may be garbage; and what of those was none at the last collection.
var runtimeMetrics = [...]string{"/memory/classes/total:bytes", "/memory/classes/heap/released:bytes", "/memory/classes/heap/free:bytes",
	"/memory/classes/heap/unused:bytes", "/memory/classes/heap/objects:bytes", "/gc/heap/live:bytes"}

// ofRuntime returns what the runtime has of the kernel, and what it cannot do
// without: near its limit garbage fills up whatever else there is.
func (m *Memory) ofRuntime() (has, needs uint64) {
	metrics.Read(m.samples)
	at := func(i int) uint64 { return m.samples[i].Value.Uint64() }
	objects := at(4)
	return at(0) - at(1), at(0) - at(1) - at(2) - at(3) - objects + min(objects, at(5))
}

// Share returns what share of its memory the process uses, by the limit that it
// is nearer to. Above a runtime's limit it can be more than 1.
func (m *Memory) Share() (float64, error) {
	share := 0.
	has, needs := m.ofRuntime()
	if m.goLimit > 0 {
		share = float64(needs) / float64(m.goLimit)
	}
	if m.group != nil {
		used, err := m.group.used()
		if err != nil {
			return share, err
		}
		// What others in the group use cannot be freed by turning clients away.
		if has >= used/4 || m.group.alone() {
			share = max(share, float64(used)/float64(m.group.limit))
		}
	}
	return share, nil
}

// cgroup is the control group whose limit counts.
type cgroup struct {
	limit    uint64
	usage    string // file
	stat     string // file
	inactive string // its field
	procs    string // file; empty if it is not the process's own
}

// alone reports whether this process is the only one in the group.
func (g *cgroup) alone() bool {
	pid, err := readNumber(g.procs) // of several lines it is none
	return err == nil && pid == uint64(os.Getpid())
}

// findCgroup looks for the nearest group with a limit, of this process's and
// those that it lies in.
func findCgroup(self, mount string) (*cgroup, error) {
	text, err := os.ReadFile(self)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // not a Linux with cgroups
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		var root, limitFile string
		var g cgroup
		switch {
		case f[1] == "": // version 2
			root, limitFile, g = mount, "memory.max", cgroup{usage: "memory.current", stat: "memory.stat", inactive: "inactive_file"}
		case has(f[1], "memory"):
			root, limitFile, g = filepath.Join(mount, "memory"), "memory.limit_in_bytes", cgroup{usage: "memory.usage_in_bytes", stat: "memory.stat", inactive: "total_inactive_file"}
		default:
			continue
		}
		// In a container the path may be the host's, and the mount the container's
		// own: then only the mount's root is there.
		own := filepath.Clean("/" + f[2])
		for dir := own; ; dir = filepath.Dir(dir) {
			limit, err := readNumber(filepath.Join(root, dir, limitFile))
			// Version 1 writes no limit as the largest number of pages.
			if err == nil && limit > 0 && limit < math.MaxInt64/2 {
				g.limit, g.usage, g.stat = limit, filepath.Join(root, dir, g.usage), filepath.Join(root, dir, g.stat)
				// The root of the mount may be the process's own group, in a container.
				if dir == own || dir == "/" {
					g.procs = filepath.Join(root, dir, "cgroup.procs")
				}
				return &g, nil
			}
			if dir == "/" {
				break
			}
		}
	}
	return nil, nil
}

func has(list, name string) bool {
	for s := range strings.SplitSeq(list, ",") {
		if s == name {
			return true
		}
	}
	return false
}

// readNumber reads a file of one number; "max" is an error.
func readNumber(path string) (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

// used is what cannot be taken back: without files that were read and are not
// in use, as the kubelet counts.
func (g *cgroup) used() (uint64, error) {
	used, err := readNumber(g.usage)
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(g.stat)
	if err != nil {
		return used, nil // it is no less
	}
	for line := range strings.Lines(string(text)) {
		name, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name != g.inactive {
			continue
		}
		if n, err := strconv.ParseUint(number, 10, 64); err == nil {
			used -= min(n, used)
		}
		break
	}
	return used, nil
}
