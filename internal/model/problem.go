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
	// Severity is a warning's where it is not set.
	Severity Severity
}

// Severity tells what is wrong from what could be better.
type Severity uint8

const (
	// Warning is what does not work as it is asked for.
	Warning Severity = iota
	// Advice is what works, and could do so better. People are told it once.
	Advice
)

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
