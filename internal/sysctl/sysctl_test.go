package sysctl

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/testenv"
)

const (
	established = "net/netfilter/nf_conntrack_tcp_timeout_established"
	closeWait   = "net/netfilter/nf_conntrack_tcp_timeout_close_wait"
	reserved    = "net/ipv4/ip_local_reserved_ports"
)

var likeKubeProxy = Options{MaxPerCore: 32768, Min: 131072, Established: 24 * time.Hour, CloseWait: time.Hour, NodePorts: "30000-32767"}

// node is a network namespace with parameters.
type node struct {
	*testing.T
	ns  *testenv.Netns
	dir string
}

func newNode(t *testing.T) *node {
	n := &node{t, testenv.NewLab(t).Netns("node"), filepath.Join(t.TempDir(), "not", "there")}
	n.do(func() error { return write(established, "400000") })
	n.do(func() error { return write(closeWait, "60") })
	return n
}

func (n *node) do(f func() error) {
	n.Helper()
	if err := n.ns.Do(f); err != nil {
		n.Fatal(err)
	}
}

func (n *node) set(o Options) {
	n.Helper()
	s, err := New(o, n.dir, slog.New(slog.NewTextHandler(n.Output(), nil)))
	if err != nil {
		n.Fatal(err)
	}
	n.do(func() error {
		if !s.Set() {
			n.Error("something is left to do")
		}
		return nil
	})
}

func (n *node) write(path, value string) {
	n.Helper()
	n.do(func() error { return write(path, value) })
}

func (n *node) want(path, value string) {
	n.Helper()
	n.do(func() error {
		got, err := read(path)
		if err == nil && got != value {
			n.Errorf("%s is %q, want %q", path, got, value)
		}
		return err
	})
}

func (n *node) restore() { n.Helper(); n.do(func() error { return Restore(n.dir) }) }

func (n *node) records() []string {
	files, err := filepath.Glob(filepath.Join(n.dir, "*"))
	if err != nil {
		n.Fatal(err)
	}
	return files
}

func TestSetAndRestore(t *testing.T) {
	n := newNode(t)
	n.set(likeKubeProxy)
	n.want(established, "86400")
	n.want(closeWait, "3600")
	n.want(reserved, "30000-32767")
	n.want("net/netfilter/nf_conntrack_tcp_be_liberal", "0")
	n.set(likeKubeProxy) // as after a restart
	n.set(Options{Established: time.Hour})
	n.want(established, "3600")
	n.restore()
	n.want(established, "400000")
	n.want(closeWait, "60")
	n.want(reserved, "")
	if files := n.records(); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
	n.restore() // of nothing
}

func TestOthersReservedPortsStay(t *testing.T) {
	n := newNode(t)
	n.write(reserved, "8080,9000-9100")
	n.set(likeKubeProxy)
	n.want(reserved, "8080,9000-9100,30000-32767")
	n.set(likeKubeProxy)
	n.restore()
	n.want(reserved, "8080,9000-9100")
}

func TestWhatOthersChangeStays(t *testing.T) {
	n := newNode(t)
	n.set(likeKubeProxy)
	n.write(closeWait, "77")
	n.restore()
	n.want(closeWait, "77")
	n.want(established, "400000")

	// After a change of somebody else's, that is what was before ours.
	n.set(likeKubeProxy)
	n.write(closeWait, "99")
	n.set(likeKubeProxy)
	n.want(closeWait, "3600")
	n.restore()
	n.want(closeWait, "99")
}

func TestNamespacesAreKeptApart(t *testing.T) {
	a, b := newNode(t), newNode(t)
	b.dir = a.dir
	a.set(likeKubeProxy)
	b.set(likeKubeProxy)
	if files := a.records(); len(files) != 2 {
		t.Errorf("records %v", files)
	}
	a.restore()
	a.want(closeWait, "60")
	b.want(closeWait, "3600")
	b.restore()
	b.want(closeWait, "60")
}

func TestNothingIsChangedWithoutARecord(t *testing.T) {
	n := newNode(t)
	n.dir = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(n.dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.set(likeKubeProxy)
	n.want(closeWait, "60")
	n.dir = t.TempDir()
	n.set(likeKubeProxy)
	for _, file := range n.records() {
		if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.ns.Do(func() error { return Restore(n.dir) }); err == nil || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("a damaged record: %v", err)
	}
}

func TestLeftAlone(t *testing.T) {
	n := newNode(t)
	n.set(Options{})
	n.want(established, "400000")
	n.want(closeWait, "60")
	n.want(reserved, "")
}

// TestMax has the rule for what the kernel can remember.
func TestMax(t *testing.T) {
	for _, test := range []struct {
		cpus int
		now  string
		want string
	}{
		{1, "1000", "131072"}, {2, "65536", "131072"}, {8, "65536", "262144"}, {64, "65536", "1048576"}, {8, "262144", ""}, {8, "2000000", ""}, {8, "nonsense", ""},
	} {
		settings := likeKubeProxy.settings(test.cpus)
		value, needed := settings[1].want(test.now)
		if !strings.HasSuffix(settings[1].path, "nf_conntrack_max") || needed != (test.want != "") || needed && value != test.want {
			t.Errorf("%d processors, %s now: %q %v, want %q", test.cpus, test.now, value, needed, test.want)
		}
	}
}

func TestCountCPUs(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-3": 4, "0-3,8": 5, "0,2-3,10-11": 5, "": 0, "3-1": 0, "a": 0} {
		if got, err := countCPUs(list); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", list, got, err)
		}
	}
}

func TestOptionsNameTheFlag(t *testing.T) {
	for flag, o := range map[string]Options{
		"--service-node-port-range":           {NodePorts: "32767-30000"},
		"--conntrack-max-per-core":            {MaxPerCore: -1},
		"--conntrack-tcp-timeout-established": {Established: -1},
	} {
		if _, err := New(o, "", nil); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("error %v, want one about %s", err, flag)
		}
	}
}
