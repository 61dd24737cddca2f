// Package supervise keeps processes running.
//
// It owns: starting a child in a session and a cgroup of its own, its log file, starting it again with growing pauses when
// it ends, ending it and everything it started, and knowing its state.
//
// It must not know what the processes do, in which order they belong, or when one is ready.
package supervise
