package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/agent"
	"fairway.dev/fairway/internal/model"
)

func newExplainCommand() *cobra.Command {
	var c explainCommand
	cmd := &cobra.Command{
		Use:   "explain svc/NAME",
		Short: "Tell where connections to a Service go, why, and what the kernel holds for it",
		Long: `Explain tells of one Service, on one node: which addresses it has, which endpoints are in and which are out and why,
what each class of clients gets, and whether the kernel holds just that now. The exit status is 1 when the kernel differs.

` + inspectionLong + `
Reading the kernel needs root, and in a cluster of several machines has to be done on the node.`,
		Example: `  fairway explain svc/web
  fairway explain svc/web -n shop --from cart-5d9c7b9f4-x2x8z --port http
  fairway explain svc/web --from outside --node node-2 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
	}
	c.flags(cmd, "`namespace` of the Service (default: the context's)",
		"`name` of the node that serves (default: that of the Pod in --from, else the first one of fairway up, else this machine)")
	f := cmd.Flags()
	f.StringVar(&c.from, "from", "", "`client` to explain for: a Pod (NAME or NAMESPACE/NAME), node, or outside (default: all)")
	f.StringVar(&c.port, "port", "", "`port` of the Service, by name or number (default: all)")
	return cmd
}

type explainCommand struct {
	inspection
	from, port string
}

func (c *explainCommand) run(cmd *cobra.Command, arg string) error {
	name, err := serviceName(arg)
	if err != nil {
		return err
	}
	in, err := c.find()
	if err != nil {
		return err
	}
	// The kernel of a node of fairway up is that of its network namespace.
	report, err := agent.Explain(cmd.Context(), agent.ExplainOptions{
		Config: in.Config, Service: model.Key{Namespace: in.namespace, Name: name}, From: c.from, Port: c.port,
		Node: c.node, DefaultNode: in.firstNode, Enter: in.enter,
	})
	if err != nil {
		return err
	}
	return c.tell(cmd, report, !report.Kernel.Differs)
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
