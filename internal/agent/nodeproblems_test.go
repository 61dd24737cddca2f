package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/ebpf"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
	"fairway.dev/fairway/internal/testenv/kubeapi"
)

func TestNodeProblems(t *testing.T) {
	store := state.New()
	key := func(name string) model.Key { return model.Key{Namespace: "default", Name: name} }
	store.Update(func(tx *state.Tx) {
		for i := range 100 {
			name := fmt.Sprintf("s%02d", i)
			tx.PutService(&model.Service{Key: key(name), UID: "uid-" + name})
		}
		tx.SetSynced()
	})
	p := newNodeProblems("node-1", store, quiet, plan.Options{ExternalIPs: true, SCTP: true})
	fired := func() bool {
		select {
		case <-p.changed:
			return true
		default:
			return false
		}
	}
	full := errors.New("the map is full with 8: raise --bpf-max-backends")
	a, b := key("s01"), key("s02")
	p.notProgrammed(map[model.Key]error{a: full})
	if got := p.problems(); len(got) != 0 || fired() {
		t.Errorf("what the first retry may cure is told: %v", got)
	}
	p.notProgrammed(map[model.Key]error{a: full})
	got := p.problems()
	if len(got) != 1 || !fired() || got[0].Reason != ReasonNotProgrammed || got[0].Object.UID != "uid-s01" ||
		!strings.Contains(got[0].Message, "Node node-1") || !strings.Contains(got[0].Message, "--bpf-max-backends") {
		t.Fatalf("told %v", got)
	}
	if p.notProgrammed(map[model.Key]error{a: full}); fired() {
		t.Error("the same is told again")
	}
	p.healthPorts(map[model.Key]error{a: full})
	p.healthPorts(map[model.Key]error{a: full, b: nil})
	if got := p.problems(); len(got) != 2 || got[0].Reason != ReasonHealthCheckPortFailed || got[0].Field != "spec.healthCheckNodePort" || !fired() {
		t.Errorf("a port in use: %v", got)
	}
	// That another Service has an address is no matter of this node.
	taken := &dataplane.TakenError{Service: a, At: netip.MustParseAddrPort("192.0.2.1:80"), By: b}
	p.notProgrammed(map[model.Key]error{a: errors.Join(taken, full)})
	if got := p.problems(); len(got) != 2 || strings.Contains(got[1].Message, "192.0.2.1") || !strings.Contains(got[1].Message, "is full") {
		t.Errorf("with an address that is taken: %v", got)
	}
	fired()
	p.notProgrammed(map[model.Key]error{a: fmt.Errorf("sockets: %w", taken)})
	p.healthPorts(map[model.Key]error{a: nil})
	if got := p.problems(); len(got) != 0 || !fired() {
		t.Errorf("cured: %v", got)
	}
	many := map[model.Key]error{key("gone"): full}
	for i := range 100 {
		many[key(fmt.Sprintf("s%02d", i))] = full
	}
	p.notProgrammed(many)
	p.notProgrammed(many)
	if got := p.problems(); len(got) != servicesTold {
		t.Errorf("%d Services are told, want %d", len(got), servicesTold)
	}
}

// TestNodeProblemsOfThePlan: what this node's flags and kernel leave out.
// TestRepairsTold checks that it is told on the Node, and to fairway status, what
// was put back in the kernel, and no longer than a while.
func TestRepairsTold(t *testing.T) {
	store := state.New()
	store.Update(func(tx *state.Tx) { tx.PutNode(&model.Node{Name: "node-1", UID: "uid-1"}) })
	p := newNodeProblems("node-1", store, quiet, plan.Options{})
	repairs, err := dataplane.NewRepairCounter(newRegistry(), p.tell)
	if err != nil {
		t.Fatal(err)
	}
	p.repaired = repairs.Recent
	n := &node{problems: p}
	if got := append(n.troubles(), p.repairs()...); len(got) > 0 {
		t.Errorf("of nothing it is told %q", got)
	}
	repairs.Report(quiet, "nftables", dataplane.Repairs{"tables": 2})
	select {
	case <-p.changed:
	default:
		t.Error("nobody is told")
	}
	got := p.problems()
	if len(got) != 1 || got[0].Object != (model.Ref{Kind: "Node", Key: model.Key{Name: "node-1"}, UID: "uid-1"}) || got[0].Reason != ReasonDataPathRepaired || !strings.Contains(got[0].Message, "nftables") {
		t.Errorf("told %v", got)
	}
	if got := n.troubles(); len(got) != 1 || !strings.Contains(got[0], "2 tables") {
		t.Errorf("fairway status is told %q", got)
	}
	if got := repairs.Recent(0); len(got) > 0 {
		t.Errorf("of before it is told %v", got)
	}
}

