package nft

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/testenv"
)

// TestOwnPackets has processes take turns of which some serve only the node's own
// packets: they have no chain that arriving packets pass, nobody changes anything
// before everything is known, and each shape can be read.
func TestOwnPackets(t *testing.T) {
	ns := testenv.NewLab(t).Netns("node")
	service := manyServices(1, 3)[0]
	arriving := func() bool {
		t.Helper()
		out := ns.Run("nft", "list", "chains", "ip")
		if strings.Contains(out, "chain "+chainPrerouting) != strings.Contains(out, "chain "+chainForward) {
			t.Errorf("one of both chains:\n%s", out)
		}
		return strings.Contains(out, "chain "+chainPrerouting)
	}
	before := false
	for turn, own := range []bool{false, true, true, false, true} {
		d, err := New(Options{Logger: logger(t), NetNS: int(ns.Handle), OwnPackets: own})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.SetNode(t.Context(), dataplane.Node{}); err != nil {
			t.Fatal(err)
		}
		if failed := d.Apply(t.Context(), []change{service}); len(failed) > 0 {
			t.Fatal(failed)
		}
		if turn > 0 && arriving() != before {
			t.Errorf("turn %d: chains were changed before everything is known", turn)
		}
		err = d.Prune(t.Context(), func(yield func(model.Key, plan.Service) bool) { yield(service.Key, service.New) })
		if err != nil {
			t.Fatal(err)
		}
		if before = !own; arriving() != before {
			t.Errorf("turn %d: chains for packets that arrive: %t, want %t", turn, !before, before)
		}
		if err := d.Verify(t.Context()); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		held, err := Read(Options{NetNS: int(ns.Handle)})
		if err != nil {
			t.Fatalf("turn %d: %v", turn, err)
		}
		got, ok := held.Held(&service.New.Frontends[0])
		want := []netip.AddrPort{netip.MustParseAddrPort("10.128.0.0:8080"), netip.MustParseAddrPort("10.128.0.1:8080"), netip.MustParseAddrPort("10.128.0.2:8080")}
		if slices.SortFunc(got.Internal.Backends, netip.AddrPort.Compare); !ok || !slices.Equal(got.Internal.Backends, want) {
			t.Errorf("turn %d: it holds %v, want %v", turn, got.Internal.Backends, want)
		}
	}
}
