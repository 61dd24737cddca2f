// Package scenario holds the end-to-end tests: a Fairway started in a network
// namespace of its own, the article's ten sections with their manifests
// through `fairway apply`, and what must not happen. Clients are the real
// ones: kubectl, curl, dig, openssl, a MySQL client, Python's requests.
//
// Besides the node there is one more namespace, "outside": a machine on the
// node's network that knows nothing of the cluster.
package scenario
