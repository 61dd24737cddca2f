package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/plan"
)

// ErrAbsent is returned by Read where there are no tables of Fairway's, with
// holdings that have nothing.
var ErrAbsent = errors.New("nftables: there are no tables of Fairway's in this network namespace")

// Read returns what the kernel holds now. It changes nothing, and takes no
// notice of a process that is at work.
func Read(o Options) (dataplane.Holdings, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	var d *Dataplane
	for try := range readTries {
		if try > 0 {
			time.Sleep(walkPause)
		}
		var err error
		if d, err = New(o); err != nil {
			return nil, err
		}
		if err := d.Close(); err != nil {
			return nil, err
		}
		if d.otherLayout() {
			o.OwnPackets = !o.OwnPackets // it is to be told what there is, of either shape
			continue
		}
		if !d.tables[v4].damaged && !d.tables[v6].damaged {
			break
		}
	}
	h := holdings{elements: d.have}
	var err error
	if h.untracked, err = readUntracked(o.NetNS); err != nil {
		return nil, err
	}
	for i, t := range d.tables {
		h.damaged[i] = t.damaged
		if t.present && !t.current && !t.damaged {
			return nil, errors.New("nftables: the tables are those of another version of Fairway")
		}
	}
	if !d.tables[v4].present && !d.tables[v6].present {
		return holdings{}, ErrAbsent
	}
	return h, nil
}

// readTries is how often Read looks again where rules are missing: chains are
// read before their rules, and one may have gone in between.
const readTries = 4

// otherLayout reports whether there are tables of a shape that this is not for.
func (d *Dataplane) otherLayout() bool {
	return slices.ContainsFunc(d.tables[:], func(t tableState) bool { return t.present && !t.current && !t.damaged })
}

// holdings are the elements of our tables.
type holdings struct {
	elements holding
	// damaged tells of tables that lack rules, by family.
	damaged [2]bool
	// untracked are the frontends whose packets pass connection tracking by.
	untracked map[element]bool
}

// readUntracked reads them from the tables of the node's own server.
func readUntracked(netns int) (map[element]bool, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(netns))
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	out := map[element]bool{}
	for i, f := range families(false) {
		tables, err := conn.ListTablesOfFamily(f.table.Family)
		if err != nil {
			return nil, fmt.Errorf("nftables: listing tables: %w", err)
		}
		if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == pulseTable }) {
			continue
		}
		_, set := f.pulseSets(&nftables.Table{Name: pulseTable, Family: f.table.Family})
		elements, err := conn.GetSetElements(set)
		switch {
		case err != nil && strings.Contains(err.Error(), unix.ENOENT.Error()): // the library does not wrap it
			continue // the table has just gone, or is of a version without
		case err != nil:
			return nil, fmt.Errorf("nftables: reading table %s: %w", pulseTable, err)
		}
		for _, e := range elements {
			out[element{fam: fam(i), set: frontends, key: string(e.Key)}] = true
		}
	}
	return out, nil
}

// block returns what there is of a frontend.
func (h holdings) block(f *plan.Frontend) (front element, have block) {
	front = element{fam: famOf(f.Addr), set: frontends, key: frontendKey(f.Addr, f.Protocol, f.Port)}
	return front, block(h.elements[front])
}

// Mode implements dataplane.Holdings.
func (holdings) Mode() string { return "nftables" }

// Held implements dataplane.Holdings.
func (h holdings) Held(f *plan.Frontend) (dataplane.Held, bool) {
	front, have := h.block(f)
	internal, ok := have.pool(internalScope)
	if !ok {
		return dataplane.Held{}, false
	}
	if own, ok := have.ownServer(); ok {
		if b, ok := parseAddrPort(own); ok {
			internal.Backends = []netip.AddrPort{b}
		}
	}
	external, ok := have.pool(externalScope)
	if !ok {
		external = internal // outside clients have entries only where they differ
	}
	return dataplane.Held{Internal: internal, External: external, Untracked: h.untracked[front]}, true
}

// pool returns what one class of clients gets.
func (b block) pool(in scope) (dataplane.HeldPool, bool) {
	verdict, ok := b.value(in.frontends, "")
	if !ok {
		return dataplane.HeldPool{}, false
	}
	switch verdict {
	case chainReject:
		return dataplane.HeldPool{Action: plan.Reject}, true
	case verdictDrop:
		return dataplane.HeldPool{Action: plan.Drop}, true
	case chainTLS:
		return dataplane.HeldPool{Action: plan.Redirect}, true
	}
	p, ok := parsePick(verdict)
	if !ok {
		return dataplane.HeldPool{}, false
	}
	out := dataplane.HeldPool{Action: plan.Forward}
	for e := range b.parts() {
		if e.set != in.endpoints || int(binary.NativeEndian.Uint32([]byte(e.key))) >= p.n {
			continue
		}
		if backend, ok := parseAddrPort(e.value); ok {
			out.Backends = append(out.Backends, backend)
		}
	}
	slices.SortFunc(out.Backends, netip.AddrPort.Compare)
	return out, true
}

// Differences implements dataplane.Holdings.
func (h holdings) Differences(f *plan.Frontend) []string {
	var out []string
	front, have := h.block(f)
	if h.damaged[front.fam] {
		out = append(out, fmt.Sprintf("rules of table %s are missing or were changed: packets may pass as they are", families(false)[front.fam].label()))
	}
	if f.Internal.Action == plan.Forward || f.External.Action == plan.Forward {
		chain, _ := have.value(memories, "")
		m, _ := parseMemory(chain)
		if want := wholeSeconds(f.AffinityTimeout); m.seconds != want {
			out = append(out, fmt.Sprintf("clients stay with their endpoint for %d s, planned are %d s", m.seconds, want))
		}
	}
	if f.StandsBy() {
		var planned []netip.AddrPort
		for _, b := range f.Standby.Backends {
			planned = append(planned, b.AddrPort)
		}
		if standby, _ := have.pool(internalScope); !slices.Equal(standby.Backends, planned) {
			out = append(out, fmt.Sprintf("while this node's server does not answer, clients go to %v, planned is %v", standby.Backends, planned))
		}
	}
	var want, got []part
	if f.Restricted {
		want = restriction(f, front)
	}
	for p := range have.parts() {
		if p.set == guarded || p.set == sourceRanges {
			got = append(got, p)
		}
	}
	if pack(want) != pack(got) {
		out = append(out, "the source ranges are not those planned")
	}
	return out
}
