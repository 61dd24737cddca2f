package ebpf

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/testenv"
)

// TestUnspecifiedAddress checks that who dials the unspecified address, which
// means loopback, gets what listens in its own namespace, though the maps have
// NodePorts under that address; on the node that is a NodePort, if NodePorts are
// served at its loopback address.
func TestUnspecifiedAddress(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	pod, node := n.Hosts["pod-a"], n.Hosts["node-1"]
	pod.Run("ip", "link", "set", "lo", "up")
	node.Run("ip", "link", "set", "lo", "up")
	d := start(t, m.options(t, n))
	const nodePort = 30080
	web := func(protocol model.Protocol, name string) plan.Service {
		svc := &model.Service{
			Key: model.Key{Namespace: "ns", Name: name}, IPv4: true, IPv6: true,
			ClusterIPs: []netip.Addr{vip.Addr(), netip.MustParseAddr("fd00:10:96::10")},
			Ports:      []model.ServicePort{{Protocol: protocol, Port: 80, NodePort: nodePort}},
		}
		set := &model.EndpointSet{Key: svc.Key}
		for _, a := range []string{"10.244.0.3", "fd00:10:244::3"} {
			set.Endpoints = append(set.Endpoints, model.Endpoint{
				Addr: netip.MustParseAddr(a), Ready: true, Serving: true, Node: "node-1",
				Ports: []model.EndpointPort{{Protocol: protocol, Port: 8080}},
			})
		}
		return plan.Compile(plan.Input{Service: svc, Endpoints: set, Node: n.Node1})
	}
	apply(t, d, web(model.TCP, "web"), web(model.UDP, "web-udp"))
	prune(t, d, n)
	for i, any := range []string{"0.0.0.0", "::"} {
		free := uint16(nodePort + 1 + i)
		pod.Identify("itself", netip.AddrPortFrom(netip.MustParseAddr(any), free))
		for _, network := range []string{"tcp", "udp"} {
			ask := func(host string, port uint16) string {
				return askUnspecified(t, n.Hosts[host], any == "::", network == "tcp", port)
			}
			if got := ask("pod-a", nodePort); got == "pod-b" {
				t.Errorf("%s, %s: a Pod that dials itself reaches the NodePort's %s", any, network, got)
			}
			if got := ask("pod-a", free); got != "itself" {
				t.Errorf("%s, %s: a Pod that dials itself reaches %s", any, network, got)
			}
			if got := ask("node-1", nodePort); got != "pod-b" {
				t.Errorf("%s, %s: the node that dials itself reaches %s", any, network, got)
			}
		}
	}
	settings := n.Settings
	settings.NodePorts = []netip.Prefix{netip.MustParsePrefix("192.168.50.0/24")}
	if err := d.SetNode(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	if got := askUnspecified(t, node, false, true, nodePort); got == "pod-b" {
		t.Error("where no NodePort is served at loopback, the node that dials itself reaches one")
	}
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if flags := d.have.addresses[addressOf(a)]; flags != 0 {
			t.Errorf("packets to %s are looked at, with flags %d", a, flags)
		}
	}
	if err := d.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if flags := d.have.addresses[addressOf(netip.IPv4Unspecified())]; flags != 0 {
		t.Errorf("packets to 0.0.0.0 are looked at after the comparison with the kernel, with flags %d", flags)
	}
}

// askUnspecified is who answers at the unspecified address, or the error. The
// library would also dial the other family's, from another thread.
func askUnspecified(t *testing.T, host *testenv.Netns, v6, tcp bool, port uint16) (name string) {
	t.Helper()
	family, kind, to := unix.AF_INET, unix.SOCK_DGRAM, unix.Sockaddr(&unix.SockaddrInet4{Port: int(port)})
	if v6 {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port)}
	}
	if tcp {
		kind = unix.SOCK_STREAM
	}
	err := host.Do(func() error {
		s, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
			return err
		}
		if err := unix.Connect(s, to); err != nil {
			return err
		}
		if !tcp {
			if _, err := unix.Write(s, []byte("?")); err != nil {
				return err
			}
		}
		buf := make([]byte, 128)
		got, err := unix.Read(s, buf)
		if err != nil {
			return err
		}
		name, _, _ = strings.Cut(string(buf[:got]), " ")
		return nil
	})
	if err != nil {
		return err.Error()
	}
	return name
}
