package kubelet

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	cadvisorapi "github.com/google/cadvisor/lib/model"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cadvisor"
)

// machine tells kubelet about the machine, in cAdvisor's place: cAdvisor itself would watch the cgroups of everything
// that runs on it.
type machine struct {
	// root is a path on the file system whose size is the node's storage.
	root string
}

var _ cadvisor.Interface = machine{}

func (machine) Start() error { return nil }

// MachineInfo is the node's capacity and identity.
func (machine) MachineInfo(klog.Logger) (*cadvisorapi.MachineInfo, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, fmt.Errorf("read the size of memory: %w", err)
	}
	cores := runtime.NumCPU()
	return &cadvisorapi.MachineInfo{
		Timestamp:        time.Now(),
		NumCores:         cores,
		NumPhysicalCores: cores,
		NumSockets:       1,
		MemoryCapacity:   info.Totalram * uint64(info.Unit),
		SwapCapacity:     info.Totalswap * uint64(info.Unit),
		MachineID:        firstLine("/etc/machine-id"),
		SystemUUID:       firstLine("/sys/class/dmi/id/product_uuid"),
		BootID:           firstLine("/proc/sys/kernel/random/boot_id"),
	}, nil
}

// VersionInfo is the kernel's release and the distribution's name.
func (machine) VersionInfo() (*cadvisorapi.VersionInfo, error) {
	return &cadvisorapi.VersionInfo{
		KernelVersion:      firstLine("/proc/sys/kernel/osrelease"),
		ContainerOsVersion: prettyName("/etc/os-release"),
	}, nil
}

// ContainerInfoV2 is the use of CPU and memory of the whole machine, named "/". There are no other containers here:
// the runtime reports its own.
func (machine) ContainerInfoV2(name string, _ cadvisorapi.RequestOptions) (map[string]cadvisorapi.ContainerInfo, error) {
	if name != "/" {
		return nil, fmt.Errorf("no cgroup %q is watched", name)
	}
	memory, err := readMemory()
	if err != nil {
		return nil, err
	}
	cpu, err := readCPU()
	if err != nil {
		return nil, err
	}
	used := memory["MemTotal"] - memory["MemFree"]
	stats := &cadvisorapi.ContainerStats{
		Timestamp: time.Now(),
		Cpu:       &cadvisorapi.CpuStats{Usage: cpu},
		Memory: &cadvisorapi.MemoryStats{
			Usage:      used,
			WorkingSet: memory["MemTotal"] - memory["MemAvailable"],
			RSS:        memory["AnonPages"],
			Cache:      memory["Cached"],
		},
	}
	return map[string]cadvisorapi.ContainerInfo{name: {
		ContainerReference: cadvisorapi.ContainerReference{Name: name},
		Spec: cadvisorapi.ContainerSpec{
			CreationTime: bootTime(),
			HasCpu:       true,
			HasMemory:    true,
			Memory:       cadvisorapi.MemorySpec{Limit: memory["MemTotal"]},
		},
		Stats: []*cadvisorapi.ContainerStats{stats},
	}}, nil
}

// GetRequestedContainersInfo belongs to kubelet's page /metrics/cadvisor, which shows the machine only.
func (m machine) GetRequestedContainersInfo(name string, opts cadvisorapi.RequestOptions) (map[string]*cadvisorapi.ContainerInfo, error) {
	infos, err := m.ContainerInfoV2(name, opts)
	if err != nil {
		return nil, err
	}
	out := make(map[string]*cadvisorapi.ContainerInfo, len(infos))
	for name, info := range infos {
		out[name] = &info
	}
	return out, nil
}

func (m machine) ImagesFsInfo(context.Context) (cadvisorapi.FsInfo, error) { return m.RootFsInfo() }

func (m machine) ContainerFsInfo(context.Context) (cadvisorapi.FsInfo, error) { return m.RootFsInfo() }

func (m machine) RootFsInfo() (cadvisorapi.FsInfo, error) { return m.GetDirFsInfo(m.root) }

// GetDirFsInfo is the size of the file system that holds path.
func (machine) GetDirFsInfo(path string) (cadvisorapi.FsInfo, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return cadvisorapi.FsInfo{}, fmt.Errorf("read the size of the file system of %s: %w", path, err)
	}
	var file unix.Stat_t
	if err := unix.Stat(path, &file); err != nil {
		return cadvisorapi.FsInfo{}, fmt.Errorf("find the device of %s: %w", path, err)
	}
	block := uint64(fs.Frsize)
	inodes, free := fs.Files, fs.Ffree
	return cadvisorapi.FsInfo{
		Timestamp:  time.Now(),
		Device:     fmt.Sprintf("%d:%d", unix.Major(file.Dev), unix.Minor(file.Dev)),
		Mountpoint: path,
		Capacity:   fs.Blocks * block,
		Available:  fs.Bavail * block,
		Usage:      (fs.Blocks - fs.Bfree) * block,
		Inodes:     &inodes,
		InodesFree: &free,
	}, nil
}

// readMemory returns /proc/meminfo in bytes.
func readMemory() (map[string]uint64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	values := make(map[string]uint64)
	for line := range strings.Lines(string(data)) {
		name, rest, ok := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			continue
		}
		if value, err := strconv.ParseUint(fields[0], 10, 64); err == nil {
			values[name] = value * 1024
		}
	}
	return values, nil
}

// clockTick is the unit of times in /proc/stat: USER_HZ, which is 100 on every architecture that Go runs Linux on.
const clockTick = uint64(time.Second / 100)

// readCPU returns the CPU time that the machine has spent since it booted, from the first line of /proc/stat (see
// proc_stat(5)), in nanoseconds.
func readCPU() (cadvisorapi.CpuUsage, error) {
	fields := strings.Fields(firstLine("/proc/stat"))
	if len(fields) < 9 || fields[0] != "cpu" {
		return cadvisorapi.CpuUsage{}, fmt.Errorf("/proc/stat does not begin with the CPU's times")
	}
	var ticks [8]uint64 // user nice system idle iowait irq softirq steal
	for i := range ticks {
		value, err := strconv.ParseUint(fields[i+1], 10, 64)
		if err != nil {
			return cadvisorapi.CpuUsage{}, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks[i] = value
	}
	user, system := ticks[0]+ticks[1], ticks[2]+ticks[5]+ticks[6]
	return cadvisorapi.CpuUsage{
		Total:  (user + system) * clockTick,
		User:   user * clockTick,
		System: system * clockTick,
	}, nil
}

func bootTime() time.Time {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(info.Uptime) * time.Second)
}

// firstLine is the first line of a file, or empty if it cannot be read: a machine may lack any of these.
func firstLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	return strings.TrimSpace(string(line))
}

// prettyName is PRETTY_NAME of os-release(5).
func prettyName(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "Linux"
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(value, `"'`)
		}
	}
	return "Linux"
}
