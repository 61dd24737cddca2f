package apply

import (
	"cmp"
	"slices"

	"fairway.dev/fairway/internal/dialect"
)

// order returns the objects so that each finds what it needs: namespaces and
// definitions before what lives in them, configuration before workloads,
// Services before the Pods that get them as environment variables, routes
// last. Objects of the same rank keep their order.
func order(objects []*dialect.Object) []*dialect.Object {
	out := slices.Clone(objects)
	slices.SortStableFunc(out, func(a, b *dialect.Object) int { return cmp.Compare(rank(a.Kind), rank(b.Kind)) })
	return out
}

// waves cuts ordered objects into runs that need nothing of each other: of one
// rank, and none twice.
func waves(objects []*dialect.Object) [][]*dialect.Object {
	type key struct{ apiVersion, kind, namespace, name string }
	var out [][]*dialect.Object
	seen := map[key]bool{}
	for i, o := range objects {
		k := key{o.APIVersion, o.Kind, o.Namespace, o.Name}
		if i == 0 || rank(o.Kind) != rank(objects[i-1].Kind) || seen[k] {
			out = append(out, nil)
			clear(seen)
		}
		seen[k] = true
		out[len(out)-1] = append(out[len(out)-1], o)
	}
	return out
}

func rank(kind string) int {
	switch kind {
	case "Namespace":
		return 0
	case "CustomResourceDefinition":
		return 1
	case "PriorityClass", "StorageClass", "RuntimeClass", "IngressClass", "ResourceQuota", "LimitRange":
		return 2
	case "ConfigMap", "Secret":
		return 3
	case "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding":
		return 4
	case "PersistentVolume", "PersistentVolumeClaim":
		return 5
	case "Service", "Endpoints", "EndpointSlice":
		return 6
	case "Ingress":
		return 8
	case "APIService", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration":
		// Each sends requests to a workload that has to run first.
		return 9
	}
	return 7
}
