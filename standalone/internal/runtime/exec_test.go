package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	cri "k8s.io/cri-client/pkg"
	utilexec "k8s.io/utils/exec"
)

// TestExecSync checks commands as probes and lifecycle hooks run them.
func TestExecSync(t *testing.T) {
	n := newNode(t)
	id := n.run(n.pod(), "echo $$ > /tmp/main; sleep 1000", func(c *runtimeapi.ContainerConfig) {
		security(c).RunAsUser = int64Value(1234)
		c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b")}}
		c.WorkingDir = "/var"
	})
	tests := []struct {
		name      string
		command   []string
		out, eout string
		code      int
	}{
		{name: "as the container", command: []string{"sh", "-c", "id -u; echo $A; pwd; hostname"}, out: "1234\nb\n/var\npod-1\n"},
		{name: "streams apart", command: []string{"sh", "-c", "echo out; echo err >&2"}, out: "out\n", eout: "err\n"},
		{name: "exit code", command: []string{"sh", "-c", "echo why >&2; exit 3"}, eout: "why\n", code: 3},
		{name: "killed", command: []string{"sh", "-c", "kill -9 $$"}, code: 137},
		{name: "missing", command: []string{"no-such-command"}, code: 127},
		{name: "background child", command: []string{"sh", "-c", "sleep 100 & echo started"}, out: "started\n"},
		{name: "sees the container's processes", command: []string{"sh", "-c", "cat /proc/1/comm"}, out: "fairway-init\n"},
		{name: "too much output", command: []string{"sh", "-c", "head -c 17000000 /dev/zero | tr '\\0' x"}, out: strings.Repeat("x", maxExecOutput)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, eout, err := n.service.ExecSync(context.Background(), id, tt.command, 10*time.Second)
			if diff := cmp.Diff(tt.out, string(out)); diff != "" {
				t.Errorf("stdout: %s", diff)
			}
			if diff := cmp.Diff(tt.eout, string(eout)); diff != "" {
				t.Errorf("stderr: %s", diff)
			}
			var exit utilexec.ExitError
			if code := 0; errors.As(err, &exit) {
				if code = exit.ExitStatus(); code != tt.code {
					t.Errorf("exit code %d, want %d", code, tt.code)
				}
			} else if err != nil || tt.code != 0 {
				t.Errorf("error %v, want exit code %d", err, tt.code)
			}
		})
	}
	t.Run("timeout", func(t *testing.T) {
		_, _, err := n.service.ExecSync(context.Background(), id, []string{"sh", "-c", "sleep 77; true"}, 200*time.Millisecond)
		if !errors.Is(err, cri.ErrCommandTimedOut) {
			t.Errorf("error %v", err)
		}
		n.eventually(func() error {
			if out, _ := n.exec(id, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"); strings.Contains(out, "sleep 77 ") {
				return fmt.Errorf("still runs: %s", out)
			}
			return nil
		})
	})
	t.Run("many at once", func(t *testing.T) {
		errs := make(chan error)
		for i := range 20 {
			go func() {
				out, err := n.exec(id, "echo", fmt.Sprint(i))
				if err == nil && out != fmt.Sprintln(i) {
					err = fmt.Errorf("%d got %q", i, out)
				}
				errs <- err
			}()
		}
		for range 20 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("after the end", func(t *testing.T) {
		if err := n.service.StopContainer(context.Background(), id, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := n.exec(id, "true"); err == nil || !strings.Contains(err.Error(), "not running") {
			t.Errorf("error %v", err)
		}
	})
}

// client makes a client of the streaming server, as kubectl is behind kubelet.
func (n *node) executor(address string) remotecommand.Executor {
	n.Helper()
	u, err := url.Parse(address)
	if err != nil {
		n.Fatal(err)
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host}, http.MethodPost, u)
	if err != nil {
		n.Fatal(err)
	}
	return e
}

func (n *node) execStream(id string, tty bool, options remotecommand.StreamOptions, command ...string) error {
	n.Helper()
	r, err := n.service.Exec(context.Background(), &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: command, Tty: tty, Stdin: options.Stdin != nil, Stdout: true, Stderr: !tty,
	})
	if err != nil {
		n.Fatal(err)
	}
	options.Tty = tty
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return n.executor(r.Url).StreamWithContext(ctx, options)
}

