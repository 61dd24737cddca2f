// Package cases is the table of packet cases that every data path must meet on
// the real kernel: a small cluster in network namespaces, Services, and for
// each client and destination who must answer, whom they must see, or how they
// must be refused. Each case runs with TCP and UDP, IPv4 and IPv6.
//
// A data path runs the table by [Run] in its own test. The package must not
// know how any of them works.
package cases
