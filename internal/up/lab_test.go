package up

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/internal/up/machine"
	"fairway.dev/fairway/internal/up/supervise"
)

// lab is a network namespace whose only route leads nowhere, with executables and a data directory to run fairway up in.
type lab struct {
	t       *testing.T
	ns      *machine.Namespace
	name    string
	bin     string
	dataDir string
}

// memory is a journal for what the test itself makes.
type memory []machine.Thing

func (m *memory) Record(t machine.Thing) error { *m = append(*m, t); return nil }

func newLab(t *testing.T) *lab {
	t.Helper()
	return newNamedLab(t, t.Name())
}

// newNamedLab is for tests that need several.
func newNamedLab(t *testing.T, name string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	l := &lab{t: t, name: fmt.Sprintf("fw-up-%d-%s", os.Getpid(), strings.ToLower(name)), bin: t.TempDir(), dataDir: t.TempDir()}
	l.name = strings.ReplaceAll(l.name, "/", "-")
	var journal memory
	var err error
	if l.ns, err = machine.Create(&journal, l.name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.ns.Close()
		if err := machine.Undo(nil, journal); err != nil {
			t.Error(err)
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fairway", "fairway-standalone"} {
		if err := os.Symlink(self, filepath.Join(l.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	l.inside(func() error {
		// Addresses that appear by themselves later would show up as traces.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "dead0"}, PeerName: "dead1"}); err != nil {
			return err
		}
		for _, name := range []string{"dead0", "dead1"} {
			link, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetUp(link)
			}
			if err != nil {
				return err
			}
		}
		dead, err := netlink.LinkByName("dead0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("192.0.2.2/24")
		if err == nil {
			err = netlink.AddrAdd(dead, addr)
		}
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: dead.Attrs().Index, Gw: net.IPv4(192, 0, 2, 1)})
	})
	l.settle()
	return l
}

// settle waits until the kernel has given the links their carrier, addresses and routes.
func (l *lab) settle() {
	l.t.Helper()
	seen, since := l.traces(), time.Now()
	l.eventually("the lab settles", func() error {
		if now := l.traces(); !slices.Equal(now, seen) || !slices.Contains(now, "link dead1 up|broadcast|multicast|running") {
			seen, since = now, time.Now()
		}
		if time.Since(since) < 150*time.Millisecond {
			return errors.New("still changing")
		}
		return nil
	})
}

// inside runs f in the lab's namespace.
func (l *lab) inside(f func() error) {
	l.t.Helper()
	if err := l.ns.Do(f); err != nil {
		l.t.Fatal(err)
	}
}

// request is for one node, with everything else as by default.
func (l *lab) request() request {
	return request{DataDir: l.dataDir, BinDir: l.bin, Nodes: 1, APIPort: 6443}
}

// run is a fairway up in a process of its own.
type run struct {
	lab    *lab
	cmd    *exec.Cmd
	output *bytes.Buffer
	ended  chan struct{}
}

// up starts fairway up in the lab.
func (l *lab) up(r request) *run {
	l.t.Helper()
	body, err := json.Marshal(r)
	if err != nil {
		l.t.Fatal(err)
	}
	u := &run{lab: l, output: &bytes.Buffer{}, ended: make(chan struct{})}
	u.cmd = exec.Command(filepath.Join(l.bin, "fairway"), "up")
	u.cmd.Env = append(os.Environ(), requestEnv+"="+string(body))
	u.cmd.Stdout, u.cmd.Stderr = u.output, os.Stderr
	l.inside(u.cmd.Start)
	go func() { _ = u.cmd.Wait(); close(u.ended) }()
	l.t.Cleanup(func() {
		_ = u.cmd.Process.Kill()
		<-u.ended
		l.down()
	})
	return u
}

// upReady starts fairway up and waits until it is ready.
func (l *lab) upReady(r request) *run {
	l.t.Helper()
	u := l.up(r)
	l.eventually("ready", func() error {
		select {
		case <-u.ended:
			l.t.Fatalf("fairway up ended: %s\n%s", u.cmd.ProcessState, u.output)
		default:
		}
		state, err := dir(r.DataDir).readState()
		if err != nil {
			return err
		}
		if state == nil || state.Phase != Ready || state.Supervisor.PID != u.cmd.Process.Pid {
			return fmt.Errorf("state is %+v", state)
		}
		return nil
	})
	return u
}

// wait returns the output of a fairway up that ends by itself, and whether its exit status was 0.
func (u *run) wait() (output string, ok bool) {
	u.lab.t.Helper()
	select {
	case <-u.ended:
	case <-time.After(20 * time.Second):
		u.lab.t.Fatal("fairway up does not end")
	}
	return u.output.String(), u.cmd.ProcessState.Success()
}

// signal sends a signal and waits for the end.
func (u *run) signal(s syscall.Signal) (output string, ok bool) {
	u.lab.t.Helper()
	if err := u.cmd.Process.Signal(s); err != nil {
		u.lab.t.Fatal(err)
	}
	return u.wait()
}

// down runs fairway down from outside the lab.
func (l *lab) down() (found bool, output string) {
	l.t.Helper()
	var b bytes.Buffer
	found, err := Down(context.Background(), l.dataDir, NewProgress(&b, false))
	if err != nil {
		l.t.Errorf("down: %v\n%s", err, b.String())
	}
	return found, b.String()
}

// eventually tries until f returns nil.
func (l *lab) eventually(what string, f func() error) {
	l.t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	l.t.Fatalf("%s: %v", what, err)
}

// stop stops a process and waits until it is: the signal takes effect a moment after it is sent.
func (l *lab) stop(pid int) {
	l.t.Helper()
	process, err := supervise.Identify(pid)
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGSTOP)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	l.eventually(fmt.Sprintf("process %d is stopped", pid), func() error {
		if process.Halted() != supervise.BySignal {
			return errors.New("it still runs")
		}
		return nil
	})
}