func TestNodeProblemsOfThePlan(t *testing.T) {
	store := state.New()
	svc := &model.Service{
		Key: model.Key{Namespace: "default", Name: "a"}, UID: "u", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		ExternalIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Ports: []model.ServicePort{{Protocol: model.SCTP, Port: 80}},
	}
	store.Update(func(tx *state.Tx) { tx.PutService(svc); tx.SetSynced() })
	p := newNodeProblems("node-1", store, quiet, plan.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.run(ctx) }()
	reasons := func() (out []string) {
		for _, q := range p.problems() {
			out = append(out, q.Reason)
		}
		return out
	}
	wants(t, "both are told", func() bool {
		return fmt.Sprint(reasons()) == fmt.Sprint([]string{plan.ReasonExternalIPsIgnored, plan.ReasonProtocolUnsupported})
	})
	for reason, change := range map[string]func(*model.Service){
		plan.ReasonExternalIPsIgnored:  func(s *model.Service) { s.Ports = []model.ServicePort{{Protocol: model.TCP, Port: 80}} },
		plan.ReasonProtocolUnsupported: func(s *model.Service) { s.ExternalIPs = nil },
	} {
		one := *svc
		change(&one)
		store.Update(func(tx *state.Tx) { tx.PutService(&one) })
		wants(t, "one is told: "+reason, func() bool { return fmt.Sprint(reasons()) == fmt.Sprint([]string{reason}) })
	}
	store.Update(func(tx *state.Tx) { tx.DeleteService(svc.Key) })
	wants(t, "nothing is told of what has gone", func() bool { return len(reasons()) == 0 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNodeEvents runs the node role, with eBPF maps of little room, in a
// network namespace of its own.
func TestNodeEvents(t *testing.T) {
	if os.Getenv(insideEnv) != "" {
		nodeEventsInside(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestNodeEvents$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
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

func nodeEventsInside(t *testing.T) {
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
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil {
		t.Fatalf("mount a BPF file system: %v", err)
	}
	if root, err := ebpf.CgroupRoot(); err != nil {
		t.Skip(err)
	} else if err := ebpf.ProbeSockets(ebpf.Options{Logger: quiet, HostCgroup: root}); err != nil {
		t.Skipf("eBPF does not work here: %v", err)
	}
	service := func(name, ip string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}},
		}
	}
	// Every endpoint is the node itself, at another port.
	target, err := net.Listen("tcp", lastKnownNode+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	first := target.Addr().(*net.TCPAddr).Port
	slices := func(name string, n int) *discoveryv1.EndpointSlice {
		protocol, number, empty := corev1.ProtocolTCP, int32(first), ""
		s := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &empty, Port: &number, Protocol: &protocol}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{lastKnownNode}}},
		}
		for i := range n - 1 {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.0.%d", i+1)}})
		}
		return s
	}
	inUse, err := net.Listen("tcp4", ":31999")
	if err != nil {
		t.Fatal(err)
	}
	local := service("local", "10.96.0.40")
	local.Spec.Type, local.Spec.ExternalTrafficPolicy, local.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, 31999
	api := kubeapi.New()
	api.Put(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: lastKnownNode}}}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		service("web", "10.96.0.20"), slices("web", 1), service("big", "10.96.0.30"), slices("big", 20), local,
	)
	listener, err := api.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := listener.WriteKubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	log, done := &testenv.Log{}, make(chan error, 1)
	o := NodeOptions{
		Common:   Common{Kubeconfig: kubeconfig, MetricsAddress: "127.0.0.1:10249", Logger: slog.New(slog.NewTextHandler(log, nil))},
		NodeName: "node-1", Dataplane: DataplaneEBPF, BPF: BPFOptions{MaxBackends: 16}, RunDir: t.TempDir(),
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		ClusterDomain: "cluster.local", DNSPort: DefaultDNSPort, TLSPort: DefaultTLSPort, DNSUpstreams: []string{"127.0.0.1:9"}, ExternalIPs: true,
	}
	go func() { done <- RunNode(ctx, o) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the node role ended with %v", err)
		}
		if t.Failed() {
			t.Logf("the node role said:\n%s", log)
		}
	}()
	told := func(service, reason string) string {
		resp, err := http.Get("http://" + listener.Addr + "/api/v1/namespaces/default/events")
		if err != nil {
			return ""
		}
		defer resp.Body.Close()
		var list corev1.EventList
		if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
			return ""
		}
		for _, e := range list.Items {
			if e.InvolvedObject.Name == service && e.Reason == reason {
				return e.Message
			}
		}
		return ""
	}
	served := func(ip string) bool {
		c, err := net.DialTimeout("tcp", ip+":80", 2*time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	wants(t, "an Event for the Service that has no room", func() bool { return told("big", ReasonNotProgrammed) != "" })
	for _, word := range []string{"default/big", "node-1", "20 endpoints", "holds 16", "--bpf-max-backends"} {
		if got := told("big", ReasonNotProgrammed); !strings.Contains(got, word) {
			t.Errorf("the Event does not tell of %q: %s", word, got)
		}
	}
	wants(t, "an Event for the port in use", func() bool { return strings.Contains(told("local", ReasonHealthCheckPortFailed), "31999") })
	wants(t, "another Service is served", func() bool { return served("10.96.0.20") })
	if got := told("web", ReasonNotProgrammed); got != "" {
		t.Errorf("another Service has an Event: %s", got)
	}
	if served("10.96.0.30") {
		t.Error("a Service without room is served")
	}
	// Both are cured without a restart.
	api.Put(slices("big", 1))
	wants(t, "the Service is served once it has room", func() bool { return served("10.96.0.30") })
	inUse.Close()
	wants(t, "the health check is answered once its port is free", func() bool {
		return strings.Contains(page("/metrics"), "\nfairway_healthcheck_node_ports_failed 0\n") && strings.Contains(page("/metrics"), "\nfairway_healthcheck_node_ports 1\n")
	})
}
