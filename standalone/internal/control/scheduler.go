package control

import (
	"context"
	"fmt"

	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

// schedulerFlags are the flags of kube-scheduler, by name.
func schedulerFlags(kubeconfig string) map[string]string {
	return map[string]string{
		"kubeconfig":     kubeconfig,
		"leader-elect":   "false",
		"secure-port":    "0",
		"profiling":      "false",
		"kube-api-qps":   "500",
		"kube-api-burst": "1000",
	}
}

// runScheduler runs kube-scheduler until the context ends.
func runScheduler(ctx context.Context, flags map[string]string) error {
	opts := options.NewOptions()
	if err := parseFlags(*opts.Flags, flags); err != nil {
		return fmt.Errorf("kube-scheduler: %w", err)
	}
	var err error
	if opts.InformerName, err = cache.NewInformerName("kube-scheduler"); err != nil {
		return fmt.Errorf("kube-scheduler: %w", err)
	}
	config, scheduler, err := app.Setup(ctx, opts)
	if err != nil {
		return fmt.Errorf("kube-scheduler: %w", err)
	}
	// Without leader election Run always ends with an error.
	if err := app.Run(ctx, config, scheduler); ctx.Err() == nil {
		return fmt.Errorf("kube-scheduler: %w", err)
	}
	return nil
}
