package main

import (
	"os"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/tour"
)

func newTourCommand() *cobra.Command {
	var o tour.Options
	cmd := &cobra.Command{
		Use:   "tour",
		Short: "Apply a small application and send a request through every layer",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			o.Fairway, o.Out = self, cmd.OutOrStdout()
			return tour.Run(cmd.Context(), o)
		},
	}
	dataDirFlag(cmd, &o.DataDir)
	return cmd
}
