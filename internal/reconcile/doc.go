// Package reconcile carries the newest snapshot of [state.Store] to something
// outside: kernel tables, listeners, API objects.
//
// [Watch] calls a function with the snapshot that it last took and the newest
// one, at once for a first change and for the end of a first load, else coalesced. [Loop] builds on it for
// consumers that are made of independent objects: it finds which objects
// changed, compiles them by a pure function, and hands batches of changes to
// an idempotent [Target]. An object that fails is tried again with back-off
// while the others go on; nothing is forgotten after an error, and nothing is
// removed before every source has synced.
//
// The package must not know what the objects are.
package reconcile
