// Package router finds the rule for a request. [Compile] makes an index from
// all routes, purely; the index never changes, and the gateway swaps one for
// another while requests go on.
//
// # Precedence
//
// Of the rules that match a request the first in this order gets it:
//
//  1. an exact host, then the wildcard "*.example.com" (which stands for one
//     label, as Ingress has it), then rules for every host;
//  2. within a host an exact path, then the longest pattern; prefixes are
//     compared by path element, and at equal length a prefix goes before a
//     glob and a glob before a regular expression;
//  3. with the same path more conditions: method, then headers, then query;
//  4. the older object, then the smaller namespace and name, then the order
//     within the object.
//
// Only then come default backends: that of a route which has a rule for the
// host, then the oldest of all. Two rules that differ in nothing but (4) are a
// conflict: the first serves and the other object is told.
//
// The package must not know about backends' state, filters or servers.
package router
