// Package bootstrap creates the objects that Fairway itself needs in the API:
// the IngressClass, the Service of the cluster's DNS with its endpoints, and
// for standalone the kind of MetalLB's address pools.
//
// It applies them with server-side apply, again and again with the same
// result, and leaves alone what somebody else owns. It must not touch objects
// of users.
package bootstrap
