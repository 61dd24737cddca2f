// Package translate turns Kubernetes objects into the values of package model.
// It is where Kubernetes types end, and the only reader of annotations.
//
// Every function is pure: objects in, values and [model.Problems] out. What is
// wrong with an object is reported with its field and the cure, and the rest of
// the object still counts. Nothing that a user wrote is dropped in silence.
// Each function looks at one object; what takes several to see, such as an
// Ingress that names a missing Service, is found by [CrossCheck] in a snapshot.
//
// The package must not talk to an API server and keeps no state.
package translate
