package cases

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// ownServer checks where clients of the node's own server go: there while it is
// known to answer, else to that of another node, if there is one.
func (r *run) ownServer(t *testing.T) {
	key := model.Key{Namespace: "cases", Name: "own"}
	own := netip.AddrPortFrom(r.addr("node-1"), serverPort)
	service := func(list string) plan.Service {
		set := r.endpoints(key, list)
		for i := range set.Endpoints {
			e := &set.Endpoints[i]
			e.Hints = &model.Hints{Nodes: []string{e.Node}}
		}
		return plan.Compile(plan.Input{
			Service: &model.Service{
				Key: key, ClusterIPs: []netip.Addr{r.addr("vip")}, IPv4: r.family == 0, IPv6: r.family == 1,
				Ports: []model.ServicePort{{Name: "web", Protocol: r.protocol, Port: 80}},
			},
			Endpoints: set, Node: r.n.Node1, Options: plan.Options{OwnServer: []netip.AddrPort{own}},
		})
	}
	both, retired, alone := service("node-1 pod-c"), service("node-1/terminating pod-c"), service("node-1")
	defer func() {
		_ = r.dp.Apply(t.Context(), []reconcile.Change[model.Key, plan.Service]{{Key: key}})
		_ = r.dp.Pulse(time.Millisecond, nil, nil)
	}()
	pulse := func(valid time.Duration, direct ...netip.AddrPort) func() {
		return func() {
			if err := r.dp.Pulse(valid, nil, direct); err != nil {
				t.Fatal(err)
			}
		}
	}
	direct := r.directServer(t)
	r.n.Hosts["pod-b"].ChecksumInSoftware("eth0")
	to := netip.AddrPortFrom(r.addr("vip"), 80)
	for _, step := range []struct {
		when string
		do   func()
		want string
	}{
		{"nothing is known of it", func() { r.apply(t, both) }, "pod-c"},
		{"it answers", pulse(time.Hour), "node-1"},
		{"it has been silent for long", pulse(time.Millisecond), "pod-c"},
		{"it answers again", pulse(time.Hour), "node-1"},
		{"it is about to end", func() { r.apply(t, retired) }, "pod-c"},
		{"it is there again", func() { r.apply(t, both) }, "node-1"},
		{"it has been silent for long, and is the only one", func() { r.apply(t, alone); pulse(time.Millisecond)() }, "node-1"},
		{"the only one answers at the address itself", pulse(time.Hour, direct), "direct"},
		{"there is another one", func() { r.apply(t, both) }, "direct"},
		{"it is about to end, and answers at the address itself", func() { r.apply(t, retired) }, "pod-c"},
		{"it is there again, at the address itself", func() { r.apply(t, both) }, "direct"},
		{"it has been silent for long at the address itself", pulse(time.Millisecond, direct), "pod-c"},
		{"it answers there again", pulse(time.Hour, direct), "direct"},
		{"it answers there no more", pulse(time.Hour), "node-1"},
	} {
		step.do()
		clients := []string{"pod-a", "node-1"}
		if step.want == "direct" {
			clients = append(clients, "pod-b", "pod-c", "outside")
		}
		for _, from := range clients {
			r.eventually(t, func() error {
				a, err := r.ask(probe{from: from}, to, patience)
				if err != nil {
					return err
				}
				if a.Name != step.want {
					return fmt.Errorf("%s answers, want %s", a.Name, step.want)
				}
				if step.want == "direct" && a.Client.Addr() != r.addr(from) {
					return fmt.Errorf("the server sees %s, want %s", a.Client.Addr(), r.addr(from))
				}
				return nil
			}, "when "+step.when+", "+from)
		}
		if step.want == "direct" {
			r.untracked(t, step.when, clients, to)
		}
	}
}

// directServer answers at the frontend's address, with another port, as "direct".
func (r *run) directServer(t *testing.T) netip.AddrPort {
	node, at := r.n.Hosts["node-1"], netip.AddrPortFrom(r.addr("vip"), serverPort)
	lo, err := node.Netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	local := &netlink.Route{
		Dst: &net.IPNet{IP: at.Addr().AsSlice(), Mask: net.CIDRMask(at.Addr().BitLen(), at.Addr().BitLen())}, LinkIndex: lo.Attrs().Index,
		Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Src: r.addr("node-1").AsSlice(),
	}
	if err := node.Netlink.RouteReplace(local); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Netlink.RouteDel(local); err != nil {
			t.Error(err)
		}
	})
	node.Sysctl("net.ipv6.ip_nonlocal_bind", "1")
	if r.protocol == model.TCP { // the first one; it answers by UDP, too
		node.Identify("direct", at)
	}
	return at
}

// untracked checks that connection tracking knows nothing of clients of a frontend
// that have been answered.
func (r *run) untracked(t *testing.T, when string, clients []string, to netip.AddrPort) {
	t.Helper()
	node := r.n.Hosts["node-1"]
	node.ForgetConnections()
	for _, from := range clients {
		if _, err := r.ask(probe{from: from}, to, patience); err != nil {
			t.Errorf("when %s, %s: %v", when, from, err)
		}
	}
	flows, err := node.Netlink.ConntrackTableList(netlink.ConntrackTable, netlink.InetFamily([]int{unix.AF_INET, unix.AF_INET6}[r.family]))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range flows {
		for _, ip := range []net.IP{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP} {
			if a, _ := netip.AddrFromSlice(ip); a.Unmap() == to.Addr() {
				t.Errorf("when %s, connection tracking has %s", when, f)
				break
			}
		}
	}
}

// eventually waits for what takes the kernel a moment.
func (r *run) eventually(t *testing.T, check func() error, what string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// runOwnServer runs the case in both families with both protocols.
func runOwnServer(t *testing.T, with run) {
	for family, suffix := range []string{"4", "6"} {
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
			t.Run(strings.ToLower(protocol.String())+suffix, func(t *testing.T) {
				r := with
				r.family, r.protocol = family, protocol
				r.ownServer(t)
			})
		}
	}
}
