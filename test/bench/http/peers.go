package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	fairway      = "Fairway"
	caddy        = "Caddy"
	reverseProxy = "ReverseProxy"
	// host is the host that peers serve, rsaHost one with a certificate of RSA,
	// grpcHost one whose backend speaks gRPC, passedHost one whose TLS is the
	// backend's.
	host, rsaHost, grpcHost, passedHost = "bench.test", "rsa.test", "grpc.test", "passed.test"
	// The backends' ports: nginx, gRPC, WebSocket, and those that send back what
	// comes, plain and by TLS.
	backendPort, grpcPort, socketPort, echoPort, echoTLSPort = 9000, 9001, 9002, 9003, 9004
	// backendAddr is an address of the namespace; endpoints at loopback ones are
	// left out, as the API wants it.
	backendAddr = "10.99.0.1"
	socketPath  = "/socket"
)

// The ports of each that carry TCP lie in a row, from these on.
const fairwayStreams, nginxStreams, haproxyStreams = 8500, 8510, 8520

// What is behind them: an echo, the backend that speaks HTTP, and by SNI an
// echo that speaks TLS.
const (
	messagePort = iota
	bulkPort
	passedPort
)

// hostName is the name of the i-th further host.
func hostName(i int) string { return fmt.Sprintf("h%d.test", i) }

// peer is a proxy that is measured, or one of the backends behind all of them.
type peer struct {
	name          string
	port, tlsPort int // 0 for backends
	// streams is the first of three ports that carry TCP as it is; 0 if none do.
	streams int
	cmd     *exec.Cmd
	dir     string
}

// file is a file that all peers share.
func (p *peer) file(name string) string { return filepath.Join(p.dir, name) }

func (p *peer) stop() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-done
	}
}

// start starts the backends, Fairway and the peers that are named, which share
// certificates.
func start(dir string, hosts int, o options) ([]*peer, error) {
	files, err := certificates()
	if err != nil {
		return nil, err
	}
	files["large"] = string(make([]byte, 1<<20))
	files["medium"] = strings.Repeat("x", 10<<10)
	files["done.lua"] = wrkDone
	files["backend.conf"] = fmt.Sprintf(`user root; worker_processes 1; daemon off; pid %[1]s/backend.pid; error_log /dev/null;
events { worker_connections 16384; }
http { access_log off; keepalive_requests 1000000; sendfile on; server { listen %[4]s:%[2]d backlog=4096; root %[1]s;
  location = /small { default_type text/plain; return 200 "%[3]s"; } } }`, dir, backendPort, strings.Repeat("x", 100), backendAddr)
	files["nginx.conf"] = nginxConfig(dir, hosts)
	files["haproxy.cfg"], files["hosts.map"] = haproxyConfig(dir, hosts)
	files["Caddyfile"] = caddyConfig(dir)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	for _, name := range []string{"large", "medium"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o644); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	build := func(program, what string, more ...string) *exec.Cmd {
		return exec.Command(program, append([]string{"-serve", what, "-hosts", strconv.Itoa(hosts)}, more...)...)
	}
	itself := func(what string, more ...string) *exec.Cmd { return build(self, what, more...) }
	if hosts != oneHost {
		o.profile = "" // it has been written
	}
	list := []*peer{
		{name: "backend", cmd: exec.Command("nginx", "-c", filepath.Join(dir, "backend.conf"))},
		{name: "backends", cmd: itself("backends")},
		{name: fairway, port: 8080, tlsPort: 8440, streams: fairwayStreams, cmd: itself("fairway", "-profile", o.profile)},
		{name: "nginx", port: 8081, tlsPort: 8441, streams: nginxStreams, cmd: exec.Command("nginx", "-c", filepath.Join(dir, "nginx.conf"))},
		{name: "HAProxy", port: 8082, tlsPort: 8442, streams: haproxyStreams, cmd: exec.Command("haproxy", "-db", "-q", "-f", filepath.Join(dir, "haproxy.cfg"))},
	}
	if hosts == oneHost {
		list = append(list, &peer{name: caddy, port: 8084, tlsPort: 8444, cmd: exec.Command("caddy", "run", "--config", filepath.Join(dir, "Caddyfile"))})
	}
	list = append(list, &peer{name: reverseProxy, port: 8083, tlsPort: 8443, cmd: itself("reverseproxy")})
	beside := regexp.MustCompile(o.peers)
	list = slices.DeleteFunc(list, func(p *peer) bool { return p.port != 0 && p.name != fairway && !beside.MatchString(p.name) })
	for i, program := range strings.FieldsFunc(o.builds, func(r rune) bool { return r == ',' }) {
		if program, err = filepath.Abs(program); err != nil {
			return nil, err
		}
		more := 1000 * (i + 1)
		list = append(list, &peer{name: filepath.Base(program), port: 8080 + more, tlsPort: 8440 + more, streams: fairwayStreams + more, cmd: build(program, "fairway", "-ports", strconv.Itoa(more))})
	}
	for i, p := range list {
		log, err := os.Create(filepath.Join(dir, p.name+".log"))
		if err != nil {
			return list[:i], err
		}
		p.dir, p.cmd.Dir, p.cmd.Stderr, p.cmd.Stdout = dir, dir, log, log
		p.cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		err = p.cmd.Start()
		_ = log.Close()
		if err != nil {
			return list[:i], fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for _, p := range list {
		var addrs []string
		switch {
		case p.port != 0:
			addrs = []string{fmt.Sprintf("127.0.0.1:%d", p.port), fmt.Sprintf("127.0.0.1:%d", p.tlsPort)}
			if p.streams != 0 {
				addrs = append(addrs, fmt.Sprintf("127.0.0.1:%d", p.streams+passedPort))
			}
		case p.name == "backend":
			addrs = []string{fmt.Sprintf("%s:%d", backendAddr, backendPort)}
		default:
			for _, port := range []int{grpcPort, socketPort, echoPort, echoTLSPort} {
				addrs = append(addrs, fmt.Sprintf("%s:%d", backendAddr, port))
			}
		}
		for _, addr := range addrs {
			if err := await(addr); err != nil {
				log, _ := os.ReadFile(filepath.Join(dir, p.name+".log"))
				return list, fmt.Errorf("%s: %w\n%s", p.name, err, log[max(0, len(log)-1000):])
			}
		}
	}
	return list, nil
}

func await(addr string) error {
	err := errors.New("not tried")
	for range 400 {
		var c net.Conn
		if c, err = net.Dial("tcp", addr); err == nil {
			return c.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// cpu is the CPU time that the peer's processes have used, in user and kernel mode.
func (p *peer) cpu() (sum time.Duration, err error) {
	for _, pid := range p.processes() {
		// The clock of a process (clock_getcpuclockid(3)) counts nanoseconds, where
		// /proc has hundredths of a second.
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
			return 0, fmt.Errorf("CPU time of %s: %w", p.name, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// processes are the peer's process and its children.
func (p *peer) processes() []int {
	list := []int{p.cmd.Process.Pid}
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", list[0]))
	for _, file := range children {
		b, _ := os.ReadFile(file)
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil {
				list = append(list, pid)
			}
		}
	}
	return list
}

// memory is what the peer's processes have resident, in bytes.
func (p *peer) memory() (sum int64) {
	for _, pid := range p.processes() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if f := strings.Fields(string(b)); len(f) > 1 {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			sum += n * int64(os.Getpagesize())
		}
	}
	return sum
}
