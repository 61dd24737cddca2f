package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netns"

	"fairway.dev/fairway/internal/testenv/kubeapi"
)

// The addresses in every lab; they may be the same because nothing leads from one to another.
var (
	clusterCIDR = netip.MustParsePrefix("10.128.0.0/9")
	serviceCIDR = netip.MustParsePrefix("10.96.0.0/12")
	nodeAddr    = netip.MustParseAddr("198.51.100.2")
)

const (
	servePort  = 8080 // answered by all addresses of the server Pod
	followPort = 8081 // answered differently by its first two
	iperfPort  = 5201
	// endpointsEach is the number of addresses of the server Pod, and of endpoints of every Service.
	endpointsEach = 10
)

// serverAddr returns an address of the server Pod.
func serverAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, 1, byte(1 + i)}) }

// lab is the network of one peer, with its client and server processes.
type lab struct {
	name    string
	prefix  string // of the names of its namespaces
	cgroup  string // its directory
	api     *kubeapi.Server
	listen  *kubeapi.Listener
	bpf     string // for programs and maps of its node
	config  string // kubeconfig
	workers []*worker
	// pod is a client in a Pod on the node, outside one on the node's network,
	// server the Pod behind the Services that are measured.
	pod, outside, server *worker
	iperf                *exec.Cmd
}

// cgroupRoot is where the labs' cgroups are made.
const cgroupRoot = "/sys/fs/cgroup/unified/fairway-bench"

// labScript makes the namespaces: a node that forwards, two Pods with routes to
// their addresses, and a neighbour on the node's network. Connections that have
// ended are forgotten soon, for no peer shall be slowed down by a full table.
const labScript = `set -e
p=$1
for ns in node pod server out; do ip netns add $p-$ns; ip -n $p-$ns link set lo up; done
join() { # namespace, interface there, last byte of the hardware addresses, interface at the node
  ip -n $p-$1 link add $2 address 02:00:00:00:01:$3 type veth peer name $4 netns $p-node address 02:00:00:00:02:$3
  ip -n $p-$1 link set $2 up; ip -n $p-node link set $4 up
}
join pod eth0 01 p-pod; join server eth0 02 p-server; join out eth0 03 lan0
for ns in pod server; do
  n=01; [ $ns = pod ] || n=02
  ip -n $p-$ns neigh add 169.254.1.1 dev eth0 lladdr 02:00:00:00:02:$n nud permanent
  ip -n $p-$ns route add 169.254.1.1 dev eth0 scope link
done
pod() { # namespace, last byte of the hardware address, addresses
  ns=$1 n=$2; shift 2
  for a; do
    ip -n $p-$ns addr add $a/32 dev eth0
    ip -n $p-node route add $a dev p-$ns
    ip -n $p-node neigh add $a dev p-$ns lladdr 02:00:00:00:01:$n nud permanent
  done
  ip -n $p-$ns route add default via 169.254.1.1 dev eth0
}
pod pod 01 10.244.1.100
pod server 02 10.244.1.{1..10}
ip -n $p-node addr add 198.51.100.2/24 dev lan0; ip -n $p-out addr add 198.51.100.1/24 dev eth0
ip -n $p-out route add 10.244.1.0/24 via 198.51.100.2
set_() { ns=$1; shift; nsenter --net=/run/netns/$p-$ns sysctl -q -w "$@"; }
set_ node net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.icmp_ratelimit=0 net.netfilter.nf_conntrack_tcp_timeout_time_wait=3
for ns in pod server out; do set_ $ns net.ipv4.ip_local_port_range="1024 65535" net.ipv4.tcp_tw_reuse=1 net.ipv4.tcp_syn_retries=2; done
`

