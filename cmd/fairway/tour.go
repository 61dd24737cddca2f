package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/tour"
	"fairway.dev/fairway/internal/up"
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
			if o.DataDir, err = filepath.Abs(o.DataDir); err != nil {
				return err
			}
			o.Fairway, o.Out, o.DataDirFlag = self, cmd.OutOrStdout(), up.DataDirFlag(o.DataDir)
			return tour.Run(cmd.Context(), o)
		},
	}
	dataDirFlag(cmd, &o.DataDir)
	return cmd
}
