// Package dns is the cluster's DNS server on one node. Names of the cluster
// domain it answers from the newest state snapshot (package zone), everything
// else it asks of the node's own resolvers (package forward) and remembers
// (package cache).
//
// It listens on the node's own addresses; the cluster DNS Service's address
// leads there by the data path, like that of any other Service.
//
// It must not write to the snapshot, and must never say that a name of the
// cluster does not exist before all sources have synced.
package dns
