// Package fairway is the root of the module: it holds no code, only the tests
// that keep the whole in shape (import lattice, package docs, hygiene).
//
// Fairway is the Kubernetes Service layer as one program; see README.md, and
// docs/architecture.md for the rooms and the one-way flow between them.
package fairway
