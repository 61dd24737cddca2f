package kubeapi

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applydiscoveryv1 "k8s.io/client-go/applyconfigurations/discovery/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"k8s.io/client-go/informers"
	"k8s.io/klog/v2"
)

func client(t *testing.T, l *Listener) kubernetes.Interface {
	t.Helper()
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := l.WriteKubeconfig(path); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func listen(t *testing.T, s *Server) *Listener {
	t.Helper()
	l, err := s.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Stop)
	return l
}

func service(name string, labels map[string]string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: labels}}
}

// TestInformer lets client-go follow changes, also those made while the server was away.
func TestInformer(t *testing.T) {
	s := New()
	s.Put(service("a", nil), service("b", nil))
	l := listen(t, s)
	factory := informers.NewSharedInformerFactory(client(t, l), 0)
	lister := factory.Core().V1().Services().Lister()
	informer := factory.Core().V1().Services().Informer()
	ctx, cancel := context.WithCancel(t.Context())
	defer func() {
		cancel()
		factory.Shutdown()
	}()
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		t.Fatal("not synced")
	}
	want := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not reached: %s", what)
			}
		}
	}
	has := func(name string) bool {
		_, err := lister.Services("default").Get(name)
		return err == nil
	}
	if !has("a") || !has("b") {
		t.Error("the first list is not whole")
	}
	s.Put(service("c", nil))
	s.Delete(service("a", nil))
	want("a gone, c there", func() bool { return !has("a") && has("b") && has("c") })
	l.Stop()
	s.Put(service("d", nil))
	s.Delete(service("b", nil))
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	want("b gone, d there", func() bool { return !has("b") && has("c") && has("d") })
}

func TestRequests(t *testing.T) {
	s := New()
	c := client(t, listen(t, s))
	ctx := t.Context()
	s.Put(service("a", map[string]string{"app": "x"}), service("b", nil),
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "t"}, Type: corev1.SecretTypeTLS},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "o"}, Type: corev1.SecretTypeOpaque})
	if list, err := c.CoreV1().Services("").List(ctx, metav1.ListOptions{LabelSelector: "app=x"}); err != nil || len(list.Items) != 1 || list.Items[0].Name != "a" {
		t.Errorf("by label: %v, %v", list, err)
	}
	if list, err := c.CoreV1().Secrets("").List(ctx, metav1.ListOptions{FieldSelector: "type!=Opaque"}); err != nil || len(list.Items) != 1 || list.Items[0].Name != "t" {
		t.Errorf("by field: %v, %v", list, err)
	}
	if list, err := c.CoreV1().Secrets("other").List(ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 1 || list.Items[0].Name != "o" {
		t.Errorf("by namespace: %v, %v", list, err)
	}
	if _, err := c.CoreV1().Services("default").Get(ctx, "z", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("get what is not there: %v", err)
	}
	if made, err := c.CoreV1().Events("default").Create(ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e"}, Reason: "R"}, metav1.CreateOptions{}); err != nil || made.Reason != "R" {
		t.Errorf("create in whatever form the client speaks: %v, %v", made, err)
	}
	slice := applydiscoveryv1.EndpointSlice("s", "default").WithAddressType(discoveryv1.AddressTypeIPv4).WithLabels(map[string]string{"a": "1"})
	for range 2 {
		got, err := c.DiscoveryV1().EndpointSlices("default").Apply(ctx, slice, metav1.ApplyOptions{FieldManager: "me"})
		if err != nil || got.AddressType != discoveryv1.AddressTypeIPv4 || got.Labels["a"] != "1" || len(got.ManagedFields) != 1 || got.ManagedFields[0].Manager != "me" {
			t.Fatalf("apply: %v, %v", got, err)
		}
	}
	if err := c.DiscoveryV1().EndpointSlices("default").Delete(ctx, "s", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if err := c.DiscoveryV1().EndpointSlices("default").Delete(ctx, "s", metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("delete what is gone: %v", err)
	}
}
