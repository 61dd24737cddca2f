// Command fairway-init is the first process of every container of a standalone
// node: it builds the container's file system, starts the command with the
// rights it shall have, reaps what the command leaves behind, forwards signals
// and exits with the command's code.
//
// It is a program of its own, without Kubernetes in it, so that a container
// costs a few milliseconds and a few megabytes. The runtime starts it inside
// the container's namespaces and talks to it over file descriptor 3; see
// package initspec. It is of no use to people.
package main
