// Package state holds everything Fairway knows as one value that never
// changes: a [Snapshot] of copy-on-write tables. One writer commits changes
// through [Store.Update]; any number of readers take [Store.Snapshot] without
// locks and keep it as long as they like.
//
// Nobody ships deltas. A consumer remembers the snapshot that it last applied
// and asks [Diff] for the rows that differ from the newest one, so a slow
// consumer coalesces, and a full sync is a diff against nothing. The cost of a
// diff follows the number of changes, not of rows.
//
// The package must not know what the rows mean, apart from merging the
// EndpointSlices of a Service into its [model.EndpointSet].
package state
