// Package atomicfile replaces whole files so that a reader sees either the old content or the new one, never half of it.
//
// It owns nothing but that one operation; it must not grow into a general file library.
package atomicfile
