package control

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
)

// controllers are the controllers that run; the list takes names only, no patterns. Left out are those that need a
// cloud, those for joining nodes by bootstrap tokens, node IPAM (each node command sets its own Pod range) and those for
// devices and volume drivers, which a node here does not have.
var controllers = []string{
	names.ServiceAccountTokenController,
	names.ServiceAccountController,
	names.LegacyServiceAccountTokenCleanerController,
	names.RootCACertificatePublisherController,
	names.ClusterRoleAggregationController,
	names.CertificateSigningRequestSigningController,
	names.CertificateSigningRequestApprovingController,
	names.CertificateSigningRequestCleanerController,
	names.NamespaceController,
	names.GarbageCollectorController,
	names.PodGarbageCollectorController,
	names.ResourceQuotaController,
	names.DisruptionController,
	names.ValidatingAdmissionPolicyStatusController,

	names.DeploymentController,
	names.ReplicaSetController,
	names.ReplicationControllerController,
	names.StatefulSetController,
	names.DaemonSetController,
	names.JobController,
	names.CronJobController,
	names.TTLAfterFinishedController,
	names.HorizontalPodAutoscalerController,

	names.EndpointsController,
	names.EndpointSliceController,
	names.EndpointSliceMirroringController,
	names.ServiceCIDRController,

	names.NodeLifecycleController,
	names.TaintEvictionController,

	names.PersistentVolumeBinderController,
	names.PersistentVolumeClaimProtectionController,
	names.PersistentVolumeProtectionController,
	names.EphemeralVolumeController,
}

// controllerManagerFlags are the flags of kube-controller-manager, by name.
func controllerManagerFlags(c *credentials, kubeconfig string) map[string]string {
	return map[string]string{
		"kubeconfig":                       kubeconfig,
		"controllers":                      strings.Join(controllers, ","),
		"leader-elect":                     "false",
		"secure-port":                      "0",
		"profiling":                        "false",
		"root-ca-file":                     c.pki.CAFile(),
		"service-account-private-key-file": c.pki.ServiceAccountKeyFile(),
		"cluster-signing-cert-file":        c.pki.CAFile(),
		"cluster-signing-key-file":         c.pki.CAKeyFile(),
		// The defaults (20 and 30) are meant for many clients of one API server and make a single machine wait.
		"kube-api-qps":                "500",
		"kube-api-burst":              "1000",
		"controller-shutdown-timeout": "2s",
		"terminated-pod-gc-threshold": "1000",
	}
}

// runControllerManager runs kube-controller-manager until the context ends. It declares no node lost for leases that
// could not be renewed while the API was away.
func runControllerManager(ctx context.Context, flags map[string]string, away *absence) error {
	opts, err := options.NewKubeControllerManagerOptions()
	if err != nil {
		return fmt.Errorf("kube-controller-manager: %w", err)
	}
	known, disabled, aliases := app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()
	if err := parseFlags(opts.Flags(known, disabled, aliases), flags); err != nil {
		return fmt.Errorf("kube-controller-manager: %w", err)
	}
	config, err := opts.Config(ctx, known, disabled, aliases)
	if err != nil {
		return fmt.Errorf("kube-controller-manager: %w", err)
	}
	config.Kubeconfig.Wrap(away.wrap)
	if err := app.Run(ctx, config.Complete()); err != nil && ctx.Err() == nil {
		return fmt.Errorf("kube-controller-manager: %w", err)
	}
	return nil
}
