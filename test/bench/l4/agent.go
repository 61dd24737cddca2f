package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// peer is one way to serve Services.
type peer struct {
	name string
	// beside is another peer in whose network this one dials the Pod itself, with that one's agent at work.
	beside string
	// rules are for nft, in the node's namespace; for controls.
	rules string
	// command returns the agent's program and arguments; nil for none.
	command func(l *lab) []string
	// cleanup returns what removes the agent's traces from the kernel, for what outlives a network namespace.
	cleanup func(l *lab) []string
}

// masquerade is what nearly every node has for its Pods, whoever serves
// Services: with it the kernel tracks all connections that pass.
const masquerade = `table ip pods {
	chain postrouting {
		type nat hook postrouting priority 100
		ip saddr 10.244.1.0/24 ip daddr != 10.128.0.0/9 masquerade
	}
}`

// peers are those that can be measured, the reference first. The two after it
// are controls: the same once more tells what chance does, and the same with
// connection tracking what that costs. Those with "-pods" tell what it costs to
// dial a Service rather than its Pod where Services are served.
func peers(fairway, kubeProxy string) []peer {
	node := func(dataplane string) func(l *lab) []string {
		return func(l *lab) []string {
			return []string{
				fairway, "node", "--kubeconfig", l.config, "--node-name", nodeName, "--dataplane", dataplane, "--announce=false",
				"--cluster-cidr", clusterCIDR.String(), "--service-cidr", serviceCIDR.String(), "--log-level", "warn",
				"--cgroup", l.cgroup, "--bpf-dir", l.bpf,
			}
		}
	}
	cleanup := func(l *lab) []string { return []string{fairway, "node", "--cleanup", "--bpf-dir", l.bpf} }
	return []peer{
		{name: "direct"},
		{name: "again"},
		{name: "tracked", rules: masquerade},
		{name: "ebpf", command: node("ebpf"), cleanup: cleanup},
		{name: "ebpf-pods", beside: "ebpf"},
		{name: "nft", command: node("nft"), cleanup: cleanup},
		{name: "nft-pods", beside: "nft"},
		{name: "kube-proxy", command: func(l *lab) []string {
			return []string{
				kubeProxy, "--kubeconfig", l.config, "--hostname-override", nodeName, "--proxy-mode", "nftables",
				"--cluster-cidr", clusterCIDR.String(), "--detect-local-mode", "ClusterCIDR",
				// What it would set is the machine's, not the namespace's.
				"--conntrack-max-per-core", "0", "--conntrack-min", "0", "--conntrack-tcp-timeout-established", "0s", "--conntrack-tcp-timeout-close-wait", "0s",
			}
		}},
	}
}

// agent is a running agent.
type agent struct {
	peer peer
	lab  *lab
	cmd  *exec.Cmd
	log  *os.File
	// started is when, by the monotonic clock.
	started time.Duration
}

// startAgent starts the peer's agent in a lab; a peer without any has a nil agent.
func startAgent(p peer, l *lab, scratch string) (*agent, error) {
	if p.command == nil {
		return nil, nil
	}
	return startProgram(p, l, scratch, p.command(l))
}

// startProgram starts what serves as a peer's agent.
func startProgram(p peer, l *lab, scratch string, args []string) (*agent, error) {
	cgroup, err := os.Open(filepath.Join(l.cgroup, "agent"))
	if err != nil {
		return nil, err
	}
	defer cgroup.Close()
	a := &agent{peer: p, lab: l, cmd: inside(l.netns("node"), cgroup, args[0], args[1:]...)}
	if a.log, err = os.OpenFile(filepath.Join(scratch, l.prefix+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
	a.started = monotonic()
	return a, a.cmd.Start()
}

// stop ends the agent and what it has left in the kernel.
func (a *agent) stop() {
	if a == nil {
		return
	}
	a.end(os.Interrupt)
	if a.peer.cleanup != nil {
		args := a.peer.cleanup(a.lab)
		_ = exec.Command("nsenter", append([]string{"--net=" + a.lab.netns("node"), "--"}, args...)...).Run()
	}
}

// end ends the agent by a signal, or kills it where that takes too long.
func (a *agent) end(by os.Signal) {
	_ = a.cmd.Process.Signal(by)
	done := make(chan struct{})
	go func() { _ = a.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = a.cmd.Process.Kill()
		<-done
	}
	_ = a.log.Close()
}

// lastWords is the end of the agent's log.
func (a *agent) lastWords() string {
	data, _ := os.ReadFile(a.log.Name())
	return string(data[max(0, len(data)-2000):])
}

// cpu returns what the agent and programs that it ran have used, in user and kernel mode.
func (a *agent) cpu() (user, system time.Duration, err error) {
	data, err := os.ReadFile(filepath.Join(a.lab.cgroup, "agent", "cpu.stat"))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, _ := strconv.ParseInt(value, 10, 64)
		switch name {
		case "user_usec":
			user = time.Duration(n) * time.Microsecond
		case "system_usec":
			system = time.Duration(n) * time.Microsecond
		}
	}
	return user, system, nil
}

// memory returns the resident size now and the highest so far, in bytes.
func (a *agent) memory() (now, peak int64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			now = n << 10
		case "VmHWM:":
			peak = n << 10
		}
	}
	return now, peak, nil
}

// metric returns the largest of a metric's series at the agent, and whether
// there is any. Series are by address family: Fairway writes rules of both at
// once and counts that for each, and the labs have no IPv6 for anybody to write.
func (a *agent) metric(name string) (float64, bool) {
	c, err := a.lab.dialNode("tcp", "127.0.0.1:10249")
	if err != nil {
		return 0, false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"); err != nil {
		return 0, false
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, false
	}
	defer response.Body.Close()
	largest, found := 0.0, false
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		series, value, _ := strings.Cut(lines.Text(), " ")
		if base, _, _ := strings.Cut(series, "{"); base != name {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			largest, found = max(largest, v), true
		}
	}
	return largest, found
}
