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
// itself: that it is told by Read, and stays for answers that are under way when the
// server is about to end, is silent, or answers there no more.
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
	if got := n.pulses(); !strings.Contains(got, "flags owner") {
		t.Errorf("what there is would stay when the process ends: %s", got)
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
	for what, end := range map[string]func(){
		"it answers there no more": func() { beat() },
		"it is silent": func() {
			if err := n.dp.Pulse(time.Millisecond, nil, nil); err != nil {
				t.Fatal(err)
			}
		},
	} {
		n.dp.pulse.lateReply = time.Hour
		beat(direct...)
		end()
		if got := n.pulses(); !strings.Contains(got, reply) || strings.Contains(got, "dport set") || untracked() {
			t.Errorf("%s, and there is %s", what, got)
		}
	}
	n.dp.pulse.lateReply = 0
	beat()
	if got := n.pulses(); got != "" {
		t.Errorf("no client waits any more, and there is %s", got)
	}
}

// TestUntrackedUnderWay asks without a pause while the server begins and ceases to answer
// at the Service's address: every query has its answer, from where it was asked.
func TestUntrackedUnderWay(t *testing.T) {
	n := newNode(t)
	n.ns.Address("lo", "192.0.2.1/32")
	n.ns.Run("ip", "route", "add", "local", "10.96.0.10/32", "dev", "lo", "table", "local", "src", "192.0.2.1")
	direct := netip.MustParseAddrPort("10.96.0.10:10053")
	for _, at := range []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:10053"), direct} {
		server := n.ns.ListenPacket(at)
		go func() {
			b := make([]byte, 100)
			for {
				size, from, err := server.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				time.Sleep(time.Millisecond) // so that one is always under way
				_, _ = server.WriteToUDPAddrPort(b[:size], from)
			}
		}()
	}
	n.put(ownService())
	pulse := func(direct ...netip.AddrPort) {
		t.Helper()
		if err := n.dp.Pulse(time.Hour, nil, direct); err != nil {
			t.Fatal(err)
		}
	}
	pulse()
	asked := 0
	ask := func(i int) {
		client := n.ns.ListenPacket(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(30000+i)))
		defer client.Close()
		to := netip.MustParseAddrPort("10.96.0.10:53")
		_ = client.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := client.WriteToUDPAddrPort([]byte("query"), to); err != nil {
			t.Error(err)
			return
		}
		asked++
		if _, from, err := client.ReadFromUDPAddrPort(make([]byte, 100)); err != nil || from != to {
			t.Errorf("query %d: an answer from %v, %v", i, from, err)
		}
	}
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-over:
				return
			default:
				ask(i % 5000)
			}
		}
	}()
	for range 20 {
		pulse(direct)
		time.Sleep(10 * time.Millisecond)
		pulse()
		time.Sleep(10 * time.Millisecond)
	}
	close(over)
	<-done
	t.Logf("asked %d times", asked)
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
