package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func newKubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl [--data-dir DIR] [ARGUMENT]...",
		Short: "The real kubectl, talking to the cluster that fairway up started",
		Example: `  fairway kubectl get pods -A
  fairway kubectl --data-dir /tmp/cluster get nodes`,
		DisableFlagParsing: true, // everything but a leading --data-dir is kubectl's
		RunE: func(_ *cobra.Command, args []string) error {
			dataDir, args, err := leadingDataDir(args)
			if err != nil {
				return err
			}
			return execKubectl(dataDir, args)
		},
	}
}

// leadingDataDir takes --data-dir off the front of the arguments.
func leadingDataDir(args []string) (dataDir string, rest []string, err error) {
	dataDir = defaultDataDir()
	if len(args) > 0 {
		if value, ok := strings.CutPrefix(args[0], "--data-dir="); ok {
			dataDir, args = value, args[1:]
		} else if args[0] == "--data-dir" {
			if len(args) < 2 {
				return "", nil, errors.New("--data-dir: needs a directory")
			}
			dataDir, args = args[1], args[2:]
		}
	}
	dataDir, err = filepath.Abs(dataDir)
	return dataDir, args, err
}

// execKubectl becomes kubectl. It returns only if that fails.
func execKubectl(dataDir string, args []string) error {
	executable, err := ownExecutable()
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(dataDir, "kubeconfig")
	switch file, err := os.Open(kubeconfig); {
	case err == nil:
		file.Close()
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("there is no cluster in %s: start one with fairway up, or name another with --data-dir or %s", dataDir, dataDirEnv)
	default:
		return fmt.Errorf("%w; try: sudo fairway kubectl", err)
	}
	standalone := filepath.Join(filepath.Dir(executable), "fairway-standalone")
	// Programs differ in which of two equal variables they believe.
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "KUBECONFIG=") })
	env = append(env, "KUBECONFIG="+kubeconfig)
	err = syscall.Exec(standalone, append([]string{"fairway-standalone", "kubectl"}, args...), env)
	return fmt.Errorf("running %s: %w (build it with make build)", standalone, err)
}
