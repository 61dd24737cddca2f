package podnet

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inside tells the test binary that it runs in a network namespace of its own.
const inside = "FAIRWAY_TEST_INSIDE"

// TestMain runs the tests again in a network namespace of their own.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("skipped: needs root")
		return
	}
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func newNetwork(t *testing.T, owner string, change ...func(*Options)) *Network {
	t.Helper()
	opts := Options{
		Dir: t.TempDir(), Owner: owner, Logger: slog.New(slog.DiscardHandler),
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:10:244::/64")},
	}
	for _, c := range change {
		c(&opts)
	}
	n, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return n
}

// namespace makes a network namespace that lives as long as the file.
func namespace(t *testing.T) *os.File {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	t.Cleanup(func() { f.Close() })
	return f
}

func sysctl(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile("/proc/sys/net/" + path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// TestForwarding makes a router without losing the machine's own IPv6.
func TestForwarding(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	uplink := netlink.NewVeth(attrs)
	uplink.PeerName = "uplinkpeer"
	if err := netlink.LinkAdd(uplink); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(uplink)
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/uplinkpeer/accept_ra", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	newNetwork(t, "a")
	for path, want := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		"ipv6/conf/uplink/accept_ra": "2", "ipv6/conf/uplinkpeer/accept_ra": "0",
	} {
		if got := sysctl(t, path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil || lo.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("lo is down: %v", err)
	}
}

// TestAttach checks both ends of a Pod's link in a namespace with no other way
// out.
func TestAttach(t *testing.T) {
	n := newNetwork(t, "a")
	pod := namespace(t)
	addresses, err := n.Attach(Pod{ID: "one", Name: "default/web", Namespace: pod})
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(linkName("a", "one"))
	if err != nil {
		t.Fatal(err)
	}
	if alias := link.Attrs().Alias; !strings.Contains(alias, "default/web") {
		t.Errorf("alias %q", alias)
	}
	if got := sysctl(t, "ipv4/conf/"+link.Attrs().Name+"/rp_filter"); got != "2" {
		t.Errorf("rp_filter %s", got)
	}
	for _, a := range addresses {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err != nil || len(routes) != 1 || routes[0].LinkIndex != link.Attrs().Index {
			t.Errorf("route to %s: %v %v", a, routes, err)
		}
	}
	neighbours, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	permanent := 0
	for _, neighbour := range neighbours {
		if neighbour.State == netlink.NUD_PERMANENT {
			permanent++
		}
	}
	if permanent != 2 {
		t.Errorf("%d permanent neighbours on the node: %v", permanent, neighbours)
	}
	err = InNamespace(pod, func() error {
		if got := sysctl(t, "ipv4/ip_unprivileged_port_start"); got != "0" {
			t.Errorf("ip_unprivileged_port_start %s", got)
		}
		for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
			routes, err := netlink.RouteGet(net.ParseIP(to))
			if err != nil || len(routes) != 1 {
				return fmt.Errorf("route to %s: %v %w", to, routes, err)
			}
			gw, _ := netip.AddrFromSlice(routes[0].Gw)
			src, _ := netip.AddrFromSlice(routes[0].Src)
			if gw = gw.Unmap(); gw != gateway4 && gw != gateway6 {
				t.Errorf("gateway %s", gw)
			}
			if src = src.Unmap(); src != addresses[0] && src != addresses[1] {
				t.Errorf("source %s", src)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.Detach("one"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := netlink.LinkByName(link.Attrs().Name); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("the link stays: %v", err)
	}
}

// TestFailedAttach gives back what it took.
func TestFailedAttach(t *testing.T) {
	n := newNetwork(t, "a")
	notANamespace, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer notANamespace.Close()
	if _, err := n.Attach(Pod{ID: "bad", Name: "default/bad", Namespace: notANamespace}); err == nil || !strings.Contains(err.Error(), "default/bad") {
		t.Errorf("error %v", err)
	}
	if len(n.alloc.owner) != 0 || len(n.pods) != 0 {
		t.Errorf("addresses %v pods %v stay", n.alloc.owner, n.pods)
	}
}

// TestLeftovers removes the links of a dead predecessor and no one else's.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	sameDir := func(o *Options) { o.Dir = dir }
	first := newNetwork(t, "a", sameDir)
	other := &Network{opts: Options{Owner: "b", PodCIDRs: first.opts.PodCIDRs}, mtu: 1400}
	dead, alive := namespace(t), namespace(t)
	before, err := first.Attach(Pod{ID: "dead", Name: "x/dead", Namespace: dead, Ports: []Port{{Protocol: unix.IPPROTO_TCP, HostPort: 80, PodPort: 80}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.link(Pod{ID: "alive", Name: "x/alive", Namespace: alive}, &attachment{link: linkName("b", "alive")}); err != nil {
		t.Fatal(err)
	}
	defer removeLink(linkName("b", "alive"))
	second := newNetwork(t, "a", sameDir)
	if _, err := netlink.LinkByName(linkName("a", "dead")); err == nil {
		t.Error("the dead one's link stays")
	}
	if _, err := netlink.LinkByName(linkName("b", "alive")); err != nil {
		t.Errorf("the other node's link: %v", err)
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	elements, err := conn.GetSetElements(second.rules.families[0].anyPorts)
	if err != nil || len(elements) != 0 {
		t.Errorf("host ports stay: %v %v", elements, err)
	}
	after, err := second.Attach(Pod{ID: "new", Name: "x/new", Namespace: namespace(t)})
	if err != nil || after[0] == before[0] || after[1] == before[1] {
		t.Errorf("addresses %v after %v: %v", after, before, err)
	}
}

// TestMTU takes that of the way out.
func TestMTU(t *testing.T) {
	if got := uplinkMTU(); got != 1500 {
		t.Errorf("without a way out %d", got)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "vpn", 1400
	vpn := netlink.NewVeth(attrs)
	vpn.PeerName = "vpnpeer"
	if err := netlink.LinkAdd(vpn); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(vpn)
	link, err := netlink.LinkByName("vpn")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: toNet(netip.MustParsePrefix("0.0.0.0/0"))}); err != nil {
		t.Fatal(err)
	}
	n := newNetwork(t, "a")
	pod := namespace(t)
	if _, err := n.Attach(Pod{ID: "one", Name: "x/one", Namespace: pod}); err != nil {
		t.Fatal(err)
	}
	err = InNamespace(pod, func() error {
		eth0, err := netlink.LinkByName(podInterface)
		if err == nil && eth0.Attrs().MTU != 1400 {
			err = fmt.Errorf("MTU %d", eth0.Attrs().MTU)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestIPv4Only runs with one family.
func TestIPv4Only(t *testing.T) {
	n := newNetwork(t, "a", func(o *Options) { o.PodCIDRs = o.PodCIDRs[:1] })
	addresses, err := n.Attach(Pod{ID: "one", Name: "x/one", Namespace: namespace(t), Ports: []Port{{Protocol: unix.IPPROTO_UDP, HostPort: 53, PodPort: 53}}})
	if err != nil || len(addresses) != 1 || !addresses[0].Is4() {
		t.Errorf("addresses %v %v", addresses, err)
	}
	if got := onlyIPv4([]netip.Prefix{netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("10.0.0.0/8")}); len(got) != 1 || !got[0].Addr().Is4() {
		t.Errorf("IPv4 only: %v", got)
	}
}

// TestFirewallWarning names the chain that is in the way, and its cure works.
func TestFirewallWarning(t *testing.T) {
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
	drop := nftables.ChainPolicyDrop
	for name, hook := range map[string]*nftables.ChainHook{"FORWARD": nftables.ChainHookForward, "INPUT": nftables.ChainHookInput} {
		conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		conn.DelTable(table)
		if err := conn.Flush(); err != nil {
			t.Error(err)
		}
	}()
	var log strings.Builder
	newNetwork(t, "a", func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	if strings.Count(log.String(), "level=WARN") != 1 || !strings.Contains(log.String(), "ip filter FORWARD") {
		t.Errorf("log %q", &log)
	}
	if nft, err := exec.LookPath("nft"); err == nil {
		cure := `nft insert rule ip filter FORWARD iifname '"fwp*"' accept && nft insert rule ip filter FORWARD oifname '"fwp*"' accept`
		if !strings.Contains(strings.ReplaceAll(log.String(), `\`, ""), cure) {
			t.Errorf("log %q lacks the cure", &log)
		}
		if out, err := exec.Command("sh", "-c", strings.ReplaceAll(cure, "nft insert", nft+" insert")).CombinedOutput(); err != nil {
			t.Errorf("the cure does not work: %v %s", err, out)
		}
	}
}

// TestRulesArePutBack has the table again after others took it or a part of it,
// with the host ports, and says once what was missing.
func TestRulesArePutBack(t *testing.T) {
	var log lockedLog
	n := newNetwork(t, "a", func(o *Options) {
		o.Logger, o.VerifyEvery = slog.New(slog.NewTextHandler(&log, nil)), 20*time.Millisecond
	})
	ports := []Port{{Protocol: unix.IPPROTO_TCP, HostPort: 80, PodPort: 8080}, {Protocol: unix.IPPROTO_UDP, HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 53, PodPort: 53}}
	if _, err := n.Attach(Pod{ID: "one", Name: "x/one", Namespace: namespace(t), Ports: ports}); err != nil {
		t.Fatal(err)
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	before, err := readTable(conn)
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != 12 || before["set hostports4"] == "" || before["set hairpins6"] == "" {
		t.Fatalf("the table is %q", before)
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	postrouting := &nftables.Chain{Table: table, Name: "postrouting"}
	for _, damage := range []struct {
		name, said string
		do         func()
	}{
		{"all tables of the machine", "the table is missing", conn.FlushRuleset},
		{"the table", "the table is missing", func() { conn.DelTable(table) }},
		{"the rules of a chain", "chain postrouting is another", func() { conn.FlushChain(postrouting) }},
		{"a host port", "set hostports4 is another", func() { conn.FlushSet(&nftables.Set{Table: table, Name: "hostports4"}) }},
		{"a chain more", "chain theirs is not ours", func() { conn.AddChain(&nftables.Chain{Table: table, Name: "theirs"}) }},
	} {
		log.reset()
		damage.do()
		if err := conn.Flush(); err != nil {
			t.Fatalf("%s: %v", damage.name, err)
		}
		for until := time.Now().Add(10 * time.Second); !strings.Contains(log.String(), "put back"); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("%s: nobody puts it back", damage.name)
			}
		}
		after, err := readTable(conn)
		if err != nil || !maps.Equal(before, after) {
			t.Errorf("%s: the table is %q after %q: %v", damage.name, after, before, err)
		}
		if said := log.String(); strings.Count(said, "level=WARN") != 1 || !strings.Contains(said, damage.said) {
			t.Errorf("%s: log %q", damage.name, said)
		}
	}
}

// TestLostAddress moves the machine to another network: Linux takes the routes
// away that name the lost address as their source.
func TestLostAddress(t *testing.T) {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 7), Mask: net.CIDRMask(24, 32)}}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	uplink := &netlink.Bridge{LinkAttrs: attrs}
	if err := errors.Join(netlink.LinkAdd(uplink), netlink.LinkSetUp(uplink), netlink.AddrAdd(uplink, addr)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(uplink) })
	n := newNetwork(t, "a", func(o *Options) { o.NodeIPs = []netip.Addr{netip.MustParseAddr("192.0.2.7")} })
	addresses, err := n.Attach(Pod{ID: "one", Name: "x/one", Namespace: namespace(t)})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(source net.IP) {
		t.Helper()
		for until := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: hostNet(addresses[0])}, netlink.RT_FILTER_DST)
			if err == nil && len(routes) == 1 && routes[0].Src.Equal(source) {
				return
			}
			if time.Now().After(until) {
				t.Fatalf("routes %v (%v), want one from %v", routes, err, source)
			}
		}
	}
	expect(addr.IP)
	if err := netlink.AddrDel(uplink, addr); err != nil {
		t.Fatal(err)
	}
	expect(nil)
	if err := netlink.AddrAdd(uplink, addr); err != nil {
		t.Fatal(err)
	}
	expect(addr.IP)
}

// TestAttachWithoutTable starts a Pod with host ports though somebody took the
// table away.
func TestAttachWithoutTable(t *testing.T) {
	n := newNetwork(t, "a")
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	conn.FlushRuleset()
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Attach(Pod{ID: "one", Name: "x/one", Namespace: namespace(t), Ports: []Port{{Protocol: unix.IPPROTO_TCP, HostPort: 80, PodPort: 80}}}); err != nil {
		t.Fatal(err)
	}
	if damage, err := n.rules.damage(); err != nil || damage != "" {
		t.Errorf("damaged: %s %v", damage, err)
	}
}

// lockedLog is what was logged.
type lockedLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lockedLog) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}
