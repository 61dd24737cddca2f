package servicetls

import (
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

var outsider, uplink = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.1")

// outside makes a machine beside the node and returns how to run commands there.
func outside(t *testing.T) func(args ...string) string {
	t.Helper()
	machine := exec.Command("sleep", "600")
	machine.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := machine.Start(); err != nil {
		t.Fatal(err)
	}
	pid := machine.Process.Pid
	t.Cleanup(func() { _ = machine.Process.Kill(); _ = machine.Wait() })
	in := func(args ...string) string {
		return command(t, "", "nsenter", append([]string{"-t", strconv.Itoa(pid), "-n", "--"}, args...)...)
	}
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(link) })
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(uplink, 24)}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{
		"ip address add 192.0.2.2/24 dev eth0", "ip link set eth0 up", "ip route add default via 192.0.2.1",
	} {
		if out := in(strings.Fields(step)...); out != "" {
			t.Fatalf("%s: %s", step, out)
		}
	}
	return in
}

func TestClientsFromOutside(t *testing.T) {
	l := newLab(t, nil)
	l.put(l.web())
	addr := webServer(t, pods[0])
	l.endpoints(addr)
	in := outside(t)
	curl := func(host string) string {
		return in("curl", "-sSk", "--max-time", "5", "-o", "-", "https://"+host+"/")
	}
	refused := func(what, got string) {
		t.Helper()
		if strings.Contains(got, "hello") || !strings.Contains(got, "reset") && !strings.Contains(got, "Reset") && !strings.Contains(got, "SSL_ERROR_SYSCALL") && !strings.Contains(got, "Couldn't connect") {
			t.Errorf("%s: %q", what, got)
		}
	}
	served := func(what, got, host string) {
		t.Helper()
		if got != "hello "+host+"\n" {
			t.Errorf("%s: %q", what, got)
		}
	}
	const vip, np = "10.96.0.20", "10.245.0.1:30443"
	served("cluster IP from outside", curl(vip), vip)
	served("NodePort from outside", curl(np), np)

	// Only this node's endpoints serve clients from outside; those inside are not bound.
	l.service.ExternalLocal = true
	l.put()
	refused("NodePort, Local, endpoint elsewhere", curl(np))
	served("cluster IP, Local for NodePorts", curl(vip), vip)
	inside := command(t, "", "curl", "-sSk", "--max-time", "5", "https://"+np+"/")
	served("NodePort, Local, from the node", inside, np)
	l.store.Update(func(tx *state.Tx) {
		tx.PutSlice(&model.EndpointSlice{Key: secretKey("web-a"), Service: l.service.Key, Endpoints: []model.Endpoint{{
			Addr: addr.Addr(), Ready: true, Serving: true, Node: "node-1",
			Ports: []model.EndpointPort{{Name: "https", Protocol: model.TCP, Port: addr.Port()}},
		}}})
	})
	l.settle()
	served("NodePort, Local, endpoint here", curl(np), np)

	// Source ranges bind at the load balancer's address.
	l.service.Type = model.LoadBalancer
	lb := "10.96.7.7"
	l.service.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: netip.MustParseAddr(lb)}}
	l.service.LoadBalancer.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	l.put()
	refused("outside of the source ranges", curl(lb))
	l.service.LoadBalancer.SourceRanges = []netip.Prefix{netip.PrefixFrom(outsider, 32)}
	l.put()
	served("inside of the source ranges", curl(lb), lb)
}
