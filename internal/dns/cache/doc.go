// Package cache keeps answers of other DNS servers for as long as their TTLs
// allow, negative ones by RFC 2308, and past that for the time that their
// servers are away (RFC 8767). Its size is bounded in bytes; what was not used
// for the longest time goes first.
//
// The package must not ask servers: whoever fills it decides when.
package cache
