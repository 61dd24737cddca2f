package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	dpebpf "fairway.dev/fairway/internal/dataplane/ebpf"
	"fairway.dev/fairway/internal/sysctl"
	"fairway.dev/fairway/internal/testenv"
	"fairway.dev/fairway/internal/testenv/kubeapi"
)

// roleEnv makes the test's process the node role with that data path, and
// kubeconfigEnv and cgroupEnv tell it the rest.
const (
	roleEnv       = "FAIRWAY_TEST_ROLE"
	kubeconfigEnv = "FAIRWAY_TEST_ROLE_KUBECONFIG"
	cgroupEnv     = "FAIRWAY_TEST_CGROUP"
)

// TestCleanup runs the node role with each data path in a network namespace
// where others have packet rules and programs, kills it, and cleans up: after
// that everything is as it was before, byte for byte.
func TestCleanup(t *testing.T) {
	switch {
	case os.Getenv(roleEnv) != "":
		cleanupRole(t)
		return
	case os.Getenv(insideEnv) != "":
		cleanupInside(t)
		return
	case os.Geteuid() != 0:
		t.Skip("needs root to make a network namespace")
	}
	root, err := dpebpf.CgroupRoot()
	if err != nil {
		t.Skip(err)
	}
	cgroup := filepath.Join(root, fmt.Sprintf("fw-test-cleanup-%d", os.Getpid()))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Remove(cgroup); err != nil {
			t.Error(err)
		}
	}()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestCleanup$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"=1", cgroupEnv+"="+cgroup)
	// What is mounted and pinned inside goes with the process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skip("skipped inside")
	}
}

func cleanupOptions(runDir string, logger *slog.Logger) NodeOptions {
	return NodeOptions{
		Common:   Common{Kubeconfig: os.Getenv(kubeconfigEnv), MetricsAddress: "127.0.0.1:10249", Logger: logger},
		NodeName: "node-1", Dataplane: os.Getenv(roleEnv), BPF: BPFOptions{Cgroup: os.Getenv(cgroupEnv)}, RunDir: runDir,
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		ClusterDomain: "cluster.local", DNSPort: DefaultDNSPort, DNSNotrack: true, TLSPort: DefaultTLSPort, DNSUpstreams: []string{"127.0.0.1:9"},
		ExternalIPs: true, Announce: true, HealthzAddress: "127.0.0.1:10256",
		Sysctls: sysctl.Options{Established: time.Hour, CloseWait: time.Minute, NodePorts: "30000-32767"},
	}
}

