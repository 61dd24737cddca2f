// Package forward asks other DNS servers for names that are not the
// cluster's, and remembers what they said. It reads the servers from the
// node's resolv.conf unless they are given, tries the next one when one is
// slow or fails, finds loops back to itself, and answers from memory while
// all of them are away.
//
// The package must not know what is in the cluster.
package forward
