package model

import "fmt"

// Problem is something that people have to know about an object: what is
// wrong, where, and what cures it. Problems become Events and conditions.
type Problem struct {
	Object Ref
	// Reason is CamelCase, stable, fit for an Event's reason.
	Reason string
	// Field is the path in the object, for example
	// "metadata.annotations[fairway.dev/tls-secret]"; empty for the whole object.
	Field string
	// Message is one sentence with the cure.
	Message string
}

// String returns the problem in one line.
func (p Problem) String() string {
	if p.Field == "" {
		return fmt.Sprintf("%s: %s", p.Object, p.Message)
	}
	return fmt.Sprintf("%s: %s: %s", p.Object, p.Field, p.Message)
}

// Error makes a Problem usable as an error.
func (p Problem) Error() string { return p.String() }

// Problems are the problems of one object, kept as one row.
type Problems []Problem
