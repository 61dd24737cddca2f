package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// inside tells the test binary that it runs in namespaces of its own.
const inside = "FAIRWAY_TEST_INSIDE"

// Variables that make the test binary a server or a client in a container.
const (
	serveAt = "FAIRWAY_TEST_SERVE" // address for TCP and UDP
	dialTo  = "FAIRWAY_TEST_DIAL"  // network,address
)

// initPath is fairway-init, built for the test.
var initPath string

// TestMain runs the tests again in network and mount namespaces of their own:
// they are about a whole node, and must not see the machine's.
func TestMain(m *testing.M) {
	if address := os.Getenv(serveAt); address != "" {
		serve(address)
	}
	if address := os.Getenv(dialTo); address != "" {
		network, address, _ := strings.Cut(address, ",")
		answer, err := dial(network, address)
		fmt.Println(answer, err)
		return
	}
	if os.Geteuid() != 0 {
		fmt.Println("skipped: needs root")
		return
	}
	if os.Getenv(inside) == "" {
		os.Exit(runInside())
	}
	initPath = filepath.Join(os.Getenv(inside), "fairway-init")
	os.Exit(m.Run())
}

func runInside() int {
	dir, err := os.MkdirTemp("", "fairway-runtime-test-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", dir, "../../cmd/fairway-init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Printf("build fairway-init: %v\n%s", err, out)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// node is a Runtime under test.
type node struct {
	testing.TB
	opts    Options
	runtime *Runtime
	service internalapi.RuntimeService
	images  internalapi.ImageManagerService
	pods    int
	outputs int
}

var (
	podCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/64")}
	nodeIPs  = []netip.Addr{netip.MustParseAddr("10.245.0.1"), netip.MustParseAddr("fd00:10:245::1")}
)

// newNode starts a node with addresses of its own, as `fairway up` prepares it.
func newNode(t testing.TB, change ...func(*Options)) *node {
	t.Helper()
	nodeAddresses(t)
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho fairway \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "fairway"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	n := &node{TB: t, opts: Options{
		Dir: filepath.Join(dir, "nodes", "node-1"), NodeName: "node-1", PodCIDRs: podCIDRs, NodeIPs: nodeIPs,
		InitPath: initPath, BinDir: bin, Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}}
	for _, c := range change {
		c(&n.opts)
	}
	n.start()
	t.Cleanup(func() {
		if err := n.runtime.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return n
}

func (n *node) start() {
	n.Helper()
	var err error
	if n.runtime, err = New(context.Background(), n.opts); err != nil {
		n.Fatal(err)
	}
	n.service, n.images = n.runtime.Services()
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// nodeAddresses gives the namespace the node's addresses.
func nodeAddresses(t testing.TB) {
	t.Helper()
	const name = "fairway0"
	if _, err := netlink.LinkByName(name); err == nil {
		return
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "fairway0peer"
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for _, l := range []string{name, "fairway0peer", "lo"} {
		link, err := netlink.LinkByName(l)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
	}
	link, _ := netlink.LinkByName(name)
	for _, ip := range nodeIPs {
		addr, _ := netlink.ParseAddr(netip.PrefixFrom(ip, ip.BitLen()).String())
		addr.Flags = syscall.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
	}
}

// pod runs a sandbox.
func (n *node) pod(change ...func(*runtimeapi.PodSandboxConfig)) string {
	n.Helper()
	n.pods++
	name := fmt.Sprintf("pod-%d", n.pods)
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: fmt.Sprintf("uid-%d", n.pods)},
		Hostname: name, LogDirectory: filepath.Join(n.TempDir(), "logs"),
		DnsConfig: &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"default.svc.cluster.local"}, Options: []string{"ndots:5"}},
		Linux:     &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	for _, c := range change {
		c(config)
	}
	id, err := n.service.RunPodSandbox(context.Background(), config, "")
	if err != nil {
		n.Fatal(err)
	}
	return id
}

func (n *node) addresses(sandbox string) []string {
	n.Helper()
	s, err := n.service.PodSandboxStatus(context.Background(), sandbox, false)
	if err != nil {
		n.Fatal(err)
	}
	out := []string{s.Status.Network.Ip}
	for _, ip := range s.Status.Network.AdditionalIps {
		out = append(out, ip.Ip)
	}
	return out
}

// containerConfig describes a container that runs a shell script.
func containerConfig(script string, change ...func(*runtimeapi.ContainerConfig)) *runtimeapi.ContainerConfig {
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Image: &runtimeapi.ImageSpec{Image: "sha256:0", UserSpecifiedImage: "busybox"},
		Command: []string{"sh", "-c", script}, LogPath: "main/0.log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// run creates and starts a container.
func (n *node) run(sandbox, script string, change ...func(*runtimeapi.ContainerConfig)) string {
	n.Helper()
	id := n.create(sandbox, containerConfig(script, change...))
	if err := n.service.StartContainer(context.Background(), id); err != nil {
		n.Fatal(err)
	}
	return id
}

func (n *node) create(sandbox string, config *runtimeapi.ContainerConfig) string {
	n.Helper()
	id, err := n.service.CreateContainer(context.Background(), sandbox, config, nil)
	if err != nil {
		n.Fatal(err)
	}
	return id
}

func (n *node) status(id string) *runtimeapi.ContainerStatus {
	n.Helper()
	s, err := n.service.ContainerStatus(context.Background(), id, true)
	if err != nil {
		n.Fatal(err)
	}
	return s.Status
}

// wait waits for a container's end.
func (n *node) wait(id string) *runtimeapi.ContainerStatus {
	n.Helper()
	c, err := n.runtime.container(id)
	if err != nil {
		n.Fatal(err)
	}
	select {
	case <-c.finished:
	case <-time.After(20 * time.Second):
		n.Fatalf("container %s does not end", id)
	}
	return n.status(id)
}

// log returns what a container wrote, times taken off.
func (n *node) log(id string) string {
	n.Helper()
	data, err := os.ReadFile(n.status(id).LogPath)
	if err != nil {
		n.Fatal(err)
	}
	var out strings.Builder
	for _, line := range strings.SplitAfter(string(data), "\n") {
		_, rest, _ := strings.Cut(line, " ")
		out.WriteString(rest)
	}
	return out.String()
}

// output runs a script in a container of its own and returns its log's text.
func (n *node) output(sandbox, script string, change ...func(*runtimeapi.ContainerConfig)) string {
	n.Helper()
	n.outputs++
	change = append(change, func(c *runtimeapi.ContainerConfig) { c.LogPath = fmt.Sprintf("output/%d.log", n.outputs) })
	id := n.run(sandbox, script, change...)
	n.wait(id)
	text := n.text(id)
	if err := n.service.RemoveContainer(context.Background(), id); err != nil {
		n.Fatal(err)
	}
	return text
}

// text puts the lines of a container's log together again.
func (n *node) text(id string) string {
	n.Helper()
	var out strings.Builder
	for _, line := range strings.SplitAfter(n.log(id), "\n") {
		if fields := strings.SplitN(line, " ", 3); len(fields) == 3 {
			if fields[1] == "P" {
				fields[2] = strings.TrimSuffix(fields[2], "\n")
			}
			out.WriteString(fields[2])
		}
	}
	return out.String()
}

// eventually repeats a check until it says nothing.
func (n *node) eventually(check func() error) {
	n.Helper()
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	n.Fatal(err)
}

// exec runs a command in a container and returns its output and error.
func (n *node) exec(id string, args ...string) (string, error) {
	out, errOut, err := n.service.ExecSync(context.Background(), id, args, 10*time.Second)
	return string(out) + string(errOut), err
}

// serve answers every TCP connection and UDP packet with the peer's address.
func serve(address string) {
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		panic(err)
	}
	go func() {
		buf := make([]byte, 100)
		for {
			_, peer, err := packets.ReadFrom(buf)
			if err != nil {
				panic(err)
			}
			_, _ = packets.WriteTo([]byte(peer.String()), peer)
		}
	}()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		panic(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go answer(conn)
	}
}

// answer tells a client its address. The question is read first: data that is
// unread at the end would reset the connection, and the answer be lost.
func answer(conn net.Conn) {
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		fmt.Fprint(conn, conn.RemoteAddr())
	}
}

// dial returns the host that a server saw.
func dial(network, address string) (string, error) {
	conn, err := net.DialTimeout(network, address, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte("?")); err != nil {
		return "", err
	}
	buf := make([]byte, 100)
	k, err := conn.Read(buf)
	if err != nil {
		return "", err
	}
	peer, err := netip.ParseAddrPort(string(buf[:k]))
	return peer.Addr().Unmap().String(), err
}

// server runs the test binary as a server and waits until it listens.
func (n *node) server(sandbox string, change ...func(*runtimeapi.ContainerConfig)) string {
	n.Helper()
	id := n.self(sandbox, serveAt, "[::]:8080", change...)
	n.listens(id, 8080)
	return id
}

// listens waits until a container listens on a port.
func (n *node) listens(id string, port int) {
	n.Helper()
	n.eventually(func() error {
		_, err := n.exec(id, "grep", "-q", fmt.Sprintf(":%04X .* 0A ", port), "/proc/net/tcp6")
		return err
	})
}

// client asks a server from within a Pod.
func (n *node) client(sandbox, network, address string) string {
	n.Helper()
	n.outputs++
	id := n.self(sandbox, dialTo, network+","+address, func(c *runtimeapi.ContainerConfig) { c.LogPath = fmt.Sprintf("client/%d.log", n.outputs) })
	n.wait(id)
	return strings.TrimSpace(n.text(id))
}

// self runs the test binary in a container.
func (n *node) self(sandbox, key, value string, change ...func(*runtimeapi.ContainerConfig)) string {
	n.Helper()
	exe, err := os.Executable()
	if err != nil {
		n.Fatal(err)
	}
	return n.run(sandbox, "", append(change, func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{exe}
		c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: key, Value: []byte(value)})
	})...)
}
