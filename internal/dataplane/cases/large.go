package cases

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// largeEndpoints is the number of endpoints of the large Service; the API
// server's own limit of an Endpoints object is 1,000.
const largeEndpoints = 5000

// Kernel is how a test sees what a data path has in the kernel.
type Kernel struct {
	// Read reads it anew.
	Read func() (dataplane.Holdings, error)
	// Size tells in whatever words how much there is, so that a Service which
	// goes can be seen to leave nothing.
	Size func() (string, error)
}

// large is one run of a large Service.
type large struct {
	*testing.T
	n    *Network
	dp   dataplane.Dataplane
	k    Kernel
	port uint16 // of all endpoints
}

// Large runs a Service with 5,000 endpoints beside a small one: it is
// programmed, its connections go to all of its endpoints, changes of one
// endpoint and of all but one hold for the next connection, and when it goes
// it leaves nothing. The small one is served all the time.
func Large(t *testing.T, start Start, kernel func(t *testing.T, n *Network, dp dataplane.Dataplane) Kernel) {
	n := NewNetwork(t)
	l := &large{T: t, n: n, dp: start(t, n), port: 9090}
	l.k = kernel(t, n, l.dp)
	l.host()
	if err := l.dp.SetNode(t.Context(), n.Settings); err != nil {
		t.Fatal(err)
	}
	small := l.plan("small", "vip", []netip.AddrPort{netip.AddrPortFrom(names[0]["pod-b"], serverPort)})
	l.apply(small, true)
	if err := l.dp.Prune(t.Context(), maps.All(map[model.Key]plan.Service{small.Key: small})); err != nil {
		t.Fatal(err)
	}
	before := l.size()

	endpoints := make([]netip.AddrPort, largeEndpoints)
	addr := largeRange.Addr()
	for i := range endpoints {
		addr = addr.Next()
		endpoints[i] = netip.AddrPortFrom(addr, l.port)
	}
	big := l.plan("big", "free", endpoints)
	l.Logf("%d endpoints are programmed in %v", largeEndpoints, l.apply(big, true))
	l.holds(big, endpoints)
	for _, from := range []string{"pod-a", "node-1", "outside"} {
		// A client outside may get what a hash of its address and port chooses.
		if got := l.spread(from, endpoints); got < 20 {
			l.Errorf("40 connections from %s reach %d of %d endpoints", from, got, largeEndpoints)
		}
	}

	// One of the endpoints changes its address.
	moved := slices.Clone(endpoints)
	moved[largeEndpoints/2] = netip.AddrPortFrom(addr.Next(), l.port)
	big = l.plan("big", "free", moved)
	l.Logf("one change is programmed in %v", l.apply(big, true))
	l.holds(big, moved)
	l.spread("pod-a", moved)

	// All but one go: every connection reaches that one.
	one := moved[largeEndpoints/2 : largeEndpoints/2+1]
	big = l.plan("big", "free", one)
	l.apply(big, true)
	l.holds(big, one)
	l.spread("pod-a", one)
	l.spread("outside", one)

	// And all come again, before the Service goes.
	l.apply(l.plan("big", "free", endpoints), true)
	l.spread("pod-a", endpoints)
	l.apply(big, false)
	if _, err := l.n.Hosts["pod-a"].Ask("tcp", netip.AddrPort{}, netip.AddrPortFrom(names[0]["free"], 80), patience); err == nil {
		l.Error("the Service is served after its end")
	}
	if after := l.size(); after != before {
		l.Errorf("the Service leaves something: %s before it came, %s after it has gone", before, after)
	}
}

// largeRange has the addresses of the endpoints, all of them of pod-b.
var largeRange = netip.MustParsePrefix("10.244.64.0/19")

