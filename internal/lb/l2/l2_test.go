package l2

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// world is a snapshot in the making.
type world struct{ store *state.Store }

func newWorld(nodes ...string) *world {
	w := &world{store: state.New()}
	for _, n := range nodes {
		w.node(&model.Node{Name: n, Ready: true})
	}
	return w
}

func (w *world) put(fn func(tx *state.Tx)) *world {
	w.store.Update(func(tx *state.Tx) { fn(tx); tx.SetSynced() })
	return w
}

func (w *world) node(n *model.Node) *world { return w.put(func(tx *state.Tx) { tx.PutNode(n) }) }

func (w *world) service(name string, edit func(*model.Service), addrs ...string) *world {
	s := &model.Service{Key: model.Key{Namespace: "default", Name: name}, Type: model.LoadBalancer}
	for _, a := range addrs {
		s.LoadBalancer.Ingress = append(s.LoadBalancer.Ingress, model.LoadBalancerIngress{Addr: addr(a)})
	}
	if edit != nil {
		edit(s)
	}
	return w.put(func(tx *state.Tx) { tx.PutService(s) })
}

func (w *world) endpoint(service, node string, ready bool) *world {
	return w.put(func(tx *state.Tx) {
		tx.PutSlice(&model.EndpointSlice{
			Key: model.Key{Namespace: "default", Name: service + "-" + node}, Service: model.Key{Namespace: "default", Name: service},
			Endpoints: []model.Endpoint{{Addr: addr("10.0.0.1"), Ready: ready, Node: node}},
		})
	})
}

// ending adds an endpoint that terminates and still serves.
func (w *world) ending(service, node string) *world {
	return w.put(func(tx *state.Tx) {
		tx.PutSlice(&model.EndpointSlice{
			Key: model.Key{Namespace: "default", Name: service + "-ending-" + node}, Service: model.Key{Namespace: "default", Name: service},
			Endpoints: []model.Endpoint{{Addr: addr("10.0.0.2"), Serving: true, Terminating: true, Node: node}},
		})
	})
}

func local(s *model.Service) { s.ExternalLocal = true }

