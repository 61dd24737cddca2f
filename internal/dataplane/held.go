package dataplane

import (
	"net/netip"

	"fairway.dev/fairway/internal/plan"
)

// Held is what the kernel does with connections to one frontend, for clients
// inside the cluster and for all others. An action is known to it with its
// backends, in order of address.
type Held struct {
	Internal, External HeldPool
	// Untracked is true where packets pass connection tracking by, to the node's own
	// server at the frontend's address.
	Untracked bool
}

// HeldPool is what one class of clients gets of the kernel.
type HeldPool struct {
	Action   plan.Action
	Backends []netip.AddrPort
}

// Holdings are what a data path has in the kernel, whichever process put it there.
type Holdings interface {
	// Mode is the data path's name as kube-proxy gives it, such as "nftables".
	Mode() string
	// Held returns what there is of a frontend; false if it is not there.
	Held(*plan.Frontend) (Held, bool)
	// Differences says what else of a frontend that is there is not as planned,
	// for example who may connect. It is for people.
	Differences(*plan.Frontend) []string
}

// HeldPart is what a data path has that serves a part of the frontends only,
// where several serve together (see Part and Stack).
type HeldPart struct {
	Holdings
	// Takes reports whether the data path serves a frontend; nil means all.
	Takes func(*plan.Frontend) bool
	// Missing says what none of its frontends can do without and is not there,
	// for people; empty if all is.
	Missing string
}
