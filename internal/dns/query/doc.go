// Package query asks a DNS server what a Pod's resolver would ask it, along the
// search path and for each type, and explains the answers to people: which
// object of the cluster a name stands for, where the answer is from, and why
// there is none. What the objects are it reads from a snapshot, with the zone
// that the server answers from, too.
//
// It asks one server, and must not decide anything that the zone decides.
package query