// cleanupRole is the node role, until it is killed.
func cleanupRole(t *testing.T) {
	o := cleanupOptions(filepath.Join(filepath.Dir(os.Getenv(kubeconfigEnv)), "run"), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err := RunNode(context.Background(), o); err != nil {
		t.Fatal(err)
	}
}

func cleanupInside(t *testing.T) {
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil {
		t.Fatalf("mount a BPF file system: %v", err)
	}
	lan := cleanupNetwork(t)
	root, err := dpebpf.CgroupRoot()
	if err != nil {
		t.Skip(err)
	}
	if err := dpebpf.ProbeSockets(dpebpf.Options{Logger: quiet, HostCgroup: root}); err != nil {
		t.Skipf("eBPF does not work here: %v", err)
	}
	if err := dpebpf.Cleanup(dpebpf.Options{}); err != nil { // the trial makes a directory for pins
		t.Fatal(err)
	}
	if err := dpebpf.ProbeIngress(t.Context(), nil); err != nil {
		t.Skipf("packets by eBPF do not work here: %v", err)
	}
	others(t, lan)
	dir := t.TempDir()
	t.Setenv(kubeconfigEnv, filepath.Join(dir, "kubeconfig"))
	cleanupAPI(t)
	before := everything(t)
	for _, mode := range []string{DataplaneEBPF, DataplaneNFT} {
		var log testenv.Log
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestCleanup$")
		cmd.Env = append(os.Environ(), roleEnv+"="+mode)
		cmd.Stderr, cmd.Stdout = &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := sync.OnceFunc(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		})
		defer kill()
		func() {
			defer func() {
				if t.Failed() {
					kill()
					t.Logf("the node role said:\n%s", &log)
				}
			}()
			wants(t, mode+" ready", func() bool { return page("/readyz") == "ok\n" })
			wants(t, mode+" serves", func() bool {
				for _, at := range []string{"10.96.0.20:80", lastKnownNode + ":30080", "198.51.100.200:80"} {
					c, err := net.DialTimeout("tcp", at, 2*time.Second)
					if err != nil {
						return false
					}
					_ = c.Close()
				}
				return true
			})
			wants(t, mode+" has set kernel parameters", func() bool {
				got, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports")
				return err == nil && strings.TrimSpace(string(got)) == "20000-20010,30000-32767"
			})
			table := map[string]string{DataplaneEBPF: "inet fairway-ebpf", DataplaneNFT: "ip fairway"}[mode]
			listRules(t, append([]string{"delete", "table"}, strings.Fields(table)...)...)
			removed := time.Now()
			wants(t, mode+" puts back what somebody has removed", func() bool {
				return strings.Contains(listRules(t, "list", "tables"), "table "+table+"\n") && strings.Contains(log.String(), "it is put back")
			})
			took := time.Since(removed)
			t.Logf("%s has put back table %s after %s", mode, table, took)
			if took > 30*time.Second { // the role has only just started
				t.Errorf("%s leaves it to the check once a minute", mode)
			}
			wants(t, mode+" answers at the cluster DNS address, unknown to connection tracking", cleanupDNS)
		}()
		ours := ourBPF(t)
		if (mode == DataplaneEBPF) != (len(ours) > 10) {
			t.Errorf("%s has %d programs, maps and links", mode, len(ours))
		}
		during := everything(t)
		for name, was := range before {
			if strings.HasPrefix(name, "others: ") && during[name] != was {
				t.Errorf("%s touches %s\nbefore:\n%s\nafter:\n%s", mode, name, was, during[name])
			}
		}
		runDir := filepath.Join(dir, "run")
		err := CleanupNode(cleanupOptions(runDir, quiet))
		if want := fmt.Sprintf("stop process %d first", cmd.Process.Pid); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: cleaning up beside the role that runs says %v, want %q", mode, err, want)
		}
		if now := ourBPF(t); len(now) != len(ours) || !strings.Contains(listRules(t, "list", "tables"), "table ip fairway\n") {
			t.Errorf("%s: the refused cleanup has left %d programs, maps and links of %d, and tables\n%s", mode, len(now), len(ours), listRules(t, "list", "tables"))
		}
		during = everything(t)
		o := cleanupOptions(filepath.Join(dir, "another-run"), quiet)
		o.Dataplane = mode
		second, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := RunNode(second, o); err != nil {
			t.Errorf("a second role that is told to end while it waits for the first: %v", err)
		}
		cancel()
		now := everything(t)
		for name, was := range during {
			if aged(now[name]) != aged(was) {
				t.Errorf("a second role beside the first has touched %s\nbefore:\n%s\nafter:\n%s", name, was, now[name])
			}
		}
		kill()
		if mode == DataplaneNFT {
			if tables := listRules(t, "list", "tables"); !strings.Contains(tables, "table ip fairway\n") {
				t.Errorf("the killed role left no table: %s", tables)
			}
		}
		// What `fairway node --cleanup` calls, as a process of its own would.
		for range 2 { // the second time there is nothing to do
			if err := CleanupNode(cleanupOptions(runDir, quiet)); err != nil {
				t.Fatal(err)
			}
		}
		after := everything(t)
		for name, was := range before {
			if after[name] != was {
				t.Errorf("%s, cleaned up, leaves %s otherwise than it was\nbefore:\n%s\nafter:\n%s", mode, name, was, after[name])
			}
		}
		for _, o := range ours {
			wants(t, "the kernel has let go of "+o.name, o.gone)
		}
		if left, _ := os.ReadDir(runDir); len(left) > 0 {
			t.Errorf("%s, cleaned up, leaves %v in --run-dir", mode, left)
		}
	}
}

