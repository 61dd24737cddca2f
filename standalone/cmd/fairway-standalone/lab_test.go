package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// asProgram makes the test binary be the program itself, so that tests start it as users do without a second build.
const asProgram = "FAIRWAY_STANDALONE_TEST_PROGRAM"

// asServer makes the test binary be a web server on port 80, for containers.
const asServer = "FAIRWAY_STANDALONE_TEST_SERVER"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asServer) != "":
		serve()
	case os.Getenv(asProgram) != "":
		main()
	default:
		os.Exit(m.Run())
	}
}

// serve answers every request with the file that it names.
func serve() {
	fmt.Println("serving")
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":80", http.FileServer(http.Dir("/"))))
	os.Exit(1)
}

// lab is a network namespace that leads nowhere, with a data directory.
type lab struct {
	namespace string
	dataDir   string
}

const (
	labAddress4 = "10.245.0.1"
	labAddress6 = "fd00:10:245::1"
)

var labs atomic.Int32

// newLab makes a lab whose data directory has a path that ends with the elements.
func newLab(t *testing.T, below ...string) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	l := &lab{
		namespace: fmt.Sprintf("fw-standalone-%d-%d", os.Getpid(), labs.Add(1)),
		dataDir:   filepath.Join(append([]string{t.TempDir()}, below...)...),
	}
	t.Cleanup(func() {
		if err := netns.DeleteNamed(l.namespace); err != nil {
			t.Errorf("delete namespace %s: %v", l.namespace, err)
		}
	})
	made := make(chan error, 1)
	go func() {
		// The thread stays in the namespace and ends with the goroutine.
		runtime.LockOSThread()
		made <- func() error {
			if _, err := netns.NewNamed(l.namespace); err != nil {
				return err
			}
			own := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "own0"}, PeerName: "own1"}
			if err := netlink.LinkAdd(own); err != nil {
				return err
			}
			for _, name := range []string{"lo", "own0", "own1"} {
				link, err := netlink.LinkByName(name)
				if err != nil {
					return err
				}
				if err := netlink.LinkSetUp(link); err != nil {
					return err
				}
			}
			for _, addr := range []string{labAddress4 + "/32", labAddress6 + "/128"} {
				parsed, err := netlink.ParseAddr(addr)
				if err != nil {
					return err
				}
				parsed.Flags = syscall.IFA_F_NODAD
				if err := netlink.AddrAdd(own, parsed); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	if err := <-made; err != nil {
		t.Fatalf("make namespace %s: %v", l.namespace, err)
	}
	return l
}

// command is the program in the lab's namespace.
func (l *lab) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + l.namespace, executable()}, args...)...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	return cmd
}

// executable is the path of the test binary.
func executable() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

// process is a running command of the lab.
type process struct {
	cmd    *exec.Cmd
	stderr *buffer
	ended  chan struct{}
	err    error
}

// buffer is a bytes.Buffer that can be read while it is written.
type buffer struct {
	mu    sync.Mutex
	bytes bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes.String()
}

// start runs the program until the test ends, and shows its log if the test failed.
func (l *lab) start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{cmd: l.command(context.Background(), args...), stderr: new(buffer), ended: make(chan struct{})}
	p.cmd.Stderr = p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.kill(t, syscall.SIGKILL)
		if t.Failed() {
			t.Logf("log of %s:\n%s", args[0], p.stderr)
		}
	})
	return p
}

// kill sends a signal and waits for the end.
func (p *process) kill(t *testing.T, signal syscall.Signal) {
	t.Helper()
	select {
	case <-p.ended:
		return
	default:
	}
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal process: %v", err)
	}
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		t.Errorf("process did not end after %v", signal)
	}
}

