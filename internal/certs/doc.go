// Package certs turns the TLS material of Kubernetes Secrets into certificates
// that a TLS server can use, says in plain words what is wrong with material
// that it cannot use, finds the certificate for a server name (SNI), and judges
// the certificates that clients show.
//
// It must not know where material comes from or who serves it: the gateway and
// Service TLS both use it, and source/translate asks [Check] and
// [ParseAuthorities] what to tell people.
package certs
