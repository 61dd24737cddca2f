package up

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/up/machine"
	"fairway.dev/fairway/internal/up/supervise"
)

func TestUpAndCtrlC(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		t.Run(map[int]string{1: "one", 3: "three"}[nodes], func(t *testing.T) {
			l := newLab(t)
			before := l.traces()
			request := l.request()
			request.Nodes, request.Zones = nodes, []string{"a", "b"}
			u := l.upReady(request)

			report, err := Status(context.Background(), l.dataDir)
			if err != nil {
				t.Fatal(err)
			}
			// Asked from another namespace, where the API is not to be reached by itself.
			if len(report.Problems) != 0 {
				t.Errorf("problems: %q", report.Problems)
			}
			var roles []string
			for _, p := range report.Processes {
				roles = append(roles, strings.TrimSuffix(p.Role+" "+p.Node, " "))
				if p.State != supervise.Running || !p.Alive() {
					t.Errorf("%s of %s is %s with pid %d", p.Role, p.Node, p.State, p.PID)
				}
			}
			want := []string{"supervisor", "control node-1", "controller node-1", "gateway node-1"}
			for i := range nodes {
				want = append(want, "kubelet node-"+string(rune('1'+i)), "node node-"+string(rune('1'+i)))
			}
			slices.Sort(roles)
			slices.Sort(want)
			if !slices.Equal(roles, want) {
				t.Errorf("processes %q, want %q", roles, want)
			}
			notes := []note{l.note("control"), l.note("gateway"), l.note("controller"), l.note("kubelet-node-1"), l.note("node-node-1")}
			if nodes == 3 {
				notes = append(notes, l.note("kubelet-node-3"), l.note("node-node-3"))
				if notes[5].Namespace != notes[6].Namespace || notes[5].Namespace == l.ns.Inode() {
					t.Errorf("node 3's processes are in namespaces %d and %d, node 1's is %d", notes[5].Namespace, notes[6].Namespace, l.ns.Inode())
				}
			}
			for _, n := range notes[:5] {
				if n.Namespace != l.ns.Inode() {
					t.Errorf("%v does not run in node 1's namespace", n.Args)
				}
			}
			flags := parseFlags(notes[3].Args)
			if got := flags.get("node-ip"); got != "192.0.2.2,fd00:10:245::1" {
				t.Errorf("node 1 shows %s", got)
			}
			if got := flags.get("zone"); got != "a" {
				t.Errorf("node 1 is in zone %q", got)
			}

			output, ok := u.signal(syscall.SIGTERM)
			if !ok {
				t.Errorf("exit status is not 0")
			}
			for _, want := range []string{"kubernetes API ready", "node-1 ready", "gateway ready", "ready in", l.dataDir + "/kubeconfig", "10.96.0.10", "http://192.0.2.2", "machine restored"} {
				if !strings.Contains(output, want) {
					t.Errorf("output lacks %q:\n%s", want, output)
				}
			}
			l.gone(before, notes...)
		})
	}
}

func TestKilledSupervisor(t *testing.T) {
	l := newLab(t)
	before := l.traces()
	request := l.request()
	request.Nodes = 2
	u := l.upReady(request)
	first := []note{l.note("control"), l.note("kubelet-node-2"), l.note("gateway")}
	if _, ok := u.signal(syscall.SIGKILL); ok {
		t.Fatal("killed, but exit status is 0")
	}
	l.eventually("children end with their supervisor", func() error {
		for _, n := range first {
			if !isZombie(n.PID) {
				return os.ErrExist
			}
		}
		return nil
	})
	report, err := Status(context.Background(), l.dataDir)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Problems) == 0 || !strings.Contains(report.Problems[0], "was killed") {
		t.Errorf("problems: %q", report.Problems)
	}

	// Again: clears what was left, and works.
	u = l.upReady(request)
	if l.note("control").PID == first[0].PID {
		t.Error("control is not a new process")
	}
	second := []note{l.note("control"), l.note("kubelet-node-1"), l.note("kubelet-node-2"), l.note("controller")}
	_, _ = u.signal(syscall.SIGKILL)

	found, output := l.down()
	if !found || !strings.Contains(output, "remains of a crash cleared") {
		t.Errorf("down found %v: %s", found, output)
	}
	l.gone(before, append(first, second...)...)
	if found, _ := l.down(); found {
		t.Error("a second down still finds something")
	}
}

