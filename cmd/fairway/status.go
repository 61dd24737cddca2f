package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/up"
)

func newStatusCommand() *cobra.Command {
	var dataDir, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show processes and addresses of the cluster, and what is not well",
		Long:  "Show processes and addresses of the cluster, and what is not well. The exit status is 0 only if all is well.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := filepath.Abs(dataDir)
			if err != nil {
				return err
			}
			if output != "" && output != "json" {
				return fmt.Errorf("--output %q: must be json", output)
			}
			report, err := up.Status(cmd.Context(), dir)
			if err != nil {
				return err
			}
			if err := writeReport(cmd.OutOrStdout(), report, output == "json"); err != nil {
				return err
			}
			if len(report.Problems) > 0 {
				return reported()
			}
			return nil
		},
	}
	dataDirFlag(cmd, &dataDir)
	cmd.Flags().StringVarP(&output, "output", "o", "", "json: the same for programs")
	return cmd
}

func writeReport(w io.Writer, report up.Report, asJSON bool) error {
	if !asJSON {
		_, err := io.WriteString(w, report.Text(time.Now()))
		return err
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(report)
}
