// Package nft is the data path by nftables, written over netlink; it needs no
// nft program. It owns the tables "ip fairway" and "ip6 fairway", and, of the same
// families, "fairway-own-server" (see below), and nothing else in the kernel.
//
// The former two have the same fixed shape: base chains, and maps in which all
// that changes is elements. A Service is a few elements, so its cost does not
// grow with the number of Services, and loading many is cheap:
//
//	frontends  {address . protocol . port        : goto to-<n>}  n is the number of backends
//	endpoints  {address . protocol . port . slot : address . port}
//
//	chain to-<n>: dnat to endpoints[daddr . proto . dport . random mod n]
//
// There is one chain for each distinct n, made when first needed
// and removed by Verify when nothing leads to it any more.
// frontends-external and endpoints-external hold only those frontends that
// treat clients outside the cluster differently. A NodePort stands in the same
// maps under the unspecified address. No packet mark is used, since others use
// marks for routing: what was translated by Fairway is told in postrouting by
// the connection's original destination.
//
// Clients of a frontend with affinity are remembered where the packet leaves
// or arrives, already translated, and only with an endpoint that is current:
//
//	affinity  {address . protocol . port . client : address . port}  looked up before a random choice
//	memories  {address . protocol . port : jump remember-<seconds>}  one chain for each timeout
//
// When an endpoint leaves, what is remembered of it is removed afterwards.
// Affinity holds for each address of a Service by itself.
//
// What one lookup yields is never the key of another. The kernel can do that,
// but nft and libnftables up to 1.0.6 (Debian 12) abort on it, and with them
// every listing of anybody's tables.
//
// A connection is masqueraded only when its reply would otherwise not come
// back this way: the endpoint is on another node and the client is not a Pod
// of this node; or an endpoint talks to itself.
//
// Where a frontend leads to the node's own server (plan.Frontend.Standby), its
// endpoints are those of other nodes. The way to the own one is in a table of its own, at an
// earlier priority, which the kernel removes with the process, and whose elements
// expire unless Pulse renews them. The map own-server has them for good, so that a process
// that starts knows them before it knows any Service. Where the server answers at the
// frontend's address itself, the packets of both directions are not even tracked.
//
// With Options.OwnPackets the tables lack the chains that packets pass which
// arrive or are forwarded. That is another shape, with a name of its own.
//
// The kernel's tables are read at the start and after an error and only
// differences are written, so a restart interrupts nothing. Elements that
// nobody wants go with Prune. A chain named layout-<n> tells the shape's
// version; tables of another version go on working until everything is known
// and are then replaced in one transaction.
package nft
