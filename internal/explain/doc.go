// Package explain tells people how connections to one Service fare on one node:
// which frontends there are, which endpoints are in and which are out and why,
// what each class of clients gets, and whether the kernel holds just that. And
// it tells how an HTTP request fares at the gateway: which rule takes it and why
// others do not, what is done with it, and where it goes.
//
// It asks plan for every choice, and a rehearsal of the gateway for every
// request, and must not make one itself; what the kernel holds it is given
// (dataplane.Holdings).
package explain
