package up

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"fairway.dev/fairway/internal/up/machine"
	"fairway.dev/fairway/internal/up/supervise"
)

// detach runs fairway up --detach in the lab.
func (l *lab) detach(r request) (output string, err error) {
	l.t.Helper()
	body, marshalErr := json.Marshal(r)
	if marshalErr != nil {
		l.t.Fatal(marshalErr)
	}
	l.t.Setenv(requestEnv, string(body))
	l.t.Cleanup(func() { l.down() })
	var b bytes.Buffer
	// The child is made on the thread that calls.
	err = l.ns.Do(func() error {
		return Detach(filepath.Join(l.bin, "fairway"), []string{"up", "--detached"}, r.DataDir, &b, make(chan struct{}))
	})
	return b.String(), err
}

func TestDetach(t *testing.T) {
	l := newLab(t)
	before := l.traces()
	output, err := l.detach(l.request())
	if err != nil || !strings.Contains(output, "ready in") || strings.Contains(output, readyMark) {
		t.Fatalf("%v: %q", err, output)
	}
	state, err := dir(l.dataDir).readState()
	if err != nil || state == nil || state.Phase != Ready || !state.Supervisor.Alive() {
		t.Fatalf("state %+v, %v", state, err)
	}
	notes := []note{l.note("control"), l.note("gateway")}
	if session, err := os.ReadFile("/proc/self/stat"); err != nil || strings.Fields(string(session))[5] == sessionOf(t, state.Supervisor.PID) {
		t.Errorf("the supervisor is in our session, %v", err)
	}
	found, output := l.down()
	if !found || !strings.Contains(output, "fairway stopped") {
		t.Errorf("down: %v %s", found, output)
	}
	l.gone(before, notes...)
}

func sessionOf(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(jsonText(t, pid)), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(text))[5]
}