// TestExecStream checks kubectl exec.
func TestExecStream(t *testing.T) {
	n := newNode(t)
	id := n.run(n.pod(), "sleep 1000")
	var out, eout bytes.Buffer
	err := n.execStream(id, false, remotecommand.StreamOptions{Stdin: strings.NewReader("some text"), Stdout: &out, Stderr: &eout}, "sh", "-c", "tr a-z A-Z; echo err >&2; exit 4")
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 4 {
		t.Errorf("error %v, want exit code 4", err)
	}
	if out.String() != "SOME TEXT" || eout.String() != "err\n" {
		t.Errorf("stdout %q stderr %q", &out, &eout)
	}
	out.Reset()
	if err := n.execStream(id, false, remotecommand.StreamOptions{Stdout: &out, Stderr: &eout}, "no-such"); !errors.As(err, &exit) || exit.ExitStatus() != 127 {
		t.Errorf("error %v, want exit code 127", err)
	}
}

// sizes is a window that was resized once.
type sizes struct{ all []remotecommand.TerminalSize }

func (s *sizes) Next() *remotecommand.TerminalSize {
	if len(s.all) == 0 {
		return nil
	}
	next := s.all[0]
	s.all = s.all[1:]
	return &next
}

// TestExecTerminal checks kubectl exec -it: the terminal must be one of the
// container's own devpts, have the window's size, and be the controlling one.
func TestExecTerminal(t *testing.T) {
	n := newNode(t)
	id := n.run(n.pod(), "sleep 1000")
	in, feed := io.Pipe()
	seen := &watcher{changed: make(chan struct{}, 1000)}
	done := make(chan error, 1)
	go func() {
		done <- n.execStream(id, true, remotecommand.StreamOptions{
			Stdin: in, Stdout: seen, TerminalSizeQueue: &sizes{[]remotecommand.TerminalSize{{Width: 91, Height: 33}}},
		}, "sh", "-c", "tty; echo $TERM; until stty size | grep 91; do sleep 0.01; done; echo controlling > /dev/tty; read x; echo got $x; exit 6")
	}()
	seen.await(t, "controlling")
	if _, err := feed.Write([]byte("input\n")); err != nil {
		t.Fatal(err)
	}
	seen.await(t, "got input")
	err := <-done
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 6 {
		t.Errorf("error %v, want exit code 6", err)
	}
	if diff := cmp.Diff("/dev/pts/0\r\nxterm\r\n33 91\r\ncontrolling\r\ninput\r\ngot input\r\n", seen.text()); diff != "" {
		t.Error(diff)
	}
}

// watcher collects output and lets tests wait for it.
type watcher struct {
	mu      sync.Mutex
	buffer  bytes.Buffer
	changed chan struct{}
}

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buffer.Write(p)
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (w *watcher) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buffer.String()
}

func (w *watcher) await(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !strings.Contains(w.text(), want) {
		select {
		case <-w.changed:
		case <-deadline:
			t.Fatalf("output %q lacks %q", w.text(), want)
		}
	}
}

func (n *node) attach(id string, tty bool, options remotecommand.StreamOptions) error {
	n.Helper()
	r, err := n.service.Attach(context.Background(), &runtimeapi.AttachRequest{
		ContainerId: id, Tty: tty, Stdin: options.Stdin != nil, Stdout: true, Stderr: !tty,
	})
	if err != nil {
		n.Fatal(err)
	}
	options.Tty = tty
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return n.executor(r.Url).StreamWithContext(ctx, options)
}

// TestAttach checks kubectl attach and kubectl run -i.
func TestAttach(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	t.Run("stdin once", func(t *testing.T) {
		id := n.run(pod, "cat; echo end; exit 3", func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce, c.LogPath = true, true, "once.log" })
		var out, eout bytes.Buffer
		if err := n.attach(id, false, remotecommand.StreamOptions{Stdin: strings.NewReader("typed\n"), Stdout: &out, Stderr: &eout}); err != nil {
			t.Error(err)
		}
		if out.String() != "typed\nend\n" {
			t.Errorf("attached output %q", &out)
		}
		if s := n.wait(id); s.ExitCode != 3 {
			t.Errorf("exit code %d", s.ExitCode)
		}
		if got := n.text(id); got != "typed\nend\n" {
			t.Errorf("log %q", got)
		}
	})
	t.Run("stdin stays open", func(t *testing.T) {
		id := n.run(pod, "read a; read b; echo $a $b", func(c *runtimeapi.ContainerConfig) { c.Stdin, c.LogPath = true, "open.log" })
		for _, line := range []string{"one\n", "two\n"} {
			ctx, cancel := context.WithCancel(context.Background())
			in, feed := io.Pipe()
			done := make(chan struct{})
			r, err := n.service.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				defer close(done)
				_ = n.executor(r.Url).StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: io.Discard, Stderr: io.Discard})
			}()
			if _, err := feed.Write([]byte(line)); err != nil {
				t.Fatal(err)
			}
			feed.Close()
			time.Sleep(100 * time.Millisecond) // the line is on its way
			cancel()
			<-done
		}
		n.wait(id)
		if got := n.text(id); got != "one two\n" {
			t.Errorf("log %q", got)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		id := n.run(pod, "tty; until stty size | grep 77; do sleep 0.01; done; read x; echo got $x", func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty, c.LogPath = true, true, "tty.log" })
		in, feed := io.Pipe()
		seen := &watcher{changed: make(chan struct{}, 1000)}
		done := make(chan error, 1)
		go func() {
			done <- n.attach(id, true, remotecommand.StreamOptions{Stdin: in, Stdout: seen, TerminalSizeQueue: &sizes{[]remotecommand.TerminalSize{{Width: 77, Height: 22}}}})
		}()
		seen.await(t, "22 77")
		if _, err := feed.Write([]byte("typed\n")); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		n.wait(id)
		if got := n.text(id); !strings.HasPrefix(got, "/dev/pts/0\r\n") || !strings.HasSuffix(got, "got typed\r\n") {
			t.Errorf("log %q", got)
		}
	})
}

