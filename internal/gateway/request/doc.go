// Package request holds what the gateway's router and filters see of an HTTP
// request, whatever engine read it: host and path in their one normal form,
// method, query, headers, and who is asking.
//
// Host and path are brought into normal form once, here, and that one value is
// matched, authorised, rewritten and forwarded. A request that a backend could
// read differently than the gateway has no normal form and is refused.
//
// The package must not know about net/http servers, routes or backends.
package request
