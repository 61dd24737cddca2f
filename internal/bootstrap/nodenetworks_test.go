package bootstrap

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// TestNodeNetworks publishes, follows changes, and tries again after an error.
func TestNodeNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{"other": "kept"}}})
		failures := 1
		client.PrependReactor("patch", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
			failures--
			return failures == 0, nil, errors.New("not now")
		})
		n, err := NewNodeNetworks(NodeNetworksOptions{Client: client, Logger: slog.New(slog.DiscardHandler), Node: "n", Annotation: "fairway.dev/networks"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- n.Run(ctx) }()
		for _, c := range []struct {
			set  []netip.Prefix
			want string
		}{
			{[]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}, "192.0.2.0/24,2001:db8::/64"},
			{nil, ""},
		} {
			n.Set(c.set)
			time.Sleep(time.Minute)
			synctest.Wait()
			node, err := client.CoreV1().Nodes().Get(ctx, "n", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := node.Annotations["fairway.dev/networks"]; !ok || got != c.want || node.Annotations["other"] != "kept" {
				t.Errorf("annotations %v, want networks %q", node.Annotations, c.want)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestNodeNetworksOptions(t *testing.T) {
	if _, err := NewNodeNetworks(NodeNetworksOptions{}); err == nil {
		t.Error("no error for missing options")
	}
	if _, err := NewNodeNetworks(NodeNetworksOptions{Logger: slog.New(slog.DiscardHandler), Node: "n", Annotation: "a"}); err == nil {
		t.Error("no error without Config and Client")
	}
}
