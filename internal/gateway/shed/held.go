package shed

import (
	"errors"
	"sync/atomic"
)

// ErrFull is how a request ends of whose bodies the gateway kept much that
// nobody took, while it keeps as much for all as it may.
var ErrFull = errors.New("memory is short: too much waits for somebody who takes nothing")

// heldShare is the part of the memory limit from which on bodies that wait are
// too much: with their buffers' spare room, and garbage, they take more.
const heldShare = 16

// little is what a request's body may wait with when others are cut off.
const little = 16 << 10

// Held counts the bytes of bodies that have come and wait for their client, or
// their backend, to take them: flow control lets every stream send some ahead,
// and thousands that nobody reads would fill the memory before a [Shedder] sees
// it. A nil Held counts nothing and allows everything.
type Held struct {
	most  int64
	short func() bool
	n     atomic.Int64
	cut   atomic.Int64
}

// NewHeld returns a count for a process that may use limit bytes of memory.
// Short, such as [Shedder.Tight], tells that it has little left, by whatever
// takes it.
func NewHeld(limit uint64, short func() bool) *Held {
	return &Held{most: int64(min(limit, 1<<62) / heldShare), short: short}
}

// Beside returns a count of its own with the same limits, for what must not be
// a reason to end those that h counts; nil for none.
func (h *Held) Beside() *Held {
	if h == nil {
		return nil
	}
	return &Held{most: h.most, short: h.short}
}

// Add counts n more bytes, or fewer.
func (h *Held) Add(n int) {
	if h != nil && n != 0 {
		h.n.Add(int64(n))
	}
}

// Bytes returns how many there are.
func (h *Held) Bytes() int64 {
	if h == nil {
		return 0
	}
	return h.n.Load()
}

// Cut returns how many requests [Held.Full] has turned away.
func (h *Held) Cut() int64 {
	if h == nil {
		return 0
	}
	return h.cut.Load()
}

// Much reports whether so much is held that nobody should be asked to send more
// ahead than it needs.
func (h *Held) Much() bool { return h != nil && (h.n.Load() > h.most || h.short()) }

// Full reports whether a request has to end, mine bytes of which are held and
// more of which have come. Those that have little waiting go on for longer than
// others.
func (h *Held) Full(mine int) bool {
	if h == nil {
		return false
	}
	n, most := h.n.Load(), h.most
	if n > most/4 && h.short() {
		most /= 4
	}
	if n > 2*most || n > most+most/2 && mine > little {
		h.cut.Add(1)
		return true
	}
	return false
}
