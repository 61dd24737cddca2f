package main

import (
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// TestMain runs the test in a network namespace of its own.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 && os.Getenv(entered) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), entered+"=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if err := cmd.Run(); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestNoRequestFails is `make load-http` with fewer routes and less time.
func TestNoRequestFails(t *testing.T) {
	const fairway = "../../../bin/fairway"
	if _, err := os.Stat(fairway); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and bin/fairway (make build)")
	}
	if err := setUpNetwork(); err != nil {
		t.Fatal(err)
	}
	table, err := try(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)), options{fairway: fairway, routes: 1000, pause: time.Second}, t.TempDir())
	t.Log("\n" + table)
	if err != nil {
		t.Error(err)
	}
}
