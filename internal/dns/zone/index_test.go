package zone

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// dump is everything in an index that a query can see.
func dump(ix *Index) map[string]string {
	out := map[string]string{}
	for a, key := range ix.byAddr.all() {
		out["addr "+a.String()] += fmt.Sprint(key, " ")
		if !slices.ContainsFunc(ix.byAddr.of(a), func(h holder) bool { return *h.service == key }) {
			out["addr "+a.String()] += "not found "
		}
	}
	for k, h := range ix.byService.All() {
		out["hosts "+k.String()] = fmt.Sprintf("%+v", *h)
	}
	for ns, n := range ix.population.All() {
		out["namespace "+ns] = fmt.Sprint(n)
	}
	return out
}

func TestIncrementalEqualsFresh(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	s := state.New()
	ix, most := NewIndex(), 0
	for step := range 400 {
		s.Update(func(tx *state.Tx) {
			for range 1 + rng.IntN(4) {
				change(rng, tx)
			}
		})
		if rng.IntN(3) == 0 {
			continue // a reader that misses a commit
		}
		before := dump(ix)
		next := ix.Next(s.Snapshot())
		if diff := cmp.Diff(before, dump(ix)); diff != "" {
			t.Fatalf("step %d changed the old index:\n%s", step, diff)
		}
		ix = next
		most = max(most, len(dump(ix)))
		if diff := cmp.Diff(dump(NewIndex().Next(s.Snapshot())), dump(ix)); diff != "" {
			t.Fatalf("step %d: fresh and incremental differ (-fresh +incremental):\n%s", step, diff)
		}
	}
	if most < 12 {
		t.Fatalf("the walk never had more than %d rows", most)
	}
}

// change makes one random change in a small world, so that things meet.
func change(rng *rand.Rand, tx *state.Tx) {
	k := model.Key{Namespace: fmt.Sprintf("ns%d", rng.IntN(3)), Name: fmt.Sprintf("svc%d", rng.IntN(5))}
	addr := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(20))}) }
	switch rng.IntN(6) {
	case 0:
		tx.DeleteService(k)
	case 1:
		tx.DeleteSlice(model.Key{Namespace: k.Namespace, Name: fmt.Sprintf("slice%d", rng.IntN(8))})
	case 2, 3:
		svc := &model.Service{Key: k, Type: model.ServiceType(rng.IntN(4)), Headless: rng.IntN(2) == 0}
		if !svc.Headless {
			svc.ClusterIPs = []netip.Addr{addr()}
		}
		if svc.Type == model.ExternalName {
			svc.ExternalName = fmt.Sprintf("svc%d.%s.svc.cluster.local", rng.IntN(5), k.Namespace)
		}
		tx.PutService(svc)
	default:
		sl := &model.EndpointSlice{Key: model.Key{Namespace: k.Namespace, Name: fmt.Sprintf("slice%d", rng.IntN(8))}, Service: k}
		for range rng.IntN(5) {
			sl.Endpoints = append(sl.Endpoints, model.Endpoint{
				Addr: addr(), Ready: rng.IntN(3) > 0, Hostname: []string{"", "a", "B"}[rng.IntN(3)],
			})
		}
		tx.PutSlice(sl)
	}
}

func TestNamespaceOfServicesOnly(t *testing.T) {
	s := state.New()
	k := model.Key{Namespace: "files", Name: "web"}
	s.Update(func(tx *state.Tx) { tx.PutService(&model.Service{Key: k}) })
	ix := NewIndex().Next(s.Snapshot())
	if !ix.hasNamespace("files") || ix.hasNamespace("other") {
		t.Error("namespaces of Services without Namespace objects")
	}
	s.Update(func(tx *state.Tx) { tx.DeleteService(k) })
	if ix.Next(s.Snapshot()).hasNamespace("files") {
		t.Error("namespace outlives its last Service")
	}
}

// TestNeighbours keeps addresses apart that share a block, or have the same bytes in another form.
func TestNeighbours(t *testing.T) {
	b, a := model.Key{Namespace: "default", Name: "b"}, model.Key{Namespace: "default", Name: "a"}
	e := addressTable{}.edit()
	list := []string{"10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.0", "::ffff:10.0.0.1", "fd00::1", "fd00::2", "fe80::1%x"}
	for _, s := range list {
		e.add(netip.MustParseAddr(s), &b)
	}
	e.add(netip.MustParseAddr("10.0.0.1"), &a)
	e.add(netip.MustParseAddr("10.0.0.1"), &a)
	before := e.done()
	e = before.edit()
	for _, s := range list[1:] {
		e.remove(netip.MustParseAddr(s), &b)
	}
	e.remove(netip.MustParseAddr("fd00::3"), &b)
	after := e.done()
	show := func(t addressTable, s string) (out []string) {
		for _, h := range t.of(netip.MustParseAddr(s)) {
			out = append(out, h.service.Name)
		}
		return out
	}
	for i, s := range list {
		want, left := []string{"b"}, []string(nil)
		switch i {
		case 0:
			left = want
		case 1:
			want, left = []string{"a", "b"}, []string{"a"}
		}
		if got := show(before, s); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", s, got, want)
		}
		if got := show(after, s); !slices.Equal(got, left) {
			t.Errorf("%s after removal: %v, want %v", s, got, left)
		}
	}
	for _, s := range []string{"10.0.0.2", "fe80::1", "fe80::1%y", "::"} {
		if got := show(before, s); got != nil {
			t.Errorf("%s: %v", s, got)
		}
	}
	if n := after.blocks.Len(); n != 1 {
		t.Errorf("%d blocks are left, want 1", n)
	}
}
