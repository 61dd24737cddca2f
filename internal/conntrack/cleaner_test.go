package conntrack

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/testenv"
)

type change = reconcile.Change[model.Key, plan.Service]

// add makes an entry as translation leaves it: the client sends to to, and
// answers come from from.
func add(t *testing.T, ns *testenv.Netns, protocol uint8, client, to, from string) {
	t.Helper()
	c, d, s := netip.MustParseAddrPort(client), netip.MustParseAddrPort(to), netip.MustParseAddrPort(from)
	family := uint8(unix.AF_INET)
	if c.Addr().Is6() {
		family = unix.AF_INET6
	}
	flow := &netlink.ConntrackFlow{
		FamilyType: family,
		Forward:    netlink.IPTuple{SrcIP: c.Addr().AsSlice(), SrcPort: c.Port(), DstIP: d.Addr().AsSlice(), DstPort: d.Port(), Protocol: protocol},
		Reverse:    netlink.IPTuple{SrcIP: s.Addr().AsSlice(), SrcPort: s.Port(), DstIP: c.Addr().AsSlice(), DstPort: c.Port(), Protocol: protocol},
		TimeOut:    1000,
	}
	if protocol == unix.IPPROTO_TCP {
		flow.ProtoInfo = &netlink.ProtoInfoTCP{State: 3}
	}
	if err := ns.Netlink.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(family), flow); err != nil {
		t.Fatal(err)
	}
}

// flows returns what the kernel has, each as "to answers".
func flows(t *testing.T, c *Cleaner) []string {
	t.Helper()
	var out []string
	for _, ipv6 := range []bool{false, true} {
		for _, f := range ask(t, c, question{ipv6: ipv6}) {
			out = append(out, fmt.Sprint(f.to, " ", f.answers))
		}
	}
	slices.Sort(out)
	return out
}

func ask(t *testing.T, c *Cleaner, q question) []flow {
	t.Helper()
	conn, err := c.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	list, err := list(conn, q)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// service has UDP port 53 at these addresses, an unspecified one for NodePort 30053.
func service(protocol model.Protocol, addrs []string, serving ...string) plan.Service {
	s := plan.Service{Key: model.Key{Namespace: "ns", Name: "dns"}}
	for _, a := range addrs {
		f := plan.Frontend{Addr: netip.MustParseAddr(a), Protocol: protocol, Port: 53}
		if f.Addr.IsUnspecified() {
			f.Kind, f.Port = plan.NodePort, 30053
		}
		for _, e := range serving {
			if ep := netip.MustParseAddrPort(e); ep.Addr().Is4() == f.Addr.Is4() {
				f.Serving = append(f.Serving, ep)
			}
		}
		s.Frontends = append(s.Frontends, f)
	}
	return s
}

func TestChanged(t *testing.T) {
	vip := []string{"10.96.0.10"}
	all := []string{"10.96.0.10", "0.0.0.0", "fd00:96::10"}
	many := vip
	for i := range frontendsAtOnce + 3 {
		many = append(many, fmt.Sprintf("10.96.1.%d", i))
	}
	udp, tcp := model.UDP, model.TCP
	tests := []struct {
		name   string
		change change
		gone   []string
	}{{
		name:   "an endpoint stopped serving",
		change: change{Old: service(udp, vip, "10.0.0.1:53", "10.0.0.2:53"), New: service(udp, vip, "10.0.0.2:53"), HadOld: true, HasNew: true},
		gone:   []string{"10.96.0.10:53 10.0.0.1:53", "10.96.0.10:53 10.96.0.10:53"},
	}, {
		name:   "the target port changed",
		change: change{Old: service(udp, vip, "10.0.0.1:53", "10.0.0.2:53"), New: service(udp, vip, "10.0.0.1:54", "10.0.0.2:53"), HadOld: true, HasNew: true},
		gone:   []string{"10.96.0.10:53 10.0.0.1:53", "10.96.0.10:53 10.96.0.10:53"},
	}, {
		name:   "an endpoint more: nobody is disturbed",
		change: change{Old: service(udp, vip, "10.0.0.1:53"), New: service(udp, vip, "10.0.0.1:53", "10.0.0.3:53"), HadOld: true, HasNew: true},
	}, {
		name:   "the first endpoint",
		change: change{Old: service(udp, vip), New: service(udp, vip, "10.0.0.1:53", "10.0.0.2:53"), HadOld: true, HasNew: true},
		gone:   []string{"10.96.0.10:53 10.96.0.10:53"},
	}, {
		name:   "the last endpoint",
		change: change{Old: service(udp, all, "10.0.0.1:53", "[fd00::1]:53"), New: service(udp, all), HadOld: true, HasNew: true},
		gone: []string{
			"10.96.0.10:53 10.0.0.1:53", "10.96.0.10:53 10.0.0.2:53", "10.96.0.10:53 10.96.0.10:53", "192.0.2.1:30053 10.0.0.1:53", "[fd00:96::10]:53 [fd00::1]:53",
		},
	}, {
		name:   "the Service went",
		change: change{Old: service(udp, vip, "10.0.0.1:53", "10.0.0.2:53"), HadOld: true},
		gone:   []string{"10.96.0.10:53 10.0.0.1:53", "10.96.0.10:53 10.0.0.2:53", "10.96.0.10:53 10.96.0.10:53"},
	}, {
		name:   "after a restart, when what was is not known",
		change: change{New: service(udp, all, "10.0.0.2:53"), HasNew: true},
		gone:   []string{"10.96.0.10:53 10.0.0.1:53", "10.96.0.10:53 10.96.0.10:53", "192.0.2.1:30053 10.0.0.1:53", "[fd00:96::10]:53 [fd00::1]:53"},
	}, {
		name:   "very many frontends at once",
		change: change{New: service(udp, many, "10.0.0.2:53"), HasNew: true},
		gone:   []string{"10.96.0.10:53 10.0.0.1:53", "10.96.0.10:53 10.96.0.10:53"},
	}, {
		name:   "TCP is left alone",
		change: change{Old: service(tcp, all, "10.0.0.1:53"), New: service(tcp, all), HadOld: true, HasNew: true},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ns := testenv.NewLab(t).Netns("node")
			c, err := New(Options{NetNS: int(ns.Handle)})
			if err != nil {
				t.Fatal(err)
			}
			add(t, ns, unix.IPPROTO_UDP, "10.0.9.9:1001", "10.96.0.10:53", "10.0.0.1:53")
			add(t, ns, unix.IPPROTO_UDP, "10.0.9.9:1002", "10.96.0.10:53", "10.0.0.2:53")
			add(t, ns, unix.IPPROTO_UDP, "10.0.9.9:1003", "10.96.0.10:53", "10.96.0.10:53") // before there was a Service
			add(t, ns, unix.IPPROTO_UDP, "10.0.9.9:1004", "10.96.0.10:54", "10.0.0.1:53")   // another port
			add(t, ns, unix.IPPROTO_UDP, "10.0.9.9:1005", "10.96.0.11:53", "10.0.0.1:53")   // another Service
			add(t, ns, unix.IPPROTO_UDP, "10.0.9.9:1006", "192.0.2.1:30053", "10.0.0.1:53") // the node port
			add(t, ns, unix.IPPROTO_UDP, "10.0.9.9:1007", "192.0.2.9:30053", "192.0.2.9:30053")
			add(t, ns, unix.IPPROTO_UDP, "[fd00::9]:1001", "[fd00:96::10]:53", "[fd00::1]:53")
			add(t, ns, unix.IPPROTO_TCP, "10.0.9.9:1001", "10.96.0.10:53", "10.0.0.1:53")
			before := flows(t, c)
			if err := c.Changed(t.Context(), []change{tt.change}); err != nil {
				t.Fatal(err)
			}
			want := slices.DeleteFunc(before, func(f string) bool { return slices.Contains(tt.gone, f) })
			if diff := cmp.Diff(want, flows(t, c)); diff != "" {
				t.Error(diff)
			}
			tcp, err := ns.Netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
			if err != nil || !slices.ContainsFunc(tcp, func(f *netlink.ConntrackFlow) bool { return f.Forward.Protocol == unix.IPPROTO_TCP }) {
				t.Errorf("the TCP connection has gone: %v", err)
			}
		})
	}
}

