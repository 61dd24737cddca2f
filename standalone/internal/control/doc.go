// Package control runs the control plane of a standalone cluster in one process: etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler, all of them the real ones.
//
// It owns in the data directory: etcd/ (the cluster's data), pki/ (through package pki), kubeconfig and node.kubeconfig,
// control.lock (held while it runs) and control.json (the settings that cannot change once data exists). The only TCP
// port it opens is the API server's.
//
// It must not know about nodes, containers or Fairway's own roles: they are ordinary clients of its API.
package control
