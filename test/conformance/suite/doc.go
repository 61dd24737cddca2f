// Package suite is Kubernetes' own end-to-end suite, cut down to SIG network:
// `go test -c` of it makes the program that the conformance run starts.
//
// It owns the choice of the packages whose tests are compiled in, and nothing
// else: the tests, their set-up and their flags are those of k8s.io/kubernetes,
// unchanged. The other packages of the suite (storage, windows, apps and so on)
// hold no test of SIG network and would double the time to build. That none of
// its conformance tests is lost that way is checked in the run itself, against
// the list that Kubernetes publishes.
//
// It must not hold tests, and must not change what Kubernetes' tests do.
package suite
