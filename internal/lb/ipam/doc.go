// Package ipam decides which addresses Services of type LoadBalancer get: from
// pools of addresses (a flag, or MetalLB's IPAddressPools), or those of the
// nodes themselves.
//
// It is pure: a snapshot in, addresses and problems out. What a Service has it
// keeps, as long as it may: an [Allocator] remembers what it gave, and after a
// restart it goes by status.loadBalancer.ingress. The package must not write
// status; status/kube does, and lb/l2 makes the addresses reachable.
package ipam
