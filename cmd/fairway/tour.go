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
			o.Domain = up.DefaultClusterDomain
			nodes, err := up.OpenNodes(o.DataDir)
			if err != nil {
				return err
			}
			if nodes != nil { // else the first step says what is wrong
				o.Domain = nodes.Domain()
			}
			return tour.Run(cmd.Context(), o)
		},
	}
	dataDirFlag(cmd, &o.DataDir)
	return cmd
}
