package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/model"
	sourcekube "fairway.dev/fairway/internal/source/kube"
	"fairway.dev/fairway/internal/state"
)

// kubeconfigVariable names a kubeconfig of an API server to run TestAPI
// against, one that nothing else uses. `fairway-standalone control` gives one.
const kubeconfigVariable = "FAIRWAY_TEST_KUBECONFIG"

// api is a controller of Fairway's at a real API server.
type api struct {
	*testing.T
	config    *rest.Config
	client    kubernetes.Interface
	dynamic   dynamic.Interface
	store     *state.Store
	namespace string
	// lbPool and extraPool are ranges of four addresses that no other run has:
	// what it leaves behind goes only some time after it.
	lbPool, extraPool netip.Prefix
}

func newAPI(t *testing.T) *api {
	t.Helper()
	path := os.Getenv(kubeconfigVariable)
	if path == "" {
		t.Skipf("set %s to a kubeconfig of an API server to test with", kubeconfigVariable)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 200, 400
	run := time.Now().UnixNano()
	four := func(second byte) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, second, byte(run >> 32), byte(run>>24) &^ 3}), 30)
	}
	a := &api{T: t, config: config, store: state.New(), namespace: fmt.Sprintf("test-%d", run), lbPool: four(18), extraPool: four(19)}
	if a.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if a.dynamic, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	a.must(a.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: a.namespace}}, metav1.CreateOptions{}))
	t.Cleanup(func() { _ = a.client.CoreV1().Namespaces().Delete(ctx, a.namespace, metav1.DeleteOptions{}) })
	return a
}

func (a *api) must(_ any, err error) {
	a.Helper()
	if err != nil {
		a.Fatal(err)
	}
}

func (a *api) eventually(what string, ok func() bool) {
	a.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			a.Fatalf("not reached: %s; Events: %s", what, strings.Join(a.events(), "\n"))
		}
	}
}

// start runs the source and a writer, as the controller role does.
func (a *api) start(identity, lbPool string) *Writer {
	a.Helper()
	logger := slog.New(slog.NewTextHandler(a.Output(), nil))
	source, err := sourcekube.New(sourcekube.Options{Config: a.config, Store: a.store, Logger: logger, Kinds: sourcekube.ForController})
	a.must(source, err)
	w, err := New(Options{
		Config: a.config, Store: a.store, Logger: logger, Identity: identity,
		Lease:  model.Key{Namespace: a.namespace, Name: "fairway-controller"},
		Events: true, Addresses: pool(a.T, lbPool), Publish: []netip.Addr{netip.MustParseAddr("192.0.2.250")},
	})
	a.must(w, err)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 2)
	go func() { done <- source.Run(ctx) }()
	go func() { done <- w.Run(ctx) }()
	a.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				a.Error(err)
			}
		}
	})
	return w
}

func (a *api) service(name string, edit ...func(*corev1.Service)) *corev1.Service {
	a.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: name, Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
	for _, e := range edit {
		e(s)
	}
	made, err := a.client.CoreV1().Services(a.namespace).Create(ctx, s, metav1.CreateOptions{})
	a.must(made, err)
	return made
}

func (a *api) addrs(name string) string {
	a.Helper()
	s, err := a.client.CoreV1().Services(a.namespace).Get(ctx, name, metav1.GetOptions{})
	a.must(s, err)
	var out []string
	for _, in := range s.Status.LoadBalancer.Ingress {
		out = append(out, in.IP)
	}
	return strings.Join(out, ",")
}

