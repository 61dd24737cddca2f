package dns

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/internal/dns/dnstest"
	"fairway.dev/fairway/internal/dns/forward"
)

const insideEnv = "FAIRWAY_TEST_INSIDE"

// TestRealResolvers lets the resolvers of glibc, musl, Go and Java, dig and kdig ask the server as Pods
// do, in a network and mount namespace of their own: the test runs itself there.
func TestRealResolvers(t *testing.T) {
	if os.Getenv(insideEnv) != "" {
		inside(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to make namespaces")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestRealResolvers$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

func inside(t *testing.T) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	var listen []netip.AddrPort
	for _, a := range []string{"10.96.0.10", "fd00:96::a"} {
		listen = append(listen, netip.AddrPortFrom(netip.MustParseAddr(a), 53))
	}
	up := dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
		switch {
		case q.Question[0].Name == "www.example.com." && q.Question[0].Qtype == dns.TypeA:
			return dnstest.Reply(t, q, nil, "www.example.com. 60 IN A 192.0.2.1")
		case strings.HasSuffix(q.Question[0].Name, "example.com."):
			return dnstest.Reply(t, q, nil, "example.com. 60 IN SOA ns. mail. 1 2 3 4 60")
		}
		return dnstest.Reply(t, q, func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, ". 60 IN SOA ns. mail. 1 2 3 4 60")
	})
	// The sockets come first and the addresses later, as on a node that starts.
	run(t, newServer(t, Options{Listen: listen, Upstreams: forward.Plain(up.Addr)}))
	for _, a := range listen {
		bits := a.Addr().BitLen()
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(bits, bits)}, Flags: syscall.IFA_F_NODAD}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatal(err)
		}
	}
	mountResolvConf(t, "nameserver 10.96.0.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n")
	t.Run("glibc", glibc)
	t.Run("go", goResolver)
	t.Run("dig", dig)
	t.Run("dig DNSSEC", digDNSSEC)
	t.Run("kdig", kdig)
	t.Run("musl", musl)
	t.Run("java", java)
	t.Run("search path", func(t *testing.T) {
		// What getent asks for one name outside, with the search path that a Pod
		// has on a node whose own search domain is corp.example.
		queries := func(autopath bool) float64 {
			conf := filepath.Join(t.TempDir(), "resolv.conf")
			if err := os.WriteFile(conf, []byte("search corp.example\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			reg := prometheus.NewRegistry()
			at := run(t, newServer(t, Options{
				Listen:    []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, map[bool]byte{true: 1}[autopath]}), 53)},
				Upstreams: forward.Plain(up.Addr), ResolvConf: conf, Autopath: autopath, Registerer: reg,
			}))
			mountResolvConf(t, "nameserver "+at.Addr().String()+"\nsearch default.svc.cluster.local svc.cluster.local cluster.local corp.example\noptions ndots:5\n")
			for name, want := range map[string]string{"www.example.com": "192.0.2.1", "web": "10.96.0.20", "web.default": "10.96.0.20", "gone.example.org": ""} {
				if got := command(t, "getent", "ahostsv4", name); !strings.Contains(got, want) || want == "" && got != "" {
					t.Errorf("autopath %v: getent ahostsv4 %s: %q", autopath, name, got)
				}
			}
			before := requests(t, reg)
			if got := command(t, "getent", "ahosts", "www.example.com"); !strings.Contains(got, "192.0.2.1") {
				t.Errorf("autopath %v: %q", autopath, got)
			}
			return requests(t, reg) - before
		}
		off, on := queries(false), queries(true)
		t.Logf("getent ahosts www.example.com: %v queries, %v with autopath", off, on)
		if off != 10 || on != 2 {
			t.Errorf("%v queries, and %v with autopath: want 10 and 2 (A and AAAA each)", off, on)
		}
	})
	t.Run("second server", func(t *testing.T) {
		mountResolvConf(t, "nameserver fd00:96::a\n")
		if got := command(t, "getent", "ahostsv4", "web.default.svc.cluster.local"); !strings.Contains(got, "10.96.0.20") {
			t.Errorf("by IPv6: %q", got)
		}
	})
}

// requests is the number of queries that a server has had.
func requests(t *testing.T, reg *prometheus.Registry) float64 {
	t.Helper()
	return metric(t, reg, "coredns_dns_requests_total")
}

