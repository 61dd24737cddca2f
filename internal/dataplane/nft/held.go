package nft

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"

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
func (h holdings) Held(a dataplane.Address) (dataplane.Held, bool) {
	internal, ok := h.pool(a, internalScope)
	if !ok {
		return dataplane.Held{}, false
	}
	external, ok := h.pool(a, externalScope)
	if !ok {
		external = internal // outside clients have entries only where they differ
	}
	return dataplane.Held{Internal: internal, External: external}, true
}

// pool returns what one class of clients gets.
func (h holdings) pool(a dataplane.Address, in scope) (dataplane.HeldPool, bool) {
	family, key := famOf(a.Addr), frontendKey(a.Addr, a.Protocol, a.Port)
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