// note reads what a fake left.
func (l *lab) note(name string) note {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join(l.dataDir, "fake", name))
	if err != nil {
		l.t.Fatal(err)
	}
	var n note
	if err := json.Unmarshal(text, &n); err != nil {
		l.t.Fatal(err)
	}
	return n
}

// traces lists everything that a run could leave behind: in the lab's namespace, and on the machine what is the lab's.
func (l *lab) traces() []string {
	l.t.Helper()
	var all []string
	l.inside(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, link := range links {
			all = append(all, fmt.Sprintf("link %s %s", link.Attrs().Name, link.Attrs().Flags))
		}
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			all = append(all, "address "+a.String())
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range routes {
				all = append(all, "route "+r.String())
			}
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				all = append(all, "rule "+r.String())
			}
		}
		for _, path := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding",
			"/proc/sys/net/ipv6/conf/dead0/accept_ra", "/proc/sys/net/ipv4/conf/dead0/forwarding"} {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			all = append(all, path+" "+strings.TrimSpace(string(text)))
		}
		return eachTable(func(_ *nftables.Conn, t *nftables.Table) { all = append(all, "table "+t.Name) })
	})
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, l.dataDir) || strings.Contains(line, "/fairway-"+dir(l.dataDir).id()) {
			all = append(all, "mount "+strings.Fields(line)[4])
		}
	}
	for _, pattern := range []string{"/run/netns/fairway-" + dir(l.dataDir).id() + "*", machine.CgroupRoot() + "/fairway-" + dir(l.dataDir).id(), l.dataDir + "/run/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			l.t.Fatal(err)
		}
		all = append(all, found...)
	}
	all = slices.DeleteFunc(all, func(s string) bool { return strings.HasSuffix(s, "/run/lock") })
	slices.Sort(all)
	return all
}

// gone checks that nothing is there that was not there before, and that no process of the run is alive.
func (l *lab) gone(before []string, notes ...note) {
	l.t.Helper()
	if diff := cmp.Diff(before, l.traces()); diff != "" {
		l.t.Errorf("left behind (-before +after):\n%s", diff)
	}
	for _, n := range notes {
		for _, pid := range []int{n.PID, n.Orphan} {
			if pid > 0 && syscall.Kill(pid, 0) == nil && !isZombie(pid) {
				l.t.Errorf("process %d (%v) is still alive", pid, n.Args)
			}
		}
	}
}

func isZombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(text), ") Z ")
}

// listen takes a TCP port in the namespace of the calling thread.
func listen(port int) (*os.File, error) {
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{Port: port})
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	return listener.File()
}

// addRoute sends a range to the dead end.
func addRoute(cidr string) error {
	dead, err := netlink.LinkByName("dead0")
	if err != nil {
		return err
	}
	_, dst, err := net.ParseCIDR(cidr)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: dead.Attrs().Index, Dst: dst, Gw: net.IPv4(192, 0, 2, 1)})
}
