// Package up runs a whole standalone cluster on one machine and takes it down again.
//
// It owns: the choice of the cluster's ranges and addresses, the order in which machine, Kubernetes, nodes and Fairway's
// roles come and go, what a data directory remembers of a run, and the report of how a running cluster is.
//
//	options ─> plan of ranges and nodes ─> machine.Build ─> control ─> nodes and roles ─> ready
//	                                            └── everything made is in DIR/run/state.json first ──> Down, next Run
//
// It must not import Kubernetes: the API is asked over plain HTTPS with the kubeconfig that the control process writes,
// and everything else is done by the processes themselves, with the flags that they have in any cluster.
package up
