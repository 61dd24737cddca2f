package agent

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/dataplane"
	fwebpf "fairway.dev/fairway/internal/dataplane/ebpf"
	"fairway.dev/fairway/internal/dataplane/nft"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/testenv"
	"fairway.dev/fairway/internal/testenv/kubeapi"
)

// TestExplainKernel explains a Service from the API and both data paths of a
// node, as they are and after somebody has changed them.
func TestExplainKernel(t *testing.T) {
	node := testenv.NewLab(t).Netns("node")
	api := kubeapi.New()
	name, port, protocol := "http", int32(8080), corev1.ProtocolTCP
	api.Put(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.20", ClusterIPs: []string{"10.96.0.20"}, Ports: []corev1.ServicePort{{Name: name, Port: 80, Protocol: protocol}},
		}},
		&discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.0.9"}}, {Addresses: []string{"10.244.0.10"}}},
			Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
		},
	)
	listener, err := api.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Stop()
	o := ExplainOptions{
		Config: &rest.Config{Host: "http://" + listener.Addr}, Service: model.Key{Namespace: "default", Name: "web"}, DefaultNode: "node-1",
		Enter: func(_ string, f func() error) error { return node.Do(f) },
	}
	// explained is what is told of the kernel.
	explained := func() string {
		t.Helper()
		r, err := Explain(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		c := r.Ports[0].Frontends[0].Clients[0]
		return fmt.Sprintf("%s; %t; %s%s", r.Kernel.Mode, r.Kernel.Differs, c.Differs, r.Kernel.Unread)
	}
	wants := func(when, want string) {
		t.Helper()
		if got := explained(); got != want {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	const absent = "the kernel does not have it; nftables: there are no tables ip fairway and ip6 fairway"
	wants("nothing is there", "nftables; true; "+strings.Replace(absent, "nftables: ", "", 1))

	root, err := fwebpf.CgroupRoot()
	if err != nil {
		t.Skip(err)
	}
	cgroup := filepath.Join(root, fmt.Sprintf("fw-test-explain-%d", os.Getpid()))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(cgroup)
	sockets := fwebpf.Options{Logger: quiet, NetNS: int(node.Handle), HostCgroup: cgroup, Pins: fmt.Sprintf("%s-test-%d", fwebpf.DefaultPins, os.Getpid()), MaxBackends: 1 << 10}
	bpf, err := fwebpf.New(sockets)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := bpf.Close(); err != nil {
			t.Error(err)
		}
		if err := fwebpf.Cleanup(sockets); err != nil {
			t.Error(err)
		}
	}()
	packets, err := nft.New(nft.Options{Logger: quiet, NetNS: int(node.Handle)})
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	snap, err := readCluster(t.Context(), o.Config, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := plan.View{Node: "node-1"}.Compile(snap, o.Service)
	// program has a data path serve the Service, or nothing.
	program := func(d dataplane.Dataplane, services map[model.Key]plan.Service) {
		t.Helper()
		c := reconcile.Change[model.Key, plan.Service]{Key: s.Key, New: services[s.Key], HasNew: len(services) > 0, Old: s, HadOld: len(services) == 0}
		for key, err := range d.Apply(t.Context(), []reconcile.Change[model.Key, plan.Service]{c}) {
			t.Fatalf("%s: %v", key, err)
		}
		if err := d.Prune(t.Context(), maps.All(services)); err != nil {
			t.Fatal(err)
		}
	}
	all := map[model.Key]plan.Service{s.Key: s}
	program(dataplane.Stack{bpf, packets}, all)
	wants("both serve", "ebpf and nftables; false; ")
	program(packets, nil)
	wants("nftables has nothing", "ebpf and nftables; true; nftables: the kernel does not have it")
	program(packets, all)
	if err := nft.Cleanup(nft.Options{NetNS: int(node.Handle)}); err != nil {
		t.Fatal(err)
	}
	wants("its tables are gone", "ebpf and nftables; true; nftables: "+absent)
	if err := packets.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	wants("its tables are back", "ebpf and nftables; false; ")

	pinned, err := filepath.Glob(filepath.Join(sockets.Pins, "netns-*", "maps-*", "backends"))
	if err != nil || len(pinned) != 1 {
		t.Fatalf("pinned maps %q, %v", pinned, err)
	}
	backends, err := ebpf.LoadPinnedMap(pinned[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer backends.Close()
	damaged := false
	ip := netip.MustParseAddr("10.244.0.9").As16()
	for i := range backends.MaxEntries() {
		value, err := backends.LookupBytes(i)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(value), string(ip[:])) {
			damaged = true
			value[15] = 99
			if err := backends.Put(i, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !damaged {
		t.Fatal("no map has the endpoint")
	}
	wants("a backend is another", "ebpf and nftables; true; ebpf: the kernel lacks 10.244.0.9:8080; the kernel still has 10.244.0.99:8080")
	if err := bpf.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	wants("it was repaired", "ebpf and nftables; false; ")
}

// An API that takes connections and says nothing is told of long before the end
// of the wait.
func TestSlowAPI(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told := 0
	_, err = readCluster(ctx, &rest.Config{Host: "http://" + silent.Addr().String()}, func() { told++; cancel() })
	if err == nil || told != 1 {
		t.Errorf("told %d times, %v", told, err)
	}
}
