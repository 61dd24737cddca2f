package nft

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/plan"
)

// ErrAbsent is returned by Read where there are no tables of Fairway's.
var ErrAbsent = errors.New("nftables: there are no tables of Fairway's in this network namespace")

// Read returns what the kernel holds now. It changes nothing, and takes no
// notice of a process that is at work.
func Read(o Options) (dataplane.Holdings, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	d, err := New(o)
	if err != nil {
		return nil, err
	}
	if err := d.Close(); err != nil {
		return nil, err
	}
	for _, t := range d.tables {
		if t.present && !t.current {
			return nil, errors.New("nftables: the tables are those of another version of Fairway")
		}
	}
	if !d.tables[v4].present && !d.tables[v6].present {
		return nil, ErrAbsent
	}
	return holdings(d.have), nil
}

// holdings are the elements of our tables.
type holdings elements

// Mode implements dataplane.Holdings.
func (holdings) Mode() string { return "nftables" }

// Held implements dataplane.Holdings.
func (h holdings) Held(f *plan.Frontend) (dataplane.Held, bool) {
	internal, ok := h.pool(f, internalScope)
	if !ok {
		return dataplane.Held{}, false
	}
	external, ok := h.pool(f, externalScope)
	if !ok {
		external = internal // outside clients have entries only where they differ
	}
	return dataplane.Held{Internal: internal, External: external}, true
}

// pool returns what one class of clients gets.
func (h holdings) pool(f *plan.Frontend, in scope) (dataplane.HeldPool, bool) {
	family, key := famOf(f.Addr), frontendKey(f.Addr, f.Protocol, f.Port)
	verdict, ok := h[element{fam: family, set: in.frontends, key: key}]
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
	for slot := range p.n {
		if b, ok := parseAddrPort(h[element{fam: family, set: in.endpoints, key: key + slotWord(slot)}]); ok {
			out.Backends = append(out.Backends, b)
		}
	}
	slices.SortFunc(out.Backends, netip.AddrPort.Compare)
	return out, true
}

// Differences implements dataplane.Holdings.
func (h holdings) Differences(f *plan.Frontend) []string {
	var out []string
	family, key := famOf(f.Addr), frontendKey(f.Addr, f.Protocol, f.Port)
	if f.Internal.Action == plan.Forward || f.External.Action == plan.Forward {
		m, _ := parseMemory(h[element{fam: family, set: memories, key: key}])
		if want := wholeSeconds(f.AffinityTimeout); m.seconds != want {
			out = append(out, fmt.Sprintf("clients stay with their endpoint for %d s, planned are %d s", m.seconds, want))
		}
	}
	want := elements{}
	if f.Restricted {
		want[element{fam: family, set: guarded, key: key}] = ""
		for _, p := range f.SourceRanges {
			want.addRange(family, sourceRanges, key, p)
		}
	}
	same := true
	for e := range want {
		_, ok := h[e]
		same = same && ok
	}
	for e := range h {
		if e.fam == family && (e.set == guarded || e.set == sourceRanges) && strings.HasPrefix(e.key, key) {
			_, ok := want[e]
			same = same && ok
		}
	}
	if !same {
		out = append(out, "the source ranges are not those planned")
	}
	return out
}
