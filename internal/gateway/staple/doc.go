// Package staple has certificates carry the proof that they are not revoked
// (OCSP stapling), where they name who gives it. It asks in the background,
// before a proof expires, and keeps what it has got. A handshake takes what is
// there and never waits.
//
// The package must not know about routes or Secrets: it is told which
// certificates are in use.
package staple
