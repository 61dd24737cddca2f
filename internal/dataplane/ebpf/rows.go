package ebpf

import (
	"math/bits"
	"time"
)

// grace is how long a row that was given up is kept. A program that found its
// frontend just before reads it within microseconds; a second also covers one
// that was interrupted.
const grace = time.Second

// rows hands out rows of the map backends, in blocks of 2^n (a buddy
// allocator): a row is found in a few steps, and rows that were given up grow
// together again.
type rows struct {
	// free has the first place of each free block, by the logarithm of its size.
	free []map[uint32]struct{}
	// leaving are blocks in their grace, oldest first.
	leaving []leavingRow
	now     func() time.Time
}

type leavingRow struct {
	row   pool
	until time.Time
}

// newRows manages size places; size is rounded down to a power of two.
func newRows(size uint32) *rows {
	r := &rows{now: time.Now}
	for range bits.Len32(size) {
		r.free = append(r.free, map[uint32]struct{}{})
	}
	r.free[len(r.free)-1][0] = struct{}{}
	return r
}

// order is the logarithm of the block that holds n places.
func order(n uint32) int { return bits.Len32(n - 1) }

// take returns the first place of a row of n, which is not 0; false if there is
// no room, not even after the grace of others.
func (r *rows) take(n uint32) (uint32, bool) {
	for {
		r.reap()
		if base, ok := r.takeBlock(order(n)); ok {
			return base, true
		}
		if len(r.leaving) == 0 {
			return 0, false
		}
		time.Sleep(r.leaving[0].until.Sub(r.now()))
	}
}

func (r *rows) takeBlock(want int) (uint32, bool) {
	for o := want; o < len(r.free); o++ {
		for base := range r.free[o] {
			delete(r.free[o], base)
			for o > want {
				o--
				r.free[o][base+1<<o] = struct{}{}
			}
			return base, true
		}
	}
	return 0, false
}

// reserve takes a certain row, which an earlier process has taken; false if
// that is not possible.
func (r *rows) reserve(p pool) bool {
	want := order(p.Count)
	if want >= len(r.free) || p.Base&(1<<want-1) != 0 {
		return false
	}
	for o := want; o < len(r.free); o++ {
		block := p.Base &^ (1<<o - 1)
		if _, ok := r.free[o][block]; !ok {
			continue
		}
		delete(r.free[o], block)
		for o > want {
			o--
			half := block + 1<<o
			if p.Base < half {
				r.free[o][half] = struct{}{}
			} else {
				r.free[o][block] = struct{}{}
				block = half
			}
		}
		return true
	}
	return false
}

// leave gives up a row. It is used again after its grace.
func (r *rows) leave(p pool) {
	if p.Count > 0 {
		r.leaving = append(r.leaving, leavingRow{p, r.now().Add(grace)})
	}
}

// reap makes free what has had its grace.
func (r *rows) reap() {
	now, n := r.now(), 0
	for ; n < len(r.leaving) && !now.Before(r.leaving[n].until); n++ {
		r.release(r.leaving[n].row)
	}
	r.leaving = r.leaving[n:]
}

func (r *rows) release(p pool) {
	base, o := p.Base, order(p.Count)
	for ; o < len(r.free)-1; o++ {
		other := base ^ 1<<o
		if _, ok := r.free[o][other]; !ok {
			break
		}
		delete(r.free[o], other)
		base &^= 1 << o
	}
	r.free[o][base] = struct{}{}
}
