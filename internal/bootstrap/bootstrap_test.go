package bootstrap

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/testenv"
)

var ctx = context.Background()

type fixture struct {
	*testing.T
	client *fake.Clientset
	log    *testenv.Log
}

func newFixture(t *testing.T, objects ...runtime.Object) *fixture {
	t.Helper()
	return &fixture{T: t, client: fake.NewClientset(objects...), log: &testenv.Log{}}
}

func (f *fixture) ensurer(o Options) *Ensurer {
	f.Helper()
	o.Client = f.client
	o.Dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{crdResource: "CustomResourceDefinitionList"})
	o.Logger = slog.New(slog.NewTextHandler(f.log, nil))
	e, err := New(o)
	if err != nil {
		f.Fatal(err)
	}
	return e
}

func (f *fixture) class() *networkingv1.IngressClass {
	f.Helper()
	c, err := f.client.NetworkingV1().IngressClasses().Get(ctx, "fairway", metav1.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return c
}

const isDefault = networkingv1.AnnotationIsDefaultIngressClass

func TestIngressClass(t *testing.T) {
	other := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "nginx"}}
	otherDefault := other.DeepCopy()
	otherDefault.Annotations = map[string]string{isDefault: "true"}
	foreign := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "fairway"}, Spec: networkingv1.IngressClassSpec{Controller: "example.com/x"}}
	tests := []struct {
		name       string
		present    []runtime.Object
		isDefault  string
		controller string
		said       string
	}{
		{"alone", nil, "true", "fairway.dev/ingress", ""},
		{"beside another", []runtime.Object{other}, "true", "fairway.dev/ingress", ""},
		{"beside a default one", []runtime.Object{otherDefault}, "", "fairway.dev/ingress", "another IngressClass is the default"},
		{"name taken", []runtime.Object{foreign}, "", "example.com/x", "left as it is"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, tt.present...)
			e := f.ensurer(Options{})
			for range 2 {
				if err := e.Ensure(ctx); err != nil {
					t.Fatal(err)
				}
			}
			c := f.class()
			if c.Annotations[isDefault] != tt.isDefault || c.Spec.Controller != tt.controller {
				t.Errorf("default %q, controller %q", c.Annotations[isDefault], c.Spec.Controller)
			}
			if n := strings.Count(f.log.String(), tt.said); tt.said != "" && n != 1 {
				t.Errorf("said %d times: %s", n, f.log)
			}
		})
	}
}

func TestDNSService(t *testing.T) {
	f := newFixture(t)
	e := f.ensurer(Options{ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}})
	for range 2 {
		if err := e.Ensure(ctx); err != nil {
			t.Fatal(err)
		}
	}
	s, err := f.client.CoreV1().Services("kube-system").Get(ctx, "kube-dns", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"10.96.0.10", "fd00:10:96::a"}, s.Spec.ClusterIPs); diff != "" || s.Spec.ClusterIP != "10.96.0.10" || len(s.Spec.Selector) != 0 {
		t.Errorf("cluster IP %q, selector %v, cluster IPs %s", s.Spec.ClusterIP, s.Spec.Selector, diff)
	}
	var ports []string
	for _, p := range s.Spec.Ports {
		ports = append(ports, p.Name+" "+string(p.Protocol))
	}
	if diff := cmp.Diff([]string{"dns UDP", "dns-tcp TCP"}, ports); diff != "" {
		t.Error(diff)
	}
}

func TestDNSServiceOfSomebodyElse(t *testing.T) {
	theirs := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.10", Selector: map[string]string{"k8s-app": "kube-dns"}}}
	f := newFixture(t, theirs)
	if err := f.ensurer(Options{ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.99")}}).Ensure(ctx); err != nil {
		t.Fatal(err)
	}
	s, err := f.client.CoreV1().Services("kube-system").Get(ctx, "kube-dns", metav1.GetOptions{})
	if err != nil || s.Spec.ClusterIP != "10.96.0.10" || len(s.Spec.Selector) != 1 {
		t.Errorf("changed to %+v, %v", s.Spec, err)
	}
	if !strings.Contains(f.log.String(), "somebody else") {
		t.Errorf("not said: %s", f.log)
	}
}

func TestRunTriesAgain(t *testing.T) {
	f := newFixture(t)
	var mu sync.Mutex
	failures := 1
	f.client.PrependReactor("list", "ingressclasses", func(k8stesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		failures--
		return failures >= 0, nil, errors.New("no connection")
	})
	e := f.ensurer(Options{})
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := f.client.NetworkingV1().IngressClasses().Get(ctx, "fairway", metav1.GetOptions{}); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not created")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !strings.Contains(f.log.String(), "no connection") {
		t.Errorf("failure not logged: %s", f.log)
	}
}

