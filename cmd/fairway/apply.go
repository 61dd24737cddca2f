package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"fairway.dev/fairway/internal/apply"
	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/dialect"
	"github.com/spf13/cobra"
)

// The values of --dry-run.
const (
	dryRunNone   = "none"
	dryRunServer = "server"
	dryRunClient = "client"
)

func newApplyCommand() *cobra.Command {
	var c applyCommand
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIRECTORY|URL|-",
		Short: "Apply manifests, also older and informal ones, to the cluster",
		Long: `Apply brings manifests to the cluster by server-side apply. Those that the
Kubernetes API refuses today but whose meaning is plain are converted first, as
by ` + "`fairway convert`" + `, and each change is told on stderr.

The cluster is that of --kubeconfig, else of KUBECONFIG, else the one that
` + "`fairway up`" + ` started, else that of ~/.kube/config.`,
		Example: `  fairway apply -f examples/01-service
  fairway apply -f old-ingress.yaml --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd) },
	}
	c.manifests.register(cmd)
	f := cmd.Flags()
	f.StringVar(&c.dryRun, "dry-run", dryRunNone, "server: let the API server check everything and keep nothing; client: only convert; none")
	f.Lookup("dry-run").NoOptDefVal = dryRunServer
	f.StringVarP(&c.namespace, "namespace", "n", "", "`namespace` of objects that name none (default: the context's)")
	f.StringVar(&c.cluster.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the cluster")
	f.StringVar(&c.cluster.Context, "context", "", "`context` in the kubeconfig")
	f.BoolVar(&c.force, "force-conflicts", false, "take over fields that somebody else applied")
	dataDirFlag(cmd, &c.cluster.DataDir)
	return cmd
}

type applyCommand struct {
	manifests manifestFlags
	cluster   apply.ClusterOptions
	namespace string
	dryRun    string
	force     bool
}

func (c *applyCommand) run(cmd *cobra.Command) error {
	switch c.dryRun {
	case dryRunNone, dryRunServer, dryRunClient:
	default:
		return fmt.Errorf("--dry-run=%s: want server, client or none", c.dryRun)
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	inputs, errs := c.manifests.read(ctx, cmd.InOrStdin())
	if c.dryRun == dryRunClient {
		return c.convertOnly(cmd, inputs, errs)
	}
	cluster, err := apply.FindCluster(c.cluster)
	if err != nil {
		return err
	}
	applier, err := apply.New(apply.Options{
		Cluster: cluster, Namespace: c.namespace,
		DryRun: c.dryRun == dryRunServer, ForceConflicts: c.force,
		Kept: bootstrap.Keeps,
	})
	if err != nil {
		return err
	}
	o := dialect.Options{Namespace: c.namespace, Services: applier}
	if o.Namespace == "" {
		o.Namespace = cluster.Namespace
	}
	result := dialect.Convert(inputs, o)
	failed := tell(cmd.ErrOrStderr(), result, errs)
	failed = c.apply(ctx, cmd, applier, result.Objects) || failed
	if failed {
		return reported()
	}
	return noObjects(result)
}

// apply reports whether an object could not be applied.
func (c *applyCommand) apply(ctx context.Context, cmd *cobra.Command, applier *apply.Applier, objects []*dialect.Object) (failed bool) {
	applier.Apply(ctx, objects,
		func(o apply.Outcome) {
			for _, w := range o.Warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), w)
			}
			fmt.Fprintln(cmd.OutOrStdout(), o)
		},
		func(err error) {
			failed = true
			fmt.Fprintln(cmd.ErrOrStderr(), "error:", err)
		})
	return failed
}

// convertOnly says what would be applied, without a cluster.
func (c *applyCommand) convertOnly(cmd *cobra.Command, inputs []dialect.Input, errs []error) error {
	result := dialect.Convert(inputs, dialect.Options{Namespace: c.namespace})
	failed := tell(cmd.ErrOrStderr(), result, errs)
	for _, o := range result.Objects {
		fmt.Fprintf(cmd.OutOrStdout(), "%s would be applied (client dry run)\n", o)
	}
	if failed {
		return reported()
	}
	return noObjects(result)
}
