package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/agent"
	"fairway.dev/fairway/internal/apply"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/up"
)

func newExplainCommand() *cobra.Command {
	var c explainCommand
	cmd := &cobra.Command{
		Use:   "explain svc/NAME",
		Short: "Tell where connections to a Service go, why, and what the kernel holds for it",
		Long: `Explain tells of one Service, on one node: which addresses it has, which endpoints are in and which are out and why,
what each class of clients gets, and whether the kernel holds just that now. The exit status is 1 when the kernel differs.

The cluster is that of --kubeconfig, else of KUBECONFIG, else the one that ` + "`fairway up`" + ` started, else that of ~/.kube/config.
Reading the kernel needs root, and in a cluster of several machines has to be done on the node.`,
		Example: `  fairway explain svc/web
  fairway explain svc/web -n shop --from cart-5d9c7b9f4-x2x8z --port http
  fairway explain svc/web --from outside --node node-2 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
	}
	f := cmd.Flags()
	f.StringVarP(&c.namespace, "namespace", "n", "", "`namespace` of the Service (default: the context's)")
	f.StringVar(&c.from, "from", "", "`client` to explain for: a Pod (NAME or NAMESPACE/NAME), node, or outside (default: all)")
	f.StringVar(&c.port, "port", "", "`port` of the Service, by name or number (default: all)")
	f.StringVar(&c.node, "node", "", "`name` of the node that serves (default: that of the Pod in --from, else the first one of fairway up, else this machine)")
	f.StringVarP(&c.output, "output", "o", "", "json: the same for programs")
	f.StringVar(&c.cluster.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the cluster")
	f.StringVar(&c.cluster.Context, "context", "", "`context` in the kubeconfig")
	dataDirFlag(cmd, &c.cluster.DataDir)
	return cmd
}

type explainCommand struct {
	cluster                             apply.ClusterOptions
	namespace, from, port, node, output string
}

func (c *explainCommand) run(cmd *cobra.Command, arg string) error {
	if c.output != "" && c.output != "json" {
		return fmt.Errorf("--output %q: must be json", c.output)
	}
	name, err := serviceName(arg)
	if err != nil {
		return err
	}
	if c.cluster.DataDir, err = filepath.Abs(c.cluster.DataDir); err != nil {
		return err
	}
	cluster, err := apply.FindCluster(c.cluster)
	if err != nil {
		return err
	}
	namespace := c.namespace
	if namespace == "" {
		namespace = cluster.Namespace
	}
	o := agent.ExplainOptions{
		Config: cluster.Config, Service: model.Key{Namespace: namespace, Name: name}, From: c.from, Node: c.node, Port: c.port,
	}
	// The kernel of a node of fairway up is that of its network namespace.
	if cluster.Origin == filepath.Join(c.cluster.DataDir, "kubeconfig") {
		nodes, err := up.OpenNodes(c.cluster.DataDir)
		if err != nil {
			return err
		}
		if nodes != nil {
			o.DefaultNode, o.Enter = nodes.First(), nodes.Do
		}
	}
	report, err := agent.Explain(cmd.Context(), o)
	if err != nil {
		return err
	}
	if c.output == "json" {
		encoder := json.NewEncoder(cmd.OutOrStdout())
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else {
		_, err = io.WriteString(cmd.OutOrStdout(), report.Text())
	}
	if err == nil && report.Kernel.Differs {
		err = reported()
	}
	return err
}

// serviceName reads svc/NAME, as kubectl has it, or just a name.
func serviceName(arg string) (string, error) {
	kind, name, ok := strings.Cut(arg, "/")
	if !ok {
		kind, name = "svc", arg
	}
	switch kind {
	case "svc", "service", "services":
	default:
		return "", fmt.Errorf("%s: only Services can be explained, as svc/NAME", arg)
	}
	if name == "" || strings.Contains(name, "/") {
		return "", errors.New("name the Service, as svc/NAME")
	}
	return name, nil
}
