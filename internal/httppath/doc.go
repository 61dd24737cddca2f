// Package httppath brings URL paths into the one form in which Fairway
// compares them: the paths of Ingress rules when they are read, and the paths
// of requests when they arrive. Route, access rule and backend then see the
// same path, so that no spelling of a path slips past a rule.
//
// It must not know about routes; it imports the standard library only.
package httppath
