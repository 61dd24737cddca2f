package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/testenv"
)

// memory is a journal in memory.
type memory []Thing

func (m *memory) Record(t Thing) error { *m = append(*m, t); return nil }

// namespace makes one for the test.
func namespace(t *testing.T, name string) *Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	var journal memory
	ns, err := Create(&journal, fmt.Sprintf("fw-machine-%d-%s", os.Getpid(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := Undo(nil, journal); err != nil {
			t.Error(err)
		}
	})
	return ns
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// join makes a veth between two namespaces with one address of each family at each end.
func join(t *testing.T, a *Namespace, nameA string, addrsA []string, b *Namespace, nameB string, addrsB []string) {
	t.Helper()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: nameA})
	veth.PeerName, veth.PeerNamespace = nameB, netlink.NsFd(b.fd)
	must(t, a.links.LinkAdd(veth))
	for _, end := range []struct {
		ns    *Namespace
		name  string
		addrs []string
	}{{a, nameA, addrsA}, {b, nameB, addrsB}} {
		link, err := end.ns.links.LinkByName(end.name)
		must(t, err)
		must(t, end.ns.links.LinkSetUp(link))
		for _, text := range end.addrs {
			addr, err := netlink.ParseAddr(text)
			must(t, err)
			addr.Flags = unix.IFA_F_NODAD
			must(t, end.ns.links.AddrAdd(link, addr))
		}
	}
}

func (n *Namespace) mustRoute(t *testing.T, dev, dst, via string) {
	t.Helper()
	link, err := n.links.LinkByName(dev)
	must(t, err)
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(dst))}
	if via != "" {
		route.Gw, route.Flags = net.ParseIP(via), int(netlink.FLAG_ONLINK)
	}
	must(t, n.links.RouteAdd(route))
}

// serve answers every connection to port with text and the client's address.
func serve(t *testing.T, ns *Namespace, port int, text string) {
	t.Helper()
	var listener net.Listener
	must(t, ns.Do(func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			_, _ = fmt.Fprintf(c, "%s saw %s", text, from)
			c.Close()
		}
	}()
}

// ask connects from the namespace and returns what it is told, or "nothing".
func ask(ns *Namespace, to string, patience time.Duration) string {
	// The socket must be made on the namespace's thread, waiting must not happen there.
	answer := "nothing"
	_ = ns.Do(func() error {
		addr := netip.MustParseAddrPort(to)
		family := unix.AF_INET
		var address unix.Sockaddr = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: four(addr.Addr())}
		if addr.Addr().Is6() {
			family = unix.AF_INET6
			address = &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		timeout := unix.NsecToTimeval(patience.Nanoseconds())
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
			return err
		}
		if err := unix.Connect(fd, address); err != nil {
			return err
		}
		buffer := make([]byte, 200)
		n, err := unix.Read(fd, buffer)
		if err == nil {
			answer = string(buffer[:n])
		}
		return err
	})
	return answer
}

func four(a netip.Addr) [4]byte {
	if a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}

// watch collects the destination of every IP packet that arrives in the namespace until the test ends.
func watch(t *testing.T, ns *Namespace) func() []netip.Addr {
	t.Helper()
	const every = 0x0300 // ETH_P_ALL in network byte order
	fd := -1
	must(t, ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, every)
		return err
	}))
	timeout := unix.NsecToTimeval((50 * time.Millisecond).Nanoseconds())
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	var mu sync.Mutex
	var seen []netip.Addr
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 2048)
		for ctx.Err() == nil {
			n, _, err := unix.Recvfrom(fd, buffer, 0)
			if err != nil || n < 40 {
				continue
			}
			var to netip.Addr
			switch buffer[0] >> 4 {
			case 4:
				to = netip.AddrFrom4([4]byte(buffer[16:20]))
			case 6:
				to = netip.AddrFrom16([16]byte(buffer[24:40]))
			}
			mu.Lock()
			seen = append(seen, to)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() { cancel(); <-done; unix.Close(fd) })
	return func() []netip.Addr { mu.Lock(); defer mu.Unlock(); return append([]netip.Addr(nil), seen...) }
}