// cleanupNetwork gives the namespace a network, and returns an interface in it.
func cleanupNetwork(t *testing.T) netlink.Link {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan"}, PeerName: "lan-peer"}))
	var lan netlink.Link
	for _, name := range []string{"lo", "lan-peer", "lan"} {
		l, err := netlink.LinkByName(name)
		must(err)
		must(netlink.LinkSetUp(l))
		lan = l
	}
	must(netlink.AddrAdd(lan, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(lastKnownNode).To4(), Mask: net.CIDRMask(24, 32)}}))
	must(netlink.RouteAdd(&netlink.Route{LinkIndex: lan.Attrs().Index, Gw: net.ParseIP("198.51.100.1").To4()}))
	rule := netlink.NewRule()
	rule.Priority, rule.Table, rule.Mark = 1000, 254, 0x4d
	must(netlink.RuleAdd(rule))
	must(os.WriteFile("/proc/sys/net/ipv4/ip_local_reserved_ports", []byte("20000-20010\n"), 0))
	// The kernel gives addresses of its own a moment later.
	wants(t, "addresses of both links", func() bool {
		list, err := netlink.AddrList(nil, netlink.FAMILY_V6)
		ready := 0
		for _, a := range list {
			if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				ready++
			}
		}
		return err == nil && ready == 2
	})
	return lan
}

// others puts in place what other programs have: tables, one with a name like
// ours, a tc filter, tcx programs, a cgroup program, and pins.
func others(t *testing.T, lan netlink.Link) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c, err := nftables.New()
	must(err)
	for _, table := range []*nftables.Table{
		{Family: nftables.TableFamilyIPv4, Name: "others"}, {Family: nftables.TableFamilyINet, Name: "fairway"},
		{Family: nftables.TableFamilyIPv4, Name: "fairway-of-others"}, {Family: nftables.TableFamilyIPv6, Name: "others"},
	} {
		table = c.AddTable(table)
		chain := c.AddChain(&nftables.Chain{
			Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
		})
		set := &nftables.Set{Table: table, Name: "ports", KeyType: nftables.TypeInetService}
		must(c.AddSet(set, []nftables.SetElement{{Key: binary.BigEndian.AppendUint16(nil, 4711)}}))
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
			&expr.Redir{},
		}})
	}
	must(c.Flush())

	program := func(kind ebpf.ProgramType, at ebpf.AttachType, result int32) *ebpf.Program {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "of_others", Type: kind, AttachType: at, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, result), asm.Return()},
		})
		must(err)
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	const next = -1 // TC_ACT_UNSPEC: on to the next program
	filter := program(ebpf.SchedCLS, ebpf.AttachNone, next)
	must(netlink.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: lan.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}, QdiscType: "clsact",
	}))
	must(netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: lan.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 7},
		Fd:          filter.FD(), Name: "of_others", DirectAction: true,
	}))
	for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		l, err := link.AttachTCX(link.TCXOptions{Interface: lan.Attrs().Index, Program: program(ebpf.SchedCLS, at, next), Attach: at})
		must(err)
		t.Cleanup(func() { _ = l.Close() })
	}
	for _, at := range []ebpf.AttachType{ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupUDP4Sendmsg} {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: os.Getenv(cgroupEnv), Attach: at, Program: program(ebpf.CGroupSockAddr, at, 1)})
		must(err)
		t.Cleanup(func() { _ = l.Close() })
	}
	// Pins of another program, and those of Fairway's for another node.
	for _, dir := range []string{"/sys/fs/bpf/others", filepath.Join(dpebpf.DefaultPins, "netns-1")} {
		must(os.MkdirAll(dir, 0o700))
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		must(err)
		must(m.Put(uint32(0), uint32(4711)))
		must(m.Pin(filepath.Join(dir, "map")))
		must(m.Close())
	}
}

