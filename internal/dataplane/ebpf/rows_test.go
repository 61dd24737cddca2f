package ebpf

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestRows takes and gives up rows at random: no two overlap, and in the end
// everything is one block again.
func TestRows(t *testing.T) {
	const size = 1 << 10
	r := newRows(size)
	clock := time.Now()
	r.now = func() time.Time { return clock }
	random := rand.New(rand.NewPCG(1, 2))
	var used [size]bool
	var held []pool
	mark := func(p pool, to bool) {
		for i := p.Base; i < p.Base+p.Count; i++ {
			if used[i] == to {
				t.Fatalf("place %d is handed out twice", i)
			}
			used[i] = to
		}
	}
	for range 5000 {
		clock = clock.Add(grace / 4)
		if n := uint32(1 + random.IntN(40)); random.IntN(2) == 0 && len(held) < 12 {
			base, ok := r.take(n)
			if !ok {
				t.Fatal("no room, where more than half is free")
			}
			p := pool{base, n}
			mark(p, true)
			held = append(held, p)
		} else if len(held) > 0 {
			i := random.IntN(len(held))
			r.leave(held[i])
			mark(held[i], false)
			held[i] = held[len(held)-1]
			held = held[:len(held)-1]
		}
	}
	// Another process takes over what is held.
	next := newRows(size)
	next.now = r.now
	for _, p := range held {
		if !next.reserve(p) {
			t.Fatalf("row %v cannot be taken over", p)
		}
		if next.reserve(p) {
			t.Fatalf("row %v was taken over twice", p)
		}
	}
	for _, p := range held {
		next.leave(p)
	}
	if _, ok := next.takeBlock(10); ok && len(held) > 0 {
		t.Fatal("all places are free before the end of their grace")
	}
	clock = clock.Add(grace)
	if base, ok := next.take(size); !ok || base != 0 {
		t.Fatal("what was given up did not grow together")
	}
	if _, ok := next.take(1); ok {
		t.Fatal("a place beyond the end")
	}
	if next.reserve(pool{1, 2}) || next.reserve(pool{0, 2 * size}) {
		t.Fatal("a row that cannot be was taken over")
	}
}

func TestRowGrace(t *testing.T) {
	r := newRows(2)
	clock := time.Now()
	r.now = func() time.Time { return clock }
	first, _ := r.take(1)
	second, _ := r.take(1)
	if first == second {
		t.Fatal("handed out twice")
	}
	r.leave(pool{first, 1})
	clock = clock.Add(grace - 1)
	r.reap()
	if _, ok := r.takeBlock(0); ok {
		t.Error("a row was used again within its grace")
	}
	clock = clock.Add(1)
	if again, ok := r.take(1); !ok || again != first {
		t.Error("a row was not used again after its grace")
	}
}
