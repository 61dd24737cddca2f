// Package machine prepares one Linux machine for a standalone cluster and takes everything back afterwards.
//
// It owns: network namespaces of further nodes, the interface fairway0 with the nodes' own addresses, the routes that
// keep the cluster's ranges on the machine, the veths between nodes, the masquerading of what Pods send to the outside
// (which it puts back while the cluster runs when somebody takes it away), the few sysctls this needs, and the check that the cluster's ranges are free.
//
// Every change is told to a Journal before it is made, and Undo takes back exactly what a journal lists: nothing is
// ever found by guessing at names.
//
// It must not start processes, read Kubernetes objects, or know what the ranges are used for.
package machine