// TestKilledWithTheMachine checks that what the machine set since it was started again is left.
func TestKilledWithTheMachine(t *testing.T) {
	l := newLab(t)
	const forwarding = "/proc/sys/net/ipv4/ip_forward"
	read := func() (text []byte) {
		l.inside(func() (err error) { text, err = os.ReadFile(forwarding); return err })
		return text
	}
	for _, test := range []struct{ boot, want string }{{bootID(), "0\n"}, {"another", "1\n"}} {
		l.inside(func() error { return os.WriteFile(forwarding, []byte("0"), 0) })
		l.upReady(l.request()).signal(syscall.SIGKILL)
		if now := string(read()); now != "1\n" {
			t.Fatalf("while it runs %s is %s", forwarding, now)
		}
		d := dir(l.dataDir)
		state, err := d.readState()
		if err != nil {
			t.Fatal(err)
		}
		state.BootID = test.boot
		if err := writeJSON(d.state(), state); err != nil {
			t.Fatal(err)
		}
		if found, output := l.down(); !found {
			t.Errorf("down found nothing: %s", output)
		}
		if now := string(read()); now != test.want {
			t.Errorf("boot %q: afterwards %s is %q, want %q", test.boot, forwarding, now, test.want)
		}
	}
}

func TestDownStopsARunningOne(t *testing.T) {
	l := newLab(t)
	before := l.traces()
	u := l.upReady(l.request())
	notes := []note{l.note("control"), l.note("kubelet-node-1")}
	if found, output := l.down(); !found || !strings.Contains(output, "fairway stopped") {
		t.Errorf("found %v: %s", found, output)
	}
	if _, ok := u.wait(); !ok {
		t.Error("a supervisor that was stopped by down has an exit status other than 0")
	}
	l.gone(before, notes...)
	if _, err := os.Stat(filepath.Join(l.dataDir, "kubeconfig")); err != nil {
		t.Errorf("data is gone: %v", err)
	}
}

func TestSecondUp(t *testing.T) {
	l := newLab(t)
	u := l.upReady(l.request())
	output, ok := l.up(l.request()).wait()
	if ok || !strings.Contains(output, "already running on "+l.dataDir) || !strings.Contains(output, "fairway down --data-dir "+l.dataDir) {
		t.Errorf("the same directory: ok %v: %s", ok, output)
	}
	other := l.request()
	other.DataDir, other.APIPort = t.TempDir(), 6444
	output, ok = l.up(other).wait()
	if ok || !strings.Contains(output, "already has a cluster, that with the data directory "+l.dataDir) {
		t.Errorf("another directory: ok %v: %s", ok, output)
	}
	l.eventually("the first one is untouched", func() error {
		select {
		case <-u.ended:
			t.Fatal("the first one ended")
		default:
		}
		_, exists := l.ns.Owner()
		if !exists {
			return os.ErrNotExist
		}
		return nil
	})
}

