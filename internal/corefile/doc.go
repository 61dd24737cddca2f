// Package corefile reads CoreDNS' configuration: it turns the text of a Corefile
// into a [model.DNSConfig], and names everything in it that Fairway leaves out,
// with its file and line.
//
// It is a parser of its own and not CoreDNS', because that reads whatever files
// and variables a text names from the process it runs in: here a text comes from
// a ConfigMap and the process is root on a node. This package has no side
// effects: it sees the files and variables that it is given, and nothing else.
package corefile
