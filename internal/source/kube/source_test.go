package kube

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/source/translate"
	"fairway.dev/fairway/internal/state"
)

// lines is a log to look at.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

type fixture struct {
	*testing.T
	client  *fake.Clientset
	dynamic *dynamicfake.FakeDynamicClient
	store   *state.Store
	source  *Source
	log     *lines
}

func newFixture(t *testing.T, o Options, objects ...runtime.Object) *fixture {
	t.Helper()
	scheme := runtime.NewScheme()
	f := &fixture{
		T:      t,
		client: fake.NewClientset(objects...),
		dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(scheme,
			map[schema.GroupVersionResource]string{PoolResource: "IPAddressPoolList"}),
		store: state.New(),
		log:   &lines{},
	}
	o.Client, o.Dynamic, o.Store = f.client, f.dynamic, f.store
	o.Logger = slog.New(slog.NewTextHandler(f.log, nil))
	var err error
	if f.source, err = New(o); err != nil {
		t.Fatal(err)
	}
	return f
}

// start runs the source until the test ends.
func (f *fixture) start() {
	f.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.source.Run(ctx) }()
	f.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.Errorf("Run: %v", err)
		}
	})
}

// eventually waits for a state.
func (f *fixture) eventually(what string, ok func(s *state.Snapshot) bool) {
	f.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if ok(f.store.Snapshot()) {
			return
		}
		if time.Now().After(deadline) {
			f.Fatalf("not reached: %s; log:\n%s", what, f.log)
		}
	}
}

func (f *fixture) synced() {
	f.Helper()
	f.eventually("synced", func(s *state.Snapshot) bool { return s.Synced && f.source.Synced() })
}

func objectMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "default", Name: name, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "test"}}}
}

func service(name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: objectMeta(name), Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80}}}}
}

func slice(name, service string, addresses ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: objectMeta(name), AddressType: discoveryv1.AddressTypeIPv4}
	if service != "" {
		s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

func ingress(name, class string) *networkingv1.Ingress {
	i := &networkingv1.Ingress{ObjectMeta: objectMeta(name), Spec: networkingv1.IngressSpec{
		DefaultBackend: &networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}}},
	}}
	if class != "" {
		i.Spec.IngressClassName = &class
	}
	return i
}

func class(name, controller string) *networkingv1.IngressClass {
	return &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.IngressClassSpec{Controller: controller}}
}

func key(name string) model.Key { return model.Key{Namespace: "default", Name: name} }

func ref(kind, name string) model.Ref { return model.Ref{Kind: kind, Key: key(name)} }

func TestEverythingIsReadBeforeSynced(t *testing.T) {
	secret := &corev1.Secret{ObjectMeta: objectMeta("s"), Data: map[string][]byte{"ca.crt": []byte("ca"), "password": []byte("x")}}
	f := newFixture(t, Options{
		Kinds: ForController | ForNode, TCPServices: key("tcp"), UDPServices: key("udp"),
	},
		service("web", "10.96.0.1"), slice("web-1", "web", "10.0.0.1", "10.0.0.2"), slice("none", "", "10.0.0.3"),
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		secret, class("fairway", translate.Controller), ingress("in", "fairway"),
		&corev1.ConfigMap{ObjectMeta: objectMeta("tcp"), Data: map[string]string{"9000": "default/web:80"}},
		&corev1.ConfigMap{ObjectMeta: objectMeta("udp"), Data: map[string]string{"nonsense": "default/web:80"}},
		&corev1.ConfigMap{ObjectMeta: objectMeta("other"), Data: map[string]string{"9001": "default/web:80"}},
	)
	pool := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
		"metadata": map[string]any{"namespace": "default", "name": "p"},
		"spec":     map[string]any{"addresses": []any{"192.0.2.0/24"}},
	}}
	if _, err := f.dynamic.Resource(PoolResource).Namespace("default").Create(context.Background(), pool, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.start()
	f.synced()
	s := f.store.Snapshot()
	got := map[string]int{
		"services": s.Services.Len(), "endpoints": s.Endpoints.Len(), "nodes": s.Nodes.Len(), "namespaces": s.Namespaces.Len(),
		"certificates": s.Certificates.Len(), "routes": s.Routes.Len(), "streams": s.Streams.Len(), "pools": s.Pools.Len(), "problems": s.Problems.Len(),
	}
	want := map[string]int{
		"services": 1, "endpoints": 1, "nodes": 1, "namespaces": 1,
		"certificates": 1, "routes": 1, "streams": 1, "pools": 1, "problems": 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows at the moment of Synced (-want +got):\n%s", diff)
	}
	if _, ok := s.Problems.Get(ref("ConfigMap", "udp")); !ok {
		t.Error("no problem for the ConfigMap that cannot be read")
	}
	for _, a := range f.client.Actions() {
		if l, ok := a.(k8stesting.ListAction); ok && a.GetResource().Resource == "secrets" && !strings.Contains(l.GetListRestrictions().Fields.String(), "type!=helm.sh/release.v1") {
			t.Errorf("all Secrets are asked for: %s", l.GetListRestrictions().Fields)
		}
	}
}

