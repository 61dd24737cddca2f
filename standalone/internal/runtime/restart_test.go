package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// leftovers is everything that a node makes and could leave behind.
func leftovers(t *testing.T, dir, cgroup string) []string {
	t.Helper()
	var out []string
	for _, l := range links(t) {
		if strings.HasPrefix(l, "fwp") {
			out = append(out, "link "+l)
		}
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		out = append(out, "table "+table.Name)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		out = append(out, "mount "+m.Mountpoint)
	}
	if _, err := os.Stat(cgroup); err == nil {
		out = append(out, fmt.Sprintf("cgroup %s with %d processes", cgroup, len(processes(cgroup))))
	}
	return out
}

// TestCloseLeavesNothing closes a busy node.
func TestCloseLeavesNothing(t *testing.T) {
	n := newNode(t)
	before := links(t)
	pod := n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, HostPort: 8181, ContainerPort: 8080}}
	})
	shared := n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	n.server(pod)
	id := n.run(shared, "trap '' TERM; while :; do sleep 1000; done", func(c *runtimeapi.ContainerConfig) {
		security(c).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	if _, err := n.exec(id, "sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	saved := filepath.Join(t.TempDir(), "saved")
	polite := n.run(pod, "trap 'sleep 0.1; echo data > /out/saved; exit' TERM; echo ready; while :; do sleep 0.01; done", func(c *runtimeapi.ContainerConfig) {
		c.LogPath = "polite.log"
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/out", HostPath: filepath.Dir(saved)}}
	})
	n.eventually(func() error {
		if n.text(polite) != "ready\n" {
			return errors.New("not ready")
		}
		return nil
	})
	cgroup := n.runtime.CgroupPath()
	pids := processes(cgroup)
	if len(pids) < 5 {
		t.Fatalf("only %d processes", len(pids))
	}
	if err := n.runtime.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := leftovers(t, n.opts.Dir, cgroup); len(got) > 0 {
		t.Errorf("left behind: %v", got)
	}
	if data, err := os.ReadFile(saved); string(data) != "data\n" {
		t.Errorf("a container was not given the time to save its data: %v", err)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d lives", pid)
		}
	}
	// The links of dead namespaces go with them, a moment later.
	n.eventually(func() error {
		if diff := cmp.Diff(before, links(t)); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	if entries, _ := os.ReadDir(n.opts.Dir); len(entries) != 2 { // lock and podnet
		t.Errorf("%s has %v", n.opts.Dir, entries)
	}
	n.start() // and for Close in the cleanup
}

// TestSecondProcess refuses to run a node twice.
func TestSecondProcess(t *testing.T) {
	n := newNode(t)
	if _, err := New(context.Background(), n.opts); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("error %v", err)
	}
	if got := n.output(n.pod(), "echo fine"); got != "fine\n" {
		t.Errorf("the first one is hurt: %q", got)
	}
}

// victim tells the test binary to run a node and wait to be killed.
const victim = "FAIRWAY_TEST_VICTIM"

// TestRestart kills a node's process and starts the node again.
func TestRestart(t *testing.T) {
	if dir := os.Getenv(victim); dir != "" {
		beVictim(t, dir)
		return
	}
	n := newNode(t)
	if err := n.runtime.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	cgroup := n.runtime.CgroupPath()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestRestart$", "-test.v")
	cmd.Env = append(os.Environ(), victim+"="+filepath.Dir(filepath.Dir(n.opts.Dir)))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var address string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "victim "); ok {
			address = rest
			break
		}
	}
	if address == "" {
		t.Fatal("the victim does not start")
	}
	if got, err := dial("tcp", address+":8080"); err != nil {
		t.Fatalf("the victim's Pod: %q %v", got, err)
	}
	pids := processes(cgroup)
	if len(pids) < 5 {
		t.Fatalf("only %d processes in %s", len(pids), cgroup)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	// Containers do not outlive their node, even if nobody starts it again.
	n.eventually(func() error {
		if left := processes(cgroup); len(left) > 0 {
			return fmt.Errorf("processes %v outlive the node", left)
		}
		return nil
	})
	if got := leftovers(t, n.opts.Dir, cgroup); !slices.Contains(got, "table fairway-podnet") || !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "mount ") }) {
		t.Errorf("a killed node leaves only %v: the test shows nothing", got)
	}
	n.start()
	want := []string{"table fairway-podnet", "mount " + n.runtime.shmRoot(), "cgroup " + cgroup + " with 0 processes"}
	if diff := cmp.Diff(want, leftovers(t, n.opts.Dir, cgroup)); diff != "" {
		t.Errorf("after the restart: %s", diff)
	}
	if all, err := n.service.ListPodSandbox(context.Background(), nil); err != nil || len(all) != 0 {
		t.Errorf("sandboxes %v %v", all, err)
	}
	pod := n.pod()
	if got := n.addresses(pod)[0]; got == address {
		t.Errorf("the new Pod has the address %s of the old one", got)
	}
	n.server(pod)
	if got, err := dial("tcp", n.addresses(pod)[0]+":8080"); err != nil {
		t.Errorf("the new Pod: %q %v", got, err)
	}
}

// beVictim runs in a process of its own.
func beVictim(t *testing.T, dir string) {
	n := newNode(t, func(o *Options) {
		o.Dir = filepath.Join(dir, "nodes", "node-1")
	})
	n.pod()
	shared := n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		c.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, HostPort: 8181, ContainerPort: 8080}}
	})
	n.run(shared, "setsid sleep 1000 & sleep 1000", func(c *runtimeapi.ContainerConfig) {
		security(c).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	n.server(shared)
	fmt.Printf("victim %s\n", n.addresses(shared)[0])
	select {}
}
