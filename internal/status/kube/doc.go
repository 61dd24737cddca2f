// Package kube writes results back to the Kubernetes API: Events for problems,
// the addresses of Services of type LoadBalancer, and those of Ingresses.
//
// Only one process at a time writes: the leader, elected by a Lease. A
// [Reporter] writes besides, but only what nobody else can know. Writes
// follow from comparing what should be with what is, so that nothing is
// written twice and a failed write is tried again. The package decides nothing
// itself: problems come from package translate, addresses from package ipam.
package kube