// cleanupAPI serves an API with a Service of each kind, whose endpoint is the
// node itself.
func cleanupAPI(t *testing.T) {
	t.Helper()
	target, err := net.Listen("tcp", lastKnownNode+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	protocol, number, empty := corev1.ProtocolTCP, int32(target.Addr().(*net.TCPAddr).Port), ""
	vip := corev1.LoadBalancerIPModeVIP
	api := kubeapi.New()
	api.Put(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: lastKnownNode}}}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.20", ClusterIPs: []string{"10.96.0.20"}, ExternalIPs: []string{"198.51.100.201"},
				Ports: []corev1.ServicePort{{Port: 80, Protocol: protocol, NodePort: 30080}}, SessionAffinity: corev1.ServiceAffinityClientIP,
				LoadBalancerSourceRanges: []string{"198.51.100.0/24"},
			},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "198.51.100.200", IPMode: &vip}}}},
		},
		&discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &empty, Port: &number, Protocol: &protocol}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{lastKnownNode}}},
		},
		&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "nobody"},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.30", ClusterIPs: []string{"10.96.0.30"}, Ports: []corev1.ServicePort{{Port: 53, Protocol: corev1.ProtocolUDP}},
			},
		},
		&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns"},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10"},
				Ports: []corev1.ServicePort{{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, {Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP}},
			},
		},
		&discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns-here", Labels: map[string]string{discoveryv1.LabelServiceName: "kube-dns"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{
				{Name: new("dns"), Port: new(int32(DefaultDNSPort)), Protocol: new(corev1.ProtocolUDP)},
				{Name: new("dns-tcp"), Port: new(int32(DefaultDNSPort)), Protocol: new(corev1.ProtocolTCP)},
			},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{lastKnownNode}, NodeName: new("node-1")}},
		},
	)
	listener, err := api.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(listener.Stop)
	if err := listener.WriteKubeconfig(os.Getenv(kubeconfigEnv)); err != nil {
		t.Fatal(err)
	}
}

// cleanupDNS reports whether the cluster DNS address answers by UDP and TCP, and
// connection tracking knows of neither.
func cleanupDNS() bool {
	if netlink.ConntrackTableFlush(netlink.ConntrackTable) != nil {
		return false
	}
	q := new(dns.Msg).SetQuestion("kube-dns.kube-system.svc.cluster.local.", dns.TypeA)
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: 2 * time.Second}
		if a, _, err := c.Exchange(q, "10.96.0.10:53"); err != nil || len(a.Answer) != 1 {
			return false
		}
	}
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
	return err == nil && !slices.ContainsFunc(flows, func(f *netlink.ConntrackFlow) bool {
		return slices.ContainsFunc([]net.IP{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP}, net.ParseIP("10.96.0.10").Equal)
	})
}

