// Command l4 measures the Service data path against its peers in one run: each
// of Fairway's data paths, real kube-proxy in nftables mode, and connections to
// the Pod's address with no service proxy at all. `make bench-l4` builds what
// it needs and runs it; docs/benchmarks/l4.md says what is measured and how.
//
// Every peer has network namespaces of its own (node, client Pod, server Pod,
// client outside), without a way out, a cgroup of its own, and an API server of
// its own in this process with the same objects. Rounds of all peers take turns,
// so that what else happens on the machine meets all of them.
package main
