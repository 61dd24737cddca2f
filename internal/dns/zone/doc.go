// Package zone answers the cluster's own names: the Kubernetes DNS
// specification 1.1.0 for Services, endpoints and Pods, their reverse names,
// and localhost. It derives an [Index] from state snapshots, row by row, so
// that a query is a few look-ups and never a scan of all Services.
//
// The package is pure: it opens no socket, asks no other server, and does not
// know how a message is packed. Names outside are left to the caller.
package zone
