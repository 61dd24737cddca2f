package zone

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// addressTable tells which Services have an address. It never changes. There may be 100,000 addresses with one Service
// each, so neighbours share a row: 16 bytes for an address instead of more than 100.
type addressTable struct {
	// blocks are by address with the last byte zero; holders are ordered by last byte and key.
	blocks state.Table[netip.Addr, []holder]
}

// holder is one Service that has an address of a block.
type holder struct {
	service *model.Key
	last    byte
}

func (h holder) compare(o holder) int {
	return cmp.Or(cmp.Compare(h.last, o.last), h.service.Compare(*o.service))
}

// blockOf returns the block that an address is in, and its last byte.
func blockOf(a netip.Addr) (netip.Addr, byte) {
	if a.Is4() {
		b := a.As4()
		last := b[3]
		b[3] = 0
		return netip.AddrFrom4(b), last
	}
	b := a.As16()
	last := b[15]
	b[15] = 0
	return netip.AddrFrom16(b).WithZone(a.Zone()), last
}

// of returns those that have the address, ordered by key. Do not modify.
func (t addressTable) of(a netip.Addr) []holder {
	block, last := blockOf(a)
	list, _ := t.blocks.Get(block)
	from, found := slices.BinarySearchFunc(list, last, func(h holder, last byte) int { return cmp.Compare(h.last, last) })
	if !found {
		return nil
	}
	to := from
	for to < len(list) && list[to].last == last {
		to++
	}
	return list[from:to:to]
}

// all yields every address with one Service that has it.
func (t addressTable) all() iter.Seq2[netip.Addr, model.Key] {
	return func(yield func(netip.Addr, model.Key) bool) {
		for block, list := range t.blocks.All() {
			for _, h := range list {
				a := block.As16()
				a[15] = h.last
				addr := netip.AddrFrom16(a).WithZone(block.Zone())
				if block.Is4() {
					addr = addr.Unmap()
				}
				if !yield(addr, *h.service) {
					return
				}
			}
		}
	}
}

// addressEditor makes a new table from an old one, which stays as it is. It puts
// blocks in order at the end: the first load fills every one of them.
type addressEditor struct {
	table addressTable
	edits map[netip.Addr]*blockEdit
}

// blockEdit is what changes in a block, in any order; what is in both lists stays.
type blockEdit struct{ add, remove []holder }

func (t addressTable) edit() *addressEditor {
	return &addressEditor{t, map[netip.Addr]*blockEdit{}}
}

func (e *addressEditor) block(block netip.Addr) *blockEdit {
	b := e.edits[block]
	if b == nil {
		b = &blockEdit{}
		e.edits[block] = b
	}
	return b
}

// add notes that a Service has the address. The key is kept.
func (e *addressEditor) add(a netip.Addr, service *model.Key) {
	block, last := blockOf(a)
	b := e.block(block)
	b.add = append(b.add, holder{service, last})
}

// remove notes that it has it no more.
func (e *addressEditor) remove(a netip.Addr, service *model.Key) {
	block, last := blockOf(a)
	b := e.block(block)
	b.remove = append(b.remove, holder{service, last})
}

// apply returns the block that a block becomes.
func (b *blockEdit) apply(old []holder) []holder {
	slices.SortFunc(b.remove, holder.compare)
	out := make([]holder, 0, len(old)+len(b.add))
	for _, h := range old {
		if _, gone := slices.BinarySearchFunc(b.remove, h, holder.compare); !gone {
			out = append(out, h)
		}
	}
	out = append(out, b.add...)
	slices.SortFunc(out, holder.compare)
	out = slices.CompactFunc(out, func(a, b holder) bool { return a.compare(b) == 0 })
	if len(out) < cap(out) {
		out = slices.Clone(out) // without the room of what has gone
	}
	return out
}

// done returns the new table; the editor is of no use after it.
func (e *addressEditor) done() addressTable {
	blocks := e.table.blocks.Edit()
	for block, b := range e.edits {
		old, _ := e.table.blocks.Get(block)
		if list := b.apply(old); len(list) > 0 {
			blocks.Set(block, list)
		} else {
			blocks.Delete(block)
		}
	}
	return addressTable{blocks.Table()}
}