// world is a cluster network of three nodes, with a server outside and a Pod on node 2.
type world struct {
	nodes   []*Namespace
	outside *Namespace
	pod     *Namespace
	journal *memory
	seen    func() []netip.Addr
	before  []string
}

func testOptions(journal Journal) Options {
	o := Options{
		Journal: journal, Alias: "test",
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		NodeCIDRs:    []netip.Prefix{netip.MustParsePrefix("10.245.0.0/24"), netip.MustParsePrefix("fd00:10:245::/112")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112"), netip.MustParsePrefix("172.30.253.0/24")},
	}
	for i := 1; i <= 3; i++ {
		o.Nodes = append(o.Nodes, Node{
			Index: i, Namespace: fmt.Sprintf("fw-machine-%d-node-%d", os.Getpid(), i),
			Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.245.0.%d", i)), netip.MustParseAddr(fmt.Sprintf("fd00:10:245::%d", i))},
			PodCIDRs:  []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i-1)), netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", i-1))},
		})
	}
	o.Nodes[0].Sources = []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
	return o
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{journal: &memory{}}
	node1 := namespace(t, "node-1")
	w.outside, w.pod = namespace(t, "outside"), namespace(t, "pod")
	join(t, node1, "up0", []string{"192.0.2.2/24", "2001:db8::2/64"}, w.outside, "in0", []string{"192.0.2.1/24", "2001:db8::1/64"})
	node1.mustRoute(t, "up0", "0.0.0.0/0", "192.0.2.1")
	node1.mustRoute(t, "up0", "::/0", "2001:db8::1")
	w.seen = watch(t, w.outside)
	w.before = settled(t, node1)

	nodes, err := Build(node1, testOptions(w.journal))
	must(t, err)
	w.nodes = nodes
	t.Cleanup(func() {
		for _, n := range nodes[1:] {
			n.Close()
		}
		must(t, Undo(node1, *w.journal))
	})
	// The Pod, as the nodes' Pod network does it: routed, with permanent neighbours.
	join(t, nodes[1], "fwp1", nil, w.pod, "eth0", []string{"10.244.1.5/32", "fd00:10:244:1::5/128"})
	nodes[1].mustRoute(t, "fwp1", "10.244.1.5/32", "")
	nodes[1].mustRoute(t, "fwp1", "fd00:10:244:1::5/128", "")
	near, err := nodes[1].links.LinkByName("fwp1")
	must(t, err)
	far, err := w.pod.links.LinkByName("eth0")
	must(t, err)
	for _, pair := range [][2]string{{"10.244.1.5", "169.254.1.1"}, {"fd00:10:244:1::5", "fe80::1"}} {
		must(t, nodes[1].addNeighbour(near, netip.MustParseAddr(pair[0]), far.Attrs().HardwareAddr))
		must(t, w.pod.addNeighbour(far, netip.MustParseAddr(pair[1]), near.Attrs().HardwareAddr))
	}
	w.pod.mustRoute(t, "eth0", "0.0.0.0/0", "169.254.1.1")
	w.pod.mustRoute(t, "eth0", "::/0", "fe80::1")
	serve(t, w.pod, 8080, "pod")
	serve(t, w.outside, 8080, "outside")
	for i, n := range nodes {
		serve(t, n, 80, fmt.Sprintf("listener of node %d", i+1))
	}
	return w
}

// settled waits until the kernel has given all links their carrier, addresses and routes, and returns the inventory.
func settled(t *testing.T, ns *Namespace) []string {
	t.Helper()
	seen, since := inventory(t, ns), time.Now()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if now := inventory(t, ns); !cmp.Equal(now, seen) {
			seen, since = now, time.Now()
		}
		if time.Since(since) > 150*time.Millisecond && strings.Contains(strings.Join(seen, "\n"), "2001:db8::2/128 Src: <nil> Gw: <nil> Flags: [] Table: 255") {
			return seen
		}
	}
	t.Fatalf("does not settle: %q", seen)
	return nil
}