// TestPortForward checks kubectl port-forward to servers on the Pod's loopback.
func TestPortForward(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	n.server(pod)
	six := n.self(pod, serveAt, "[::1]:8081", func(c *runtimeapi.ContainerConfig) { c.LogPath = "six.log" })
	n.listens(six, 8081)
	r, err := n.service.PortForward(context.Background(), &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{8080, 8081, 9}})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(r.Url)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: u.Host})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u),
		[]string{"18080:8080", "18081:8081", "18009:9"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- forwarder.ForwardPorts() }()
	<-ready
	for port, want := range map[string]string{"18080": "127.0.0.1", "18081": "::1"} {
		if got, err := dial("tcp", "127.0.0.1:"+port); err != nil || got != want {
			t.Errorf("the server saw %q, want %q; %v", got, want, err)
		}
	}
	if got, err := dial("tcp", "127.0.0.1:18009"); err == nil {
		t.Errorf("a port that nobody listens on answers %q", got)
	}
	close(stop)
	<-done
}

// TestLog checks the format that kubelet reads.
func TestLog(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	id := n.run(pod, "echo one; echo two >&2; echo; head -c 40000 /dev/zero | tr '\\0' x; echo; printf partial")
	n.wait(id)
	data, err := os.ReadFile(n.status(id).LogPath)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`^(\S+) (stdout|stderr) ([FP]) (.*)$`)
	var got []string
	for _, l := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		m := line.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("line %q", l)
		}
		if at, err := time.Parse(time.RFC3339Nano, m[1]); err != nil || time.Since(at) > time.Minute {
			t.Errorf("time %q: %v", m[1], err)
		}
		if len(m[4]) > 20 {
			m[4] = fmt.Sprint(len(m[4]))
		}
		got = append(got, m[2]+" "+m[3]+" "+m[4])
	}
	// The order of the two streams among each other is not promised.
	want := map[string][]string{
		"stdout": {"stdout F one", "stdout F ", "stdout P 16384", "stdout P 16384", "stdout F 7232", "stdout P partial"},
		"stderr": {"stderr F two"},
	}
	for stream, lines := range want {
		var only []string
		for _, l := range got {
			if strings.HasPrefix(l, stream) {
				only = append(only, l)
			}
		}
		if diff := cmp.Diff(lines, only); diff != "" {
			t.Error(diff)
		}
	}
}

// TestLogRotation renames the log as kubelet does.
func TestLogRotation(t *testing.T) {
	n := newNode(t)
	id := n.run(n.pod(), "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
	path := n.status(id).LogPath
	n.eventually(func() error {
		if !strings.Contains(n.log(id), "F 5\n") {
			return errors.New("no output")
		}
		return nil
	})
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := n.service.ReopenContainerLog(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	n.eventually(func() error {
		if data, err := os.ReadFile(path); err != nil || bytes.Count(data, []byte("\n")) < 5 {
			return fmt.Errorf("new log: %q %v", data, err)
		}
		return nil
	})
	if err := n.service.StopContainer(context.Background(), id, 0); err != nil {
		t.Fatal(err)
	}
	old, _ := os.ReadFile(path + ".1")
	text := string(old) + "" + n.text(id)
	var numbers []string
	for _, m := range regexp.MustCompile(`(?m)^(?:\S+ stdout F )?(\d+)$`).FindAllStringSubmatch(text, -1) {
		numbers = append(numbers, m[1])
	}
	for i, got := range numbers {
		if got != fmt.Sprint(i+1) {
			t.Fatalf("line %d is %s: output was lost", i+1, got)
		}
	}
}
