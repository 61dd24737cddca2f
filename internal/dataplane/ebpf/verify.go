package ebpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/cilium/ebpf"

	"fairway.dev/fairway/internal/dataplane"
)

// verifyPiece is how much Verify compares and repairs before it lets others go
// on: what takes less than a millisecond.
const verifyPiece = 512

// Verify implements dataplane.Dataplane. It reads the kernel while changes go on,
// and compares in pieces, so that no change waits for the whole.
func (d *Dataplane) Verify(ctx context.Context) error {
	d.verifying.Lock()
	defer d.verifying.Unlock()
	d.locked(func() { d.written = map[frontendKey]struct{}{} })
	defer d.locked(func() { d.written = nil })
	is, err := readMaps(d.maps)
	if err != nil {
		return fmt.Errorf("eBPF: %w", err)
	}
	var errs []error
	fixed := dataplane.Repairs{}
	d.locked(func() { errs = append(errs, d.pins.pinMapsAgain(d.maps, d.layout, fixed)) })
	d.locked(func() {
		// Under the lock, lest what setAddresses is told meanwhile be undone.
		if addrs, err := d.listAddresses(); err != nil {
			errs = append(errs, fmt.Errorf("addresses of the node: %w", err))
		} else {
			d.nodeAddrs = addrs
		}
	})
	d.breathe()
	errs = append(errs, d.verifyRows(fixed)...)
	errs = append(errs, d.verifyFrontends(is.frontends, fixed)...)
	errs = append(errs, d.verifySources(fixed)...)
	errs = append(errs, d.verifyAddresses(is.addresses, fixed)...)
	d.locked(func() {
		// They are few, so they are read anew.
		errs = append(errs, d.have.readSettings(d.maps))
		if d.nodeKnown {
			errs = append(errs, d.setNamespaces(fixed), d.commitSettings(d.settings(), fixed))
		}
	})
	d.locked(func() {
		if d.pruned {
			errs = append(errs, d.attach(fixed))
		}
	})
	if d.ingress != nil {
		errs = append(errs, d.ingress.verify(fixed))
	}
	d.o.Repairs.Report(d.log, "ebpf", fixed)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("eBPF: %w", err)
	}
	return nil
}

// What Verify puts back.
const (
	repairedPins         = "pins"     // of maps and links
	repairedPrograms     = "programs" // attached again
	repairedTables       = "tables"
	repairedFrontends    = "frontends"
	repairedEndpoints    = "endpoint lists" // those of a pool
	repairedAddresses    = "addresses"
	repairedSourceRanges = "source ranges"
	repairedSettings     = "settings"
)

func (d *Dataplane) locked(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fn()
}

// inPieces calls fn with stretches of a list, under the lock, and lets others
// have it in between.
func inPieces[T any](d *Dataplane, list []T, fn func(piece []T)) {
	for piece := range slices.Chunk(list, verifyPiece) {
		d.locked(func() { fn(piece) })
		d.breathe()
	}
}

// yieldLock lets those have the lock who wait for it.
func yieldLock() { runtime.Gosched() }

// verifyRows has rows written again that are not what they should be. One that
// differs is looked at again, for it may have come after the kernel was read.
//
// There may be many backends, so they are compared as they are read.
func (d *Dataplane) verifyRows(fixed dataplane.Repairs) (errs []error) {
	type owned struct {
		o   *owner
		row *row // never changes: a change makes other rows
	}
	var rows, wrong []owned
	d.locked(func() {
		rows = make([]owned, 0, len(d.owners))
		for _, o := range d.owners {
			for i := range o.rows {
				rows = append(rows, owned{o, &o.rows[i]})
			}
		}
	})
	if len(rows) == 0 {
		return nil
	}
	slices.SortFunc(rows, func(a, b owned) int { return cmp.Compare(a.row.Base, b.row.Base) })
	last := rows[len(rows)-1].row
	left := rows
	err := readArray(d.maps[socketMapBackends], last.Base+last.Count, func(from uint32, list []backend) {
		end := from + uint32(len(list))
		for len(left) > 0 && left[0].row.Base < end {
			r := left[0].row
			// The part of the row that is in this stretch.
			first, after := max(r.Base, from), min(r.Base+r.Count, end)
			if !slices.Equal(list[first-from:after-from], r.backends[first-r.Base:after-r.Base]) {
				wrong = append(wrong, left[0])
			} else if after < r.Base+r.Count {
				return // the rest is in the next one
			}
			left = left[1:]
		}
	})
	if err != nil {
		return []error{fmt.Errorf("read map %s: %w", socketMapBackends, err)}
	}
	inPieces(d, append(wrong, left...), func(piece []owned) {
		for _, w := range piece {
			if d.owners[w.o.key] != w.o || !slices.ContainsFunc(w.o.rows, func(r row) bool { return r.pool == w.row.pool }) {
				continue // it has gone meanwhile
			}
			switch now, err := d.readRow(w.row.pool); {
			case err != nil:
				errs = append(errs, err)
			case !slices.Equal(now, w.row.backends):
				d.toWrite(*w.row)
				fixed.Add(repairedEndpoints, 1)
			}
		}
	})
	return errs
}

