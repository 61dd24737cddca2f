// Command fairway is the whole Kubernetes Service layer: see README.md and
// docs/commands.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

func main() {
	if err := newRootCommand().Execute(); err != nil {
		code, show := exitCode(err)
		if show {
			fmt.Fprintln(os.Stderr, "fairway:", err)
		}
		os.Exit(code)
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "fairway",
		Short:         "The whole Kubernetes Service layer in one program",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddGroup(
		&cobra.Group{ID: "machine", Title: "On one machine:"},
		&cobra.Group{ID: "manifest", Title: "Manifests:"},
		&cobra.Group{ID: "role", Title: "Roles, as they run in any cluster:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
		}
		root.AddCommand(commands...)
	}
	add("machine", newUpCommand(), newDownCommand(), newStatusCommand(), newExplainCommand(), newDNSCommand(), newKubectlCommand(), newTourCommand())
	add("manifest", newApplyCommand(), newConvertCommand())
	add("role", newNodeCommand(), newGatewayCommand(), newControllerCommand())
	root.AddCommand(newEchoCommand(), newVersionCommand())
	return root
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version) },
	}
}