func jsonText(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestDetachThatFails(t *testing.T) {
	l := newLab(t)
	r := l.request()
	r.ServiceCIDR = "192.0.2.0/24"
	output, err := l.detach(r)
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 1 || !strings.Contains(output, "the service range 192.0.2.0/24 overlaps route 192.0.2.0/24 dev dead0") {
		t.Errorf("%v: %q", err, output)
	}
}

func TestStatusOfSickCluster(t *testing.T) {
	l := newLab(t)
	l.upReady(l.request())
	status := func() Report {
		r, err := Status(context.Background(), l.dataDir)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	problems := func() string { return strings.Join(status().Problems, "\n") }

	if err := os.Remove(dir(l.dataDir).ready(roleController, "node-1")); err != nil {
		t.Fatal(err)
	}
	if got := problems(); !strings.Contains(got, "controller of node-1 runs but does not serve yet") {
		t.Errorf("problems: %s", got)
	}
	tells := dir(l.dataDir).ready(roleNode, "node-1")
	if err := os.WriteFile(tells, []byte("ready\nthe upstream name server 192.0.2.1:53 has not answered\nand another\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := problems(); !strings.Contains(got, "node of node-1: the upstream name server 192.0.2.1:53 has not answered\nnode of node-1: and another") {
		t.Errorf("problems: %s", got)
	}
	if err := os.WriteFile(tells, []byte("ready\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := problems(); strings.Contains(got, "node of node-1:") {
		t.Errorf("problems: %s", got)
	}
	hanging := l.note("node-node-1").PID
	l.stop(hanging)
	past := time.Now().Add(-10 * time.Second)
	if err := os.Chtimes(dir(l.dataDir).ready(roleNode, "node-1"), past, past); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("node of node-1 (pid %d) is stopped (signal); continue it with kill -CONT %d", hanging, hanging)
	if got := problems(); !strings.Contains(got, want) || strings.Contains(got, "no sign of life") {
		t.Errorf("problems: %s, want %s", got, want)
	}
	if err := syscall.Kill(hanging, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l.eventually("status tells of silence", func() error {
		past := time.Now().Add(-10 * time.Second) // each time, since the fake goes on touching it
		if err := os.Chtimes(dir(l.dataDir).ready(roleNode, "node-1"), past, past); err != nil {
			return err
		}
		if got := problems(); !strings.Contains(got, "node of node-1 (pid") || !strings.Contains(got, "no sign of life for 10s") {
			return errors.New(got)
		}
		return nil
	})
	if err := os.WriteFile(filepath.Join(l.dataDir, "fake", "fail-gateway"), []byte("broken pipe dream"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(l.note("gateway").PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.eventually("status names the role and its log", func() error {
		if got := problems(); !strings.Contains(got, "gateway of node-1 is restarting after exit status 1") || !strings.Contains(got, "broken pipe dream") {
			return errors.New(got)
		}
		return nil
	})
	text := status().Text(status().Processes[0].Since)
	for _, want := range []string{"gateway      node-1", "restarting", "10.96.0.10", "172.30.253.0/24", "! gateway of node-1"} {
		if !strings.Contains(text, want) {
			t.Errorf("text lacks %q:\n%s", want, text)
		}
	}
}

func TestStoppedProcesses(t *testing.T) {
	l := newLab(t)
	before := l.traces()
	u := l.upReady(l.request())
	for _, test := range []struct {
		name  string
		index int // in the report's processes
		pid   int
		// text is what the whole report begins with.
		text string
	}{
		{"control of node-1", 1, l.note("control").PID, "fairway is ready"},
		{"kubelet of node-1", 2, l.note("kubelet-node-1").PID, "fairway is ready"},
		{"supervisor", 0, u.cmd.Process.Pid, "fairway is stopped"},
	} {
		l.stop(test.pid)
		r, err := Status(context.Background(), l.dataDir)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("%s (pid %d) is stopped (signal); continue it with kill -CONT %d", test.name, test.pid, test.pid)
		if len(r.Problems) != 1 || r.Problems[0] != want || r.Processes[test.index].State != supervise.Stopped || !strings.HasPrefix(r.Text(time.Now()), test.text) {
			t.Errorf("problems %q, want %q; processes %+v\n%s", r.Problems, want, r.Processes, r.Text(time.Now()))
		}
		if test.name != "supervisor" {
			if err := syscall.Kill(test.pid, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}
	}
	gateway := l.note("gateway")
	l.stop(gateway.PID)
	if found, output := l.down(); !found || !strings.Contains(output, "was stopped by a signal; it is continued") || !strings.Contains(output, "fairway stopped") {
		t.Errorf("down: %v %s", found, output)
	}
	// By itself, rather than killed.
	if output, ok := u.wait(); !ok {
		t.Errorf("the supervisor failed: %s", output)
	}
	l.gone(before, gateway)
}

func TestStatusOfNodes(t *testing.T) {
	l := newLab(t)
	request := l.request()
	request.Nodes = 2
	l.upReady(request)
	if err := os.WriteFile(filepath.Join(l.dataDir, "fake", "notready-node-2"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := Status(context.Background(), l.dataDir)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Problems) != 1 || r.Problems[0] != "node node-2 is not ready: KubeletX: said so" {
		t.Errorf("problems: %q", r.Problems)
	}
	kubelet := l.note("kubelet-node-2").PID
	if err := os.Remove(filepath.Join(l.dataDir, "fake", "kubelet-node-2")); err != nil {
		t.Fatal(err)
	}
	if r, err = Status(context.Background(), l.dataDir); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("the Node object node-2 is gone; it comes back when its kubelet is started again: kill %d", kubelet)
	if len(r.Problems) != 1 || r.Problems[0] != want {
		t.Errorf("problems: %q, want %q", r.Problems, want)
	}
}

func TestStatusOfDNS(t *testing.T) {
	l := newLab(t)
	request := l.request()
	request.Nodes = 2
	l.upReady(request)
	for _, test := range []struct{ file, want string }{
		{"", ""},
		{"no-dns", "Service kube-system/kube-dns does not exist"},
		{"no-dns-node-2", "Service kube-system/kube-dns has no endpoint that is ready on node-2;"},
	} {
		file := filepath.Join(l.dataDir, "fake", test.file)
		if test.file != "" {
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r, err := Status(context.Background(), l.dataDir)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(r.Problems, "\n"); test.want == "" && got != "" || !strings.HasPrefix(got, test.want) || len(r.Problems) > 1 {
			t.Errorf("%s: problems: %q, want %q", test.file, got, test.want)
		}
		if test.file != "" {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestStatusJSON(t *testing.T) {
	report, err := Status(context.Background(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Problems) != 1 || !strings.Contains(report.Problems[0], "nothing runs") {
		t.Errorf("problems %q", report.Problems)
	}
	report.Processes = append(report.Processes, supervise.Status{Role: "node", Node: "node-1", Identity: supervise.Identity{PID: 7}, State: supervise.Running})
	var back struct {
		Processes []struct {
			Role, Node, State string
			PID               int
		}
		Addresses map[string]any
		Problems  []string
	}
	if err := json.Unmarshal([]byte(jsonText(t, report)), &back); err != nil {
		t.Fatal(err)
	}
	if p := back.Processes[0]; p.Role != "node" || p.Node != "node-1" || p.PID != 7 || p.State != "running" || back.Addresses == nil {
		t.Errorf("%+v", back)
	}
}

func TestNeedsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to stop being root")
	}
	missing := filepath.Join(t.TempDir(), "data")
	// Only a thread's own user changes, and that thread ends with its namespace.
	ns, err := machine.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = ns.Do(func() error {
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			t.Fatal(errno)
		}
		return errors.Join(machine.Check(), Detach("/bin/true", nil, missing, io.Discard, nil))
	})
	if _, statErr := os.Stat(missing); !errors.Is(statErr, os.ErrNotExist) || strings.Count(err.Error(), "needs root") != 2 {
		t.Errorf("in the background: %v, %v", err, statErr)
	}
	if err == nil || !strings.Contains(err.Error(), "needs root") || !strings.Contains(err.Error(), "sudo") {
		t.Errorf("got %v", err)
	}
}
