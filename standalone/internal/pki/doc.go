// Package pki makes and keeps the certificates and keys of a standalone cluster.
//
// It owns the directory DIR/pki: the cluster's certificate authority (serving and client certificates), the authority of
// the aggregation layer's front proxy, the key that signs ServiceAccount tokens, and every certificate issued from
// them. Files are made once and re-issued only when what they must say has changed (names, addresses, groups), when
// their authority has changed, or when they are about to expire. All files have mode 0600.
//
// It must not know who uses the certificates, and must not talk to an API server.
package pki
