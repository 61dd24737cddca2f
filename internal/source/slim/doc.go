// Package slim reads Services and EndpointSlices as they come from a Kubernetes
// API in protobuf, into the types of client-go, but only what Fairway reads of
// them: no managed fields, no owners, of a slice none of the labels that are for
// others. A large cluster has ten thousand of each, and reading them is most of
// what a node that starts does before it serves. What the generated code makes of
// such an object are a hundred small allocations, three quarters of which nobody
// looks at.
//
// It is a [runtime.NegotiatedSerializer] for a REST client. Whatever is no
// protobuf, and all other kinds, are read as client-go reads them.
//
// The package knows fields and their numbers. It must not judge what is in them:
// that is for package translate. Objects that it returns share values; they are
// to be read and dropped, never changed.
package slim
