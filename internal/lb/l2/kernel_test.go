package l2

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/testenv"
)

// nodeVariable makes the test binary an announcer of that name, in the network
// namespace that it is started in.
const nodeVariable = "FAIRWAY_L2_TEST_NODE"

func TestMain(m *testing.M) {
	if name := os.Getenv(nodeVariable); name != "" {
		if err := runNode(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// order tells announcers which nodes are ready, and where endpoints are; nil
// endpoints make the policy Cluster.
type order struct {
	Ready     []string
	Endpoints []string
}

const (
	vip4, vip6 = "192.0.2.100", "2001:db8::100"
	outside    = "198.51.100.1"
)

// runNode serves HTTP at the addresses and announces them, as told by orders
// on standard input, until that ends.
func runNode(name string) error {
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })
	for _, a := range []string{vip4, vip6} {
		l, err := net.Listen("tcp", net.JoinHostPort(a, "80"))
		if err != nil {
			return err
		}
		go func() { _ = http.Serve(l, nil) }()
	}
	w := newWorld("n1", "n2")
	a, err := New(Options{Store: w.store, NodeName: name, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Exclude: []string{"skip"}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var o order
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			return err
		}
		for _, n := range []string{"n1", "n2"} {
			w.node(&model.Node{Name: n, Ready: contains(o.Ready, n)})
			w.endpoint("s", n, contains(o.Endpoints, n))
		}
		w.service("s", func(s *model.Service) { s.ExternalLocal = o.Endpoints != nil }, vip4, vip6, outside)
	}
	cancel()
	return <-done
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// segment is a client and two nodes on one switch.
type segment struct {
	*testing.T
	client *testenv.Netns
	nodes  map[string]*testenv.Netns
	stdin  []io.WriteCloser
}

func newSegment(t *testing.T) *segment {
	t.Helper()
	lab := testenv.NewLab(t)
	s := &segment{T: t, client: lab.Netns("client"), nodes: map[string]*testenv.Netns{}}
	sw := lab.Netns("switch")
	sw.Run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
	sw.Run("ip", "link", "set", "br0", "up")
	plug := func(n *testenv.Netns, port string, host int) {
		lab.Connect(n, "eth0", sw, port)
		sw.Run("ip", "link", "set", port, "master", "br0")
		n.Address("eth0", fmt.Sprintf("192.0.2.%d/24", host), fmt.Sprintf("2001:db8::%d/64", host))
	}
	plug(s.client, "pc", 1)
	for i, name := range []string{"n1", "n2"} {
		n := lab.Netns(name)
		plug(n, "p"+name, 11+i)
		// The node takes connections to the addresses, but its kernel does
		// not answer for them: they are not on eth0.
		n.Sysctl("net.ipv4.conf.all.arp_ignore", "1")
		n.Address("lo", vip4+"/32", vip6+"/128")
		s.nodes[name] = n
	}
	for name, n := range s.nodes {
		s.announcer(n, name)
	}
	return s
}

func (s *segment) announcer(n *testenv.Netns, name string) {
	s.Helper()
	cmd := n.Command("env", nodeVariable+"="+name, os.Args[0])
	cmd.Stderr = &prefixed{s.T, name}
	in, err := cmd.StdinPipe()
	if err != nil {
		s.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.stdin = append(s.stdin, in)
	s.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			s.Errorf("announcer %s: %v", name, err)
		}
	})
}

type prefixed struct {
	t    *testing.T
	name string
}

func (p *prefixed) Write(b []byte) (int, error) {
	p.t.Logf("%s: %s", p.name, b)
	return len(b), nil
}

func (s *segment) order(o order) {
	s.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		s.Fatal(err)
	}
	for _, in := range s.stdin {
		if _, err := in.Write(append(b, '\n')); err != nil {
			s.Fatal(err)
		}
	}
}

// mac is the hardware address of a node.
func (s *segment) mac(node string) string {
	s.Helper()
	link, err := s.nodes[node].Netlink.LinkByName("eth0")
	if err != nil {
		s.Fatal(err)
	}
	return link.Attrs().HardwareAddr.String()
}

// neighbor is the client's entry for an address.
func (s *segment) neighbor(a string) string {
	s.Helper()
	return strings.TrimSpace(s.client.Run("ip", "neigh", "show", "to", a, "dev", "eth0"))
}

// curl returns which node answered; empty for none.
func (s *segment) curl(a string) string {
	out, _ := s.client.Command("curl", "-s", "-m", "4", "--connect-timeout", "4", "http://"+net.JoinHostPort(a, "80")).Output()
	return string(out)
}

func (s *segment) eventually(what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("not reached: %s; neighbours:\n%s", what, s.client.Run("ip", "neigh"))
		}
	}
}

