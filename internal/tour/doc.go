// Package tour shows a running Fairway at work: it applies a small application
// and sends a request through every layer, printing what it asks and what it
// gets. It uses Fairway's own commands and otherwise the standard library
// only, so that it needs nothing else on the machine.
package tour