// inventory lists links, addresses, routes, rules, tables and forwarding of a namespace.
func inventory(t *testing.T, ns *Namespace) []string {
	t.Helper()
	var all []string
	links, err := ns.links.LinkList()
	must(t, err)
	for _, l := range links {
		all = append(all, "link "+l.Attrs().Name)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := ns.links.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		must(t, err)
		for _, r := range routes {
			if r.Dst != nil && r.Dst.IP.IsLinkLocalUnicast() {
				continue // comes and goes by itself
			}
			all = append(all, "route "+r.String())
		}
	}
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.fd)))
	must(t, err)
	tables, err := c.ListTables()
	must(t, err)
	for _, table := range tables {
		all = append(all, "table "+table.Name)
	}
	for _, conf := range []string{"/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf"} {
		values, err := ns.confOf(conf, "forwarding")
		must(t, err)
		for _, name := range []string{"all", "default", "lo", "up0"} {
			all = append(all, name+" forwarding "+values[conf+"/"+name+"/forwarding"])
		}
	}
	return all
}

func TestTraffic(t *testing.T) {
	w := newWorld(t)
	n1, n3 := w.nodes[0], w.nodes[2]
	for _, test := range []struct {
		name, to, want string
		from           *Namespace
	}{
		{"node 1 to Pod on node 2", "10.244.1.5:8080", "pod saw 192.0.2.2", n1},
		{"node 1 to Pod on node 2, IPv6", "[fd00:10:244:1::5]:8080", "pod saw 2001:db8::2", n1},
		{"node 1 to node 3", "10.245.0.3:80", "listener of node 3 saw 192.0.2.2", n1},
		{"node 1 to node 3, IPv6", "[fd00:10:245::3]:80", "listener of node 3 saw 2001:db8::2", n1},
		{"node 3 to Pod on node 2", "10.244.1.5:8080", "pod saw 10.245.0.3", n3},
		{"node 3 to Pod on node 2, IPv6", "[fd00:10:244:1::5]:8080", "pod saw fd00:10:245::3", n3},
		{"Pod keeps its address to node 3", "10.245.0.3:80", "listener of node 3 saw 10.244.1.5", w.pod},
		{"Pod keeps its address to node 3, IPv6", "[fd00:10:245::3]:80", "listener of node 3 saw fd00:10:244:1::5", w.pod},
		{"Pod keeps its address to node 1's outside address", "192.0.2.2:80", "listener of node 1 saw 10.244.1.5", w.pod},
		{"Pod to the outside", "192.0.2.1:8080", "outside saw 192.0.2.2", w.pod},
		{"Pod to the outside, IPv6", "[2001:db8::1]:8080", "outside saw 2001:db8::2", w.pod},
		{"node 3 to the outside", "192.0.2.1:8080", "outside saw 192.0.2.2", n3},
		{"node 1 to the outside", "192.0.2.1:8080", "outside saw 192.0.2.2", n1},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := ask(test.from, test.to, 5*time.Second); got != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
		})
	}
}

// A machine that moves to another network loses the address that its routes name as the source, and with it the routes.
func TestLostAddress(t *testing.T) {
	w := newWorld(t)
	n1 := w.nodes[0]
	ctx, cancel := context.WithCancel(t.Context())
	var keeper sync.WaitGroup
	keeper.Go(func() { n1.KeepRoutes(ctx, testOptions(w.journal), time.Hour, slog.New(slog.DiscardHandler)) })
	defer keeper.Wait()
	defer cancel()
	up, err := n1.links.LinkByName("up0")
	must(t, err)
	expect := func(to, want string) {
		t.Helper()
		for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			got := ask(n1, to, 300*time.Millisecond)
			if got == want {
				return
			}
			if time.Since(began) > 20*time.Second {
				t.Fatalf("%s: %s, want %s", to, got, want)
			}
		}
	}
	all := func(v4, v6 string) {
		t.Helper()
		expect("10.245.0.3:80", "listener of node 3 saw "+v4)
		expect("10.244.1.5:8080", "pod saw "+v4)
		expect("[fd00:10:245::3]:80", "listener of node 3 saw "+v6)
		expect("[fd00:10:244:1::5]:8080", "pod saw "+v6)
	}
	all("192.0.2.2", "2001:db8::2")
	for _, text := range []string{"192.0.2.2/24", "2001:db8::2/64"} {
		addr, err := netlink.ParseAddr(text)
		must(t, err)
		must(t, n1.links.AddrDel(up, addr))
	}
	all("10.245.0.1", "fd00:10:245::1")
	for _, text := range []string{"192.0.2.2/24", "2001:db8::2/64"} {
		addr, err := netlink.ParseAddr(text)
		must(t, err)
		addr.Flags = unix.IFA_F_NODAD
		must(t, n1.links.AddrAdd(up, addr))
	}
	all("192.0.2.2", "2001:db8::2")
}

