package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/lb/ipam"
	"fairway.dev/fairway/internal/testenv/kubeapi"
)

// TestControllerEvents runs the controller role on Services that cannot be
// right: each gets the Event that tells so, and no other Service gets any.
func TestControllerEvents(t *testing.T) {
	start := time.Now().Add(-time.Hour)
	n := 0
	service := func(name string, edit func(*corev1.Service)) *corev1.Service {
		n++
		ip := "10.96.0." + string(rune('0'+n))
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, CreationTimestamp: metav1.NewTime(start.Add(time.Duration(n) * time.Minute))},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}},
		}
		if edit != nil {
			edit(s)
		}
		return s
	}
	alias := func(to string) func(*corev1.Service) {
		return func(s *corev1.Service) {
			s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: to + ".default.svc.cluster.local"}
		}
	}
	protocol, number, empty := corev1.ProtocolTCP, int32(8080), ""
	api := kubeapi.New()
	api.Put(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		service("good", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.99"} }),
		service("loopback", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"127.0.0.1", "192.0.2.98"} }),
		service("of-node", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.1"} }),
		service("bad-lb", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "169.254.1.1"}}
		}),
		service("young", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.99"} }),
		service("portless", func(s *corev1.Service) { s.Spec.Ports = nil }),
		service("icmp", func(s *corev1.Service) { s.Spec.Ports[0].Protocol = "ICMP" }),
		service("bad-endpoint", nil),
		service("round-a", alias("round-b")),
		service("round-b", alias("round-a")),
		service("alias", alias("good")),
		&discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "bad-endpoint-1", Labels: map[string]string{discoveryv1.LabelServiceName: "bad-endpoint"}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &empty, Port: &number, Protocol: &protocol}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"169.254.9.9"}}, {Addresses: []string{"10.244.0.9"}}},
		},
	)
	listener, err := api.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(listener.Stop)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := listener.WriteKubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- RunController(ctx, ControllerOptions{Common: Common{Kubeconfig: kubeconfig, Logger: quiet}, Addresses: ipam.Options{Mode: ipam.Off}})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the controller role ended with %v", err)
		}
	}()
	events := func() map[string]string {
		out := map[string]string{}
		resp, err := http.Get("http://" + listener.Addr + "/api/v1/namespaces/default/events")
		if err != nil {
			return out
		}
		defer resp.Body.Close()
		var list corev1.EventList
		if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
			return out
		}
		for _, e := range list.Items {
			if e.InvolvedObject.Kind == "Service" {
				out[e.InvolvedObject.Name+" "+e.Reason] = e.Message
			}
		}
		return out
	}
	want := map[string]string{
		"loopback ExternalIPInvalid":        "127.0.0.1 is a loopback address",
		"of-node ExternalIPOfNode":          "192.0.2.1 is the address of Node node-1",
		"bad-lb LoadBalancerAddressInvalid": "169.254.1.1 is a link-local address",
		"young AddressTaken":                "192.0.2.99 port 80/TCP is served by Service default/good",
		"portless NoPorts":                  "at least one port",
		"icmp InvalidValue":                 "is no protocol of a port",
		"icmp NoPorts":                      "at least one port",
		"round-a InvalidValue":              `"round-b.default.svc.cluster.local" leads round in a circle (default/round-a, default/round-b, default/round-a), so that DNS answers SERVFAIL`,
		"round-b InvalidValue":              "(default/round-b, default/round-a, default/round-b)",
		"bad-endpoint EndpointInvalid":      "169.254.9.9 is a link-local address",
	}
	wants(t, "all Events", func() bool { return len(events()) >= len(want) })
	got := events()
	for what, part := range want {
		if !strings.Contains(got[what], part) {
			t.Errorf("Event %s: %q, want it to tell %q", what, got[what], part)
		}
		delete(got, what)
	}
	for what, message := range got {
		t.Errorf("Event %s that should not be: %s", what, message)
	}
}
