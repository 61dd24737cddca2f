package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/testenv/kubeapi"
	"fairway.dev/fairway/test/bench/dns/world"
)

const (
	insideEnv = "FAIRWAY_BENCH_INSIDE"
	// nodeName is the node that Fairway serves.
	nodeName = "node-1"
	apiAddr  = "192.0.2.1"
	upAddr   = "192.0.2.53"
)

// enter runs this program again in a network and a mount namespace of its own,
// with no way out, and returns whether the caller is that second run.
func enter() (bool, error) {
	if os.Getenv(insideEnv) != "" {
		for _, args := range [][]string{
			{"mount", "--make-rprivate", "/"},
			{"mkdir", "-p", "/run/netns"},
			{"mount", "-t", "tmpfs", "none", "/run/netns"}, // named namespaces end with this process
			// So does what the data path pins there: programs of earlier runs would
			// stay on the root cgroup, and cost every datagram of both servers.
			{"mkdir", "-p", "/sys/fs/bpf"},
			{"mount", "-t", "bpf", "none", "/sys/fs/bpf"},
			{"ip", "link", "set", "lo", "up"},
			{"ip", "addr", "add", apiAddr + "/32", "dev", "lo"},
			{"ip", "addr", "add", upAddr + "/32", "dev", "lo"},
		} {
			if err := command(args...); err != nil {
				return true, err
			}
		}
		return true, nil
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	return false, err
}

func command(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// peer is a DNS server in a network namespace of its own, one link away.
type peer struct {
	name string
	addr netip.AddrPort
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
}

// peerNamespace makes the namespace that a peer will run in, and returns the
// address that it will have there.
func peerNamespace(name string, index int) (netip.Addr, error) {
	here, there := fmt.Sprintf("198.51.%d.1", 100+index), fmt.Sprintf("198.51.%d.2", 100+index)
	link := "p" + strconv.Itoa(index)
	for _, args := range [][]string{
		{"ip", "netns", "add", name},
		{"ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name},
		{"ip", "addr", "add", here + "/24", "dev", link},
		{"ip", "link", "set", link, "up"},
		{"ip", "-n", name, "link", "set", "lo", "up"},
		{"ip", "-n", name, "addr", "add", there + "/24", "dev", "eth0"},
		{"ip", "-n", name, "link", "set", "eth0", "up"},
		{"ip", "-n", name, "route", "add", "default", "via", here},
	} {
		if err := command(args...); err != nil {
			return netip.Addr{}, err
		}
	}
	return netip.MustParseAddr(there), nil
}

func startPeer(dir, name string, addr netip.AddrPort, args ...string) (*peer, error) {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	p := &peer{name: name, addr: addr, log: log, done: make(chan struct{})}
	p.cmd = exec.Command("nsenter", append([]string{"--net=/run/netns/" + name}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *peer) stop() {
	_ = p.cmd.Process.Kill()
	<-p.done
	_ = p.log.Close()
}

// await returns once the peer answers all of the names, or fails.
func (p *peer) await(names ...string) error {
	deadline := time.Now().Add(time.Minute)
	client := &dns.Client{Timeout: time.Second}
	for _, name := range names {
		for {
			m, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), p.addr.String())
			if err == nil && m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0 {
				break
			}
			ended := false
			select {
			case <-p.done:
				ended = true
			case <-time.After(50 * time.Millisecond):
			}
			if ended || time.Now().After(deadline) {
				said, _ := os.ReadFile(p.log.Name())
				return fmt.Errorf("%s does not answer %s (%v, %v); it said:\n%s", p.name, name, m, err, said)
			}
		}
	}
	return nil
}

// lab is an API server and an upstream name server, here, and peers that use them.
type lab struct {
	dir      string
	fairway  string // executables
	coredns  string
	api      *kubeapi.Server
	listener *kubeapi.Listener
	addrs    map[string]netip.Addr // of the peers' namespaces
}

func newLab(dir, fairway, coredns string) (*lab, error) {
	l := &lab{dir: dir, fairway: fairway, coredns: coredns, addrs: map[string]netip.Addr{}}
	if err := serveUpstream(upAddr + ":53"); err != nil {
		return nil, err
	}
	for i, name := range []string{"fairway", "coredns"} {
		addr, err := peerNamespace(name, i)
		if err != nil {
			return nil, err
		}
		l.addrs[name] = addr
	}
	return l, nil
}

// serve makes w what the API server has.
func (l *lab) serve(w *world.World) error {
	if l.listener != nil {
		l.listener.Stop()
	}
	l.api = kubeapi.New()
	l.api.Put(w.Objects()...)
	var err error
	if l.listener, err = l.api.Listen(apiAddr + ":0"); err != nil {
		return err
	}
	return l.listener.WriteKubeconfig(l.kubeconfig())
}

func (l *lab) kubeconfig() string { return filepath.Join(l.dir, "kubeconfig") }

func (l *lab) startFairway() (*peer, error) { return l.startFairwayWith("--dns-upstream", upAddr) }

// fairwayPort is where a node's server listens.
const fairwayPort = 10053

// startForClients starts Fairway to be asked at the cluster DNS address, as Pods do.
func (l *lab) startForClients() (*peer, error) {
	if err := command("ip", "route", "replace", world.DNSAddr.String(), "via", l.addrs["fairway"].String()); err != nil {
		return nil, err
	}
	p, err := l.startFairway()
	if err == nil {
		p.addr = netip.AddrPortFrom(world.DNSAddr, 53)
	}
	return p, err
}

// startFairwayWith starts the node role with flags for DNS: the whole of it, as
// on a node.
func (l *lab) startFairwayWith(dnsFlags ...string) (*peer, error) {
	return startPeer(l.dir, "fairway", netip.AddrPortFrom(l.addrs["fairway"], fairwayPort), append([]string{l.fairway, "node",
		"--kubeconfig", l.kubeconfig(), "--node-name", nodeName, "--announce=false",
		"--cluster-cidr", join(world.PodRanges), "--service-cidr", join(world.ServiceRanges),
		"--dns-clients", "198.51.0.0/16"}, dnsFlags...)...)
}

// corefile is kubeadm's, but for the TTL, the API server and the forwarder.
const corefile = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       kubeconfig %s
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 5
    }
    prometheus :9153
    forward . %s {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
`

func (l *lab) startCoreDNS() (*peer, error) {
	path := filepath.Join(l.dir, "Corefile")
	if err := os.WriteFile(path, []byte(fmt.Sprintf(corefile, l.kubeconfig(), upAddr)), 0o600); err != nil {
		return nil, err
	}
	return l.startCoreDNSWith(path)
}

func (l *lab) startCoreDNSWith(corefile string) (*peer, error) {
	return startPeer(l.dir, "coredns", netip.AddrPortFrom(l.addrs["coredns"], 53), l.coredns, "-conf", corefile)
}

func join(list []netip.Prefix) string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return strings.Join(out, ",")
}