// What is meant for the cluster but has no better route neither leaves the machine nor meets a listener on 0.0.0.0.
func TestUnprogrammedAddressesStayHere(t *testing.T) {
	w := newWorld(t)
	targets := []string{"10.96.0.1:80", "[fd00:10:96::1]:80", "172.30.253.7:80", "10.244.0.9:80", "10.244.77.1:80", "[fd00:10:244:77::1]:80", "10.245.0.77:80", "[fd00:10:245::77]:80"}
	var wg sync.WaitGroup
	for _, from := range []*Namespace{w.nodes[0], w.nodes[2], w.pod} {
		wg.Go(func() {
			for _, to := range targets {
				if got := ask(from, to, 300*time.Millisecond); got != "nothing" {
					t.Errorf("%s answers: %s", to, got)
				}
			}
		})
	}
	wg.Wait()
	ask(w.pod, "192.0.2.1:8080", 5*time.Second) // so that the watcher must have seen something
	outside := 0
	for _, to := range w.seen() {
		if to == netip.MustParseAddr("192.0.2.1") {
			outside++
		}
		for _, o := range testOptions(nil).ServiceCIDRs {
			if o.Contains(to) {
				t.Errorf("a packet to %s left the machine", to)
			}
		}
		for _, o := range slices.Concat(testOptions(nil).PodCIDRs, testOptions(nil).NodeCIDRs) {
			if o.Contains(to) {
				t.Errorf("a packet to %s left the machine", to)
			}
		}
	}
	if outside == 0 {
		t.Error("the watcher sees nothing")
	}
}

// A redirect in the nat output hook works, with the node's own address as the source: the route to fairway0 lets the packet
// come that far and chooses the source.
func TestRedirectedServiceAddress(t *testing.T) {
	w := newWorld(t)
	for i, n := range []*Namespace{w.nodes[0], w.nodes[2]} {
		redirect(t, n, "10.96.0.77", "10.244.1.5", ipv4)
		redirect(t, n, "fd00:10:96::77", "fd00:10:244:1::5", ipv6)
		node := []int{1, 3}[i]
		if got, want := ask(n, "10.96.0.77:8080", 5*time.Second), fmt.Sprintf("pod saw 10.245.0.%d", node); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if got, want := ask(n, "[fd00:10:96::77]:8080", 5*time.Second), fmt.Sprintf("pod saw fd00:10:245::%d", node); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func redirect(t *testing.T, ns *Namespace, from, to string, f family) {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.fd)))
	must(t, err)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "redirect-" + f.name})
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.destination, Len: f.length},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: netip.MustParseAddr(from).AsSlice()},
		&expr.Immediate{Register: 1, Data: netip.MustParseAddr(to).AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.protocol), RegAddrMin: 1},
	}})
	must(t, c.Flush())
	t.Cleanup(func() {
		if err := removeTable(ns, table.Name); err != nil && !errors.Is(err, unix.EBADF) {
			t.Error(err)
		}
	})
}

