// Package certs turns the TLS material of Kubernetes Secrets into certificates
// that a TLS server can use, says in plain words what is wrong with material
// that it cannot use, and finds the certificate for a server name (SNI).
//
// It must not know where material comes from or who serves it: the gateway and
// Service TLS both use it, and source/translate asks [Check] what to tell people.
package certs
