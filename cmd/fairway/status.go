package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/internal/agent"
	"fairway.dev/fairway/internal/explain"
	"fairway.dev/fairway/internal/up"
	"fairway.dev/fairway/internal/up/supervise"
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
			whole := clusterReport{report, nil}
			if nodes, err := up.OpenNodes(dir); err == nil && nodes != nil && slices.ContainsFunc(report.Processes, gatewayRuns) {
				enter := func(f func() error) error { return nodes.Do(nodes.First(), f) }
				// Where it cannot be asked, that is no news: its process is told of.
				if services, err := agent.GatewayServices(cmd.Context(), defaultMetricsAddress, enter); err == nil {
					whole.Endpoints = explain.Unwell(services)
				}
			}
			if err := writeReport(cmd.OutOrStdout(), whole, output == "json"); err != nil {
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

// clusterReport is what is told of the cluster, with the endpoints that its
// gateway leaves out or gives less than their share. Those are no problem of
// the cluster's own.
type clusterReport struct {
	up.Report
	Endpoints []string `json:"endpoints,omitempty"`
}

func gatewayRuns(p supervise.Status) bool { return p.Role == "gateway" && p.State == supervise.Running }

func writeReport(w io.Writer, report clusterReport, asJSON bool) error {
	if !asJSON {
		text := report.Text(time.Now())
		for _, e := range report.Endpoints {
			text += "\n- " + e + "\n"
		}
		_, err := io.WriteString(w, text)
		return err
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(report)
}
