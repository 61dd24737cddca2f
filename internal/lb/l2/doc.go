// Package l2 makes the addresses of Services of type LoadBalancer reachable on
// the node's local networks: one node answers for each address, by ARP for
// IPv4 and by neighbour discovery for IPv6. Traffic then arrives at that node,
// whose data path takes it on.
//
// Which node it is follows from the snapshot alone (see [Elect]), so that the
// nodes agree without talking to each other. The package changes nothing in
// the kernel: it neither gives the address to an interface nor sets routes.
package l2
