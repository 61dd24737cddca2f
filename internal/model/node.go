package model

import "net/netip"

// Node is one cluster node.
type Node struct {
	Name string
	UID  string
	// Addrs are its InternalIPs, the primary one of each family first.
	Addrs []netip.Addr
	// PodCIDRs are the ranges its Pods get addresses from.
	PodCIDRs []netip.Prefix
	Zone     string
	// Networks are the link-layer networks that the node is on, as its agent
	// says; NetworksKnown tells that it has said so.
	Networks      []netip.Prefix
	NetworksKnown bool
	Ready         bool
	// Leaving is true while the node is being removed or is excluded from
	// external load balancers (taint ToBeDeletedByClusterAutoscaler, label
	// node.kubernetes.io/exclude-from-external-load-balancers).
	Leaving bool
	// Deleted is true while the node is being deleted, or is about to be by the
	// cluster autoscaler: connections of others through it should end
	// (KEP-3836). It implies Leaving.
	Deleted bool
}

// Namespace is a namespace that exists.
type Namespace struct {
	Name string
}
