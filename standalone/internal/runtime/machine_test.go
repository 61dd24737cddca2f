package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairway.dev/fairway/standalone/internal/runtime/initspec"
)

func TestVisibleFileSystems(t *testing.T) {
	const root = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
	tests := []struct {
		name   string
		mounts string
		hidden []string
		want   []initspec.Lower
	}{
		{name: "one file system", mounts: root + "2 1 0:2 / /proc rw - proc proc rw\n3 1 0:3 / /sys rw - sysfs sysfs rw\n4 3 0:4 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n5 1 0:5 / /dev rw - devtmpfs dev rw\n6 5 0:6 / /dev/shm rw - tmpfs tmpfs rw\n7 1 0:7 / /run rw - tmpfs tmpfs rw\n"},
		{name: "separate file systems, parents first", mounts: root + "9 8 8:4 / /srv/me/disk rw - ext4 /dev/sdb rw\n8 1 8:3 / /srv rw - xfs /dev/sda3 rw\n10 1 8:2 / /usr ro - squashfs /dev/sda2 ro\n",
			want: []initspec.Lower{{Path: "/srv"}, {Path: "/srv/me/disk"}, {Path: "/usr", ReadOnly: true}}},
		{name: "read-only by its super block", mounts: root + "2 1 8:2 / /data rw - ext4 /dev/sdc ro\n", want: []initspec.Lower{{Path: "/data", ReadOnly: true}}},
		{name: "listed before the root", mounts: "30 20 8:2 / /usr rw - ext4 /dev/sda2 rw\n20 1 8:1 / / rw - ext4 /dev/sda1 rw\n", want: []initspec.Lower{{Path: "/usr"}}},
		{name: "covered by a mount on the same directory", mounts: root + "2 1 8:2 / /data ro - ext4 /dev/sdb ro\n3 2 8:3 / /data rw - ext4 /dev/sdc rw\n4 2 8:4 / /data/lost rw - ext4 /dev/sdd rw\n5 3 8:5 / /data/found rw - ext4 /dev/sde rw\n",
			want: []initspec.Lower{{Path: "/data"}, {Path: "/data/found"}}},
		{name: "covered by a mount on a parent directory", mounts: root + "2 1 8:2 / /a/b rw - ext4 /dev/sdb rw\n3 1 8:3 / /a rw - ext4 /dev/sdc rw\n", want: []initspec.Lower{{Path: "/a"}}},
		{name: "hidden", mounts: root + "2 1 8:2 / /var/lib/fairway/nodes/x/y rw - tmpfs t rw\n3 1 8:3 / /var/lib/fairwayish rw - ext4 /dev/sdb rw\n",
			hidden: []string{"/var/lib/fairway"}, want: []initspec.Lower{{Path: "/var/lib/fairwayish"}}},
		{name: "of other runtimes", mounts: root + "2 1 0:9 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw\n"},
		{name: "a file", mounts: root + "2 1 8:1 /x /etc/resolv.conf rw - ext4 /dev/sda1 rw\n", want: []initspec.Lower{{Path: "/etc/resolv.conf"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(tt.mounts), nil)
			if err != nil {
				t.Fatal(err)
			}
			want := append([]initspec.Lower{{Path: "/"}}, tt.want...)
			if diff := cmp.Diff(want, visibleFileSystems(mounts, tt.hidden)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLimitValues(t *testing.T) {
	tests := []struct {
		name   string
		limits *runtimeapi.LinuxContainerResources
		want   []cgroupValue
	}{
		{name: "none"},
		{name: "all", limits: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20, CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 1024},
			want: []cgroupValue{{"memory.max", "1048576"}, {"cpu.max", "50000 100000"}, {"cpu.weight", "39"}}},
		{name: "least and most shares are bounded", limits: &runtimeapi.LinuxContainerResources{CpuShares: 1}, want: []cgroupValue{{"cpu.weight", "1"}}},
		{name: "most shares", limits: &runtimeapi.LinuxContainerResources{CpuShares: 1 << 20}, want: []cgroupValue{{"cpu.weight", "10000"}}},
		{name: "limit taken away", limits: &runtimeapi.LinuxContainerResources{CpuQuota: -1, CpuPeriod: 100000}, want: []cgroupValue{{"cpu.max", "max"}}},
		{name: "unified", limits: &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "5"}}, want: []cgroupValue{{"memory.high", "5"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, limitValues(tt.limits), cmp.AllowUnexported(cgroupValue{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestSeparateFileSystems shows a machine whose files lie on several file
// systems.
func TestSeparateFileSystems(t *testing.T) {
	dir := t.TempDir()
	for _, m := range []struct {
		path  string
		flags uintptr
	}{{"rw", 0}, {"ro", unix.MS_RDONLY}} {
		at := filepath.Join(dir, m.path)
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, "mode=0711,uid=5"); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(at, unix.MNT_DETACH)
		if err := os.WriteFile(filepath.Join(at, "x"), []byte(m.path+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("", at, "", unix.MS_REMOUNT|m.flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	n := newNode(t)
	got := n.output(n.pod(), "exec 2>&1; cd "+dir+"; cat ro/x rw/x; stat -c '%u %a' rw; echo mine > rw/x && cat rw/x; echo mine 2>/dev/null > ro/x || echo refused")
	if diff := cmp.Diff("ro\nrw\n5 711\nmine\nrefused\n", strings.ReplaceAll(got, "sh: 1: cannot create ro/x: Read-only file system\n", "")); diff != "" {
		t.Error(diff)
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "rw/x")); string(data) != "rw\n" {
		t.Errorf("the container changed the machine's file to %q", data)
	}
}