func listRules(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("nft", append([]string{"-a", "-n"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	return string(out)
}

// aged is a listing without how old its parts are.
func aged(listing string) string {
	return regexp.MustCompile(`expires \S+`).ReplaceAllString(listing, "expires")
}

// everything lists what there is in the network namespace, on the cgroup and
// on the BPF file system. What begins with "others: " is nobody's but others'.
func everything(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	list := func(name string, items []string) {
		slices.Sort(items)
		out[name] = strings.Join(items, "\n")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	out["packet rules"] = listRules(t, "list", "ruleset")
	for _, table := range []string{"ip others", "inet fairway", "ip fairway-of-others", "ip6 others"} {
		out["others: table "+table] = listRules(t, append([]string{"list", "table"}, strings.Fields(table)...)...)
	}
	var links, addrs, qdiscs, filters, tcx []string
	all, err := netlink.LinkList()
	must(err)
	for _, l := range all {
		a := l.Attrs()
		links = append(links, fmt.Sprint(a.Index, a.Name, a.MTU, a.Flags, a.HardwareAddr, a.Promisc, a.Allmulti))
		own, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		must(err)
		for _, a := range own {
			addrs = append(addrs, fmt.Sprint(a.String(), a.Flags))
		}
		disciplines, err := netlink.QdiscList(l)
		must(err)
		for _, q := range disciplines {
			qdiscs = append(qdiscs, fmt.Sprintf("%s %T %v", a.Name, q, q))
		}
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			list, err := netlink.FilterList(l, parent)
			must(err)
			for _, f := range list {
				filters = append(filters, fmt.Sprintf("%s %T %+v", a.Name, f, f))
			}
		}
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			result, err := link.QueryPrograms(link.QueryOptions{Target: a.Index, Attach: at})
			must(err)
			for i, p := range result.Programs {
				tcx = append(tcx, fmt.Sprint(a.Name, " ", at, " ", i, " program ", p.ID))
			}
		}
	}
	list("links", links)
	list("addresses", addrs)
	list("queueing disciplines", qdiscs)
	list("others: tc filters", filters)
	list("programs at interfaces", tcx)
	var routes, rules []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		found, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		must(err)
		for _, r := range found {
			routes = append(routes, fmt.Sprint(r.Table, " ", r.Type, " ", r.String()))
		}
		policy, err := netlink.RuleList(family)
		must(err)
		for _, r := range policy {
			rules = append(rules, fmt.Sprint(family, " ", r.String()))
		}
	}
	list("routes", routes)
	list("rules", rules)
	var cgroup []string
	for _, at := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
		ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
		ebpf.AttachCgroupInetSockRelease, ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetEgress,
	} {
		f, err := os.Open(os.Getenv(cgroupEnv))
		must(err)
		result, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: at})
		must(errors.Join(err, f.Close()))
		for i, p := range result.Programs {
			cgroup = append(cgroup, fmt.Sprint(at, " ", i, " program ", p.ID))
		}
	}
	list("programs on the cgroup", cgroup)
	var pins []string
	must(filepath.WalkDir("/sys/fs/bpf", func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			pins = append(pins, fmt.Sprint(path, " ", d.Type()))
		}
		return err
	}))
	list("pins", pins)
	for _, path := range []string{"/sys/fs/bpf/others/map", filepath.Join(dpebpf.DefaultPins, "netns-1/map")} {
		m, err := ebpf.LoadPinnedMap(path, nil)
		must(err)
		info, err := m.Info()
		must(err)
		id, _ := info.ID()
		var value uint32
		must(m.Lookup(uint32(0), &value))
		must(m.Close())
		out["others: "+path] = fmt.Sprint("map ", id, " has ", value)
	}
	var parameters []string
	must(filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !ofNamespace(path) {
			return err
		}
		if value, err := os.ReadFile(path); err == nil { // some can only be written
			parameters = append(parameters, fmt.Sprint(path, " = ", strings.TrimSpace(string(value))))
		}
		return nil
	}))
	list("kernel parameters", parameters)
	return out
}

// ofNamespace reports whether a kernel parameter is the namespace's own and
// changes by being set only.
func ofNamespace(path string) bool {
	name := filepath.Base(path)
	return !strings.HasPrefix(path, "/proc/sys/net/core/") && name != "nf_conntrack_count" && name != "nf_conntrack_max" && name != "nf_conntrack_buckets"
}

// object is something of BPF that the role has.
type object struct {
	name string
	gone func() bool
}

// ourBPF finds all programs, maps and links that are pinned for this namespace.
func ourBPF(t *testing.T) []object {
	t.Helper()
	var out []object
	program := func(id ebpf.ProgramID) object {
		return object{fmt.Sprint("program ", id), func() bool {
			p, err := ebpf.NewProgramFromID(id)
			_ = p.Close()
			return errors.Is(err, os.ErrNotExist)
		}}
	}
	err := filepath.WalkDir(dpebpf.DefaultPins, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || d.IsDir() || strings.Contains(path, "/netns-1/"):
			return err
		case filepath.Base(filepath.Dir(path)) == "links":
			l, err := link.LoadPinnedLink(path, nil)
			if err != nil {
				return err
			}
			defer l.Close()
			info, err := l.Info()
			if err != nil {
				return err
			}
			id := info.ID
			out = append(out, program(info.Program), object{fmt.Sprint("link ", id), func() bool {
				l, err := link.NewFromID(id)
				if err == nil {
					_ = l.Close()
				}
				return errors.Is(err, os.ErrNotExist)
			}})
		default:
			m, err := ebpf.LoadPinnedMap(path, nil)
			if err != nil {
				return err
			}
			defer m.Close()
			info, err := m.Info()
			if err != nil {
				return err
			}
			id, _ := info.ID()
			out = append(out, object{fmt.Sprint("map ", id, " at ", path), func() bool {
				m, err := ebpf.NewMapFromID(id)
				_ = m.Close()
				return errors.Is(err, os.ErrNotExist)
			}})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
