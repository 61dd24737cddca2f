package ebpf

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/dataplane/nft"
)

func logger(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// machine is a BPF file system and a cgroup of the test's own, which holds the
// process of the test and so all of its sockets.
type machine struct{ pins, cgroup string }

func newMachine(t testing.TB) machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("BPF needs root")
	}
	m := machine{pins: filepath.Join(t.TempDir(), "fairway")}
	mount := filepath.Dir(m.pins)
	if err := unix.Mount("bpf", mount, "bpf", 0, ""); err != nil {
		t.Fatalf("mount a BPF file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil || len(mounts) == 0 {
		t.Skip("no cgroup v2 is mounted")
	}
	root := mounts[0].Mountpoint
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	home := root
	for line := range strings.Lines(string(before)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			home = filepath.Join(root, path)
		}
	}
	m.cgroup = filepath.Join(root, fmt.Sprintf("fw-test-ebpf-%d", os.Getpid()))
	if err := os.Mkdir(m.cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	enter := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
	}
	if err := enter(m.cgroup); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := enter(home); err != nil {
			t.Errorf("leave the cgroup: %v", err)
		} else if err := os.Remove(m.cgroup); err != nil {
			t.Errorf("remove the cgroup: %v", err)
		}
	})
	return m
}

// options are those for node-1 and its Pods.
func (m machine) options(t testing.TB, n *cases.Network) Options {
	return Options{
		Logger: logger(t), NetNS: int(n.Hosts["node-1"].Handle), HostCgroup: m.cgroup, Pins: m.pins,
		Namespaces: []int{int(n.Hosts["pod-a"].Handle), int(n.Hosts["pod-b"].Handle)}, MaxBackends: 1 << 12,
	}
}

func start(t testing.TB, o Options) *Dataplane {
	t.Helper()
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := Cleanup(o); err != nil {
			t.Error(err)
		}
	})
	return d
}

// TestCases checks sockets, with packets by nftables for those that this data
// path leaves.
func TestCases(t *testing.T) {
	m := newMachine(t)
	cases.Run(t, func(t *testing.T, n *cases.Network) dataplane.Dataplane {
		packets, err := nft.New(nft.Options{Logger: logger(t), NetNS: int(n.Hosts["node-1"].Handle)})
		if err != nil {
			t.Fatal(err)
		}
		return dataplane.Stack{start(t, m.options(t, n)), packets}
	}, cases.Sockets)
}
