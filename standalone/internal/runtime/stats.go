package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cpuSample is the CPU time of a container at an earlier moment.
type cpuSample struct {
	at    time.Time
	usage uint64
	nano  uint64 // nanocores since the sample before
}

// usage is what processes use at a moment.
type usage struct {
	at         time.Time
	cpu        uint64 // nanoseconds since their start
	nanoCores  uint64
	rss        uint64 // bytes
	workingSet uint64 // bytes
	processes  uint64
}

// measure reads a cgroup; where the machine's cgroup v2 has no memory
// controller, the memory comes from the processes.
func (t *cgroupTree) measure(dir string) usage {
	u := usage{at: time.Now(), cpu: statValue(filepath.Join(dir, "cpu.stat"), "usage_usec") * 1000}
	pids := processes(dir)
	u.processes = uint64(len(pids))
	if t.has("memory") {
		current := readUint(filepath.Join(dir, "memory.current"))
		stat := filepath.Join(dir, "memory.stat")
		u.rss = statValue(stat, "anon")
		u.workingSet = current - min(current, statValue(stat, "inactive_file"))
		return u
	}
	for _, pid := range pids {
		u.rss += residentBytes(pid)
	}
	u.workingSet = u.rss
	return u
}

// residentBytes is what a process holds of memory, without what it shares with
// files, as those are the machine's own.
func residentBytes(pid int) uint64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := strings.Fields(string(data))
	if len(fields) < 3 {
		return 0
	}
	resident, _ := strconv.ParseUint(fields[1], 10, 64)
	shared, _ := strconv.ParseUint(fields[2], 10, 64)
	return (resident - min(resident, shared)) * uint64(os.Getpagesize())
}

// statValue reads one line of a file of "name value" lines; 0 without it.
func statValue(path, name string) uint64 {
	data, _ := os.ReadFile(path)
	for _, line := range strings.Split(string(data), "\n") {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, _ := strconv.ParseUint(value, 10, 64)
			return n
		}
	}
	return 0
}

func readUint(path string) uint64 {
	data, _ := os.ReadFile(path)
	n, _ := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return n
}

func oomKilled(dir string) bool {
	return statValue(filepath.Join(dir, "memory.events"), "oom_kill") > 0
}

// measure returns a running container's usage.
func (r *Runtime) measure(c *container) (usage, error) {
	if _, err := c.running(); err != nil {
		return usage{}, err
	}
	u := r.cgroups.measure(c.cgroup)
	c.mu.Lock()
	defer c.mu.Unlock()
	// Rates over less than this say little; the last one still holds.
	const shortest = 500 * time.Millisecond
	if elapsed := u.at.Sub(c.sample.at); c.sample.at.IsZero() || elapsed >= shortest {
		if !c.sample.at.IsZero() && u.cpu >= c.sample.usage {
			c.sample.nano = uint64(float64(u.cpu-c.sample.usage) / elapsed.Seconds())
		}
		c.sample.at, c.sample.usage = u.at, u.cpu
	}
	u.nanoCores = c.sample.nano
	return u, nil
}

func (u usage) cpuUsage() *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{
		Timestamp: u.at.UnixNano(), UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: u.cpu},
		UsageNanoCores: &runtimeapi.UInt64Value{Value: u.nanoCores},
	}
}

func (u usage) memoryUsage() *runtimeapi.MemoryUsage {
	value := func(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
	return &runtimeapi.MemoryUsage{
		Timestamp: u.at.UnixNano(), WorkingSetBytes: value(u.workingSet), UsageBytes: value(u.workingSet), RssBytes: value(u.rss),
		AvailableBytes: value(0), PageFaults: value(0), MajorPageFaults: value(0),
	}
}

func (r *Runtime) containerStats(c *container) (*runtimeapi.ContainerStats, usage, error) {
	u, err := r.measure(c)
	if err != nil {
		return nil, u, err
	}
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id: c.id, Metadata: c.config.GetMetadata(), Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(),
		},
		Cpu: u.cpuUsage(), Memory: u.memoryUsage(), WritableLayer: r.writableLayer(c, u.at),
	}, u, nil
}

// writableLayer is the memory that holds a container's changes to files.
func (r *Runtime) writableLayer(c *container, at time.Time) *runtimeapi.FilesystemUsage {
	out := &runtimeapi.FilesystemUsage{
		Timestamp: at.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: r.opts.Dir},
		UsedBytes: &runtimeapi.UInt64Value{}, InodesUsed: &runtimeapi.UInt64Value{},
	}
	init, err := c.running()
	if err != nil {
		return out
	}
	// An overlay's statfs(2) is that of its upper layer.
	var st unix.Statfs_t
	root := fmt.Sprintf("/proc/%d/root", init.process.Pid)
	if unix.Statfs(root, &st) == nil && st.Files > 0 {
		out.UsedBytes.Value = (st.Blocks - st.Bfree) * uint64(st.Bsize)
		out.InodesUsed.Value = st.Files - st.Ffree
	}
	return out
}

