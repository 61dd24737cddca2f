// Package shed watches how much of its memory the process uses, and says when
// the gateway should take no more on. It knows the limit of the Go runtime
// (GOMEMLIMIT) and that of the cgroup (v1 and v2). It also counts what others
// tell it that waits in memory, and says when that is too much.
//
// It must not know about connections or requests: whoever takes work on asks
// whether to.
package shed