// startControl starts a control plane and waits until it is ready.
func (l *lab) startControl(t *testing.T, args ...string) *process {
	t.Helper()
	p := l.start(t, append([]string{"control", "--data-dir", l.dataDir, "--advertise-address", labAddress4 + "," + labAddress6}, args...)...)
	l.eventually(t, func() error {
		select {
		case <-p.ended:
			t.Fatalf("control ended: %v\n%s", p.err, p.stderr)
		default:
		}
		return l.try("get", "--raw", "/readyz")
	})
	return p
}

// buildInit builds fairway-init and returns its directory.
func buildInit(t *testing.T) string {
	t.Helper()
	// Below /tmp and not in t.TempDir, whose mode keeps users other than root out of containers' way to it.
	dir, err := os.MkdirTemp("", "fairway-bin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", dir, "fairway.dev/fairway/standalone/cmd/fairway-init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build fairway-init: %v\n%s", err, out)
	}
	return dir
}

// startNode starts a node and waits until it is ready.
func (l *lab) startNode(t *testing.T, binDir string) *process {
	t.Helper()
	p := l.start(t, l.nodeArgs(binDir)...)
	l.eventually(t, func() error {
		select {
		case <-p.ended:
			t.Fatalf("node ended: %v\n%s", p.err, p.stderr)
		default:
		}
		if !strings.Contains(p.stderr.String(), "node is ready") {
			return errors.New("node is not ready")
		}
		return nil
	})
	return p
}

func (l *lab) nodeArgs(binDir string) []string {
	return []string{"node", "--data-dir", l.dataDir, "--bin-dir", binDir, "--node-name", "node-1",
		"--node-ip", labAddress4 + "," + labAddress6, "--pod-cidr", "10.244.0.0/24,fd00:10:244::/64",
		"--cluster-cidr", "10.244.0.0/16,fd00:10:244::/56,10.245.0.0/16,fd00:10:245::/64,10.96.0.0/16,fd00:10:96::/112",
		"--zone", "harbour", "--cgroup-parent", l.namespace}
}

// kubectl runs kubectl as the cluster's admin and returns what it prints.
func (l *lab) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := l.run("", append([]string{"kubectl", "--kubeconfig", filepath.Join(l.dataDir, "kubeconfig")}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply applies a manifest.
func (l *lab) apply(t *testing.T, manifest string) {
	t.Helper()
	if _, err := l.run(manifest, "kubectl", "--kubeconfig", filepath.Join(l.dataDir, "kubeconfig"), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// try runs kubectl and returns only its error.
func (l *lab) try(args ...string) error {
	_, err := l.run("", append([]string{"kubectl", "--kubeconfig", filepath.Join(l.dataDir, "kubeconfig")}, args...)...)
	return err
}

// run runs the program to its end and returns its output without the final newline.
func (l *lab) run(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := l.command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}

// eventually repeats check until it succeeds.
func (l *lab) eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still not so: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// want is a check that kubectl prints a text.
func (l *lab) want(text string, args ...string) func() error {
	return func() error {
		out, err := l.run("", append([]string{"kubectl", "--kubeconfig", filepath.Join(l.dataDir, "kubeconfig")}, args...)...)
		if err != nil {
			return err
		}
		if out != text {
			return fmt.Errorf("kubectl %s printed %q, want %q", strings.Join(args, " "), out, text)
		}
		return nil
	}
}

// listening returns the TCP ports that are open in the namespace.
func (l *lab) listening(t *testing.T) []uint16 {
	t.Helper()
	out, err := exec.Command("nsenter", "--net=/run/netns/"+l.namespace, "cat", "/proc/net/tcp", "/proc/net/tcp6").Output()
	if err != nil {
		t.Fatal(err)
	}
	var open []uint16
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		const listen = "0A" // TCP_LISTEN, see tcp_states.h
		if len(fields) < 4 || fields[3] != listen {
			continue
		}
		port, err := strconv.ParseUint(fields[1][strings.LastIndex(fields[1], ":")+1:], 16, 16)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, uint16(port))
	}
	return open
}
