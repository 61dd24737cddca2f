package dataplane

import (
	"net/netip"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
)

// Address names a frontend as the kernel knows it; NodePorts have an
// unspecified address.
type Address struct {
	Addr     netip.Addr
	Protocol model.Protocol
	Port     uint16
}

// AddressOf returns the address of a frontend.
func AddressOf(f *plan.Frontend) Address { return Address{f.Addr, f.Protocol, f.Port} }

// Held is what the kernel does with connections to one frontend, for clients
// inside the cluster and for all others. An action is known to it with its
// backends, in order of address.
type Held struct {
	Internal, External HeldPool
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
	Held(Address) (Held, bool)
}