func TestTwoNamespacesCoexist(t *testing.T) {
	first, second := newNamedLab(t, "first"), newNamedLab(t, "second")
	before := second.traces()
	first.upReady(first.request())
	request := second.request()
	request.Nodes = 2
	u := second.upReady(request)
	if _, ok := u.signal(syscall.SIGINT); !ok {
		t.Error("the second does not end well")
	}
	second.gone(before)
	report, err := Status(context.Background(), first.dataDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Processes {
		if !p.Alive() {
			t.Errorf("the end of the second also ended %s of the first", p.Role)
		}
	}
}

func TestRestartedRole(t *testing.T) {
	l := newLab(t)
	l.upReady(l.request())
	for _, name := range []string{"gateway", "kubelet-node-1"} {
		old := l.note(name)
		if err := syscall.Kill(old.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		l.eventually(name+" is started again", func() error {
			if n := l.note(name); n.PID == old.PID {
				return os.ErrExist
			}
			return nil
		})
		if old.Orphan > 0 && !isZombie(old.Orphan) {
			t.Errorf("what %s had started goes on beside its successor", name)
		}
	}
	l.eventually("status counts restarts", func() error {
		state, err := dir(l.dataDir).readState()
		if err != nil {
			return err
		}
		restarts := 0
		for _, p := range state.Processes {
			restarts += p.Restarts
		}
		if restarts != 2 {
			return os.ErrInvalid
		}
		return nil
	})
}

func TestRoleThatFails(t *testing.T) {
	l := newLab(t)
	before := l.traces()
	if err := os.MkdirAll(filepath.Join(l.dataDir, "fake"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dataDir, "fake", "fail-gateway"), []byte("the sky is falling"), 0o644); err != nil {
		t.Fatal(err)
	}
	output, ok := l.up(l.request()).wait()
	if ok || !strings.Contains(output, "gateway of node-1 did not start: ended with exit status 1") || !strings.Contains(output, "the sky is falling") {
		t.Errorf("ok %v: %s", ok, output)
	}
	l.gone(before)
}

func TestTakenPort(t *testing.T) {
	l := newLab(t)
	var listener *os.File
	l.inside(func() (err error) { listener, err = listen(443); return err })
	defer listener.Close()
	output, ok := l.up(l.request()).wait()
	if ok || !strings.Contains(output, "TCP port 443") || !strings.Contains(output, "--https-port") {
		t.Errorf("ok %v: %s", ok, output)
	}
}

func TestTakenUDPPort(t *testing.T) {
	l := newLab(t)
	var taken net.PacketConn
	l.inside(func() (err error) { taken, err = net.ListenPacket("udp4", ":443"); return err })
	if output, ok := l.upReady(l.request()).signal(syscall.SIGTERM); !ok || !strings.Contains(output, "HTTP/3 is not served, as UDP port 443") {
		t.Errorf("taken: ok %v: %s", ok, output)
	}
	taken.Close()
	if output, ok := l.upReady(l.request()).signal(syscall.SIGTERM); !ok || strings.Contains(output, "HTTP/3") {
		t.Errorf("free: ok %v: %s", ok, output)
	}
}

func TestRangesAreKept(t *testing.T) {
	l := newLab(t)
	l.inside(func() error { return addRoute("10.0.0.0/8") })
	request := l.request()
	request.LBPool = "192.0.2.128/28"
	u := l.upReady(request)
	if _, ok := u.signal(syscall.SIGTERM); !ok {
		t.Fatal("does not end well")
	}
	kept, err := dir(l.dataDir).readRanges()
	if err != nil {
		t.Fatal(err)
	}
	if kept.Service[0] != netip.MustParsePrefix("172.29.0.0/16") || kept.Pool[0] != netip.MustParsePrefix("192.0.2.128/28") {
		t.Errorf("ranges are %+v", kept)
	}

	request.LBPool = ""
	u = l.upReady(request)
	if got := parseFlags(l.note("controller").Args).get("lb-pool"); got != "192.0.2.128/28" {
		t.Errorf("after a restart the pool is %s", got)
	}
	u.signal(syscall.SIGTERM)

	l.inside(func() error { return addRoute("172.29.8.0/24") })
	output, ok := l.up(request).wait()
	if ok || !strings.Contains(output, "route 172.29.8.0/24 via 192.0.2.1 dev dead0") || !strings.Contains(output, "--service-cidr") {
		t.Errorf("ok %v: %s", ok, output)
	}
}

func TestFewerNodes(t *testing.T) {
	l := newLab(t)
	request := l.request()
	request.Nodes = 3
	l.upReady(request).signal(syscall.SIGTERM)
	// A node that somebody joined by other means is not ours to delete.
	if err := leaveNote(l.dataDir, "kubelet-edge", note{}); err != nil {
		t.Fatal(err)
	}
	request.Nodes = 2
	u := l.upReady(request)
	deleted, err := os.ReadFile(filepath.Join(l.dataDir, "fake", "deleted"))
	if err != nil {
		t.Fatal(err)
	}
	want := "/api/v1/nodes/node-3?gracePeriodSeconds=0\n/api/v1/namespaces/default/pods/pod-on-node-3?gracePeriodSeconds=0\n"
	if diff := cmp.Diff(want, string(deleted)); diff != "" {
		t.Error(diff)
	}
	if output, ok := u.signal(syscall.SIGTERM); !ok || !strings.Contains(output, "node node-3 of an earlier run is no longer there") {
		t.Errorf("ok %v: %s", ok, output)
	}
}

func TestFindsNamespaceByInode(t *testing.T) {
	l := newLab(t)
	found, err := machine.Find(l.ns.Inode())
	if err != nil || found == nil || found.Inode() != l.ns.Inode() {
		t.Fatalf("found %v, %v", found, err)
	}
	found.Close()
	found, err = machine.Find(1)
	if err != nil || found != nil {
		t.Fatalf("found %v, %v for an inode that no namespace has", found, err)
	}
}

// TestDataDirectoryOnADiskOfItsOwn has further disks in it, too, and is reached by another name.
func TestDataDirectoryOnADiskOfItsOwn(t *testing.T) {
	l := newLab(t)
	smallFileSystem(t, l.dataDir, "300m")
	etcd := dir(l.dataDir).etcd()
	if err := os.Mkdir(etcd, 0o755); err != nil {
		t.Fatal(err)
	}
	smallFileSystem(t, etcd, "1m")
	before := l.traces()
	link := filepath.Join(t.TempDir(), "data")
	if err := os.Symlink(l.dataDir, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{l.dataDir, link} {
		request := l.request()
		request.DataDir = name
		if output, ok := l.upReady(request).signal(syscall.SIGTERM); !ok {
			t.Errorf("does not end well: %s", output)
		}
		l.gone(before)
		l.upReady(request).signal(syscall.SIGKILL)
		if found, output := l.down(); !found || !strings.Contains(output, "remains of a crash cleared") {
			t.Errorf("down found %v: %s", found, output)
		}
		l.gone(before)
	}
}
