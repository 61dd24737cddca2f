// Package lastknown keeps on disk what a node last knew of Services, endpoints,
// Nodes, namespaces and the configuration of DNS, for a process that starts while
// the API is away. Names are served from it (package dns) until the API answers;
// packet rules are not, for those that the kernel has are newer.
//
// A file is replaced in one step, checksummed and bound to one node; one that
// cannot be trusted in whole is not used at all. Certificates, keys and
// everything else of Secrets must never be in it.
package lastknown
