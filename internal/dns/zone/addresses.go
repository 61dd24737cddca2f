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

// addressEditor makes a new table from an old one, which stays as it is.
type addressEditor struct {
	table addressTable
	// own are the blocks that have been copied and may be changed in place.
	own map[netip.Addr][]holder
}

func (t addressTable) edit() *addressEditor {
	return &addressEditor{t, map[netip.Addr][]holder{}}
}

// block returns one to change in place.
func (e *addressEditor) block(block netip.Addr) []holder {
	list, ok := e.own[block]
	if !ok {
		list, _ = e.table.blocks.Get(block)
		list = slices.Clone(list)
	}
	return list
}

// add notes that a Service has the address. The key is kept.
func (e *addressEditor) add(a netip.Addr, service *model.Key) {
	block, last := blockOf(a)
	list := e.block(block)
	h := holder{service, last}
	i, found := slices.BinarySearchFunc(list, h, holder.compare)
	if !found {
		list = slices.Insert(list, i, h)
	}
	e.own[block] = list
}

// remove notes that it has it no more.
func (e *addressEditor) remove(a netip.Addr, service *model.Key) {
	block, last := blockOf(a)
	list := e.block(block)
	if i, found := slices.BinarySearchFunc(list, holder{service, last}, holder.compare); found {
		list = slices.Delete(list, i, i+1)
	}
	e.own[block] = list
}

// done returns the new table; the editor is of no use after it.
func (e *addressEditor) done() addressTable {
	blocks := e.table.blocks.Edit()
	for block, list := range e.own {
		if len(list) == 0 {
			blocks.Delete(block)
			continue
		}
		blocks.Set(block, slices.Clone(list))
	}
	return addressTable{blocks.Table()}
}
