package dialect

import "slices"

// served returns the API version that took the place of an old one in which
// the kind has the same fields, or those that this package converts.
func served(apiVersion, kind string) (string, bool) {
	for _, s := range successors() {
		if slices.Contains(s.before, apiVersion) && slices.Contains(s.kinds, kind) {
			return s.now, true
		}
	}
	return "", false
}

type successor struct {
	now    string
	before []string
	kinds  []string
}

// successors follows the Kubernetes deprecation guide
// (https://kubernetes.io/docs/reference/using-api/deprecation-guide/). Kinds
// whose fields changed in ways that need a decision, such as
// CustomResourceDefinition, are left to the API server to refuse.
func successors() []successor {
	return []successor{
		{"networking.k8s.io/v1", []string{"networking.k8s.io/v1beta1", "extensions/v1beta1"}, []string{"Ingress"}},
		{"networking.k8s.io/v1", []string{"networking.k8s.io/v1beta1"}, []string{"IngressClass"}},
		{"networking.k8s.io/v1", []string{"extensions/v1beta1"}, []string{"NetworkPolicy"}},
		{"apps/v1", []string{"apps/v1beta1", "apps/v1beta2"}, []string{"Deployment", "StatefulSet"}},
		{"apps/v1", []string{"apps/v1beta2"}, []string{"DaemonSet", "ReplicaSet"}},
		{"apps/v1", []string{"extensions/v1beta1"}, []string{"Deployment", "DaemonSet", "ReplicaSet"}},
		{"batch/v1", []string{"batch/v1beta1", "batch/v2alpha1"}, []string{"CronJob"}},
		{"policy/v1", []string{"policy/v1beta1"}, []string{"PodDisruptionBudget"}},
		{"discovery.k8s.io/v1", []string{"discovery.k8s.io/v1beta1"}, []string{"EndpointSlice"}},
		{"autoscaling/v2", []string{"autoscaling/v2beta2"}, []string{"HorizontalPodAutoscaler"}},
		{"rbac.authorization.k8s.io/v1", []string{"rbac.authorization.k8s.io/v1beta1", "rbac.authorization.k8s.io/v1alpha1"},
			[]string{"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}},
		{"scheduling.k8s.io/v1", []string{"scheduling.k8s.io/v1beta1", "scheduling.k8s.io/v1alpha1"}, []string{"PriorityClass"}},
		{"storage.k8s.io/v1", []string{"storage.k8s.io/v1beta1"}, []string{"StorageClass", "VolumeAttachment", "CSIDriver", "CSINode"}},
		{"coordination.k8s.io/v1", []string{"coordination.k8s.io/v1beta1"}, []string{"Lease"}},
	}
}
