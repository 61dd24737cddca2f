// Package model holds Fairway's own view of the Kubernetes Service layer:
// Services, their endpoints, nodes, HTTP and stream routes, certificates,
// address pools, and the problems found while reading them.
//
// Values are immutable once they are in a [state.Store]: a change is a new
// value. They refer to each other by key and never by pointer, so that a
// change to one object is a change to one row. The package imports the
// standard library only; Kubernetes types end in source/translate.
package model
