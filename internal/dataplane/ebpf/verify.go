package ebpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
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
	backends, err := readBackends(d.maps, is.frontends)
	if err != nil {
		return fmt.Errorf("eBPF: %w", err)
	}
	var errs []error
	fixed := repairs{}
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
	d.verifyRows(backends)
	errs = append(errs, d.verifyFrontends(is.frontends)...)
	errs = append(errs, d.verifySources()...)
	errs = append(errs, d.verifyAddresses(is.addresses)...)
	d.locked(func() {
		// They are few, so they are read anew.
		errs = append(errs, d.have.readSettings(d.maps))
		if d.nodeKnown {
			errs = append(errs, d.setNamespaces(), d.commitSettings(compileNode(d.node, d.nodeAddrs)))
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
	if len(fixed) > 0 {
		d.log.Warn("eBPF: put back what somebody else had removed", "what", fixed.String(), "directory", string(d.pins))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("eBPF: %w", err)
	}
	return nil
}

// What Verify puts back.
const (
	repairedPins     = "pins"     // of maps and links
	repairedPrograms = "programs" // attached again
)

// repairs counts what was put back. Nothing is counted in nil, where programs
// are attached that never were.
type repairs map[string]int

func (r repairs) add(what string, n int) {
	if r != nil && n > 0 {
		r[what] += n
	}
}

// String lists what was put back, for people.
func (r repairs) String() string {
	var all []string
	for _, what := range slices.Sorted(maps.Keys(r)) {
		all = append(all, fmt.Sprint(r[what], " ", what))
	}
	return strings.Join(all, ", ")
}

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
// came after the kernel was read is written once more, which does no harm.
func (d *Dataplane) verifyRows(is []backend) {
	var owners []*owner
	d.locked(func() {
		owners = make([]*owner, 0, len(d.owners))
		for _, o := range d.owners {
			owners = append(owners, o)
		}
	})
	inPieces(d, owners, func(piece []*owner) {
		for _, o := range piece {
			if d.owners[o.key] != o {
				continue // it has gone meanwhile
			}
			for _, r := range o.rows {
				if !slices.Equal(rowOf(is, r.pool), r.backends) {
					d.toWrite(r)
				}
			}
		}
	})
}

// verifyFrontends brings frontends in line, once more those that were refused,
// and writes the rows that are to be written.
func (d *Dataplane) verifyFrontends(is map[frontendKey]frontend) []error {
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
	changed := 0
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
					changed++
				}
			}
		}
		if len(wrong) > 0 {
			errs = append(errs, d.commitAll(wrong)...)
		}
	})
	if changed > 0 {
		d.log.Warn("eBPF: frontends were changed by somebody else and are made again", "frontends", changed)
	}
	d.locked(func() { errs = append(errs, d.commitAll(map[frontendKey]struct{}{})...) })
	return errs
}

// verifySources writes the source ranges that are in use again: reading them
// would take longer.
func (d *Dataplane) verifySources() (errs []error) {
	var guards []uint32
	d.locked(func() {
		for g := range d.guards {
			guards = append(guards, g)
		}
	})
	inPieces(d, guards, func(piece []uint32) {
		for _, g := range piece {
			for _, k := range d.guards[g] {
				errs = append(errs, d.maps[socketMapSources].Put(k, uint8(1)))
			}
		}
	})
	return errs
}

// verifyAddresses brings the flags of addresses in line. One that has changed
// after the kernel was read is written once more, which does no harm.
func (d *Dataplane) verifyAddresses(is map[address]uint32) (errs []error) {
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
		for a := range d.clusterIPs {
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
			if flags, ok := is[a]; ok {
				d.have.addresses[a] = flags
			} else {
				delete(d.have.addresses, a)
			}
			errs = append(errs, d.writeAddress(a, d.wantedAddress(a, node)))
		}
	})
	return errs
}
