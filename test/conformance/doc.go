// Command conformance runs Kubernetes' own end-to-end tests of SIG network
// against `fairway up` and writes the report in docs/conformance. `make
// conformance` builds everything it needs and starts it.
//
// It is a module of its own because it depends on all of Kubernetes and on
// Kubernetes' tests. Package suite is the tests, package cluster what they are
// run against, package report what is made of their results.
package main
