// Package ebpf is the data path by eBPF. It owns programs on cgroups and at tcx
// ingress of interfaces, maps, and the directory of a BPF file system where all
// are pinned, one for each network namespace; with Options.Ingress also the
// nftables table "inet fairway-ebpf"; nothing else in the kernel.
//
// Sockets are balanced before there are packets: a program at connect and
// sendmsg writes a backend's address in the place of the Service's, and one at
// getpeername and recvmsg writes it back. That costs nothing per packet, needs
// no connection tracking and keeps the client's address. What has to be decided
// by the packet is left to the packet path: restricted and TLS frontends,
// silence, and refusing datagrams.
//
// Packets that arrive are served by ingress programs, if Options.Ingress says
// so. They choose where a new flow goes and have conntrack translate it, see
// bpf/conntrack.h; what they have refused they mark for the table. Remainder
// tells what is left to another packet path even then: the node's own packets.
//
// One set of maps serves both address families and all programs, see bpf/maps.h:
//
//	frontends  {address, port, protocol} -> for each class of clients {action, range of backends}
//	backends   an array
//	addresses  what an address is: the node's, a cluster IP, or that of a frontend
//	ranges     what a range is: of cluster IPs, of Pods
//
// The backends of a Service port stand in a row. A change writes a new row and
// then replaces the frontends that have it, each at once; the old row stays for
// as long as a program may still read it.
//
// Where a frontend leads to the node's own server (plan.Frontend.Standby), those of
// other nodes are a frontend beside it, that takes its place from when the time
// in the map pulse is over, or a socket of the server was closed. While the
// server answers at the frontend's address itself, nothing is done to its packets.
//
// Maps, programs and their links are pinned: what an earlier process left goes
// on working, and the next one takes over from it.
//
// The package must not know what a Service means; plan does.
package ebpf