func TestDNSEndpoints(t *testing.T) {
	f := newFixture(t)
	node := &model.Node{Name: "node-1", UID: "u1", Zone: "z1"}
	d, err := NewDNSEndpoints(DNSEndpointsOptions{
		Client: f.client, Logger: slog.New(slog.DiscardHandler), Node: node,
		Listen: []netip.AddrPort{netip.MustParseAddrPort("10.245.0.1:10053"), netip.MustParseAddrPort("[fd00:10:245::1]:10053")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Ensure(ctx); err != nil {
			t.Fatal(err)
		}
	}
	list, err := f.client.DiscoveryV1().EndpointSlices("kube-system").List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=kube-dns"})
	if err != nil || len(list.Items) != 2 {
		t.Fatalf("%d slices, %v", len(list.Items), err)
	}
	s := list.Items[0]
	if s.Name != "kube-dns-node-1-ipv4" {
		s = list.Items[1]
	}
	e := s.Endpoints[0]
	if s.AddressType != "IPv4" || e.Addresses[0] != "10.245.0.1" || !*e.Conditions.Ready || *e.NodeName != "node-1" || *e.Zone != "z1" ||
		e.Hints.ForNodes[0].Name != "node-1" || *s.Ports[0].Port != 10053 || *s.Ports[1].Name != "dns-tcp" ||
		s.OwnerReferences[0].Kind != "Node" || s.OwnerReferences[0].UID != "u1" {
		t.Errorf("slice %+v", s)
	}
	if err := d.Retire(ctx); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		s, err := f.client.DiscoveryV1().EndpointSlices("kube-system").Get(ctx, "kube-dns-node-1-ipv4", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if c := s.Endpoints[0].Conditions; *c.Ready || *c.Serving != (round < 2) || !*c.Terminating {
			t.Errorf("round %d after Retire: %+v", round, s.Endpoints[0])
		}
		again := d.Ensure
		if round == 1 {
			again = d.Leave
		}
		if err := again(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDNSEndpointsOfAFamilyThatIsGone: a node that has lost its IPv6 address leads
// nobody there any more.
func TestDNSEndpointsOfAFamilyThatIsGone(t *testing.T) {
	f := newFixture(t)
	addrs := []netip.AddrPort{netip.MustParseAddrPort("10.245.0.1:10053"), netip.MustParseAddrPort("[fd00:10:245::1]:10053")}
	for _, tt := range []struct {
		listen []netip.AddrPort
		want   string
	}{{addrs, "kube-dns-node-1-ipv4 kube-dns-node-1-ipv6"}, {addrs[:1], "kube-dns-node-1-ipv4"}, {addrs[1:], "kube-dns-node-1-ipv6"}} {
		d, err := NewDNSEndpoints(DNSEndpointsOptions{Client: f.client, Logger: slog.New(slog.DiscardHandler), Node: &model.Node{Name: "node-1"}, Listen: tt.listen})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Ensure(ctx); err != nil {
			t.Fatal(err)
		}
		list, err := f.client.DiscoveryV1().EndpointSlices("kube-system").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range list.Items {
			names = append(names, s.Name)
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("listening at %v: slices %s, want %s", tt.listen, got, tt.want)
		}
	}
}

// TestDNSEndpointsOfSomebodyElsesService keeps out of a Service that another
// DNS server has, and takes back what was written before that came.
func TestDNSEndpointsOfSomebodyElsesService(t *testing.T) {
	f := newFixture(t)
	d, err := NewDNSEndpoints(DNSEndpointsOptions{
		Client: f.client, Logger: slog.New(slog.DiscardHandler), Node: &model.Node{Name: "node-1"},
		Listen: []netip.AddrPort{netip.MustParseAddrPort("10.245.0.1:10053")},
	})
	if err != nil {
		t.Fatal(err)
	}
	count := func() int {
		list, err := f.client.DiscoveryV1().EndpointSlices("kube-system").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Items)
	}
	if err := d.Ensure(ctx); err != nil || count() != 1 {
		t.Fatalf("without the Service: %d slices, %v", count(), err)
	}
	theirs := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns"}}
	if _, err := f.client.CoreV1().Services("kube-system").Create(ctx, theirs, metav1.CreateOptions{FieldManager: "kubeadm"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Ensure(ctx); err != nil || count() != 0 {
			t.Errorf("beside their Service: %d slices, %v", count(), err)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	if _, err := New(Options{Logger: logger}); err == nil {
		t.Error("no error without a client")
	}
	if _, err := New(Options{Client: fake.NewClientset()}); err == nil {
		t.Error("no error without a logger")
	}
	if _, err := NewDNSEndpoints(DNSEndpointsOptions{Logger: logger, Node: &model.Node{}}); err == nil {
		t.Error("no error without an address")
	}
	if _, err := NewDNSEndpoints(DNSEndpointsOptions{Logger: logger, Node: &model.Node{}, Listen: []netip.AddrPort{{}}}); err == nil {
		t.Error("no error without a client")
	}
}
