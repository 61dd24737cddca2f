package runtime

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPodNetwork checks that Pods and their node reach each other by the
// addresses they have.
func TestPodNetwork(t *testing.T) {
	n := newNode(t)
	a, b := n.pod(), n.pod()
	n.server(a)
	for i := range podCIDRs {
		ipA, ipB := n.addresses(a)[i], n.addresses(b)[i]
		if !podCIDRs[i].Contains(netip.MustParseAddr(ipA)) || ipA == ipB {
			t.Fatalf("addresses %s and %s", ipA, ipB)
		}
		for _, network := range []string{"tcp", "udp"} {
			to := net.JoinHostPort(ipA, "8080")
			if got := n.client(b, network, to); got != ipB+" <nil>" {
				t.Errorf("%s from Pod %s to Pod %s: the server saw %s", network, ipB, to, got)
			}
			if got, err := dial(network, to); got != nodeIPs[i].String() {
				t.Errorf("%s from the node to Pod %s: the server saw %s %v", network, to, got, err)
			}
		}
		listener, err := net.Listen("tcp", net.JoinHostPort(nodeIPs[i].String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		go func() {
			if conn, err := listener.Accept(); err == nil {
				answer(conn)
			}
		}()
		if got := n.client(b, "tcp", listener.Addr().String()); got != ipB+" <nil>" {
			t.Errorf("from Pod %s to the node: it saw %s", ipB, got)
		}
	}
}

// TestRemovedPodIsGone checks that nothing of a removed Pod stays.
func TestRemovedPodIsGone(t *testing.T) {
	n := newNode(t)
	before := links(t)
	pod := n.pod()
	n.server(pod)
	if len(links(t)) == len(before) {
		t.Fatal("a Pod has no link")
	}
	for range 2 { // kubelet may repeat itself
		if err := n.service.StopPodSandbox(context.Background(), pod); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := n.service.PodSandboxStatus(context.Background(), pod, false); err != nil || s.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("status %v %v", s, err)
	}
	if diff := cmp.Diff(before, links(t)); diff != "" {
		t.Errorf("links: %s", diff)
	}
	for range 2 {
		if err := n.service.RemovePodSandbox(context.Background(), pod); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.service.PodSandboxStatus(context.Background(), pod, false); err == nil || !strings.Contains(err.Error(), "NotFound") {
		t.Errorf("status of a removed Pod: %v", err)
	}
	if entries, _ := os.ReadDir(n.runtime.CgroupPath()); hasDir(entries) {
		t.Errorf("cgroups stay: %v", entries)
	}
	for _, dir := range []string{n.runtime.sandboxDir(""), n.runtime.shmRoot()} {
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("%s has %v", dir, entries)
		}
	}
}

func hasDir(entries []os.DirEntry) bool {
	for _, e := range entries {
		if e.IsDir() {
			return true
		}
	}
	return false
}

func links(t *testing.T) []string {
	t.Helper()
	list, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range list {
		out = append(out, l.Attrs().Name)
	}
	return out
}

// TestHostPort reaches a Pod through its node's addresses.
func TestHostPort(t *testing.T) {
	n := newNode(t)
	pod := n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{
			{Protocol: runtimeapi.Protocol_TCP, HostPort: 8181, ContainerPort: 8080},
			{Protocol: runtimeapi.Protocol_UDP, HostPort: 8181, ContainerPort: 8080},
			{Protocol: runtimeapi.Protocol_TCP, HostPort: 8282, ContainerPort: 8080, HostIp: "127.0.0.1"},
			{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 8080},
		}
	})
	other := n.pod()
	n.server(pod)
	ip4, ip6 := n.addresses(other)[0], n.addresses(other)[1]
	own4 := n.addresses(pod)[0]
	tests := []struct {
		name, from, network, to, want string
	}{
		{"node", "", "tcp", "10.245.0.1:8181", "10.245.0.1"},
		{"node, UDP", "", "udp", "10.245.0.1:8181", "10.245.0.1"},
		{"node, IPv6", "", "tcp", "[fd00:10:245::1]:8181", "fd00:10:245::1"},
		{"localhost", "", "tcp", "127.0.0.1:8181", "10.245.0.1"},
		{"localhost, UDP", "", "udp", "127.0.0.1:8181", "10.245.0.1"},
		{"bound to localhost", "", "tcp", "127.0.0.1:8282", "10.245.0.1"},
		{"another Pod", other, "tcp", "10.245.0.1:8181", ip4},
		{"another Pod, UDP", other, "udp", "10.245.0.1:8181", ip4},
		{"another Pod, IPv6", other, "tcp", "[fd00:10:245::1]:8181", ip6},
		{"the Pod itself", pod, "tcp", "10.245.0.1:8181", "10.245.0.1"},
		{"wrong address", "", "tcp", "10.245.0.1:8282", ""},
		{"other protocol", "", "udp", "127.0.0.1:8282", ""},
		{"not the node's address", other, "tcp", own4 + ":8181", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got string
			if tt.from == "" {
				got, _ = dial(tt.network, tt.to)
			} else if got = n.client(tt.from, tt.network, tt.to); strings.HasSuffix(got, " <nil>") {
				got = strings.TrimSuffix(got, " <nil>")
			} else {
				got = ""
			}
			if got != tt.want {
				t.Errorf("%s to %s: the server saw %q, want %q", tt.network, tt.to, got, tt.want)
			}
		})
	}
	if err := n.service.RemovePodSandbox(context.Background(), pod); err != nil {
		t.Fatal(err)
	}
	if got, err := dial("tcp", "10.245.0.1:8181"); err == nil {
		t.Errorf("the port of a removed Pod answers %s", got)
	}
	if got := n.output(n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, HostPort: 8181, ContainerPort: 8080}}
	}), "echo fine"); got != "fine\n" {
		t.Errorf("the port cannot be taken again: %q", got)
	}
}

