package conntrack

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

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
			tt.change.Key = model.Key{Namespace: "ns", Name: "dns"}
			if tt.change.HadOld {
				if err := c.Changed(t.Context(), []change{{Key: tt.change.Key, New: tt.change.Old, HasNew: true}}); err != nil {
					t.Fatal(err)
				}
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

// at is where the tests' Services are.
var at = frontend{netip.MustParseAddr("10.96.0.10"), 53}

// named is a Service with that name, age in seconds, kind of its one frontend, and endpoint.
func named(name string, age int, kind plan.Kind, serving string) plan.Service {
	s := service(model.UDP, []string{at.addr.String()}, serving)
	s.Key.Name, s.Created, s.Frontends[0].Kind = name, time.Unix(int64(1000-age), 0), kind
	return s
}

// TestAddressPassedOn checks that the flows to a Service stay which has the address
// of one that went with the same changes, in whatever order they are told.
func TestAddressPassedOn(t *testing.T) {
	went, came := named("went", 2, plan.ClusterIP, "10.0.0.1:53"), named("came", 1, plan.ClusterIP, "10.0.0.2:53")
	both := []change{{Key: came.Key, New: came, HasNew: true}, {Key: went.Key, Old: went, HadOld: true}}
	for range 2 {
		c := newClaims()
		c.update([]change{{Key: went.Key, New: went, HasNew: true}})
		if got := c.update(both); !slices.Equal(got, []frontend{at}) {
			t.Errorf("the flows of %v are looked at", got)
		}
		if first, ok := c.first(at); !ok || first.Key != came.Key || !slices.Equal(first.serving, came.Frontends[0].Serving) {
			t.Errorf("with %s before %s, flows are kept to %v of %s", both[0].Key, both[1].Key, first.serving, first.Key)
		}
		slices.Reverse(both)
	}
}

// TestContestedAddress checks that only what really served counts where several
// Services want an address: what happens to one that goes without it is
// nothing to the flows there.
func TestContestedAddress(t *testing.T) {
	is := func(s plan.Service) change { return change{Key: s.Key, New: s, HasNew: true} }
	goes := func(s plan.Service) change { return change{Key: s.Key, Old: s, HadOld: true} }
	young, old := named("young", 1, plan.ExternalIP, "10.0.0.1:53"), named("old", 2, plan.ExternalIP, "10.0.0.2:53")
	c := newClaims()
	for _, step := range []struct {
		what   string
		change change
		looked bool
		serves string
	}{
		{"the young one has it alone", is(young), true, "10.0.0.1:53"},
		{"the older claim takes it", is(old), true, "10.0.0.2:53"},
		{"told of again", is(young), false, "10.0.0.2:53"},
		{"the one without it has other endpoints", is(named("young", 1, plan.ExternalIP, "10.0.0.3:53")), false, "10.0.0.2:53"},
		{"the one without it goes", goes(young), false, "10.0.0.2:53"},
		{"and comes back", is(young), false, "10.0.0.2:53"},
		{"the one that has it goes", goes(old), true, "10.0.0.1:53"},
		{"a cluster address comes before all", is(named("other", 0, plan.ClusterIP, "10.0.0.4:53")), true, "10.0.0.4:53"},
	} {
		looked := len(c.update([]change{step.change})) > 0
		first, _ := c.first(at)
		if looked != step.looked || !slices.Equal(first.serving, []netip.AddrPort{netip.MustParseAddrPort(step.serves)}) {
			t.Errorf("%s: flows are looked at %v, want %v; they may lead to %v, want %s", step.what, looked, step.looked, first.serving, step.serves)
		}
	}
	c.update([]change{goes(young), goes(named("other", 0, plan.ClusterIP, "10.0.0.4:53"))})
	if len(c.of) != 0 || len(c.services) != 0 {
		t.Errorf("of nothing, %d frontends of %d Services are remembered", len(c.of), len(c.services))
	}
}

// TestTriedAgain checks that what could not be removed is removed by a later
// call, as things stand then.
func TestTriedAgain(t *testing.T) {
	ns := testenv.NewLab(t).Netns("node")
	c, err := New(Options{NetNS: int(ns.Handle)})
	if err != nil {
		t.Fatal(err)
	}
	is := func(serving ...string) []change {
		s := service(model.UDP, []string{"10.96.0.10"}, serving...)
		return []change{{Key: s.Key, New: s, HasNew: true}}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.Changed(t.Context(), is("10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53")))
	for i := range 3 {
		add(t, ns, unix.IPPROTO_UDP, fmt.Sprintf("10.0.9.9:%d", 1001+i), "10.96.0.10:53", fmt.Sprintf("10.0.0.%d:53", i+1))
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Changed(ended, is("10.0.0.3:53")); err == nil {
		t.Fatal("no error though nothing was done")
	}
	bad := c.netns
	c.netns = -2 // no file at all
	if err := c.Changed(t.Context(), is("10.0.0.2:53", "10.0.0.3:53")); err == nil {
		t.Fatal("no error in no network namespace")
	}
	c.netns = bad
	if got := len(flows(t, c)); got != 3 {
		t.Fatalf("%d flows left of 3, though nothing could be removed", got)
	}
	must(c.Changed(t.Context(), nil))
	want := []string{"10.96.0.10:53 10.0.0.2:53", "10.96.0.10:53 10.0.0.3:53"}
	if diff := cmp.Diff(want, flows(t, c)); diff != "" {
		t.Error(diff)
	}
	if len(c.suspects) != 0 {
		t.Errorf("%d frontends are still to be looked at", len(c.suspects))
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