// verifyFrontends brings frontends in line, once more those that were refused,
// and writes the rows that are to be written.
func (d *Dataplane) verifyFrontends(is map[frontendKey]frontend, fixed dataplane.Repairs) []error {
	keys := make([]frontendKey, 0, len(is))
	for key := range is {
		keys = append(keys, key)
	}
	d.locked(func() {
		for key := range d.claims {
			if _, ok := is[key]; !ok {
				keys = append(keys, key)
			}
		}
		for key := range d.have.frontends {
			if _, ok := is[key]; !ok && len(d.claims[key]) == 0 {
				keys = append(keys, key)
			}
		}
	})
	var errs []error
	inPieces(d, keys, func(piece []frontendKey) {
		wrong := map[frontendKey]struct{}{}
		for _, key := range piece {
			if _, fresh := d.written[key]; fresh {
				continue // it was read before
			}
			now, there := is[key]
			if there {
				d.have.frontends[key] = now
			} else {
				delete(d.have.frontends, key)
			}
			want, wanted := d.wanted(key)
			if wanted && (!there || now != want) || !wanted && there && d.pruned {
				wrong[key] = struct{}{}
				if _, refused := d.dirty[key]; !refused {
					fixed.Add(repairedFrontends, 1)
				}
			}
		}
		if len(wrong) > 0 {
			errs = append(errs, d.commitAll(wrong)...)
		}
	})
	d.locked(func() { errs = append(errs, d.commitAll(map[frontendKey]struct{}{})...) })
	return errs
}

// verifySources writes source ranges again that are missing. A number's ranges
// never change, so those of numbers that came after the kernel was read are left.
func (d *Dataplane) verifySources(fixed dataplane.Repairs) (errs []error) {
	var guards []uint32
	d.locked(func() {
		for g := range d.guards {
			guards = append(guards, g)
		}
	})
	if len(guards) == 0 {
		return nil
	}
	is, err := readTrie[sourceKey, uint8](d.maps[socketMapSources])
	if err != nil {
		return []error{fmt.Errorf("read map %s: %w", socketMapSources, err)}
	}
	inPieces(d, guards, func(piece []uint32) {
		for _, g := range piece {
			for _, k := range d.guards[g] {
				if _, ok := is[k]; ok {
					continue
				}
				errs = append(errs, d.maps[socketMapSources].Put(k, uint8(1)))
				fixed.Add(repairedSourceRanges, 1)
			}
		}
	})
	return errs
}

// verifyAddresses brings the flags of addresses in line. One that differs is
// looked at again, for it may have changed after the kernel was read.
func (d *Dataplane) verifyAddresses(is map[address]uint32, fixed dataplane.Repairs) (errs []error) {
	all := make([]address, 0, len(is))
	for a := range is {
		all = append(all, a)
	}
	d.locked(func() {
		for _, more := range []map[address]uint32{d.have.addresses, compileNode(d.node, d.nodeAddrs).addresses} {
			for a := range more {
				if _, ok := is[a]; !ok {
					all = append(all, a)
				}
			}
		}
		for a := range d.uses {
			if _, ok := is[a]; !ok {
				all = append(all, a)
			}
		}
	})
	inPieces(d, all, func(piece []address) {
		if !d.nodeKnown {
			return // what an earlier process has set stays
		}
		node := compileNode(d.node, d.nodeAddrs).addresses
		for _, a := range piece {
			flags, ok := is[a]
			if want := d.wantedAddress(a, node[a]); flags == want && ok == (want != 0) && d.have.addresses[a] == want {
				continue
			}
			switch err := d.maps[socketMapAddresses].Lookup(a, &flags); {
			case err == nil:
				d.have.addresses[a] = flags
			case errors.Is(err, ebpf.ErrKeyNotExist):
				delete(d.have.addresses, a)
			default:
				errs = append(errs, fmt.Errorf("read map %s: %w", socketMapAddresses, err))
				continue
			}
			want := d.wantedAddress(a, node[a])
			if d.have.addresses[a] != want {
				fixed.Add(repairedAddresses, 1)
			}
			errs = append(errs, d.writeAddress(a, want))
		}
	})
	return errs
}