// TestKernelNeighbors lets a real client find the addresses by ARP and NDP.
func TestKernelNeighbors(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is needed")
	}
	s := newSegment(t)
	both := []string{vip4, vip6}

	// Only n1 can be chosen: both families resolve to it.
	s.order(order{Ready: []string{"n1"}})
	for _, a := range both {
		s.eventually(a+" answers", func() bool { return s.curl(a) == "n1" })
		if n := s.neighbor(a); !strings.Contains(n, s.mac("n1")) {
			t.Errorf("neighbour entry %q, want the address of n1, %s", n, s.mac("n1"))
		}
	}

	// The unicast probes by which the client confirms its entries are answered.
	for _, family := range []string{"ipv4", "ipv6"} {
		s.client.Sysctl("net."+family+".neigh.eth0.base_reachable_time_ms", "500")
		s.client.Sysctl("net."+family+".neigh.eth0.delay_first_probe_time", "1")
		s.client.Sysctl("net."+family+".neigh.eth0.mcast_solicit", "0") // nothing but unicast
	}
	for _, a := range both {
		s.client.Run("ip", "neigh", "change", a, "lladdr", s.mac("n1"), "nud", "probe", "dev", "eth0")
		s.eventually("entry of "+a+" is confirmed", func() bool { return strings.Contains(s.neighbor(a), "REACHABLE") })
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		s.client.Sysctl("net."+family+".neigh.eth0.mcast_solicit", "3")
	}

	// n2 takes over: the client hears it without asking.
	s.order(order{Ready: []string{"n2"}})
	for _, a := range both {
		s.eventually("the entry of "+a+" follows", func() bool { return strings.Contains(s.neighbor(a), s.mac("n2")) })
		if got := s.curl(a); got != "n2" {
			t.Errorf("%s is answered by %q after n2 took over", a, got)
		}
	}

	// Policy Local: only the node with an endpoint, and nobody without.
	s.order(order{Ready: []string{"n1", "n2"}, Endpoints: []string{"n1"}})
	for _, a := range both {
		s.eventually(a+" moves to the endpoint", func() bool { return s.curl(a) == "n1" })
	}
	s.order(order{Ready: []string{"n1", "n2"}, Endpoints: []string{}})
	for _, a := range both {
		s.eventually("nobody answers for "+a, func() bool {
			s.client.Run("ip", "neigh", "flush", "to", a, "dev", "eth0")
			return s.curl(a) == ""
		})
	}

	// An address of no local network is not answered for.
	s.client.Run("ip", "route", "add", outside+"/32", "dev", "eth0")
	if got := s.curl(outside); got != "" || strings.Contains(s.neighbor(outside), "lladdr") {
		t.Errorf("somebody answers for %s: %q, %q", outside, got, s.neighbor(outside))
	}
}

// TestInterfacesComeAndGo: an interface that appears later is used, one that
// is excluded never.
func TestInterfacesComeAndGo(t *testing.T) {
	lab := testenv.NewLab(t)
	client, node := lab.Netns("client"), lab.Netns("node")
	node.Sysctl("net.ipv4.conf.all.arp_ignore", "1")
	node.Address("lo", vip4+"/32", vip6+"/128")
	s := &segment{T: t, client: client, nodes: map[string]*testenv.Netns{"n1": node}}
	s.announcer(node, "n1")
	s.order(order{Ready: []string{"n1"}})

	lab.Connect(client, "eth0", node, "skip0")
	client.Address("eth0", "192.0.2.1/24")
	node.Address("skip0", "192.0.2.11/24")
	time.Sleep(scanEvery + time.Second)
	if got := s.curl(vip4); got != "" {
		t.Errorf("answered on an excluded interface: %q", got)
	}
	node.Run("ip", "link", "set", "skip0", "down")
	node.Run("ip", "link", "set", "skip0", "name", "eth0")
	node.Run("ip", "link", "set", "eth0", "up")
	s.eventually("answers on the interface that came", func() bool { return s.curl(vip4) == "n1" })
	node.Run("ip", "link", "del", "eth0")
	lab.Connect(client, "eth0", node, "eth9")
	client.Address("eth0", "192.0.2.1/24")
	node.Address("eth9", "192.0.2.11/24")
	s.eventually("answers on the interface in its place", func() bool { return s.curl(vip4) == "n1" })
}

// TestGroups: the groups in which IPv6 addresses are solicited are joined however
// many there are, and those that could not be joined are tried again.
func TestGroups(t *testing.T) {
	lab := testenv.NewLab(t)
	node := lab.Netns("node")
	lab.Connect(lab.Netns("client"), "eth0", node, "eth0")
	const many = 3000 // more than what one socket may join
	var addrs []netip.Addr
	for i := range many {
		addrs = append(addrs, netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 14: byte(i >> 8), 15: byte(i)}))
	}
	err := node.Do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		joined := func() int {
			text, err := os.ReadFile("/proc/thread-self/net/igmp6")
			if err != nil {
				t.Error(err)
			}
			n := 0
			for line := range strings.Lines(string(text)) {
				if f := strings.Fields(line); f[1] == "eth0" && strings.HasPrefix(f[2], "ff0200000000000000000001ff00") {
					n++
				}
			}
			return n
		}
		l, err := openLink(ifi, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer l.close()
		node.Run("ip", "link", "set", "eth0", "mtu", "1000") // which IPv6 does not do with
		if err := l.set(addrs[:2]); err == nil {
			t.Error("no error without IPv6")
		}
		node.Run("ip", "link", "set", "eth0", "mtu", "1500")
		for _, n := range []int{2, many, 1, 0} {
			if err := l.set(addrs[:n]); err != nil {
				t.Errorf("%d addresses: %v", n, err)
			}
			if got := joined(); got != n {
				t.Errorf("%d groups are joined, want %d", got, n)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
