package cases

// Kind is a kind of data path, by whose clients it balances sockets of.
type Kind string

// The kinds of data paths.
const (
	// Packets balances packets only.
	Packets Kind = "nftables"
	// NodeSockets balances the sockets of the node's own clients, and packets
	// of all others.
	NodeSockets Kind = "eBPF, packets"
	// Sockets balances the sockets of Pods as well.
	Sockets Kind = "eBPF, sockets"
)

// Exception is something that clients get otherwise from some data paths, as
// docs/features/services.md lists it.
type Exception string

// The exceptions.
const (
	// NoLoopback is a NodePort that is not served at loopback addresses.
	NoLoopback Exception = "a NodePort at a loopback address"
	// HairpinHidden is a client that reaches itself and sees the node as the client.
	HairpinHidden Exception = "the address of a Pod that reaches itself through its Service"
	// NotSent is a datagram that a filter refuses, and tells its sender so.
	NotSent Exception = "the error of a datagram of the node itself that is refused or dropped"
)

// Exceptions tell which kinds of data paths make which exception. Each must
// stand in the documentation with the reason.
var Exceptions = []struct {
	Name  Exception
	Kinds []Kind
}{
	{NoLoopback, []Kind{Packets}},
	{HairpinHidden, []Kind{Packets, NodeSockets}},
	{NotSent, []Kind{Packets, NodeSockets, Sockets}},
}
