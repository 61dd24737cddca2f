// Package plan is the one place that knows what a Kubernetes Service means: a
// pure function from a Service, its endpoints and a node to the frontends that
// this node serves and the backends behind each.
//
// It owns traffic policies, topology hints, the fallback to terminating
// endpoints, what happens when nobody answers, source ranges and the choice of
// which addresses count. Data paths, Service TLS and the gateway's choice of
// upstreams all ask it, so that they agree. The rules are those of kube-proxy
// 1.37 (pkg/proxy/topology.go and the nftables proxier); where Fairway does
// better docs/features/services.md says so.
//
// The package must not know how a frontend is programmed, must not do I/O, and
// keeps nothing between calls.
package plan