// TestUDPHostPortOfANewPod goes on sending from one socket while Pods come and
// go.
func TestUDPHostPortOfANewPod(t *testing.T) {
	n := newNode(t)
	conn, err := net.Dial("udp", "10.245.0.1:8181")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func() error {
		_, _ = conn.Write([]byte("?")) // an error is about the packet before
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := conn.Read(make([]byte, 100))
		return err
	}
	if err := ask(); err == nil {
		t.Fatal("somebody answers before there is a Pod")
	}
	for range 2 {
		pod := n.pod(func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_UDP, HostPort: 8181, ContainerPort: 8080}}
		})
		n.server(pod)
		n.eventually(ask)
		if err := n.service.RemovePodSandbox(context.Background(), pod); err != nil {
			t.Fatal(err)
		}
		if err := ask(); err == nil {
			t.Fatal("a removed Pod answers")
		}
	}
}

// TestPodsCannotReachLocalhost checks that route_localnet, which host ports
// need, opens no way to the node's loopback.
func TestPodsCannotReachLocalhost(t *testing.T) {
	n := newNode(t)
	pod := n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, HostPort: 8181, ContainerPort: 8080}}
	})
	listener, err := net.ListenPacket("udp", "127.0.0.1:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	script := `sysctl -qw net.ipv4.conf.all.route_localnet=1; ip addr del 127.0.0.1/8 dev lo; ip route del local 127.0.0.0/8 table local
ip route add 127.0.0.1 via 169.254.1.1 dev eth0 onlink src ` + n.addresses(pod)[0] + `; echo hi > /dev/udp/127.0.0.1/7777; ip route get 127.0.0.1`
	out := n.output(pod, "", func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"bash", "-c", script}
		security(c).Privileged = true
	})
	if !strings.Contains(out, "via 169.254.1.1") {
		t.Fatalf("the attack is not tried: %s", out)
	}
	_ = listener.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	buf := make([]byte, 10)
	if k, from, err := listener.ReadFrom(buf); err == nil {
		t.Errorf("%q from %s came through", buf[:k], from)
	}
}

// TestMasquerade sends from a Pod to a peer outside of the cluster, and to one
// within.
func TestMasquerade(t *testing.T) {
	n := newNode(t, func(o *Options) {
		o.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}
	})
	peers, err := newNamespaces("outside", false, false)
	if err != nil {
		t.Fatal(err)
	}
	defer peers.close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "eth9", netlink.NsFd(int(peers.network.Fd()))
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(veth)
	configure(t, "uplink", "198.51.100.1/24", "2001:db8:2::1/64")
	for _, dst := range []string{"192.0.2.0/24", "2001:db8:1::/64"} {
		link, _ := netlink.LinkByName("uplink")
		_, prefix, _ := net.ParseCIDR(dst)
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: prefix}); err != nil {
			t.Fatal(err)
		}
	}
	var listeners []net.Listener
	err = peers.do(func() error {
		configure(t, "eth9", "198.51.100.2/24", "2001:db8:2::2/64", "192.0.2.2/24", "2001:db8:1::2/64")
		link, _ := netlink.LinkByName("eth9")
		for dst, gw := range map[string]string{"10.244.0.0/24": "198.51.100.1", "fd00:10:244::/64": "2001:db8:2::1"} {
			_, prefix, _ := net.ParseCIDR(dst)
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: prefix, Gw: net.ParseIP(gw)}); err != nil {
				return err
			}
		}
		l, err := net.Listen("tcp", "[::]:80")
		listeners = append(listeners, l)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listeners[0].Close()
	go func() {
		for {
			conn, err := listeners[0].Accept()
			if err != nil {
				return
			}
			go answer(conn)
		}
	}()
	pod := n.pod()
	ips := n.addresses(pod)
	for to, want := range map[string]string{
		"198.51.100.2:80": "198.51.100.1", "[2001:db8:2::2]:80": "2001:db8:2::1",
		"192.0.2.2:80": ips[0], "[2001:db8:1::2]:80": ips[1],
	} {
		n.eventually(func() error { // until IPv6 has made sure of its addresses
			if got := n.client(pod, "tcp", to); got != want+" <nil>" {
				return fmt.Errorf("to %s: the server saw %s, want %s", to, got, want)
			}
			return nil
		})
	}
}

// configure gives a link addresses and sets it up.
func configure(t *testing.T, name string, addresses ...string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = 2 // IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHostNetwork runs a Pod in the node's network.
func TestHostNetwork(t *testing.T) {
	n := newNode(t)
	pod := n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = ""
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	if got := n.addresses(pod); got[0] != "" {
		t.Errorf("addresses %v", got)
	}
	if got := n.output(pod, "hostname; ip -o addr show dev fairway0 | grep -o 10.245.0.1"); got != "node-1\n10.245.0.1\n" {
		t.Errorf("output %q", got)
	}
	n.server(pod)
	if got, err := dial("tcp", "127.0.0.1:8080"); err != nil {
		t.Errorf("the Pod's server answers %q, %v", got, err)
	}
}

// TestSharedNamespaces checks what the containers of a Pod share.
func TestSharedNamespaces(t *testing.T) {
	n := newNode(t)
	t.Run("network, memory and hostname", func(t *testing.T) {
		pod := n.pod()
		id := n.run(pod, "echo shared > /dev/shm/x; sleep 1000")
		n.eventually(func() error { _, err := n.exec(id, "test", "-s", "/dev/shm/x"); return err })
		got := n.output(pod, "cat /dev/shm/x; readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts")
		want, err := n.exec(id, "sh", "-c", "cat /dev/shm/x; readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts")
		if err != nil || got != want {
			t.Errorf("%q and %q", got, want)
		}
		if got := n.output(n.pod(), "cat /dev/shm/x 2>/dev/null; readlink /proc/self/ns/ipc"); strings.Contains(want, got) {
			t.Errorf("another Pod shares: %q", got)
		}
	})
	t.Run("processes", func(t *testing.T) {
		pod := n.pod(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		})
		share := func(c *runtimeapi.ContainerConfig) {
			security(c).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		}
		first := n.run(pod, "sleep 1111 & sleep 2222", share, func(c *runtimeapi.ContainerConfig) { c.LogPath = "first.log" })
		second := n.run(pod, "until pgrep -f 'sleep 1111' > /dev/null; do sleep 0.01; done; echo seen; sleep 1000", share, func(c *runtimeapi.ContainerConfig) { c.LogPath = "second.log" })
		n.eventually(func() error {
			if n.text(second) != "seen\n" {
				return fmt.Errorf("the second container does not see the first's processes")
			}
			return nil
		})
		if err := n.service.StopContainer(context.Background(), first, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := n.exec(second, "pgrep", "-f", "^sleep (1111|2222)"); err == nil {
			t.Error("processes of the stopped container run on")
		}
		if s := n.status(second); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Error("the second container ended with the first")
		}
		if err := n.service.StopPodSandbox(context.Background(), pod); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("processes of a target", func(t *testing.T) {
		pod := n.pod()
		target := n.run(pod, "sleep 3333")
		got := n.output(pod, "pgrep -f 'sleep 333[3]' > /dev/null && echo seen", func(c *runtimeapi.ContainerConfig) {
			security(c).NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target}
		})
		if got != "seen\n" {
			t.Errorf("output %q", got)
		}
		if s := n.status(target); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Error("the target ended")
		}
	})
	t.Run("processes and memory of the machine", func(t *testing.T) {
		pod := n.pod(func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
			c.Linux.SecurityContext.NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE
		})
		id := n.run(pod, "sleep 4444 & readlink /proc/self/ns/ipc; sleep 4444", func(c *runtimeapi.ContainerConfig) {
			security(c).NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
		})
		if _, err := n.exec(id, "test", "-d", fmt.Sprintf("/proc/%d/task", os.Getpid())); err != nil {
			t.Error("the machine's processes are not seen")
		}
		n.eventually(func() error {
			if own, _ := os.Readlink("/proc/self/ns/ipc"); n.text(id) != own+"\n" {
				return fmt.Errorf("IPC namespace %s, want %s", n.text(id), own)
			}
			return nil
		})
		if err := n.service.StopContainer(context.Background(), id, 0); err != nil {
			t.Fatal(err)
		}
	})
}

// TestSysctls sets a Pod's own.
func TestSysctls(t *testing.T) {
	n := newNode(t)
	pod := n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "20000 21000", "kernel.shm_rmid_forced": "1"}
	})
	if got := n.output(pod, "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced"); got != "20000\t21000\n1\n" {
		t.Errorf("got %q", got)
	}
	_, err := n.service.RunPodSandbox(context.Background(), &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "bad", Namespace: "default", Uid: "bad"},
		Linux:    &runtimeapi.LinuxPodSandboxConfig{Sysctls: map[string]string{"net.no.such": "1"}},
	}, "")
	if err == nil || !strings.Contains(err.Error(), "sysctl net.no.such=1") || !strings.Contains(err.Error(), "default/bad") {
		t.Errorf("error %v", err)
	}
	if entries, _ := os.ReadDir(n.runtime.sandboxDir("")); len(entries) != 1 {
		t.Errorf("the failed sandbox left %v", entries)
	}
}

// TestLists checks filters, labels and the identity that kubelet goes by.
func TestLists(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	a := n.pod(func(c *runtimeapi.PodSandboxConfig) {
		c.Labels, c.Annotations = map[string]string{"app": "a"}, map[string]string{"note": "x"}
	})
	b := n.pod(func(c *runtimeapi.PodSandboxConfig) { c.Labels = map[string]string{"app": "b"} })
	id := n.run(a, "sleep 1000", func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"container": "c"} })
	ended := n.run(b, "true")
	n.wait(ended)
	pods, err := n.service.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "a"}})
	if err != nil || len(pods) != 1 || pods[0].Id != a || pods[0].Metadata.Name != "pod-1" || pods[0].Annotations["note"] != "x" {
		t.Errorf("pods %v %v", pods, err)
	}
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	containers, err := n.service.ListContainers(ctx, &runtimeapi.ContainerFilter{State: running})
	if err != nil || len(containers) != 1 || containers[0].Id != id || containers[0].PodSandboxId != a || containers[0].Labels["container"] != "c" {
		t.Errorf("containers %v %v", containers, err)
	}
	if all, err := n.service.ListContainers(ctx, nil); err != nil || len(all) != 2 {
		t.Errorf("all containers %v %v", all, err)
	}
	if s := n.status(id); s.Image.Image != "busybox" || s.ImageId == "" || s.User.Linux.Uid != 0 || s.StartedAt == 0 || s.FinishedAt != 0 {
		t.Errorf("status %v", s)
	}
	status, err := n.service.Status(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range status.Status.Conditions {
		if !c.Status {
			t.Errorf("condition %v", c)
		}
	}
}

// TestStats checks that what a container uses is counted.
func TestStats(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	pod := n.pod()
	id := n.run(pod, "", func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"python3", "-c", "import time\nx = bytearray(50000000)\nend = time.time() + 1\nwhile time.time() < end: pass\ntime.sleep(1000)"}
	})
	n.eventually(func() error {
		s, err := n.service.ContainerStats(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if s.Cpu.UsageCoreNanoSeconds.Value < 200e6 || s.Memory.WorkingSetBytes.Value < 50e6 || s.Cpu.UsageNanoCores.Value == 0 {
			return fmt.Errorf("stats %v %v", s.Cpu, s.Memory)
		}
		return nil
	})
	if _, err := n.exec(id, "ping", "-c1", "-s", "1000", "10.245.0.1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.exec(id, "dd", "if=/dev/zero", "of=/tmp/file", "bs=1M", "count=5"); err != nil {
		t.Fatal(err)
	}
	all, err := n.service.ListPodSandboxStats(ctx, nil)
	if err != nil || len(all) != 1 {
		t.Fatalf("stats %v %v", all, err)
	}
	s := all[0].Linux
	if s.Network.DefaultInterface.RxBytes.Value < 1000 || s.Network.DefaultInterface.TxBytes.Value < 1000 || s.Process.ProcessCount.Value < 2 {
		t.Errorf("network %v processes %v", s.Network, s.Process)
	}
	if s.Containers[0].WritableLayer.UsedBytes.Value < 5<<20 {
		t.Errorf("writable layer %v", s.Containers[0].WritableLayer)
	}
}

// TestCgroups checks that every process is in its container's cgroup.
func TestCgroups(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	id := n.run(pod, "sleep 1000 & sleep 1000")
	if _, err := n.exec(id, "sh", "-c", "sleep 1000 &"); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(n.runtime.CgroupPath(), "poduid-1", id)
	n.eventually(func() error {
		// init, sh, and three times sleep
		if got := len(processes(dir)); got != 5 {
			return fmt.Errorf("%d processes in %s", got, dir)
		}
		return nil
	})
	if got := n.output(pod, "grep -c '^0::.*/fairway/node-1-.*/poduid-1/' /proc/self/cgroup"); got != "1\n" {
		t.Errorf("the first process is elsewhere: %q", got)
	}
}