// TestAddressPassedOn checks that the flows to a Service stay which has the address
// of one that went with the same changes, in whatever order they are told.
func TestAddressPassedOn(t *testing.T) {
	vip := []string{"10.96.0.10"}
	went, came := service(model.UDP, vip, "10.0.0.1:53"), service(model.UDP, vip, "10.0.0.2:53")
	went.Key.Name = "went"
	both := []change{{Key: came.Key, New: came, HasNew: true}, {Key: went.Key, Old: went, HadOld: true}}
	for range 2 {
		got := affected(both)[frontend{netip.MustParseAddr(vip[0]), 53}]
		if diff := cmp.Diff(came.Frontends[0].Serving, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("of %s and %s, flows are kept to other endpoints than planned\n%s", both[0].Key, both[1].Key, diff)
		}
		slices.Reverse(both)
	}
}

// TestKernelSelects checks that a question is answered by the kernel with the
// flows of the frontend only: that is what keeps a change cheap.
func TestKernelSelects(t *testing.T) {
	ns := testenv.NewLab(t).Netns("node")
	c, err := New(Options{NetNS: int(ns.Handle)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		add(t, ns, unix.IPPROTO_UDP, fmt.Sprintf("10.0.9.9:%d", 2000+i), fmt.Sprintf("10.96.0.%d:53", i), "10.0.0.1:53")
		add(t, ns, unix.IPPROTO_UDP, fmt.Sprintf("10.0.9.9:%d", 3000+i), fmt.Sprintf("192.0.2.1:%d", 30000+i), "10.0.0.1:53")
	}
	add(t, ns, unix.IPPROTO_TCP, "10.0.9.9:2007", "10.96.0.7:53", "10.0.0.1:53")
	for name, tt := range map[string]struct {
		q    question
		want int
	}{
		"a frontend":  {question{of: frontend{netip.MustParseAddr("10.96.0.7"), 53}}, 1},
		"a node port": {question{of: frontend{netip.MustParseAddr("0.0.0.0"), 30007}}, 1},
		"everything":  {question{}, 100},
		"IPv6":        {question{ipv6: true}, 0},
	} {
		if got := len(ask(t, c, tt.q)); got != tt.want {
			t.Errorf("%s: the kernel gave %d flows, want %d", name, got, tt.want)
		}
	}
}
