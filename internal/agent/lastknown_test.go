package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/lastknown"
	"fairway.dev/fairway/internal/testenv"
	"fairway.dev/fairway/internal/testenv/kubeapi"
)

const insideEnv = "FAIRWAY_TEST_INSIDE"

// TestLastKnown runs the node role in a network namespace of its own, the test's
// own process again, with an API server that comes and goes.
func TestLastKnown(t *testing.T) {
	if os.Getenv(insideEnv) != "" {
		lastKnownInside(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestLastKnown$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

const lastKnownNode = "198.51.100.2"

// role is the node role while it runs.
type role struct {
	t      *testing.T
	log    *testenv.Log
	cancel context.CancelFunc
	done   chan error
}

func startNode(t *testing.T, kubeconfig, stateDir string) *role {
	ctx, cancel := context.WithCancel(t.Context())
	r := &role{t: t, log: &testenv.Log{}, cancel: cancel, done: make(chan error, 1)}
	o := NodeOptions{
		Common:       Common{Kubeconfig: kubeconfig, MetricsAddress: "127.0.0.1:10249", Logger: slog.New(slog.NewTextHandler(r.log, nil))},
		NodeName:     "node-1",
		Dataplane:    "nft",
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		ClusterDomain: "cluster.local", DNSPort: DefaultDNSPort, TLSPort: DefaultTLSPort, DNSUpstreams: []string{upstreamAddr}, StateDir: stateDir,
	}
	go func() { r.done <- RunNode(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		if t.Failed() {
			t.Logf("the node role said:\n%s", r.log)
		}
	})
	return r
}

func (r *role) stop() {
	r.t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		r.t.Errorf("the node role ended with %v", err)
	}
}

// upstreamAddr is where the node sends names from elsewhere.
const upstreamAddr = "127.0.0.1:5399"

// startUpstream answers every question with one address.
func startUpstream(t *testing.T) {
	t.Helper()
	socket, err := net.ListenPacket("udp", upstreamAddr)
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: socket, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.IPv4(192, 0, 2, 80)}}
		_ = w.WriteMsg(m) // who does not get it asks again
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() { _ = server.Shutdown() })
}

// elsewhere asks the node's DNS for a name from elsewhere.
func elsewhere() string { return resolves("www.example.com.") }

// says asks the node's DNS for the addresses of a Service.
func says(service string) string { return resolves(service + ".default.svc.cluster.local.") }

func resolves(name string) string {
	m, _, err := (&dns.Client{Timeout: 2 * time.Second}).Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), lastKnownNode+":"+fmt.Sprint(DefaultDNSPort))
	if err != nil {
		return "silence"
	}
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			return a.A.String()
		}
	}
	return dns.RcodeToString[m.Rcode]
}

func wants(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not reached: %s", what)
		}
	}
}

