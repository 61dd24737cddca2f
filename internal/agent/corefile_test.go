package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/dns/dnstest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/testenv"
	"fairway.dev/fairway/internal/testenv/kubeapi"
)

// TestCorefile runs the node role and the controller, in a network namespace of
// their own, with a Corefile that changes.
func TestCorefile(t *testing.T) {
	if os.Getenv(insideEnv) != "" {
		corefileInside(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestCorefile$", "-test.v")
	cmd.Env = append(os.Environ(), insideEnv+"=1", "FAIRWAY_TEST_HOST=192.0.2.77")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// asks is the address that the node's DNS has for a name, or what else it says.
func asks(network, name string) string {
	client := dns.Client{Net: network, Timeout: 5 * time.Second}
	m, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), lastKnownNode+":"+fmt.Sprint(DefaultDNSPort))
	if err != nil {
		return err.Error()
	}
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			return a.A.String()
		}
	}
	return dns.RcodeToString[m.Rcode]
}

func corefileInside(t *testing.T) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	self, err := netlink.ParseAddr(lastKnownNode + "/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(lo, self); err != nil {
		t.Fatal(err)
	}
	upstream := func(addr string) *dnstest.Server {
		return dnstest.New(t, func(q *dns.Msg, _ string) [][]byte {
			return dnstest.Reply(t, q, nil, q.Question[0].Name+" 60 IN A "+addr)
		})
	}
	first, second := upstream("192.0.2.1"), upstream("192.0.2.2")
	configMap := func(corefile string) *corev1.ConfigMap {
		return &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns", UID: "u-1"},
			Data:       map[string]string{"Corefile": corefile, "NodeHosts": "192.0.2.60 node.lan\n"},
		}
	}
	good := func(up *dnstest.Server) string {
		return fmt.Sprintf(".:53 {\n errors\n cache 30\n kubernetes cluster.local {\n ttl 9\n }\n hosts /etc/coredns/NodeHosts {\n {$FAIRWAY_TEST_HOST} env.lan\n fallthrough\n }\n forward . %s\n}\n", up.Addr)
	}
	api := kubeapi.New()
	api.Put(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: lastKnownNode}}}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.20", ClusterIPs: []string{"10.96.0.20"}, Ports: []corev1.ServicePort{{Port: 80}}}},
		configMap(good(first)),
	)
	listener, err := api.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Stop()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := listener.WriteKubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}
	key := model.Key{Namespace: "kube-system", Name: "coredns"}
	clusterDNS := []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	start := func(edit func(*NodeOptions)) *role {
		ctx, cancel := context.WithCancel(t.Context())
		r := &role{t: t, log: &testenv.Log{}, cancel: cancel, done: make(chan error, 1)}
		o := NodeOptions{
			Common:   Common{Kubeconfig: kubeconfig, MetricsAddress: "127.0.0.1:10249", Logger: slog.New(slog.NewTextHandler(r.log, nil))},
			NodeName: "node-1", Dataplane: "nft", ClusterDomain: "cluster.local", DNSPort: DefaultDNSPort, TLSPort: DefaultTLSPort,
			ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, DNSCorefileConfigMap: key,
			DNSAddresses: clusterDNS,
		}
		edit(&o)
		go func() { r.done <- RunNode(ctx, o) }()
		t.Cleanup(func() {
			cancel()
			if t.Failed() {
				t.Logf("the node role said:\n%s", r.log)
			}
		})
		wants(t, "ready", func() bool { return page("/readyz") == "ok\n" })
		return r
	}
	node := start(func(*NodeOptions) {})

	controllerLog := &testenv.Log{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- RunController(ctx, ControllerOptions{
			Common:               Common{Kubeconfig: kubeconfig, Logger: slog.New(slog.NewTextHandler(controllerLog, nil))},
			DNSCorefileConfigMap: key, ClusterDomain: "cluster.local", DNSAddresses: clusterDNS,
		})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil || t.Failed() {
			t.Errorf("the controller ended with %v and said:\n%s", err, controllerLog)
		}
	}()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://" + listener.Addr})
	if err != nil {
		t.Fatal(err)
	}
	event := func(parts ...string) func() bool {
		return func() bool {
			list, err := client.CoreV1().Events("kube-system").List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list.Items {
				ok := e.InvolvedObject.Kind == "ConfigMap" && e.InvolvedObject.Name == "coredns" && e.InvolvedObject.UID == "u-1"
				for _, p := range parts {
					ok = ok && strings.Contains(e.Message, p)
				}
				if ok {
					return true
				}
			}
			return false
		}
	}

	// The DNS Service, and the node's endpoints of it, are put back when somebody takes
	// them away; without being told neither would be looked at for minutes.
	for what, o := range map[string]interface {
		runtime.Object
		metav1.Object
	}{
		"Service":       &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns"}},
		"EndpointSlice": &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns-node-1-ipv4"}},
	} {
		there := func() bool {
			var err error
			if what == "Service" {
				_, err = client.CoreV1().Services(o.GetNamespace()).Get(t.Context(), o.GetName(), metav1.GetOptions{})
			} else {
				_, err = client.DiscoveryV1().EndpointSlices(o.GetNamespace()).Get(t.Context(), o.GetName(), metav1.GetOptions{})
			}
			return err == nil
		}
		wants(t, what+" kube-dns is there", there)
		api.Delete(o)
		wants(t, what+" kube-dns is there again", there)
	}

	for name, want := range map[string]string{
		"a.example.": "192.0.2.1", "node.lan.": "192.0.2.60", "env.lan.": "192.0.2.77", "web.default.svc.cluster.local.": "10.96.0.20",
	} {
		if got := asks("udp", name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}

	// Clients ask all the while; none is left without an answer, or with one
	// that neither Corefile gives.
	var asked atomic.Int64
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for _, network := range []string{"udp", "tcp"} {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got := asks(network, "a.example."); got != "192.0.2.1" && got != "192.0.2.2" {
					t.Errorf("by %s: %s", network, got)
					return
				}
				asked.Add(1)
			}
		})
	}
	for i := range 10 {
		up, want := first, "192.0.2.1"
		if i%2 == 0 {
			up, want = second, "192.0.2.2"
		}
		begin := time.Now()
		api.Put(configMap(good(up)))
		wants(t, "the new Corefile in use", func() bool { return asks("udp", "a.example.") == want })
		if i == 0 {
			t.Logf("a change of the ConfigMap counts after %v", time.Since(begin).Round(time.Millisecond))
		}
	}
	close(stop)
	clients.Wait()
	t.Logf("%d queries meanwhile", asked.Load())

	// One that cannot be read is said, by line, and the last one stays.
	api.Put(configMap(".:53 {\n forward . nowhere/at/all\n}"))
	wants(t, "an Event about line 2", event("data[Corefile] line 2: ", "nowhere/at/all"))
	wants(t, "a line in the node's log", func() bool { return strings.Contains(node.log.String(), "data[Corefile] line 2") })
	if got := asks("udp", "b.example.") + " " + asks("udp", "env.lan."); got != "192.0.2.1 192.0.2.77" {
		t.Errorf("with a broken Corefile: %s", got)
	}
	if m := page("/metrics"); !strings.Contains(m, "\ncoredns_reload_failed_total 1\n") || !strings.Contains(m, "\ncoredns_build_info{") {
		t.Errorf("metrics without a refused Corefile, or without the build:\n%s", m)
	}
	// What is left out is said, and the rest counts.
	api.Put(configMap(good(second) + "lab.example {\n erratic\n forward . " + first.Addr.String() + "\n}"))
	wants(t, "an Event about what is left out", event("data[Corefile] line 14: erratic is ignored: "))
	wants(t, "a line in the log about it", func() bool { return strings.Contains(node.log.String(), "erratic is ignored") })
	wants(t, "the rest in use", func() bool {
		return asks("udp", "c.example.") == "192.0.2.2" && asks("udp", "c.lab.example.") == "192.0.2.1"
	})
	// One that leads nowhere is not used, and said to be so.
	api.Put(configMap(".:53 {\n forward . 10.96.0.10\n}"))
	wants(t, "an Event about servers", event("data[Corefile] line 2: forward . has no server that can be asked", "nothing of this Corefile is used"))
	wants(t, "a line in the log about servers", func() bool { return strings.Contains(node.log.String(), "forward . has no server that can be asked") })
	if got := asks("udp", "e.example."); got != "192.0.2.2" {
		t.Errorf("with a Corefile that leads nowhere: %s", got)
	}
	api.Delete(configMap(""))
	wants(t, "what there is without a Corefile", func() bool { return asks("udp", "env.lan.") == "SERVFAIL" })
	node.stop()

	// A file, with one that it imports.
	dir := t.TempDir()
	file := filepath.Join(dir, "Corefile")
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("Corefile", ". {\n import *.override\n}\n")
	write("up.override", "forward . "+first.Addr.String()+"\nerratic\n")
	node = start(func(o *NodeOptions) { o.DNSCorefile = file })
	if got := asks("udp", "d.example."); got != "192.0.2.1" {
		t.Errorf("by a file: %s", got)
	}
	if !strings.Contains(node.log.String(), "file=up.override line=2 what=erratic") {
		t.Error("what is left out of a file is not logged")
	}
	write("up.override", "forward . "+second.Addr.String()+"\n")
	wants(t, "the changed import", func() bool { return asks("udp", "d.example.") == "192.0.2.2" })
	write("Corefile", ". {\n")
	wants(t, "a line about a broken file", func() bool {
		return strings.Contains(node.log.String(), "Corefile, line 1: the brace of block . is never closed")
	})
	if got := asks("udp", "e.example."); got != "192.0.2.2" {
		t.Errorf("with a broken file: %s", got)
	}
	node.stop()

	// A node that starts with one that cannot be read goes on with the last one that
	// could be: of a ConfigMap, and of a file. It does so again the next time.
	state, ready := t.TempDir(), filepath.Join(t.TempDir(), "ready")
	keeps := func(o *NodeOptions) { o.StateDir, o.ReadyFile = state, ready }
	api.Put(configMap(good(second)))
	node = start(keeps)
	wants(t, "the Corefile in use", func() bool { return asks("udp", "f.example.") == "192.0.2.2" })
	node.stop()
	api.Put(configMap(".:53 {\n forward . nowhere/at/all\n}"))
	last := func(where string) {
		wants(t, where+": the last Corefile in use", func() bool { return asks("udp", "f.example.") == "192.0.2.2" })
		wants(t, where+": it is said", func() bool {
			text, _ := os.ReadFile(ready)
			return strings.Contains(string(text), "the Corefile cannot be read, and the last one stays in use: ") &&
				strings.Contains(node.log.String(), "the last one that could be, of an earlier run, is in use") &&
				strings.Contains(page("/metrics"), "\nfairway_dns_corefile_refused 1\n")
		})
	}
	for range 2 {
		node = start(keeps)
		last("ConfigMap")
		node.stop()
	}
	node = start(func(o *NodeOptions) {
		keeps(o)
		o.DNSCorefile = file
	})
	last("file")
	write("Corefile", ". {\n forward . "+first.Addr.String()+"\n}\n")
	wants(t, "the good file", func() bool {
		text, _ := os.ReadFile(ready)
		return asks("udp", "f.example.") == "192.0.2.1" && string(text) == "ready\n" && strings.Contains(page("/metrics"), "\nfairway_dns_corefile_refused 0\n")
	})
	node.stop()
}