// events are those of the test's namespace.
func (a *api) events() []string {
	list, err := a.client.CoreV1().Events(a.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, e := range list.Items {
		out = append(out, fmt.Sprintf("%s %s %s: %s", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message))
	}
	return out
}

func (a *api) event(parts ...string) {
	a.Helper()
	a.eventually("Event "+strings.Join(parts, " ... "), func() bool {
		for _, e := range a.events() {
			all := true
			for _, p := range parts {
				all = all && strings.Contains(e, p)
			}
			if all {
				return true
			}
		}
		return false
	})
}

func TestAPI(t *testing.T) {
	a := newAPI(t)
	a.bootstrap()
	w := a.start("first", fmt.Sprintf("%s-%s", a.lbPool.Addr().Next(), a.lbPool.Addr().Next().Next().Next()))
	a.eventually("leading", w.Leading)
	t.Run("addresses", func(t *testing.T) { a.sub(t).testAddresses() })
	t.Run("stale UID", func(t *testing.T) { a.sub(t).testStaleUID(w) })
	t.Run("ingresses", func(t *testing.T) { a.sub(t).testIngresses() })
	t.Run("service TLS", func(t *testing.T) { a.sub(t).testServiceTLS() })
	t.Run("deleted and recreated", func(t *testing.T) { a.sub(t).testDeletion() })
}

func (a *api) sub(t *testing.T) *api {
	c := *a
	c.T = t
	return &c
}

func (a *api) bootstrap() {
	a.Helper()
	logger := slog.New(slog.NewTextHandler(a.Output(), nil))
	e, err := bootstrap.New(bootstrap.Options{Config: a.config, Logger: logger, PoolKind: true,
		ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}})
	a.must(e, err)
	a.must(nil, e.Ensure(ctx))
	dns, err := a.client.CoreV1().Services("kube-system").Get(ctx, "kube-dns", metav1.GetOptions{})
	a.must(dns, err)
	if strings.Join(dns.Spec.ClusterIPs, ",") != "10.96.0.10,fd00:10:96::a" {
		a.Errorf("kube-dns has %v", dns.Spec.ClusterIPs)
	}
	a.must(nil, e.Ensure(ctx))
	again, err := a.client.CoreV1().Services("kube-system").Get(ctx, "kube-dns", metav1.GetOptions{})
	a.must(again, err)
	if again.ResourceVersion != dns.ResourceVersion {
		a.Error("the second time changed something")
	}
	node, err := a.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: a.namespace}}, metav1.CreateOptions{})
	a.must(node, err)
	a.Cleanup(func() { _ = a.client.CoreV1().Nodes().Delete(ctx, node.Name, metav1.DeleteOptions{}) })
	d, err := bootstrap.NewDNSEndpoints(bootstrap.DNSEndpointsOptions{
		Config: a.config, Logger: logger, Node: &model.Node{Name: node.Name, UID: string(node.UID), Zone: "z"},
		Listen: []netip.AddrPort{netip.MustParseAddrPort("10.245.0.1:10053"), netip.MustParseAddrPort("[fd00:10:245::1]:10053")},
	})
	a.must(d, err)
	a.must(nil, d.Ensure(ctx))
	a.must(nil, d.Ensure(ctx))
}

func (a *api) testAddresses() {
	a.service("one")
	a.eventually("first address", func() bool { return a.addrs("one") == a.lbPool.Addr().Next().String() })
	a.service("two")
	a.service("three")
	a.eventually("the last addresses", func() bool { return a.addrs("two") != "" && a.addrs("three") != "" })
	a.service("four", func(s *corev1.Service) { s.Annotations["fairway.dev/adress-pool"] = "x" })
	a.event("Service four PoolExhausted", `no IPv4 address is free in pool "default"; add addresses`)
	a.event("Service four NotSupported", "metadata.annotations[fairway.dev/adress-pool]", "check its spelling")
	// The kind is known since a moment ago, or the source looks again soon.
	a.must(a.dynamic.Resource(sourcekube.PoolResource).Namespace(a.namespace).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
		"metadata": map[string]any{"name": "extra"},
		"spec":     map[string]any{"addresses": []any{a.extraPool.String()}, "autoAssign": false},
	}}, metav1.CreateOptions{}))
	a.service("five", func(s *corev1.Service) { s.Annotations["metallb.io/address-pool"] = "extra" })
	a.eventually("address of the named pool", func() bool { return a.addrs("five") == a.extraPool.Addr().String() })
	a.testReservedAddress()
	a.must(nil, a.client.CoreV1().Services(a.namespace).Delete(ctx, "one", metav1.DeleteOptions{}))
	a.eventually("the address that came free", func() bool {
		return a.addrs("two") != "" && a.addrs("three") != "" && a.addrs("four") != ""
	})
}

// testReservedAddress: the API's own cluster IP is given to nobody, though a
// pool has it and a Service holds it.
func (a *api) testReservedAddress() {
	kubernetes, err := a.client.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	a.must(kubernetes, err)
	ip := kubernetes.Spec.ClusterIP
	a.must(a.dynamic.Resource(sourcekube.PoolResource).Namespace(a.namespace).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
		"metadata": map[string]any{"name": "hostile"},
		"spec":     map[string]any{"addresses": []any{a.extraPool.String(), ip + "/32"}, "autoAssign": false},
	}}, metav1.CreateOptions{}))
	a.event("IPAddressPool hostile AddressReserved", "spec.addresses[1]: "+ip+" contains "+ip+", the cluster IP of Service default/kubernetes")
	a.event("IPAddressPool hostile PoolOverlap", "spec.addresses[0]", "of IPAddressPool "+a.namespace+"/extra")
	a.service("greedy", func(s *corev1.Service) { s.Annotations["fairway.dev/load-balancer-ips"] = ip })
	a.event("Service greedy AddressReserved", "address "+ip+" is the cluster IP of Service default/kubernetes")
	patch, err := statusPatch("", "", []corev1.LoadBalancerIngress{{IP: ip}})
	a.must(nil, err)
	_, err = a.client.CoreV1().Services(a.namespace).Patch(ctx, "greedy", types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	a.must(nil, err)
	a.eventually("the reserved address taken back", func() bool { return a.addrs("greedy") == "" })
}

