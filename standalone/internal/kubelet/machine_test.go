package kubelet

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	cadvisorapi "github.com/google/cadvisor/lib/model"
	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
)

func TestMachine(t *testing.T) {
	m := machine{root: t.TempDir()}
	info, err := m.MachineInfo(klog.Background())
	if err != nil {
		t.Fatal(err)
	}
	if info.NumCores != runtime.NumCPU() || info.MemoryCapacity < 64<<20 || info.BootID == "" {
		t.Errorf("machine = %+v, want its cores, memory and boot id", info)
	}
	version, err := m.VersionInfo()
	if err != nil || version.KernelVersion == "" || version.ContainerOsVersion == "" {
		t.Errorf("version = %+v, %v", version, err)
	}
	disk, err := m.RootFsInfo()
	if err != nil {
		t.Fatal(err)
	}
	if disk.Capacity == 0 || disk.Available > disk.Capacity || disk.Usage > disk.Capacity || disk.Device == "" || disk.Inodes == nil {
		t.Errorf("disk = %+v", disk)
	}
	if _, err := m.GetDirFsInfo(filepath.Join(m.root, "absent")); err == nil {
		t.Error("a directory that does not exist has a size")
	}
}

func TestMachineUse(t *testing.T) {
	m := machine{root: t.TempDir()}
	use := func() *cadvisorapi.ContainerStats {
		infos, err := m.ContainerInfoV2("/", cadvisorapi.RequestOptions{})
		if err != nil {
			t.Fatal(err)
		}
		info := infos["/"]
		if len(info.Stats) != 1 || !info.Spec.HasCpu || !info.Spec.HasMemory {
			t.Fatalf("info = %+v, want CPU and memory once", info)
		}
		return info.Stats[0]
	}
	before := use()
	if w := before.Memory.WorkingSet; w == 0 || w > before.Memory.Usage+before.Memory.Cache {
		t.Errorf("memory = %+v", before.Memory)
	}
	// Until the kernel, which counts in hundredths of a second, has counted this loop.
	for deadline := time.Now().Add(10 * time.Second); use().Cpu.Usage.Total <= before.Cpu.Usage.Total; {
		if time.Now().After(deadline) {
			t.Fatal("the CPU's time does not grow while it is used")
		}
	}
	if _, err := m.ContainerInfoV2("/other", cadvisorapi.RequestOptions{}); err == nil {
		t.Error("a cgroup that nobody watches has statistics")
	}
}

func TestCapacity(t *testing.T) {
	c := newContainerManager(machine{root: t.TempDir()})
	capacity := c.GetCapacity(klog.Background(), true)
	if storage := capacity[v1.ResourceEphemeralStorage]; storage.IsZero() {
		t.Errorf("capacity = %v, want storage", capacity)
	}
}

func TestHostOS(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := (hostOS{}).Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(link); err != nil {
		t.Errorf("an ordinary link was not made: %v", err)
	}
	const legacy = "/var/log/containers/fairway-standalone-test.log"
	if err := (hostOS{}).Symlink(dir, legacy); err != nil {
		t.Errorf("a link for log collectors: %v, want it left out in silence", err)
	}
	if _, err := os.Lstat(legacy); err == nil {
		os.Remove(legacy)
		t.Error("a link for log collectors was made outside the data directory")
	}
}