func TestUndoRestores(t *testing.T) {
	w := newWorld(t)
	if len(w.nodes) != 3 || len(*w.journal) == 0 {
		t.Fatalf("%d nodes, journal %v", len(w.nodes), *w.journal)
	}
	if cmp.Equal(w.before, inventory(t, w.nodes[0])) {
		t.Error("Build changed nothing")
	}
	must(t, Undo(w.nodes[0], *w.journal))
	if diff := cmp.Diff(w.before, inventory(t, w.nodes[0])); diff != "" {
		t.Errorf("after Undo (-before +after):\n%s", diff)
	}
	for _, n := range testOptions(nil).Nodes[1:] {
		if _, err := os.Stat(namespaceDir + "/" + n.Namespace); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", n.Namespace, err)
		}
	}
	must(t, Undo(w.nodes[0], *w.journal)) // again is no error
}

func TestUndoLeavesWhatIsNotOurs(t *testing.T) {
	ns := namespace(t, "foreign")
	journal := memory{
		{Kind: KindInterface, Name: "foreign0", Value: "ours"},
		{Kind: KindSysctl, Name: "/proc/sys/net/ipv4/ip_forward", Value: "0", Before: "1"},
	}
	link, err := ns.addLink(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "foreign0"}}, "theirs")
	must(t, err)
	must(t, ns.setSysctl(nil, "/proc/sys/net/ipv4/ip_forward", "1"))
	must(t, Undo(ns, journal))
	if _, err := ns.links.LinkByName(link.Attrs().Name); err != nil {
		t.Errorf("an interface with another alias is gone: %v", err)
	}
	values, err := ns.confOf("/proc/sys/net/ipv4/conf", "forwarding")
	must(t, err)
	if values["/proc/sys/net/ipv4/conf/all/forwarding"] != "1" {
		t.Error("a sysctl that somebody else has changed was put back")
	}
}

// An interface that forwarded before still does after Undo has turned the master switch off.
func TestForwardingOfSingleInterfaces(t *testing.T) {
	ns := namespace(t, "forwarding")
	join(t, ns, "up0", nil, ns, "up1", nil)
	const up0, up1 = "/proc/sys/net/ipv4/conf/up0/forwarding", "/proc/sys/net/ipv4/conf/up1/forwarding"
	const ra0 = "/proc/sys/net/ipv6/conf/up0/accept_ra"
	must(t, ns.setSysctl(nil, up0, "1"))
	var journal memory
	must(t, ns.enableForwarding(&journal))
	during, err := ns.confOf("/proc/sys/net/ipv4/conf", "forwarding")
	must(t, err)
	ra, err := ns.confOf("/proc/sys/net/ipv6/conf", "accept_ra")
	must(t, err)
	if during[up0] != "1" || during[up1] != "1" || ra[ra0] != "2" {
		t.Errorf("while forwarding: %v %v", during, ra)
	}
	must(t, Undo(ns, journal))
	after, err := ns.confOf("/proc/sys/net/ipv4/conf", "forwarding")
	must(t, err)
	ra, err = ns.confOf("/proc/sys/net/ipv6/conf", "accept_ra")
	must(t, err)
	if after[up0] != "1" || after[up1] != "0" || ra[ra0] != "1" {
		t.Errorf("after Undo: %v %v", after, ra)
	}
}

