package ebpf

import (
	"net/netip"
	"testing"
	"time"

	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/model"
)

// affinityValue is struct affinity of bpf/maps.h.
type affinityValue struct {
	Used uint64
	Addr address
	Port port
	Zero uint16
	Slot uint32
}

// TestAffinityOfOtherClock checks that a client keeps its endpoint when another
// processor has used it meanwhile, by a clock that is ahead: that it was last used
// in the future does not mean that it is long ago.
func TestAffinityOfOtherClock(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	d := start(t, m.options(t, n))
	web := planOf("web", model.TCP, vip, "10.244.0.3:8080", "192.168.50.1:8080", "10.244.1.2:8080")
	for i := range web.Frontends {
		web.Frontends[i].AffinityTimeout = time.Hour
	}
	apply(t, d, web)
	prune(t, d, n)
	ask := func() string {
		t.Helper()
		a, err := n.Hosts["pod-a"].Ask("tcp", netip.AddrPort{}, vip, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return a.Name
	}
	first := ask()
	for range 20 {
		all, err := readAll[[20]byte, affinityValue](d.maps[socketMapAffinities])
		if err != nil || len(all) != 1 {
			t.Fatalf("remembered: %v, %v; want one client", all, err)
		}
		for key, a := range all {
			a.Used += uint64(time.Second)
			if err := d.maps[socketMapAffinities].Put(key, a); err != nil {
				t.Fatal(err)
			}
		}
		if again := ask(); again != first {
			t.Fatalf("the client of %s got %s", first, again)
		}
	}
}
