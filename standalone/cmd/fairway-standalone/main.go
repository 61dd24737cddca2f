package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	kubernetes "k8s.io/component-base/version"
)

// version is Fairway's own, set by the build.
var version = "dev"

// exitLimit bounds the end of the process after a signal. Each part has its own limit; this one is for what hangs
// where nobody expected it.
const exitLimit = 15 * time.Second

func main() {
	// A supervisor's PR_SET_PDEATHSIG belongs to the first thread and survives execve only there; the node command executes
	// itself again (kubelet.EnterMountNamespace).
	runtime.LockOSThread()
	// kubectl has its own way with flags, completion and plugins, which must not pass through another command tree. A
	// link named kubectl works as well.
	if filepath.Base(os.Args[0]) == "kubectl" {
		runKubectl(os.Args[1:])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "kubectl" {
		runKubectl(os.Args[2:])
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() {
		time.AfterFunc(exitLimit, func() {
			fmt.Fprintln(os.Stderr, "error: did not stop in", exitLimit)
			os.Exit(1)
		})
	})
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		stop()
		var usage usageError
		if errors.As(err, &usage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "fairway-standalone",
		Short:         "The Kubernetes inside Fairway's standalone mode",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())}
	})
	root.AddCommand(controlCommand(), nodeCommand(), versionCommand(), &cobra.Command{
		Use:                "kubectl [ARGUMENT]...",
		Short:              "The real kubectl",
		DisableFlagParsing: true,
		// Only for the help text: main never comes here with kubectl.
		Run: func(_ *cobra.Command, args []string) { runKubectl(args) },
	})
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of the program and of Kubernetes inside",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			info := kubernetes.Get()
			fmt.Fprintf(cmd.OutOrStdout(), "fairway-standalone %s, Kubernetes %s (%s, %s)\n", version, info.GitVersion, info.GoVersion, info.Platform)
		},
	}
}

// newLogger logs to stderr, where the supervisor collects it.
func newLogger(verbosity int) *slog.Logger {
	level := slog.LevelInfo
	if verbosity > 0 {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}
