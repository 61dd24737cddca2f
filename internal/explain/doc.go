// Package explain tells people how connections to one Service fare on one node:
// which frontends there are, which endpoints are in and which are out and why,
// what each class of clients gets, and whether the kernel holds just that.
//
// It asks plan for every choice and must not make one itself; what the kernel
// holds it is given (dataplane.Holdings).
package explain