func page(path string) string {
	resp, err := http.Get("http://127.0.0.1:10249" + path)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

func stale() bool { return strings.Contains(page("/metrics"), "\nfairway_dns_stale 1\n") }
func fresh() bool { return strings.Contains(page("/metrics"), "\nfairway_dns_stale 0\n") }

// rules are the packet rules, without counters.
func rules(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "-s", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	return string(out)
}

// Only who has said something is waited for.
func TestPatience(t *testing.T) {
	for _, c := range []struct {
		heard, outage bool
		want          time.Duration
	}{
		{false, false, outagePatience}, // hangs
		{false, true, outagePatience},
		{true, false, listPatience}, // slow to list
		{true, true, outagePatience},
	} {
		if got := patience(c.heard, c.outage); got != c.want {
			t.Errorf("heard %t, outage %t: waits %v, want %v", c.heard, c.outage, got, c.want)
		}
	}
}

func lastKnownInside(t *testing.T) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(lastKnownNode).To4(), Mask: net.CIDRMask(32, 32)}}); err != nil {
		t.Fatal(err)
	}
	startUpstream(t)
	service := func(name, ip string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}},
		}
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "db-1", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.0.9"}}},
	}
	api := kubeapi.New()
	api.Put(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: lastKnownNode}}}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		service("web", "10.96.0.20"), service("db", "None"), slice,
	)
	listener, err := api.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, stateDir := filepath.Join(t.TempDir(), "kubeconfig"), filepath.Join(t.TempDir(), "state")
	if err := listener.WriteKubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}

	r := startNode(t, kubeconfig, stateDir)
	wants(t, "ready", func() bool { return page("/readyz") == "ok\n" })
	if got := says("web") + " " + says("db") + " " + says("late"); got != "10.96.0.20 10.244.0.9 NXDOMAIN" || !fresh() {
		t.Fatalf("with the API: %s, fresh %t", got, fresh())
	}

	listener.Stop()
	api.Put(service("late", "10.96.0.30"))
	api.Delete(service("web", "None"))
	wants(t, "outage noticed", stale)
	if got := says("web") + " " + says("late"); got != "10.96.0.20 NXDOMAIN" {
		t.Errorf("without the API: %s", got)
	}
	before := rules(t)
	r.stop()

	r = startNode(t, kubeconfig, stateDir)
	start := time.Now()
	wants(t, "names after a start without the API", func() bool { return says("web") == "10.96.0.20" })
	t.Logf("names are there %v after a start without the API", time.Since(start).Round(time.Millisecond))
	if got := says("db") + " " + says("late"); got != "10.244.0.9 NXDOMAIN" || !stale() {
		t.Errorf("after a start without the API: %s, stale %t", got, stale())
	}
	if !strings.Contains(page("/metrics"), "\nfairway_dns_state_age_seconds ") || strings.Contains(page("/metrics"), "\nfairway_dns_state_age_seconds 0\n") {
		t.Error("the age of the state is not told")
	}
	if got := page("/readyz"); !strings.Contains(got, "the Kubernetes API") {
		t.Errorf("ready without the API: %q", got)
	}
	if after := rules(t); after != before {
		t.Errorf("packet rules were changed without the API\nbefore:\n%s\nafter:\n%s", before, after)
	}
	r.stop()

	// One that takes connections and says nothing.
	hung, err := net.Listen("tcp", listener.Addr)
	if err != nil {
		t.Fatal(err)
	}
	r = startNode(t, kubeconfig, stateDir)
	start = time.Now()
	wants(t, "names after a start with an API that hangs", func() bool { return says("web") == "10.96.0.20" && stale() })
	t.Logf("names are there %v after a start with an API that hangs", time.Since(start).Round(time.Millisecond))
	hung.Close()

	if err := listener.Start(); err != nil {
		t.Fatal(err)
	}
	wants(t, "what has changed meanwhile", func() bool { return says("late") == "10.96.0.30" && says("web") == "NXDOMAIN" })
	wants(t, "fresh", func() bool { return fresh() && page("/readyz") == "ok\n" })
	wants(t, "a file that has it too", func() bool {
		s, err := lastknown.Load(stateDir, "node-1", "http://"+listener.Addr)
		return err == nil && s.Snapshot.Services.Len() == 2
	})
	r.stop()

	// A damaged file is worth nothing, and says so.
	listener.Stop()
	path := filepath.Join(stateDir, lastknown.FileName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r = startNode(t, kubeconfig, stateDir)
	wants(t, "told of the damage", func() bool { return strings.Contains(r.log.String(), "is damaged") })
	wants(t, "SERVFAIL for names of the cluster", func() bool { return says("db") == "SERVFAIL" })
	wants(t, "names from elsewhere", func() bool { return elsewhere() == "192.0.2.80" })
	if got := page("/readyz"); !strings.Contains(got, "the Kubernetes API") {
		t.Errorf("ready without the API and a state: %q", got)
	}
	if err := listener.Start(); err != nil {
		t.Fatal(err)
	}
	wants(t, "names from the API", func() bool { return says("db") == "10.244.0.9" })
	r.stop()
	listener.Stop()
}

// TestStaleAge checks the age of a state, also where the clock is behind it.
func TestStaleAge(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for since, want := range map[time.Time]float64{
		{}: 0, now: 0, now.Add(-time.Minute): 60, now.Add(time.Hour): 0,
	} {
		if got := staleAge(since, now); got != want {
			t.Errorf("since %v: %v, want %v", since, got, want)
		}
	}
}