// testStaleUID: a write meant for an object that is gone must not reach the one
// that took its name.
func (a *api) testStaleUID(w *Writer) {
	a.service("reborn", func(s *corev1.Service) { s.Spec.LoadBalancerClass = new("example.com/other") })
	stale := &model.Service{Key: model.Key{Namespace: a.namespace, Name: "reborn"}, UID: "11111111-2222-3333-4444-555555555555"}
	a.must(nil, w.writeService(ctx, stale, []netip.Addr{netip.MustParseAddr("198.51.100.9")}))
	if got := a.addrs("reborn"); got != "" {
		a.Errorf("the write for another UID set %s", got)
	}
}

func (a *api) testIngresses() {
	prefix := networkingv1.PathTypePrefix
	in := &networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: "web", Annotations: map[string]string{"nginx.ingress.kubernetes.io/proxy-body-size": "big"}},
		Spec: networkingv1.IngressSpec{
			TLS: []networkingv1.IngressTLS{{Hosts: []string{"www.example.com"}, SecretName: "web-tls"}},
			Rules: []networkingv1.IngressRule{{Host: "www.example.com", IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
				Paths: []networkingv1.HTTPIngressPath{{Path: "/", PathType: &prefix, Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "absent", Port: networkingv1.ServiceBackendPort{Number: 80}}}}},
			}}}},
		},
	}
	a.must(a.client.NetworkingV1().Ingresses(a.namespace).Create(ctx, in, metav1.CreateOptions{}))
	a.event("Ingress web ServiceMissing", "spec.rules[0].http.paths[0]", "Service "+a.namespace+"/absent does not exist")
	a.event("Ingress web SecretMissing", "kubectl create secret tls web-tls")
	a.event("Ingress web InvalidValue", "proxy-body-size", `"big" is no size`)
	a.eventually("status of the Ingress", func() bool {
		got, err := a.client.NetworkingV1().Ingresses(a.namespace).Get(ctx, "web", metav1.GetOptions{})
		a.must(got, err)
		// The class was filled in by the API server: ours is the default one.
		return got.Spec.IngressClassName != nil && *got.Spec.IngressClassName == "fairway" &&
			len(got.Status.LoadBalancer.Ingress) == 1 && got.Status.LoadBalancer.Ingress[0].IP == "192.0.2.250"
	})
	twin := in.DeepCopy()
	twin.Name, twin.Annotations = "web-twin", nil
	time.Sleep(1100 * time.Millisecond) // creation times count seconds
	a.must(a.client.NetworkingV1().Ingresses(a.namespace).Create(ctx, twin, metav1.CreateOptions{}))
	a.event("Ingress web-twin Duplicate", "claimed by the older Ingress "+a.namespace+"/web")
}

func (a *api) testServiceTLS() {
	a.service("tls", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeClusterIP
		s.Annotations["fairway.dev/tls-secret"] = "mytlssecret"
	})
	a.event("Service tls SecretMissing", "kubectl create secret tls mytlssecret -n "+a.namespace)
	a.must(a.client.CoreV1().Secrets(a.namespace).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "mytlssecret"}, Data: map[string][]byte{"tls.crt": []byte("x"), "tls.key": []byte("y")}}, metav1.CreateOptions{}))
	a.event("Service tls SecretInvalid", "tls.crt is not PEM")
	before := len(a.events())
	time.Sleep(500 * time.Millisecond)
	if after := len(a.events()); after != before {
		a.Errorf("%d Events became %d without a change", before, after)
	}
}

func (a *api) testDeletion() {
	key := model.Key{Namespace: a.namespace, Name: "tls"}
	a.must(nil, a.client.CoreV1().Services(a.namespace).Delete(ctx, "tls", metav1.DeleteOptions{}))
	a.eventually("row gone", func() bool {
		_, ok := a.store.Snapshot().Services.Get(key)
		return !ok
	})
	a.service("tls", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	a.eventually("row back", func() bool {
		s, ok := a.store.Snapshot().Services.Get(key)
		return ok && s.TLS == nil
	})
}
