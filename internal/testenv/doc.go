// Package testenv gives tests a network of their own: network namespaces with
// links, addresses and routes between them, and ways to listen, dial and run
// programs inside; what they are watched by, and authorities for TLS. What a test makes is removed when it ends, also when it
// fails; nothing in it can reach a real network.
//
// It is for tests only and needs root.
package testenv