func TestOnlyWantedKindsAreRead(t *testing.T) {
	f := newFixture(t, Options{Kinds: Services | Nodes}, service("web", "10.96.0.1"))
	f.start()
	f.synced()
	for _, a := range f.client.Actions() {
		if r := a.GetResource().Resource; r != "services" && r != "nodes" {
			t.Errorf("%s %s", a.GetVerb(), r)
		}
	}
}

// TestAboutEndpoints keeps what only people are told where it was asked for.
func TestAboutEndpoints(t *testing.T) {
	of := func(about bool) *model.EndpointAbout {
		s, zone := slice("web-1", "web", "10.0.0.1"), "a"
		s.Endpoints[0].Zone = &zone
		f := newFixture(t, Options{Kinds: EndpointSlices, About: about}, s)
		f.start()
		f.synced()
		set, _ := f.store.Snapshot().Endpoints.Get(key("web"))
		return set.Endpoints[0].About
	}
	if about := of(true); about == nil || about.Zone != "a" {
		t.Errorf("asked for: %+v", about)
	}
	if about := of(false); about != nil {
		t.Errorf("not asked for: %+v", about)
	}
}

func TestChangesFollow(t *testing.T) {
	ctx := context.Background()
	f := newFixture(t, Options{Kinds: ForController | ForNode})
	f.start()
	f.synced()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	core := f.client.CoreV1()
	must(core.Services("default").Create(ctx, service("web", "10.96.0.1"), metav1.CreateOptions{}))
	must(f.client.DiscoveryV1().EndpointSlices("default").Create(ctx, slice("web-1", "web", "10.0.0.1"), metav1.CreateOptions{}))
	f.eventually("created", func(s *state.Snapshot) bool { return s.Services.Len() == 1 && s.Endpoints.Len() == 1 })

	bad := service("web", "10.96.0.1")
	bad.Annotations = map[string]string{"fairway.dev/typo": "x"}
	must(core.Services("default").Update(ctx, bad, metav1.UpdateOptions{}))
	f.eventually("problem", func(s *state.Snapshot) bool { _, ok := s.Problems.Get(ref("Service", "web")); return ok })
	must(core.Services("default").Update(ctx, service("web", "10.96.0.1"), metav1.UpdateOptions{}))
	f.eventually("problem gone", func(s *state.Snapshot) bool { return s.Problems.Len() == 0 })

	must(f.client.DiscoveryV1().EndpointSlices("default").Update(ctx, slice("web-1", "", "10.0.0.1"), metav1.UpdateOptions{}))
	f.eventually("slice without Service", func(s *state.Snapshot) bool { return s.Endpoints.Len() == 0 })
	must(f.client.DiscoveryV1().EndpointSlices("default").Update(ctx, slice("web-1", "other", "10.0.0.1"), metav1.UpdateOptions{}))
	f.eventually("slice of another Service", func(s *state.Snapshot) bool { _, ok := s.Endpoints.Get(key("other")); return ok })

	must(core.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{}))
	must(core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}))
	must(core.Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: objectMeta("s")}, metav1.CreateOptions{}))
	must(f.client.NetworkingV1().IngressClasses().Create(ctx, class("fairway", translate.Controller), metav1.CreateOptions{}))
	must(f.client.NetworkingV1().Ingresses("default").Create(ctx, ingress("in", "fairway"), metav1.CreateOptions{}))
	f.eventually("the rest", func(s *state.Snapshot) bool {
		return s.Nodes.Len() == 1 && s.Namespaces.Len() == 1 && s.Certificates.Len() == 1 && s.Routes.Len() == 1
	})

	for _, err := range []error{
		core.Services("default").Delete(ctx, "web", metav1.DeleteOptions{}),
		f.client.DiscoveryV1().EndpointSlices("default").Delete(ctx, "web-1", metav1.DeleteOptions{}),
		core.Nodes().Delete(ctx, "n", metav1.DeleteOptions{}),
		core.Namespaces().Delete(ctx, "default", metav1.DeleteOptions{}),
		core.Secrets("default").Delete(ctx, "s", metav1.DeleteOptions{}),
		f.client.NetworkingV1().Ingresses("default").Delete(ctx, "in", metav1.DeleteOptions{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	f.eventually("deleted", func(s *state.Snapshot) bool {
		return s.Services.Len()+s.Endpoints.Len()+s.Nodes.Len()+s.Namespaces.Len()+s.Certificates.Len()+s.Routes.Len() == 0
	})
}

func TestClassesDecideAgain(t *testing.T) {
	ctx := context.Background()
	f := newFixture(t, Options{Kinds: Ingresses}, ingress("in", "internal"))
	f.start()
	f.synced()
	if p, ok := f.store.Snapshot().Problems.Get(ref("Ingress", "in")); !ok || p[0].Reason != translate.ReasonNoClass {
		t.Errorf("problems %v, want that the class does not exist", p)
	}
	if _, err := f.client.NetworkingV1().IngressClasses().Create(ctx, class("internal", translate.Controller), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("served", func(s *state.Snapshot) bool { return s.Routes.Len() == 1 && s.Problems.Len() == 0 })
	if _, err := f.client.NetworkingV1().IngressClasses().Update(ctx, class("internal", "example.com/other"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("handed over", func(s *state.Snapshot) bool { return s.Routes.Len() == 0 && s.Problems.Len() == 0 })
	if err := f.client.NetworkingV1().IngressClasses().Delete(ctx, "internal", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("no class", func(s *state.Snapshot) bool { return s.Problems.Len() == 1 })
}

func TestStreamsGoWithTheirConfigMap(t *testing.T) {
	ctx := context.Background()
	f := newFixture(t, Options{Kinds: Streams, TCPServices: key("tcp")},
		&corev1.ConfigMap{ObjectMeta: objectMeta("tcp"), Data: map[string]string{"9000": "default/web:80"}})
	f.start()
	f.eventually("stream", func(s *state.Snapshot) bool { return s.Streams.Len() == 1 })
	if err := f.client.CoreV1().ConfigMaps("default").Delete(ctx, "tcp", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("no stream", func(s *state.Snapshot) bool { return s.Streams.Len() == 0 })
}

// TestAbsentAPI: an API that fails keeps the source unsynced and the log
// quiet; what is deleted while it is away is gone afterwards.
func TestAbsentAPI(t *testing.T) {
	ctx := context.Background()
	f := newFixture(t, Options{Kinds: Services}, service("a", "10.96.0.1"), service("b", "10.96.0.2"))
	var down atomic.Bool
	down.Store(true)
	fail := func(k8stesting.Action) (bool, runtime.Object, error) {
		return down.Load(), nil, errors.New("connection refused")
	}
	f.client.PrependReactor("list", "services", fail)
	f.start()
	f.eventually("a line in the log", func(*state.Snapshot) bool { return strings.Contains(f.log.String(), "does not answer") })
	if s := f.store.Snapshot(); s.Synced || f.source.Synced() {
		t.Error("synced without having read anything")
	}
	if err := f.client.CoreV1().Services("default").Delete(ctx, "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	down.Store(false)
	f.synced()
	f.eventually("a line in the log", func(*state.Snapshot) bool { return strings.Contains(f.log.String(), "answers again") })
	if n := strings.Count(f.log.String(), "does not answer"); n != 1 {
		t.Errorf("%d lines about one outage:\n%s", n, f.log)
	}
	if n := f.store.Snapshot().Services.Len(); n != 1 {
		t.Errorf("%d Services, want 1", n)
	}
}

func TestReplaceTakesBackWhatIsGone(t *testing.T) {
	f := newFixture(t, Options{Kinds: Services})
	w := f.source.watchers[0]
	_ = w.Replace([]any{service("a", "10.96.0.1"), service("b", "10.96.0.2")}, "1")
	f.source.flush()
	_ = w.Replace([]any{service("b", "10.96.0.3")}, "2")
	f.source.flush()
	s := f.store.Snapshot()
	if _, ok := s.Services.Get(key("a")); ok || s.Services.Len() != 1 {
		t.Errorf("%d Services, a among them: %t", s.Services.Len(), ok)
	}
	if s.Revision != 2 {
		t.Errorf("%d commits for two batches", s.Revision)
	}
}

func TestPoolsOfAnAPIWithoutMetalLB(t *testing.T) {
	f := newFixture(t, Options{Kinds: Services | Pools})
	f.dynamic.PrependReactor("list", "ipaddresspools", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(PoolResource.GroupResource(), "")
	})
	f.start()
	f.synced()
	if strings.Contains(f.log.String(), "does not answer") {
		t.Errorf("a missing kind is no outage:\n%s", f.log)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	for name, o := range map[string]Options{
		"nothing":   {},
		"no store":  {Logger: logger, Kinds: Services, Client: fake.NewClientset()},
		"no kinds":  {Logger: logger, Store: state.New(), Client: fake.NewClientset()},
		"no client": {Logger: logger, Store: state.New(), Kinds: Services},
		"no pools":  {Logger: logger, Store: state.New(), Kinds: Pools, Client: fake.NewClientset()},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(o); err == nil {
				t.Error("no error")
			}
		})
	}
}

// TestCorefile: a ConfigMap of that name becomes the configuration of DNS. One
// that cannot be read leaves the last; one that may not be read is none.
func TestCorefile(t *testing.T) {
	key := model.Key{Namespace: "kube-system", Name: "coredns"}
	ref := model.Ref{Kind: "ConfigMap", Key: key}
	configMap := func(name, text string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: name}, Data: map[string]string{"Corefile": text}}
	}
	f := newFixture(t, Options{Kinds: Services | Corefile, Corefile: key}, configMap("coredns", ". {\n kubernetes {\n ttl 7\n }\n}"), configMap("other", ". {\n kubernetes {\n ttl 8\n }\n}"))
	f.start()
	ttl := func() time.Duration {
		if c := f.store.Snapshot().DNS; c != nil {
			return c.TTL
		}
		return 0
	}
	problems := func() int {
		p, _ := f.store.Snapshot().Problems.Get(ref)
		return len(p)
	}
	f.eventually("read", func(*state.Snapshot) bool { return ttl() == 7*time.Second && f.source.Synced() })
	update := func(text string) {
		if _, err := f.client.CoreV1().ConfigMaps(key.Namespace).Update(t.Context(), configMap("coredns", text), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	update(". {\n")
	f.eventually("a problem", func(*state.Snapshot) bool { return problems() == 1 })
	if ttl() != 7*time.Second {
		t.Error("one that cannot be read replaced the last")
	}
	update(". {\n kubernetes {\n ttl 9\n }\n}")
	f.eventually("the next", func(*state.Snapshot) bool { return ttl() == 9*time.Second && problems() == 0 })
	if err := f.client.CoreV1().ConfigMaps(key.Namespace).Delete(t.Context(), key.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("gone", func(*state.Snapshot) bool { return f.store.Snapshot().DNS == nil })
}

// TestLastCorefile: a process that finds a Corefile that cannot be read begins with
// the last one that could be; one that finds none, or loses its own, does not.
func TestLastCorefile(t *testing.T) {
	key := model.Key{Namespace: "kube-system", Name: "coredns"}
	configMap := func(text string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}, Data: map[string]string{"Corefile": text}}
	}
	last := func() *model.DNSConfig { return &model.DNSConfig{TTL: 7 * time.Second} }
	ttl := func(f *fixture) time.Duration {
		if c := f.store.Snapshot().DNS; c != nil {
			return c.TTL
		}
		return 0
	}
	f := newFixture(t, Options{Kinds: Services | Corefile, Corefile: key, LastDNS: last}, configMap(". {\n"))
	f.start()
	f.eventually("the last one, and what is wrong with this one", func(s *state.Snapshot) bool {
		p, _ := s.Problems.Get(model.Ref{Kind: "ConfigMap", Key: key})
		return f.source.Synced() && ttl(f) == 7*time.Second && len(p) == 1
	})
	update := func(text string) {
		if _, err := f.client.CoreV1().ConfigMaps(key.Namespace).Update(t.Context(), configMap(text), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	update(". {\n kubernetes {\n ttl 9\n }\n}")
	f.eventually("the next", func(*state.Snapshot) bool { return ttl(f) == 9*time.Second })
	if err := f.client.CoreV1().ConfigMaps(key.Namespace).Delete(t.Context(), key.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("gone", func(s *state.Snapshot) bool { return s.DNS == nil })
	if _, err := f.client.CoreV1().ConfigMaps(key.Namespace).Create(t.Context(), configMap(". {\n"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("a problem", func(s *state.Snapshot) bool {
		p, _ := s.Problems.Get(model.Ref{Kind: "ConfigMap", Key: key})
		return len(p) == 1
	})
	if ttl(f) != 0 {
		t.Error("what an earlier process had is back, after there was none")
	}

	none := newFixture(t, Options{Kinds: Services | Corefile, Corefile: key, LastDNS: last})
	none.start()
	none.eventually("all known", func(*state.Snapshot) bool { return none.source.Synced() })
	if ttl(none) != 0 {
		t.Error("without a Corefile the last one is used")
	}
}

// TestCustomCorefile: what k3s and AKS have users write to a ConfigMap of their own
// counts as what it is imported for, and what is wrong with it is said of that.
func TestCustomCorefile(t *testing.T) {
	key := model.Key{Namespace: "kube-system", Name: "coredns"}
	configMap := func(name string, data map[string]string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: name, UID: types.UID(name)}, Data: data}
	}
	f := newFixture(t, Options{Kinds: Services | Corefile, Corefile: key}, configMap("coredns", map[string]string{
		"Corefile": ".:53 {\n kubernetes\n import /etc/coredns/custom/*.override\n}\nimport /etc/coredns/custom/*.server\n",
	}))
	f.start()
	f.synced()
	maps := f.client.CoreV1().ConfigMaps(key.Namespace)
	zones := func(s *state.Snapshot) (all []string) {
		if s.DNS != nil {
			for _, b := range s.DNS.Blocks {
				all = append(all, b.Zones...)
			}
		}
		return all
	}
	problems := func(name string) model.Problems {
		p, _ := f.store.Snapshot().Problems.Get(model.Ref{Kind: "ConfigMap", Key: model.Key{Namespace: key.Namespace, Name: name}})
		return p
	}
	if got := zones(f.store.Snapshot()); !slices.Equal(got, []string{"."}) || len(problems("coredns")) > 0 {
		t.Errorf("without a second ConfigMap: zones %q, problems %v", got, problems("coredns"))
	}
	custom := map[string]string{"corp.server": "corp.example:53 {\n forward . 192.0.2.53\n}\n", "ttl.override": "hosts {\n 192.0.2.9 nine.example\n fallthrough\n}\nlog\n"}
	if _, err := maps.Create(t.Context(), configMap("coredns-custom", custom), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("both", func(s *state.Snapshot) bool {
		return slices.Equal(zones(s), []string{".", "corp.example."}) && s.DNS.Blocks[0].Hosts != nil
	})
	if p := problems("coredns-custom"); len(p) != 1 || p[0].Field != "data[ttl.override] line 5" || p[0].Object.UID != "coredns-custom" || len(problems("coredns")) > 0 {
		t.Errorf("problems %+v, and %+v", p, problems("coredns"))
	}
	custom["corp.srv"] = custom["corp.server"]
	if _, err := maps.Update(t.Context(), configMap("coredns-custom", custom), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("a key that no import leads to is said", func(*state.Snapshot) bool {
		p := problems("coredns-custom")
		return len(p) == 2 && p[1].Field == "data[corp.srv]" && strings.Contains(p[1].Message, "no import of the Corefile in ConfigMap kube-system/coredns leads to this key")
	})
	delete(custom, "corp.srv")
	custom["corp.server"] = "corp.example:53 {\n forward . nowhere/at/all\n}\n"
	if _, err := maps.Update(t.Context(), configMap("coredns-custom", custom), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("a problem", func(*state.Snapshot) bool {
		p := problems("coredns-custom")
		return len(p) == 1 && p[0].Field == "data[corp.server] line 2" && strings.Contains(p[0].Message, "the last one that could be read, or with Fairway's defaults")
	})
	if got := zones(f.store.Snapshot()); len(got) != 2 {
		t.Errorf("zones %q", got)
	}
	if err := maps.Delete(t.Context(), "coredns-custom", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("the first alone", func(s *state.Snapshot) bool {
		return slices.Equal(zones(s), []string{"."}) && len(problems("coredns-custom")) == 0
	})
	if err := maps.Delete(t.Context(), "coredns", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Create(t.Context(), configMap("coredns-custom", custom), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("additions to nothing", func(s *state.Snapshot) bool {
		p := problems("coredns-custom")
		return s.DNS == nil && len(p) == 1 && strings.Contains(p[0].Message, "there is no ConfigMap kube-system/coredns,")
	})
}

// Without a domain that is given, as fairway explain reads, an alias of a Service to
// itself is found in the usual one.
func TestAliasOfItselfInTheUsualDomain(t *testing.T) {
	self := service("self", "")
	self.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "self.default.svc.cluster.local"}
	f := newFixture(t, Options{Kinds: Services}, self)
	f.start()
	f.synced()
	if p, _ := f.store.Snapshot().Problems.Get(model.Ref{Kind: "Service", Key: model.Key{Namespace: "default", Name: "self"}}); len(p) != 1 {
		t.Errorf("problems %v", p)
	}
}

// TestCorefileToNodesThemselves: whether the Nodes or the Corefile come first, their own
// servers are not forwarded to.
func TestCorefileToNodesThemselves(t *testing.T) {
	key := model.Key{Namespace: "kube-system", Name: "coredns"}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.2"}}}}
	main := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
		Data:       map[string]string{"Corefile": ". {\n forward . 192.0.2.2:10053 192.0.2.3:10053 192.0.2.2\n}"},
	}
	lists := map[string][]any{"nodes": {node}, "configmap kube-system/coredns": {main}, "configmap kube-system/coredns-custom": nil}
	for _, order := range [][]string{
		{"nodes", "configmap kube-system/coredns", "configmap kube-system/coredns-custom"}, {"configmap kube-system/coredns", "configmap kube-system/coredns-custom", "nodes"},
	} {
		f := newFixture(t, Options{Kinds: Nodes | Corefile, Corefile: key, NodeDNSPort: 10053})
		for _, name := range order {
			if f.store.Snapshot().DNS != nil {
				t.Error("a Corefile is used before all is known")
			}
			for _, w := range f.source.watchers {
				if w.name == name {
					_ = w.Replace(lists[name], "")
				}
			}
			f.source.flush()
		}
		p, _ := f.store.Snapshot().Problems.Get(model.Ref{Kind: "ConfigMap", Key: key})
		if c := f.store.Snapshot().DNS; c == nil || len(c.Blocks[0].Forwards[0].Servers) != 2 || len(p) != 1 || !strings.Contains(p[0].Message, "forward to 192.0.2.2:10053 is ignored: it is a node's own DNS") {
			t.Errorf("%v: %+v, problems %v", order, c, p)
		}
	}
}

// TestCorefileWaitsForBoth: whichever of the two ConfigMaps the API gives first,
// nothing is used before both are known, and nothing of either where one is bad.
func TestCorefileWaitsForBoth(t *testing.T) {
	key := model.Key{Namespace: "kube-system", Name: "coredns"}
	configMap := func(name string, data map[string]string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: name}, Data: data}
	}
	main := configMap("coredns", map[string]string{"Corefile": ".:53 {\n forward . 192.0.2.1\n}\nimport custom/*.server\n"})
	const good, bad = "corp.example {\n forward . 192.0.2.2\n}", "corp.example {\n"
	for name, tt := range map[string]struct {
		custom string
		first  string
		blocks int // 0: nothing is used
	}{
		"the Corefile first":               {good, "coredns", 2},
		"the additions first":              {good, "coredns-custom", 2},
		"the Corefile first, the rest bad": {bad, "coredns", 0},
		"bad additions first":              {bad, "coredns-custom", 0},
		"no additions":                     {"", "coredns", 1},
		"additions may not be read":        {"forbidden", "coredns", 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, Options{Kinds: Corefile, Corefile: key})
			list := func(name string) {
				for _, w := range f.source.watchers {
					switch {
					case w.name != "configmap kube-system/"+name:
						continue
					case name == "coredns":
						_ = w.Replace([]any{main}, "")
					case tt.custom == "forbidden":
						w.refused(errors.New("no"))
					case tt.custom == "":
						_ = w.Replace(nil, "")
					default:
						_ = w.Replace([]any{configMap(name, map[string]string{"corp.server": tt.custom})}, "")
					}
				}
				f.source.flush()
			}
			second := map[string]string{"coredns": "coredns-custom", "coredns-custom": "coredns"}[tt.first]
			list(tt.first)
			if f.store.Snapshot().DNS != nil {
				t.Error("one of the two ConfigMaps is used alone")
			}
			list(second)
			got := 0
			if c := f.store.Snapshot().DNS; c != nil {
				got = len(c.Blocks)
			}
			if got != tt.blocks || !f.source.Synced() {
				t.Errorf("%d blocks, want %d; synced: %t", got, tt.blocks, f.source.Synced())
			}
		})
	}
}

func TestCorefileMayBeForbidden(t *testing.T) {
	key := model.Key{Namespace: "kube-system", Name: "coredns"}
	f := newFixture(t, Options{Kinds: Services | Corefile, Corefile: key})
	f.client.PrependReactor("list", "configmaps", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "configmaps"}, key.Name, errors.New("no"))
	})
	f.start()
	f.synced()
	if !f.source.Outage().IsZero() || !strings.Contains(f.log.String(), "not allowed to read configmap kube-system/coredns") {
		t.Errorf("outage since %v, log:\n%s", f.source.Outage(), f.log)
	}
}
