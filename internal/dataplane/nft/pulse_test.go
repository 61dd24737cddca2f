package nft

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

// ownService is one whose clients go to the node's own server, or to node-2's.
func ownService() plan.Service {
	endpoint := func(addr, node string) model.Endpoint {
		return model.Endpoint{
			Addr: netip.MustParseAddr(addr), Ready: true, Serving: true, Node: node, Hints: &model.Hints{Nodes: []string{node}},
			Ports: []model.EndpointPort{{Protocol: model.UDP, Port: 10053}},
		}
	}
	key := model.Key{Namespace: "kube-system", Name: "kube-dns"}
	return plan.Compile(plan.Input{
		Service: &model.Service{
			Key: key, IPv4: true, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
			Ports: []model.ServicePort{{Protocol: model.UDP, Port: 53}},
		},
		Endpoints: &model.EndpointSet{Key: key, Endpoints: []model.Endpoint{endpoint("192.0.2.1", "node-1"), endpoint("192.0.2.2", "node-2")}},
		Node:      &model.Node{Name: "node-1"},
		Options:   plan.Options{OwnServer: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:10053")}},
	})
}

// pulses returns what the kernel has of the node's own server.
func (n *node) pulses() string {
	n.Helper()
	if !strings.Contains(n.ns.Run("nft", "list tables"), "table ip "+pulseTable) {
		return ""
	}
	return n.ns.Run("nft", "list table ip "+pulseTable)
}

// TestPulse checks that the way to the node's own server goes with the process
// that told of it, that nothing is done where there is nobody to go to instead,
// and that a process which starts knows of it before it knows any Service.
func TestPulse(t *testing.T) {
	n := newNode(t)
	beat := func() {
		t.Helper()
		if err := n.dp.Pulse(time.Hour, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	beat()
	if got := n.pulses(); got != "" {
		t.Errorf("without any other server there is %s", got)
	}
	n.put(ownService())
	if got := n.pulses(); !strings.Contains(got, "192.0.2.1 . 10053") {
		t.Errorf("a Service that came after the pulse is not led to the node's own server: %q", got)
	}
	generation := n.generation()
	if err := Cleanup(Options{NetNS: int(n.ns.Handle)}); !errors.Is(err, ErrRuns) || n.generation() != generation {
		t.Errorf("Cleanup while the process runs: %v, and %d changes", err, n.generation()-generation)
	}
	// As when the process ends: the kernel closes the socket.
	if err := n.dp.pulse.drop(); err != nil {
		t.Fatal(err)
	}
	if got := n.pulses(); got != "" {
		t.Errorf("without the process there is %s", got)
	}
	n.start()
	if got := n.pulses(); got != "" {
		t.Errorf("before the first pulse there is %s", got)
	}
	beat()
	if got := n.pulses(); !strings.Contains(got, "192.0.2.1 . 10053") {
		t.Errorf("after a start the node's own server is not known: %q", got)
	}
	n.remove("kube-dns")
	n.dp.Apply(t.Context(), []change{{Key: ownService().Key}})
	n.prune()
	if got := n.pulses(); got != "" {
		t.Errorf("the Service has gone, and there is %s", got)
	}
}

// TestUntracked checks what there is for a server that answers at the Service's address
// itself: that it is told by Read, stays for answers that are under way when the
// server is about to end, and goes when it answers there no more.
func TestUntracked(t *testing.T) {
	n := newNode(t)
	s := ownService()
	n.put(s)
	direct := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:10053")}
	beat := func(direct ...netip.AddrPort) {
		t.Helper()
		if err := n.dp.Pulse(time.Hour, nil, direct); err != nil {
			t.Fatal(err)
		}
	}
	untracked := func() bool {
		t.Helper()
		h, err := Read(Options{NetNS: int(n.ns.Handle)})
		if err != nil {
			t.Fatal(err)
		}
		held, ok := h.Held(&s.Frontends[0])
		if !ok {
			t.Fatal("there is no such frontend")
		}
		return held.Untracked
	}
	beat()
	if untracked() {
		t.Error("untracked, though it does not answer there")
	}
	beat(direct...)
	if !untracked() {
		t.Error("tracked, though it answers there")
	}
	retired := ownService()
	retired.Frontends[0].OwnServer, retired.Frontends[0].Internal, retired.Frontends[0].Standby = false, retired.Frontends[0].Standby, plan.Pool{}
	retired.Frontends[0].Internal.Policy, retired.Frontends[0].External = plan.Cluster, retired.Frontends[0].Internal
	n.dp.Apply(t.Context(), []change{{Key: s.Key, Old: s, HadOld: true, New: retired, HasNew: true}})
	for deadline := time.Now().Add(10 * time.Second); untracked(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("queries go on to the server that is about to end")
		}
	}
	const reply = "sport set 53"
	beat(direct...)
	if got := n.pulses(); !strings.Contains(got, reply) || untracked() {
		t.Errorf("a late answer is tracked: %s", got)
	}
	beat()
	if got := n.pulses(); got != "" {
		t.Errorf("it answers there no more, and there is %s", got)
	}
}

// TestPulseWithoutOwner checks what holds on kernels before 5.12: what a process
// leaves expires, and the next one takes it over.
func TestPulseWithoutOwner(t *testing.T) {
	n := newNode(t)
	n.dp.pulse.unowned = true
	n.put(ownService())
	if err := n.dp.Pulse(300*time.Millisecond, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := n.dp.pulse.drop(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); strings.Contains(n.pulses(), "192.0.2.1 . 10053"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not expire: %s", n.pulses())
		}
	}
	n.start()
	if err := n.dp.Pulse(time.Hour, nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := n.pulses(); !strings.Contains(got, "192.0.2.1 . 10053") {
		t.Errorf("the next process does not take it over: %q", got)
	}
	if err := n.dp.pulse.drop(); err != nil {
		t.Fatal(err)
	}
	if got := n.pulses(); got != "" {
		t.Errorf("the kernel knows owners of tables, and there is %s", got)
	}
}

// TestPulseIsNoChange checks that Verify does not take pulses for changes of
// others, after which it would read all there is.
func TestPulseIsNoChange(t *testing.T) {
	n := newNode(t)
	n.put(ownService())
	for i := range 3 {
		if err := n.dp.Pulse(time.Hour, nil, nil); err != nil {
			t.Fatal(err)
		}
		n.put(n.service("web", nil, []string{"10.244.1.2", "10.244.1.3", "10.244.1.2"}[i]))
		if _, _, due, err := n.dp.verifyDue(); due || err != nil {
			t.Fatalf("after pulse %d: due %v, %v", i, due, err)
		}
	}
	if err := n.dp.pulse.drop(); err != nil {
		t.Fatal(err)
	}
	if _, _, due, err := n.dp.verifyDue(); due || err != nil {
		t.Errorf("after its end: due %v, %v", due, err)
	}
	n.ns.Run("nft", "add table inet others")
	if _, _, due, err := n.dp.verifyDue(); !due || err != nil {
		t.Errorf("after a change of others: due %v, %v", due, err)
	}
}

// TestGlance checks what a glance sees of changes by others: what leaves clients
// without rules, at once, and nothing where they only change what is theirs.
func TestGlance(t *testing.T) {
	n := newNode(t)
	n.put(ownService(), n.service("web", nil, "10.244.1.2", "10.244.1.3"))
	n.prune()
	if err := n.dp.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	glance := func(what string, changed, disturbed bool) {
		t.Helper()
		c, d, err := n.dp.Glance()
		if err != nil || c != changed || d != disturbed {
			t.Errorf("%s: changed %v, want %v; disturbed %v, want %v; %v", what, c, changed, d, disturbed, err)
		}
	}
	glance("nobody was here", false, false)
	n.put(n.service("web", nil, "10.244.1.2"))
	if err := n.dp.Pulse(time.Hour, nil, nil); err != nil {
		t.Fatal(err)
	}
	glance("changes of ours", false, false)
	n.ns.Run("nft", "add table inet others")
	glance("a table of others", true, false)
	glance("the same once more", false, false)
	for _, does := range []string{"flush ruleset", "delete table ip fairway", "flush table ip6 fairway", "flush chain ip fairway to-1"} {
		n.ns.Run("nft", does)
		glance(does, true, true)
		glance("nobody has repaired it", true, true)
		if err := n.dp.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		glance(does+", repaired", false, false)
		if got := n.ns.Run("nft", "list chain ip fairway to-1"); !strings.Contains(got, "dnat") {
			t.Errorf("after %s, repaired, there is %s", does, got)
		}
	}
}
