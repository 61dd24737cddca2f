package kube

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// TestAPI reads from a real API server, named by a kubeconfig in
// FAIRWAY_TEST_KUBECONFIG, and prints how long the first reading takes.
func TestAPI(t *testing.T) {
	config, _ := apiClient(t)
	for name, kinds := range map[string]Kinds{"node": ForNode, "gateway": ForGateway, "controller": ForController} {
		t.Run(name, func(t *testing.T) {
			store := state.New()
			s, err := New(Options{Config: config, Store: store, Kinds: kinds, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			done := make(chan error, 1)
			start := time.Now()
			go func() { done <- s.Run(ctx) }()
			for !s.Synced() && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			snap := store.Snapshot()
			t.Logf("synced after %v: %d Services", time.Since(start).Round(time.Millisecond), snap.Services.Len())
			if _, ok := snap.Endpoints.Get(model.Key{Namespace: "default", Name: "kubernetes"}); !snap.Synced || kinds&EndpointSlices != 0 && !ok {
				t.Errorf("synced %t, endpoints of the API itself %t", snap.Synced, ok)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// gate is a TCP relay to the API server. While it is closed connections are
// refused, as those to a server that has died.
type gate struct {
	target, address string
	listener        net.Listener

	mu    sync.Mutex
	conns []net.Conn
}

func newGate(t *testing.T, target string) *gate {
	t.Helper()
	g := &gate{target: target, address: "127.0.0.1:0"}
	g.open(t)
	t.Cleanup(g.close)
	return g
}

func (g *gate) open(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", g.address)
	if err != nil {
		t.Fatal(err)
	}
	g.listener, g.address = l, l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go g.relay(c)
		}
	}()
}

func (g *gate) close() {
	_ = g.listener.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns {
		_ = c.Close()
	}
	g.conns = nil
}

func (g *gate) relay(c net.Conn) {
	defer c.Close()
	up, err := net.Dial("tcp", g.target)
	if err != nil {
		return
	}
	defer up.Close()
	g.mu.Lock()
	g.conns = append(g.conns, c, up)
	g.mu.Unlock()
	go func() {
		_, _ = io.Copy(up, c)
		_ = up.Close()
	}()
	_, _ = io.Copy(c, up)
}

// TestAPIOutage cuts the connection to a real API server: the state stays, and
// what changed meanwhile follows when the server is back.
func TestAPIOutage(t *testing.T) {
	config, client := apiClient(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	namespace := fmt.Sprintf("outage-%d", time.Now().UnixNano())
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.CoreV1().Namespaces().Delete(context.Background(), namespace, metav1.DeleteOptions{})
	})
	create := func(name string) {
		t.Helper()
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
		if _, err := client.CoreV1().Services(namespace).Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	create("stays")
	create("goes")

	u, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(t, u.Host)
	through := rest.CopyConfig(config)
	through.Host = "https://" + g.address

	store := state.New()
	log := &lines{}
	s, err := New(Options{Config: through, Store: store, Kinds: Services, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	wait := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not reached: %s; log:\n%s", what, log)
			}
		}
	}
	known := func(name string) bool {
		_, ok := store.Snapshot().Services.Get(model.Key{Namespace: namespace, Name: name})
		return ok
	}
	wait("synced", func() bool { return s.Synced() && known("stays") && known("goes") })

	g.close()
	if err := client.CoreV1().Services(namespace).Delete(ctx, "goes", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	create("comes")
	wait("noticed", func() bool { return strings.Contains(log.String(), "does not answer") })
	if !known("stays") || !known("goes") || !store.Snapshot().Synced {
		t.Error("state was lost while the API was away")
	}
	g.open(t)
	start := time.Now()
	wait("caught up", func() bool { return known("comes") && !known("goes") && known("stays") })
	t.Logf("caught up %v after the API was back", time.Since(start).Round(time.Millisecond))
	wait("said so", func() bool { return strings.Contains(log.String(), "answers again") })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// apiClient reaches the API server to test with.
func apiClient(t *testing.T) (*rest.Config, kubernetes.Interface) {
	t.Helper()
	path := os.Getenv("FAIRWAY_TEST_KUBECONFIG")
	if path == "" {
		t.Skip("set FAIRWAY_TEST_KUBECONFIG to a kubeconfig of an API server to test with")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return config, client
}
