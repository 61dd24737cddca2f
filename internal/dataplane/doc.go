// Package dataplane holds what every data path has in common: what it needs to
// know of the node ([Node]), what it must do ([Dataplane]), and the
// [Controller] that keeps one in step with the state.
//
// It must not know how any data path works, nor what a Service means: that is
// plan's.
package dataplane
