// Package cluster starts Fairway for a conformance run, and a place to test it
// from.
//
// It owns two network namespaces: that of the machine, in which `fairway up`
// runs, and that of another machine on its network, in which the tests run. It
// owns as well the mapping from the images that the tests ask for to programs
// of this machine. New makes them, Close takes everything away again.
//
// It must not touch the namespace that it is started in.
package cluster
