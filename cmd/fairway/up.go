package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/agent"
	"fairway.dev/fairway/internal/up"
)

// dataDirEnv overrides the default of --data-dir.
const dataDirEnv = "FAIRWAY_DATA_DIR"

func newUpCommand() *cobra.Command {
	var o up.Options
	var dns agent.NodeOptions
	var dnsClients []string
	var detach bool
	var progressPipe string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a Kubernetes cluster on this machine, with Fairway as its Service layer",
		Long: `Start a Kubernetes cluster on this machine, with Fairway as its Service layer.

Everything is kept in one data directory and in what fairway up adds to the network namespace it is started in.
Stop it with Ctrl-C or fairway down; the objects stay for the next start.`,
		Example: `  fairway up
  fairway up --detach --nodes 3 --zones a,b,c
  fairway up --dns-upstream 192.0.2.53 --dns-stub corp.example=192.0.2.54 --dns-log 1%
  fairway up --image nginx:*=/usr/sbin/nginx --http-port 8080 --https-port 8443`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			executable, err := ownExecutable()
			if err != nil {
				return err
			}
			if o.DataDir, err = filepath.Abs(o.DataDir); err != nil {
				return err
			}
			o.BinDir = filepath.Dir(executable)
			if o.DNSFlags, err = givenDNSFlags(cmd.Flags(), dns, dnsClients); err != nil {
				return err
			}
			switch {
			case progressPipe != "":
				return upDetached(cmd.Context(), o, progressPipe == "terminal")
			case detach:
				return upAndLeave(cmd, executable, o)
			}
			o.Progress = up.NewProgress(cmd.OutOrStdout(), isTerminal(cmd.OutOrStdout()))
			o.OnReady = func() { o.Progress.Print("\nCtrl-C stops it\n") }
			return runCluster(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	dataDirFlag(cmd, &o.DataDir)
	f.IntVar(&o.Nodes, "nodes", 1, "number of nodes; each further one gets a network namespace of its own")
	f.StringSliceVar(&o.Zones, "zones", nil, "topology zones, given to the nodes in turn")
	f.StringArrayVar(&o.Images, "image", nil, "REF=COMMAND: run containers of image REF (with or without tag, * allowed) as COMMAND on this machine; may be repeated")
	f.StringArrayVar(&o.ImageFiles, "image-files", nil, "REF=DIR: show containers of image REF the files below DIR at their places below /, besides the machine's; may be repeated")
	f.IntVar(&o.HTTPPort, "http-port", 80, "port of the gateway for HTTP")
	f.IntVar(&o.HTTPSPort, "https-port", 443, "port of the gateway for HTTPS")
	f.IntVar(&o.APIPort, "api-port", 6443, "port of the Kubernetes API")
	f.StringVar(&o.LBPool, "lb-pool", "", "addresses for LoadBalancers: CIDR[,CIDR], node (the nodes' own, shared by port), or none (default a free range, then the one used before)")
	f.StringVar(&o.Dataplane, "dataplane", "auto", "how Services reach the kernel: auto, ebpf or nft")
	f.StringVar(&o.ServiceCIDR, "service-cidr", "", "range of ClusterIPs: CIDR[,CIDR] (default 10.96.0.0/16,fd00:10:96::/112 where free)")
	f.StringVar(&o.PodCIDR, "pod-cidr", "", "range of Pods: CIDR[,CIDR] (default 10.244.0.0/16,fd00:10:244::/48 where free)")
	f.StringVar(&o.NodeCIDR, "node-cidr", "", "range of the nodes' own addresses: CIDR[,CIDR] (default 10.245.0.0/24,fd00:10:245::/112 where free)")
	f.StringVar(&o.ClusterDomain, "cluster-domain", "", "`domain` of the cluster's names (default "+up.DefaultClusterDomain+")")
	dnsFlags(f, &dns, &dnsClients)
	f.BoolVar(&detach, "detach", false, "return when everything is ready and go on in the background")
	f.StringVar(&progressPipe, "progress-pipe", "", "internal: run as the background part of --detach")
	_ = f.MarkHidden("progress-pipe") // fails only for a flag that does not exist
	return cmd
}

// dataDirFlag adds --data-dir, with the default that all commands share.
func dataDirFlag(cmd *cobra.Command, value *string) {
	cmd.Flags().StringVar(value, "data-dir", defaultDataDir(), "directory that the cluster is kept in (environment: "+dataDirEnv+")")
}

func defaultDataDir() string {
	if d := os.Getenv(dataDirEnv); d != "" {
		return d
	}
	return up.DefaultDataDir
}

// ownExecutable is the real path of this program; the others lie beside it.
func ownExecutable() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding the own executable: %w", err)
	}
	return filepath.EvalSymlinks(path)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// runCluster runs until the first SIGINT or SIGTERM; the second makes stopping impatient.
func runCluster(ctx context.Context, o up.Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	force := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
		case <-signals:
			cancel()
		}
		if _, again := <-signals; again {
			close(force)
		}
	}()
	o.Force = force
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	cluster, err := up.New(o)
	if err != nil {
		return err
	}
	return cluster.Run(ctx)
}

// upAndLeave starts the background part and shows its progress until it is ready.
func upAndLeave(cmd *cobra.Command, executable string, o up.Options) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	kind := "plain"
	if isTerminal(cmd.OutOrStdout()) {
		kind = "terminal"
	}
	// The last of two equal flags counts. Paths are relative to another directory there.
	args := append(append([]string{}, os.Args[1:]...), "--data-dir="+o.DataDir, "--progress-pipe="+kind)
	for _, flag := range o.DNSFlags {
		if strings.HasPrefix(flag, "--dns-corefile=") {
			args = append(args, flag)
		}
	}
	return up.Detach(executable, args, o.DataDir, cmd.OutOrStdout(), ctx.Done())
}

// upDetached is the background part.
func upDetached(ctx context.Context, o up.Options, terminal bool) error {
	detached := up.OpenDetached()
	o.Progress = up.NewProgress(detached, terminal)
	o.OnReady = detached.Ready
	err := runCluster(ctx, o)
	if err == nil {
		return nil
	}
	o.Progress.Print("error: " + err.Error() + "\n")
	slog.Error("fairway up failed", "error", err) // the pipe has no reader any more if it was ready before
	return &up.ExitError{Code: 1}
}

// reported is a failure that the command has already shown.
func reported() error { return &up.ExitError{Code: 1} }

// exitCode is the exit status for an error of a command, and whether it has yet to be shown.
func exitCode(err error) (code int, show bool) {
	var exit *up.ExitError
	if errors.As(err, &exit) {
		return exit.Code, false
	}
	return 1, true
}
