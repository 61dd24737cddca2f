// Package podnet connects Pods to the network of their node.
//
// Every Pod is routed, not bridged: a veth pair with addresses of full length,
// a gateway (169.254.1.1 and fe80::1) that exists on the link alone, permanent
// neighbours on both ends and one route per address on the node. So every
// packet of a Pod passes the node's routing and netfilter hooks, and Services
// need none of the tricks that a bridge asks for.
//
// It owns the veths named fwp..., the Pods' addresses, the nftables table
// "fairway-podnet" (host ports, and masquerading of what Pods send to the
// outside), which it puts back within seconds when somebody else changes it,
// and the forwarding sysctls of the network namespace that New is called in.
// It must not know Services, and must not touch routes, rules and links of
// others.
package podnet
