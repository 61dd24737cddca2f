package main

import (
	"fmt"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/up"
)

func newDownCommand() *cobra.Command {
	var dataDir string
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the cluster that fairway up started; its objects are kept",
		Long: `Stop the cluster that fairway up started, and take away everything it added to the machine: processes, network
namespaces, interfaces, routes, rules and mounts, also those of one that was killed. The objects of the cluster stay in
the data directory for the next fairway up.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := filepath.Abs(dataDir)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			out := cmd.OutOrStdout()
			found, err := up.Down(ctx, dir, up.NewProgress(out, isTerminal(out)))
			if err == nil && !found {
				fmt.Fprintf(out, "nothing runs with the data directory %s\n", dir)
			}
			return err
		},
	}
	dataDirFlag(cmd, &dataDir)
	return cmd
}
