// Package apply brings manifests to a Kubernetes API by server-side apply
// (https://kubernetes.io/docs/reference/using-api/server-side-apply/), as field
// manager "fairway-apply".
//
// It owns finding the cluster, the order of objects, and telling what became
// of each. What the objects mean and how they are converted is package
// dialect's.
package apply
