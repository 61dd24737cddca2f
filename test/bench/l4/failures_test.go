package main

import (
	"fmt"
	"log/slog"
	"os"
	"testing"
)

// TestMain lets this program be its own worker.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		if err := runWorker(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "l4 worker:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestNoConnectionFails is `make load-l4` with few Services.
func TestNoConnectionFails(t *testing.T) {
	const fairway = "../../../bin/fairway"
	if _, err := os.Stat(fairway); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and bin/fairway (make build)")
	}
	table, err := countFailures(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)), fairway, t.TempDir(), 100)
	t.Log("\n" + table)
	if err != nil {
		t.Error(err)
	}
}
