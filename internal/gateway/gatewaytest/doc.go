// Package gatewaytest is the world that tests of the gateway share, those
// beside the code and those in modules of their own: a network namespace, and
// the objects that make a gateway serve something.
//
// It is for tests only, and must not import package gateway: whose own tests
// use it, and start the gateway as they need it.
package gatewaytest
