// Package kubeapi is the part of a Kubernetes API server that clients which
// read the cluster need, over plain HTTP and from memory: get, list, watch
// (with and without initial events), selectors, apply, create, update and
// delete of the kinds that client-go knows. It takes thousands of objects in an
// instant, and can be stopped and started again under its clients.
//
// It checks nothing and gives no defaults: what is put in is what is read. It
// is for tests and benchmarks only; what depends on the behaviour of an API
// server beyond that is tested with a real one.
package kubeapi