// host makes pod-b answer at every address of the range with that address.
func (l *large) host() {
	pod := l.n.Hosts["pod-b"]
	lo, err := pod.Netlink.LinkByName("lo")
	if err != nil {
		l.Fatal(err)
	}
	all := &net.IPNet{IP: largeRange.Addr().AsSlice(), Mask: net.CIDRMask(largeRange.Bits(), 32)}
	if err := pod.Netlink.RouteAdd(&netlink.Route{Dst: all, LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}); err != nil {
		l.Fatal(err)
	}
	l.n.Hosts["node-1"].Route(largeRange.String(), names[0]["pod-b"].String(), "p-pod-b")
	server := pod.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), l.port))
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(c, "%s %s\n", c.LocalAddr(), c.RemoteAddr())
			_ = c.Close()
		}
	}()
}

func (l *large) plan(name, vip string, endpoints []netip.AddrPort) plan.Service {
	svc := &model.Service{
		Key: model.Key{Namespace: "cases", Name: name}, IPv4: true, ClusterIPs: []netip.Addr{names[0][vip]},
		Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}},
	}
	set := &model.EndpointSet{Key: svc.Key}
	for _, e := range endpoints {
		set.Endpoints = append(set.Endpoints, model.Endpoint{
			Addr: e.Addr(), Ready: true, Serving: true, Node: "node-1", Ports: []model.EndpointPort{{Protocol: model.TCP, Port: e.Port()}},
		})
	}
	slices.SortFunc(set.Endpoints, func(a, b model.Endpoint) int { return a.Addr.Compare(b.Addr) })
	return plan.Compile(plan.Input{Service: svc, Endpoints: set, Node: l.n.Node1})
}

// apply brings a Service, or removes it, and checks that the small one is served.
func (l *large) apply(s plan.Service, wanted bool) time.Duration {
	l.Helper()
	began := time.Now()
	for key, err := range l.dp.Apply(l.Context(), []reconcile.Change[model.Key, plan.Service]{{Key: s.Key, New: s, HasNew: wanted}}) {
		l.Fatalf("%s: %v", key, err)
	}
	took := time.Since(began)
	if s.Key.Name != "small" {
		a, err := l.n.Hosts["pod-a"].Ask("tcp", netip.AddrPort{}, netip.AddrPortFrom(names[0]["vip"], 80), patience)
		if err != nil || a.Name != "pod-b" {
			l.Errorf("beside the large Service, the small one answers %v, %v", a, err)
		}
	}
	return took
}

// holds checks that the kernel has exactly these endpoints.
func (l *large) holds(s plan.Service, want []netip.AddrPort) {
	l.Helper()
	kernel, err := l.k.Read()
	if err != nil {
		l.Fatal(err)
	}
	held, ok := kernel.Held(&s.Frontends[0])
	want = slices.SortedFunc(slices.Values(want), netip.AddrPort.Compare)
	if !ok || held.Internal.Action != plan.Forward || !slices.Equal(held.Internal.Backends, want) {
		l.Errorf("the kernel holds %d endpoints, want %d, or others", len(held.Internal.Backends), len(want))
	}
}

// spread makes connections, each of which must reach one of the endpoints, and
// returns how many endpoints were reached.
func (l *large) spread(from string, want []netip.AddrPort) int {
	l.Helper()
	known := map[string]bool{}
	for _, e := range want {
		known[e.String()] = true
	}
	seen := map[string]bool{}
	for range tries {
		a, err := l.n.Hosts[from].Ask("tcp", netip.AddrPort{}, netip.AddrPortFrom(names[0]["free"], 80), patience)
		if err != nil {
			l.Fatalf("from %s: %v", from, err)
		}
		if !known[a.Name] {
			l.Fatalf("from %s: %s answers, which is no endpoint", from, strings.TrimSpace(a.Name))
		}
		seen[a.Name] = true
	}
	return len(seen)
}

func (l *large) size() string {
	l.Helper()
	s, err := l.k.Size()
	if err != nil {
		l.Fatal(err)
	}
	return s
}