// metric is the sum of a counter's series.
func metric(t *testing.T, reg *prometheus.Registry, name string) (n float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.Metric {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

func mountResolvConf(t *testing.T, text string) {
	t.Helper()
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(path, target, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(target, syscall.MNT_DETACH) })
}

// command returns what a program prints, one line, words separated by a space.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

func glibc(t *testing.T) {
	for _, tt := range []struct{ database, name, want string }{
		{"ahostsv4", "web", "10.96.0.20"},
		{"ahostsv4", "web.default", "10.96.0.20"},
		{"ahostsv6", "web.default.svc", "fd00:96::20"},
		{"ahostsv4", "web.default.svc.cluster.local", "10.96.0.20"},
		{"ahostsv4", "db-0.db", "10.244.9.1"},
		{"ahostsv4", "10-244-0-5.default.pod.cluster.local", "10.244.0.5"},
		{"ahostsv4", "www.example.com", "192.0.2.1"},
		{"ahostsv4", "out", "192.0.2.1"},
		{"hosts", "10.96.0.20", "web.default.svc.cluster.local"},
		{"hosts", "fd00:96::20", "web.default.svc.cluster.local"},
		{"hosts", "10.244.9.1", "db-0.db.default.svc.cluster.local"},
	} {
		if got := command(t, "getent", tt.database, tt.name); !strings.Contains(got, tt.want) {
			t.Errorf("getent %s %s: %q", tt.database, tt.name, got)
		}
	}
	for _, name := range []string{"gone", "gone.example.org"} {
		if got := command(t, "getent", "ahosts", name); got != "" {
			t.Errorf("getent ahosts %s: %q", name, got)
		}
	}
	// More than fits into a datagram: glibc has to come again by TCP.
	if got := strings.Count(command(t, "getent", "ahostsv4", "crowd"), "STREAM"); got != many {
		t.Errorf("getent ahostsv4 crowd: %d addresses", got)
	}
}

func goResolver(t *testing.T) {
	r := &net.Resolver{PreferGo: true}
	ctx := context.Background()
	for name, want := range map[string][]string{
		"web": {"10.96.0.20", "fd00:96::20"}, "db-0.db": {"10.244.9.1"}, "www.example.com": {"192.0.2.1"}, "out": {"192.0.2.1"},
	} {
		got, err := r.LookupHost(ctx, name)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if got, err := r.LookupHost(ctx, "crowd"); err != nil || len(got) != many {
		t.Errorf("crowd: %d addresses, %v", len(got), err)
	}
	if _, srv, err := r.LookupSRV(ctx, "http", "tcp", "web"); err != nil || len(srv) != 1 || srv[0].Port != 80 || srv[0].Target != "web.default.svc.cluster.local." {
		t.Errorf("SRV: %v, %v", srv, err)
	}
	if got, err := r.LookupCNAME(ctx, "out"); err != nil || got != "www.example.com." {
		t.Errorf("CNAME: %v, %v", got, err)
	}
	if got, err := r.LookupAddr(ctx, "10.96.0.20"); err != nil || !slices.Equal(got, []string{"web.default.svc.cluster.local."}) {
		t.Errorf("PTR: %v, %v", got, err)
	}
	_, err := r.LookupHost(ctx, "gone")
	if dnsErr, ok := err.(*net.DNSError); !ok || !dnsErr.IsNotFound {
		t.Errorf("gone: %v", err)
	}
}

func dig(t *testing.T) {
	const web = "web.default.svc.cluster.local"
	for _, tt := range []struct{ args, want string }{
		{"+short " + web, "10.96.0.20"},
		{"+short +tcp " + web + " AAAA", "fd00:96::20"},
		{"+short +keepopen +tcp " + web + " A " + web + " AAAA", "10.96.0.20 fd00:96::20"},
		{"+short @fd00:96::a " + web, "10.96.0.20"},
		{"+short +search web", "10.96.0.20"},
		{"+short -x 10.96.0.20", web + "."},
		{"+short out.default.svc.cluster.local CNAME", "www.example.com."},
		{"+short out.default.svc.cluster.local", "www.example.com. 192.0.2.1"},
		{"+short _http._tcp." + web + " SRV", "0 100 80 " + web + "."},
		{"+short dns-version.cluster.local TXT", `"1.1.0"`},
		{"+short +dnssec www.example.com", "192.0.2.1"},
		{"+short +noedns " + web, "10.96.0.20"},
		{"+noall +comments gone.default.svc.cluster.local", "status: NXDOMAIN"},
		{"+noall +authority default.svc.cluster.local", "SOA ns.dns.cluster.local. hostmaster.cluster.local."},
		{"+noall +comments +edns=5 +noednsneg " + web, "status: BADVERS"},
		{"+noall +comments -c CH " + web, "status: REFUSED"},
		{"+noall +comments +opcode=UPDATE " + web, "status: NOTIMP"},
		{"+noall +comments +ignore crowd.default.svc.cluster.local", "flags: qr aa tc rd ra"},
		{"+noall +comments crowd.default.svc.cluster.local", "ANSWER: 300"},
		{"+noall +comments gone.example.org", "status: NXDOMAIN"},
	} {
		if got := command(t, "dig", strings.Fields(tt.args)...); !strings.Contains(got, tt.want) {
			t.Errorf("dig %s: want %q in\n%s", tt.args, tt.want, got)
		}
	}
}
