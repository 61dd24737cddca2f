package nft

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/model"
)

// someElements makes up elements of frontends, and others, in both families.
func someElements(r *rand.Rand) elements {
	out := elements{}
	for _, addr := range []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("fd00:96::1")} {
		f, key := famOf(addr), frontendKey(addr, model.TCP, 80)
		backend := func() string {
			return addrPort(netip.AddrPortFrom(addr, uint16(1+r.IntN(3))))
		}
		if r.IntN(2) == 0 {
			out[element{fam: f, set: frontends, key: key}] = []string{chainReject, verdictDrop, "to-3"}[r.IntN(3)]
		}
		for slot := range 300 { // more than fit a byte
			if r.IntN(3) == 0 {
				out[element{fam: f, set: endpoints, key: key + slotWord(slot)}] = backend()
			}
		}
		if r.IntN(2) == 0 {
			out[element{fam: f, set: sticky, key: key + backend()}] = ""
			out[element{fam: f, set: memories, key: key}] = fmt.Sprintf("remember-%ds", 1+r.IntN(2))
		}
		for range r.IntN(3) {
			p, _ := addr.Prefix(r.IntN(addr.BitLen() + 1)) // also up to the frontend's last key
			out.addRange(f, sourceRanges, key, p)
		}
		if r.IntN(2) == 0 {
			out[element{fam: f, set: clusterIPs, key: addrBytes(addr)}] = ""
		}
	}
	return out
}

// TestGroup checks that grouping elements by frontend loses nothing, and that
// the differences between two states are those of their elements.
func TestGroup(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	same := cmp.AllowUnexported(element{})
	for range 50 {
		from, to := someElements(r), someElements(r)
		before, after := group(from), group(to)
		if diff := cmp.Diff(to, after.elements(), same); diff != "" {
			t.Fatalf("grouped and taken apart: %s", diff)
		}
		var tx transaction
		subjects := maps.Clone(before)
		maps.Copy(subjects, after)
		for e := range subjects {
			old, had := before[e]
			want, wanted := after[e]
			if had != wanted || old != want {
				tx.change(e, old, had, want, wanted)
			}
		}
		removed, added := elements{}, elements{}
		for list := range tx.remove.all() {
			for _, a := range list {
				removed[a.element] = a.value
			}
		}
		for list := range tx.add.all() {
			for _, a := range list {
				added[a.element] = a.value
			}
		}
		wantRemoved, wantAdded := elements{}, elements{}
		for e, v := range from {
			if now, ok := to[e]; !ok || now != v {
				wantRemoved[e] = v
			}
		}
		for e, v := range to {
			if old, ok := from[e]; !ok || old != v {
				wantAdded[e] = v
			}
		}
		if diff := cmp.Diff(wantRemoved, removed, same); diff != "" {
			t.Fatalf("removed: %s", diff)
		}
		if diff := cmp.Diff(wantAdded, added, same); diff != "" {
			t.Fatalf("added: %s", diff)
		}
	}
}

// TestLongNames checks that the longest names of chains fit a block.
func TestLongNames(t *testing.T) {
	long := pick{nodePort: true, external: true, sticky: true, n: 1<<31 - 1}.name()
	b := pack([]part{{set: frontends, value: long}, {set: memories, value: memory{nodePort: true, seconds: 1<<31 - 1}.name()}, {set: forwarded}})
	if got, _ := b.value(frontends, ""); got != long {
		t.Errorf("got %q", got)
	}
	if _, ok := b.value(guarded, ""); ok {
		t.Error("a block has what was not put into it")
	}
	var sets []string
	for p := range b.parts() {
		sets = append(sets, p.set.String())
	}
	if got := strings.Join(sets, " "); got != "frontends forwarded memories" {
		t.Errorf("parts are %s", got)
	}
}

// TestReadsWhole has a set walked whose elements are moved about meanwhile, so
// that some are visited twice and others not at all.
func TestReadsWhole(t *testing.T) {
	e := func(key string) element { return element{set: endpoints, key: key} }
	walks := 0
	walk := func(list ...string) func(func(element, string)) error {
		return func(visit func(element, string)) error {
			keys := list[min(walks, len(list)-1)]
			walks++
			for _, key := range strings.Split(keys, "") {
				visit(e(key), key)
			}
			return nil
		}
	}
	for _, tt := range []struct {
		name  string
		walks []string
		want  string
		times int
	}{
		{"at rest", []string{"abc"}, "abc", 1},
		{"moved about once", []string{"abb", "cab"}, "abc", 2},
		{"moved about twice, and begun again", []string{"abb", "ababc", "cba"}, "abc", 3},
		{"never at rest", []string{"abb"}, "ab", walkTries},
	} {
		walks = 0
		m := elements{e("of another set"): ""}
		want := maps.Clone(m)
		for _, key := range strings.Split(tt.want, "") {
			want[e(key)] = key
		}
		if err := m.addWhole(walk(tt.walks...)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, m, cmp.AllowUnexported(element{})); diff != "" || walks != tt.times {
			t.Errorf("%s: walked %d times, want %d: %s", tt.name, walks, tt.times, diff)
		}
	}
}
