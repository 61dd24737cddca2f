package ebpf

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/model"
)

// TestEarly has a process that finds nothing attach its programs before it knows
// everything, which changes nothing for what it does not know; and no process that
// finds something, for whom that waits for Prune.
func TestEarly(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	o := m.options(t, n)
	o.Ingress = true
	known, unknown := planOf("known", model.TCP, vip, "10.244.0.3:8080"), netip.MustParseAddrPort("10.96.0.99:80")
	const patience, inVain = 10 * time.Second, time.Second
	dial := func(to netip.AddrPort, timeout time.Duration) error {
		_, err := n.Hosts["pod-a"].Ask("tcp", netip.AddrPort{}, to, timeout)
		return err
	}
	refused := func(timeout time.Duration) bool { return errors.Is(dial(unknown, timeout), syscall.ECONNREFUSED) }
	if refused(inVain) {
		t.Fatal("without programs a cluster IP that nobody has is refused")
	}
	setNode := func(d *Dataplane) {
		t.Helper()
		if err := d.SetNode(t.Context(), n.Settings); err != nil {
			t.Fatal(err)
		}
	}

	first := start(t, o)
	setNode(first)
	if !first.Fresh() || first.attaching == nil {
		t.Fatalf("fresh %t, attaching %t", first.Fresh(), first.attaching != nil)
	}
	apply(t, first, known)
	<-first.attaching
	if err := dial(vip, patience); err != nil {
		t.Errorf("before everything is known, a Service that is: %v", err)
	}
	if refused(inVain) {
		t.Error("before everything is known, a cluster IP that may be somebody's is refused")
	}
	prune(t, first, nil)
	if err := dial(vip, patience); err != nil || !refused(patience) {
		t.Errorf("with everything known: %v, and what nobody has is refused: %t", err, refused(patience))
	}
	first.abandon(t)

	second := start(t, o)
	setNode(second)
	if second.Fresh() || second.attaching != nil {
		t.Errorf("after another process: fresh %t, attaching %t", second.Fresh(), second.attaching != nil)
	}
	if err := dial(vip, patience); err != nil || !refused(patience) {
		t.Errorf("after another process: %v, and what nobody has is refused: %t", err, refused(patience))
	}
	second.abandon(t)

	// What leads somewhere is not attached before it is what it should be.
	links, err := filepath.Glob(filepath.Join(string(second.pins), linksDir, "*"))
	if err != nil || len(links) == 0 {
		t.Fatal(links, err)
	}
	for _, l := range links {
		if err := os.Remove(l); err != nil {
			t.Fatal(err)
		}
	}
	third := start(t, o)
	setNode(third)
	if third.Fresh() || third.attaching != nil || dial(vip, inVain) == nil {
		t.Errorf("after a process that was not at work: fresh %t, attaching %t", third.Fresh(), third.attaching != nil)
	}
	apply(t, third, known)
	prune(t, third, nil)
	if err := dial(vip, patience); err != nil {
		t.Error(err)
	}
}

// TestEarlyEnd ends a process while it attaches its programs: the next one finds
// what it has attached, and goes on from there.
func TestEarlyEnd(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	o := m.options(t, n)
	o.Ingress = true
	first := start(t, o)
	if err := first.SetNode(t.Context(), n.Settings); err != nil {
		t.Fatal(err)
	}
	first.abandon(t)
	second := start(t, o)
	if second.Fresh() || !second.live {
		t.Errorf("fresh %t, live %t", second.Fresh(), second.live)
	}
	apply(t, second, planOf("web", model.TCP, vip, "10.244.0.3:8080"))
	if _, err := n.Hosts["pod-a"].Ask("tcp", netip.AddrPort{}, vip, 5*time.Second); err != nil {
		t.Error(err)
	}
	prune(t, second, n)
}