func TestOccupied(t *testing.T) {
	w := namespace(t, "occupied")
	join(t, w, "up0", []string{"192.0.2.2/24", "2001:db8::2/64"}, w, "up1", nil)
	w.mustRoute(t, "up0", "0.0.0.0/0", "192.0.2.1")
	w.mustRoute(t, "up0", "10.0.0.0/8", "192.0.2.1")
	file := t.TempDir() + "/resolv.conf"
	must(t, os.WriteFile(file, []byte("# comment\nnameserver 172.30.253.9\nnameserver 127.0.0.53\nsearch example.com\n"), 0o644))
	occupied, err := w.Occupied(file)
	must(t, err)
	var got []string
	for _, o := range occupied {
		if o.Prefix.Addr().IsLinkLocalUnicast() {
			t.Errorf("link-local: %v", o)
		}
		got = append(got, o.Text)
	}
	text := strings.ReplaceAll(strings.Join(got, "\n"), file, "resolv.conf")
	for _, want := range []string{
		"route 192.0.2.0/24 dev up0", "route 10.0.0.0/8 via 192.0.2.1 dev up0", "route 2001:db8::/64 dev up0",
		"the machine's own address 192.0.2.2 on up0", "the nameserver 172.30.253.9 in resolv.conf",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
	for _, not := range []string{"0.0.0.0/0", "127.0.0.53", "::/0"} {
		if strings.Contains(text, not) {
			t.Errorf("has %q:\n%s", not, text)
		}
	}
	if got := w.Primary(); len(got) != 1 || got[0] != netip.MustParseAddr("192.0.2.2") {
		t.Errorf("primary %v", got)
	}
}

func TestForwardDroppers(t *testing.T) {
	ns := namespace(t, "firewall")
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.fd)))
	must(t, err)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	drop, accept := nftables.ChainPolicyDrop, nftables.ChainPolicyAccept
	for name, chain := range map[string]nftables.Chain{
		"FORWARD": {Hooknum: nftables.ChainHookForward, Policy: &drop},
		"INPUT":   {Hooknum: nftables.ChainHookInput, Policy: &drop},
		"other":   {Hooknum: nftables.ChainHookForward, Policy: &accept},
	} {
		chain.Table, chain.Name, chain.Type, chain.Priority = table, name, nftables.ChainTypeFilter, nftables.ChainPriorityFilter
		c.AddChain(&chain)
	}
	c.AddChain(&nftables.Chain{Table: table, Name: "regular"})
	must(t, c.Flush())
	got, err := ns.ForwardDroppers()
	must(t, err)
	if diff := cmp.Diff([]string{"table filter chain FORWARD"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What gives Pods an address of the machine is put back after others took it, said once, and Undo still removes it.
func TestMasqueradeIsPutBack(t *testing.T) {
	w := newWorld(t)
	node1 := w.nodes[0]
	var log testenv.Log
	ctx, cancel := context.WithCancel(t.Context())
	var kept sync.WaitGroup
	kept.Go(func() {
		node1.KeepMasquerade(ctx, testOptions(w.journal), 20*time.Millisecond, slog.New(slog.NewTextHandler(&log, nil)))
	})
	stop := func() { cancel(); kept.Wait() }
	defer stop()
	c, err := nftables.New(nftables.WithNetNSFd(int(node1.fd)))
	must(t, err)
	before, err := readMasquerade(c)
	must(t, err)
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: masqueradeTable}
	for _, damage := range []struct {
		name, said string
		do         func()
	}{
		{"all tables", "the table is missing", c.FlushRuleset},
		{"the table", "the table is missing", func() { c.DelTable(table) }},
		{"the rules", "chain postrouting is another", func() { c.FlushChain(&nftables.Chain{Table: table, Name: "postrouting"}) }},
		{"a range", "set own-v4 is another", func() { c.FlushSet(&nftables.Set{Table: table, Name: "own-v4"}) }},
	} {
		log.Reset()
		damage.do()
		must(t, c.Flush())
		for until := time.Now().Add(10 * time.Second); !strings.Contains(log.String(), "put back"); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("%s: nobody puts it back", damage.name)
			}
		}
		after, err := readMasquerade(c)
		if err != nil || !cmp.Equal(before, after) {
			t.Errorf("%s: the table differs (%v):\n%s", damage.name, err, cmp.Diff(before, after))
		}
		if said := log.String(); strings.Count(said, "level=WARN") != 1 || !strings.Contains(said, damage.said) {
			t.Errorf("%s: log %q", damage.name, said)
		}
		if got := ask(w.pod, "192.0.2.1:8080", 5*time.Second); got != "outside saw 192.0.2.2" {
			t.Errorf("%s: Pod to the outside: %s", damage.name, got)
		}
	}
	stop()
	must(t, Undo(node1, *w.journal))
	if diff := cmp.Diff(w.before, inventory(t, node1)); diff != "" {
		t.Errorf("after Undo (-before +after):\n%s", diff)
	}
}
