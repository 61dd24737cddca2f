// Package kube reads the state from a Kubernetes API: it lists and watches the
// kinds that a role needs, has each object translated at once by package
// translate, and commits the results to a [state.Store] in batches. Of the
// Kubernetes objects themselves nothing is kept, apart from Ingresses, which
// have to be read again when IngressClasses change.
//
// While the API is away the last state stays as it is; when it is back, a new
// list brings the state up to date, deletions included.
//
// The package writes nothing to the API and must not know what the state is
// used for.
package kube