// newLab makes the network and starts client and server.
func newLab(name, scratch string) (l *lab, err error) {
	l = &lab{name: name, prefix: fmt.Sprintf("fwb%d-%s", os.Getpid(), name)}
	l.cgroup = filepath.Join(cgroupRoot, l.prefix)
	l.bpf = "/sys/fs/bpf/" + l.prefix
	l.config = filepath.Join(scratch, l.prefix+".kubeconfig")
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	for _, leaf := range []string{"agent", "load"} {
		if err := os.MkdirAll(filepath.Join(l.cgroup, leaf), 0o755); err != nil {
			return l, err
		}
	}
	if out, err := exec.Command("bash", "-c", labScript, "lab", l.prefix).CombinedOutput(); err != nil {
		return l, fmt.Errorf("making lab %s: %w\n%s", name, err, out)
	}
	load, err := os.Open(filepath.Join(l.cgroup, "load"))
	if err != nil {
		return l, err
	}
	defer load.Close()
	for _, w := range []struct {
		netns string
		to    **worker
	}{{"pod", &l.pod}, {"out", &l.outside}, {"server", &l.server}} {
		if *w.to, err = startWorker(l.netns(w.netns), load); err != nil {
			return l, err
		}
		l.workers = append(l.workers, *w.to)
	}
	for _, serve := range []order{
		{Targets: []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), servePort)}, Threads: 48},
		{Targets: []netip.AddrPort{netip.AddrPortFrom(serverAddr(0), followPort)}, Threads: 2, Say: 'a'},
		{Targets: []netip.AddrPort{netip.AddrPortFrom(serverAddr(1), followPort)}, Threads: 2, Say: 'b'},
	} {
		serve.Do = "serve"
		if _, err = l.server.do(serve); err != nil {
			return l, err
		}
	}
	l.api = kubeapi.New()
	err = l.within("node", func() (err error) {
		l.listen, err = l.api.Listen("127.0.0.1:0")
		return err
	})
	if err != nil {
		return l, err
	}
	return l, l.listen.WriteKubeconfig(l.config)
}

// serveIperf starts iperf3's server in the server Pod.
func (l *lab) serveIperf() error {
	load, err := os.Open(filepath.Join(l.cgroup, "load"))
	if err != nil {
		return err
	}
	defer load.Close()
	l.iperf = inside(l.netns("server"), load, "iperf3", "-s", "-p", fmt.Sprint(iperfPort))
	return l.iperf.Start()
}

// addRules adds to the node's packet rules.
func (l *lab) addRules(rules string) error {
	cmd := exec.Command("nsenter", "--net="+l.netns("node"), "--", "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w\n%s", err, out)
	}
	return nil
}

func (l *lab) netns(name string) string { return filepath.Join("/run/netns", l.prefix+"-"+name) }

// close takes everything away.
func (l *lab) close() {
	if l.listen != nil {
		l.listen.Stop()
	}
	if l.iperf != nil && l.iperf.Process != nil {
		_ = l.iperf.Process.Kill()
		_ = l.iperf.Wait()
	}
	for _, w := range l.workers {
		w.stop()
	}
	for _, ns := range []string{"node", "pod", "server", "out"} {
		_ = exec.Command("ip", "netns", "del", l.prefix+"-"+ns).Run()
	}
	for _, dir := range []string{"agent", "load", ""} {
		removeCgroup(filepath.Join(l.cgroup, dir))
	}
	_ = os.Remove(cgroupRoot) // with the last lab
	_ = os.Remove(l.bpf)      // empty, after the agent's clean-up
	_ = os.Remove(l.config)
}

// removeCgroup waits a little, for a process leaves its cgroup some time after its end.
func removeCgroup(dir string) {
	for range 50 {
		if err := os.Remove(dir); err == nil || os.IsNotExist(err) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// within runs fn on a thread in a namespace of the lab.
func (l *lab) within(name string, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		ns, err := netns.GetFromPath(l.netns(name))
		if err == nil {
			defer ns.Close()
			if err = netns.Set(ns); err == nil {
				err = fn()
			}
		}
		result <- err
	}()
	return <-result
}

// dialNode connects to an address in the node's namespace.
func (l *lab) dialNode(network, addr string) (c net.Conn, err error) {
	err = l.within("node", func() (err error) {
		c, err = net.DialTimeout(network, addr, time.Second)
		return err
	})
	return c, err
}

// inside is a command in a network namespace and a cgroup. It ends with the
// thread that starts it, which has to be the main one.
func inside(netns string, cgroup *os.File, name string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + netns, "--", name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "KUBECONFIG=") && !strings.HasPrefix(strings.ToLower(e), "http") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	return cmd
}