func TestElect(t *testing.T) {
	one := addr("192.0.2.1")
	tests := []struct {
		name  string
		world *world
		want  map[netip.Addr]string
	}{
		{"nothing", newWorld("a"), map[netip.Addr]string{}},
		{"the only node", newWorld("a").service("s", nil, "192.0.2.1", "2001:db8::1"), map[netip.Addr]string{one: "a", addr("2001:db8::1"): "a"}},
		{"not ready", newWorld("a").node(&model.Node{Name: "b"}).service("s", nil, "192.0.2.1"), map[netip.Addr]string{one: "a"}},
		{"leaving", newWorld("a").node(&model.Node{Name: "b", Ready: true, Leaving: true}).service("s", nil, "192.0.2.1"), map[netip.Addr]string{one: "a"}},
		{"not on its network", newWorld("a").node(&model.Node{Name: "b", Ready: true, NetworksKnown: true, Networks: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}).service("s", nil, "192.0.2.1"), map[netip.Addr]string{one: "a"}},
		{"on no network", newWorld().node(&model.Node{Name: "b", Ready: true, NetworksKnown: true}).service("s", nil, "192.0.2.1"), map[netip.Addr]string{}},
		{"the one on its network", newWorld().node(&model.Node{Name: "a", Ready: true, NetworksKnown: true}).node(&model.Node{Name: "b", Ready: true, NetworksKnown: true, Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}).service("s", nil, "192.0.2.1"), map[netip.Addr]string{one: "b"}},
		{"none ready is not believed", newWorld().node(&model.Node{Name: "b"}).service("s", nil, "192.0.2.1"), map[netip.Addr]string{one: "b"}},
		{"local", newWorld("a", "b", "c").service("s", local, "192.0.2.1").endpoint("s", "b", true).endpoint("s", "a", false), map[netip.Addr]string{one: "b"}},
		{"local without endpoints", newWorld("a", "b").service("s", local, "192.0.2.1").endpoint("s", "b", false), map[netip.Addr]string{}},
		{"local, terminating beside ready", newWorld("a", "b").service("s", local, "192.0.2.1").ending("s", "a").endpoint("s", "b", true), map[netip.Addr]string{one: "b"}},
		{"local, the last one terminating", newWorld("a", "b", "c").service("s", local, "192.0.2.1").ending("s", "b").endpoint("s", "a", false), map[netip.Addr]string{one: "b"}},
		{"local, ready on a node that leaves", newWorld("a").node(&model.Node{Name: "b", Ready: true, Leaving: true}).service("s", local, "192.0.2.1").endpoint("s", "b", true).ending("s", "a"), map[netip.Addr]string{one: "a"}},
		{"local without any slice", newWorld("a", "b").service("s", local, "192.0.2.1"), map[netip.Addr]string{}},
		{"cluster without endpoints", newWorld("a").service("s", nil, "192.0.2.1"), map[netip.Addr]string{one: "a"}},
		{"shared with a local one", newWorld("a", "b", "c").service("r", nil, "192.0.2.1").service("s", local, "192.0.2.1").endpoint("s", "b", true), map[netip.Addr]string{one: "b"}},
		{"another class", newWorld("a").service("s", func(s *model.Service) { s.LoadBalancer.Class = "example.com/x" }, "192.0.2.1"), map[netip.Addr]string{}},
		{"our class", newWorld("a").service("s", func(s *model.Service) { s.LoadBalancer.Class = class }, "192.0.2.1"), map[netip.Addr]string{one: "a"}},
		{"another type", newWorld("a").service("s", func(s *model.Service) { s.Type = model.NodePort }, "192.0.2.1"), map[netip.Addr]string{}},
		{"through a proxy", newWorld("a").service("s", func(s *model.Service) { s.LoadBalancer.Ingress[0].Proxy = true }, "192.0.2.1"), map[netip.Addr]string{}},
		{"a node's own", newWorld().node(&model.Node{Name: "a", Ready: true, Addrs: []netip.Addr{one}}).service("s", nil, "192.0.2.1"), map[netip.Addr]string{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Elect(tt.world.store.Snapshot()), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestElectIsStable: a node that goes moves only its own addresses, and the
// addresses are spread over the nodes.
func TestElectIsStable(t *testing.T) {
	w := newWorld("a", "b", "c", "d")
	for i := range 200 {
		w.service(fmt.Sprint(i), nil, fmt.Sprintf("192.0.2.%d", i))
	}
	before := Elect(w.store.Snapshot())
	count := map[string]int{}
	for _, n := range before {
		count[n]++
	}
	for _, n := range []string{"a", "b", "c", "d"} {
		if count[n] < 20 {
			t.Errorf("node %s has %d of 200 addresses", n, count[n])
		}
	}
	after := Elect(w.node(&model.Node{Name: "c"}).store.Snapshot())
	for a, n := range before {
		if n != "c" && after[a] != n || after[a] == "c" {
			t.Errorf("%s moved from %s to %s when c went", a, n, after[a])
		}
	}
}

var (
	macA = net.HardwareAddr{2, 0, 0, 0, 0, 0xa}
	macB = net.HardwareAddr{2, 0, 0, 0, 0, 0xb}
)

func TestARPFrames(t *testing.T) {
	frame := arpFrame(arpReply, macB, macA, addr("192.0.2.1"), macB, addr("192.0.2.9"))
	want := []byte{
		2, 0, 0, 0, 0, 0xb, 2, 0, 0, 0, 0, 0xa, 8, 6,
		0, 1, 8, 0, 6, 4, 0, 2,
		2, 0, 0, 0, 0, 0xa, 192, 0, 2, 1,
		2, 0, 0, 0, 0, 0xb, 192, 0, 2, 9,
	}
	if !bytes.Equal(frame, want) {
		t.Errorf("got  %x\nwant %x", frame, want)
	}
	p, ok := parseARP(frame)
	if !ok || p.operation != arpReply || p.senderIP != addr("192.0.2.1") || p.targetIP != addr("192.0.2.9") || !bytes.Equal(p.senderMAC, macA) {
		t.Errorf("parsed %+v, %t", p, ok)
	}
	for i, breakIt := range []func(b []byte) []byte{
		func(b []byte) []byte { return b[:41] },
		func(b []byte) []byte { b[13] = 0; return b },
		func(b []byte) []byte { b[15] = 6; return b },
		func(b []byte) []byte { b[17] = 1; return b },
		func(b []byte) []byte { b[18] = 8; return b },
	} {
		if _, ok := parseARP(breakIt(bytes.Clone(frame))); ok {
			t.Errorf("broken frame %d was taken", i)
		}
	}
}

// solicitationFrame is a neighbour solicitation as a host sends it.
func solicitationFrame(source, destination, target netip.Addr) []byte {
	body := make([]byte, 24)
	body[0] = neighborSolicitation
	copy(body[8:], target.AsSlice())
	sum := checksum(source, destination, body)
	body[2], body[3] = byte(sum>>8), byte(sum)
	f := append(append(append([]byte{}, macA...), macB...), 0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, icmpv6, 255)
	f = append(f, source.AsSlice()...)
	f = append(f, destination.AsSlice()...)
	return append(f, body...)
}

func TestNDPFrames(t *testing.T) {
	target, source := addr("2001:db8::1:2345"), addr("fe80::b")
	if got := solicitedNode(target); got != addr("ff02::1:ff01:2345") {
		t.Errorf("solicited-node group %s", got)
	}
	frame := solicitationFrame(source, solicitedNode(target), target)
	s, ok := parseSolicitation(frame)
	if !ok || s.source != source || s.target != target || !bytes.Equal(s.senderMAC, macB) {
		t.Fatalf("parsed %+v, %t", s, ok)
	}
	answer := s.answer(macA)
	body := answer[etherHeader+ipv6Header:]
	if body[0] != neighborAdvertisement || body[4] != flagSolicited|flagOverride || answer[etherHeader+7] != 255 ||
		!bytes.Equal(body[8:24], target.AsSlice()) || !bytes.Equal(body[24:], append([]byte{optionTarget, 1}, macA...)) ||
		!bytes.Equal(answer[:6], macB) || checksum(target, source, body) != 0 {
		t.Errorf("answer %x", answer)
	}
	// A host that looks for duplicates has no address yet: all hear the answer.
	dad := solicitation{senderMAC: macB, source: netip.IPv6Unspecified(), target: target}
	if a := dad.answer(macA); !bytes.Equal(a[:6], allNodesMAC) || a[etherHeader+ipv6Header+4] != flagOverride {
		t.Errorf("answer to duplicate address detection %x", a)
	}
	for i, breakIt := range []func(b []byte) []byte{
		func(b []byte) []byte { return b[:nsLength-1] },
		func(b []byte) []byte { b[12] = 8; return b },
		func(b []byte) []byte { b[etherHeader+7] = 64; return b },
		func(b []byte) []byte { b[etherHeader+5] = 8; return b },
		func(b []byte) []byte { b[etherHeader+5] = 99; return b },
		func(b []byte) []byte { b[etherHeader+ipv6Header] = 1; return b },
		func(b []byte) []byte { b[len(b)-1]++; return b },
	} {
		if _, ok := parseSolicitation(breakIt(bytes.Clone(frame))); ok {
			t.Errorf("broken frame %d was taken", i)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(arpFrame(arpRequest, broadcast, macA, addr("192.0.2.1"), macB, addr("192.0.2.9")))
	f.Add(solicitationFrame(addr("fe80::b"), solicitedNode(addr("2001:db8::1")), addr("2001:db8::1")))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if p, ok := parseARP(frame); ok && (!p.senderIP.Is4() || !p.targetIP.Is4()) {
			t.Errorf("%+v", p)
		}
		if s, ok := parseSolicitation(frame); ok {
			if len(s.answer(macA)) != etherHeader+ipv6Header+32 || !s.target.Is6() {
				t.Errorf("%+v", s)
			}
		}
	})
}

func TestOptionsAreChecked(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("no error without options")
	}
}