func (r *Runtime) podStats(s *sandbox) *runtimeapi.PodSandboxStats {
	var total usage
	total.at = time.Now()
	linux := &runtimeapi.LinuxPodSandboxStats{}
	for _, c := range r.containersOf(s.id) {
		stats, u, err := r.containerStats(c)
		if err != nil {
			continue // not running
		}
		linux.Containers = append(linux.Containers, stats)
		total.cpu += u.cpu
		total.nanoCores += u.nanoCores
		total.rss += u.rss
		total.workingSet += u.workingSet
		total.processes += u.processes
	}
	linux.Cpu, linux.Memory = total.cpuUsage(), total.memoryUsage()
	linux.Process = &runtimeapi.ProcessUsage{Timestamp: total.at.UnixNano(), ProcessCount: &runtimeapi.UInt64Value{Value: total.processes}}
	if n, err := r.network.Usage(s.id); err == nil {
		value := func(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
		eth0 := &runtimeapi.NetworkInterfaceUsage{
			Name: "eth0", RxBytes: value(n.ReceivedBytes), RxErrors: value(n.ReceiveErrors), TxBytes: value(n.SentBytes), TxErrors: value(n.SendErrors),
		}
		linux.Network = &runtimeapi.NetworkUsage{Timestamp: total.at.UnixNano(), DefaultInterface: eth0, Interfaces: []*runtimeapi.NetworkInterfaceUsage{eth0}}
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: s.id, Metadata: s.config.GetMetadata(), Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations(),
		},
		Linux: linux,
	}
}

// info is what ContainerStatus adds when asked for more.
func (c *container) info() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	info := map[string]any{"sandboxID": c.sandbox.id, "cgroup": c.cgroup, "args": c.command.args}
	if c.init != nil {
		info["pid"] = c.init.process.Pid
	}
	data, err := json.Marshal(info)
	if err != nil {
		return nil
	}
	return map[string]string{"info": string(data)}
}

// updateResources changes limits of a container that may run.
func (r *Runtime) updateResources(c *container, resources *runtimeapi.LinuxContainerResources) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
		if err := r.cgroups.limit(c.cgroup, resources); err != nil {
			return fmt.Errorf("container %s: %w", c.name(), err)
		}
	}
	c.resources = resources
	return nil
}

// ContainerStats implements RuntimeService.
func (s *runtimeService) ContainerStats(_ context.Context, id string) (*runtimeapi.ContainerStats, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	stats, _, err := s.containerStats(c)
	return stats, err
}

// ListContainerStats implements RuntimeService.
func (s *runtimeService) ListContainerStats(_ context.Context, filter *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	var out []*runtimeapi.ContainerStats
	for _, c := range s.allContainers() {
		if filter.GetId() != "" && filter.GetId() != c.id ||
			filter.GetPodSandboxId() != "" && filter.GetPodSandboxId() != c.sandbox.id ||
			!matchLabels(filter.GetLabelSelector(), c.config.GetLabels()) {
			continue
		}
		if stats, _, err := s.containerStats(c); err == nil {
			out = append(out, stats)
		}
	}
	return out, nil
}

// PodSandboxStats implements RuntimeService.
func (s *runtimeService) PodSandboxStats(_ context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	sandbox, err := s.sandbox(id)
	if err != nil {
		return nil, err
	}
	return s.podStats(sandbox), nil
}

// ListPodSandboxStats implements RuntimeService.
func (s *runtimeService) ListPodSandboxStats(_ context.Context, filter *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	var out []*runtimeapi.PodSandboxStats
	for _, sandbox := range s.allSandboxes() {
		if filter.GetId() != "" && filter.GetId() != sandbox.id || !matchLabels(filter.GetLabelSelector(), sandbox.config.GetLabels()) ||
			sandbox.state() != runtimeapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		out = append(out, s.podStats(sandbox))
	}
	return out, nil
}

// ListMetricDescriptors implements RuntimeService: there are no metrics besides
// the stats.
func (s *runtimeService) ListMetricDescriptors(context.Context) ([]*runtimeapi.MetricDescriptor, error) {
	return nil, nil
}

// ListPodSandboxMetrics implements RuntimeService.
func (s *runtimeService) ListPodSandboxMetrics(context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	return nil, nil
}

// recursiveReadOnly tells whether the kernel has mount_setattr(2).
func recursiveReadOnly() bool {
	// Without a valid descriptor it fails, but differently.
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	return err != unix.ENOSYS
}
