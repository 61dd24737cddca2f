package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/standalone/internal/kubelet"
	"fairway.dev/fairway/standalone/internal/runtime"
)

func nodeCommand() *cobra.Command {
	var nodeIPs, podCIDRs, clusterCIDRs, clusterDNS, images, imageFiles []string
	var cgroupParent, binDir string
	opts := kubelet.Options{LogOutput: os.Stderr}
	cmd := &cobra.Command{
		Use:   "node --node-name NAME --node-ip ADDRESS[,ADDRESS] --pod-cidr RANGE[,RANGE]",
		Short: "Run a node, in the network namespace that it is started in, whose containers are host processes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if opts.NodeIPs, err = parseAddresses("--node-ip", nodeIPs); err != nil {
				return usageError{err}
			}
			if opts.PodCIDRs, err = parsePrefixes("--pod-cidr", podCIDRs); err != nil {
				return usageError{err}
			}
			inside, err := parsePrefixes("--cluster-cidr", clusterCIDRs)
			if err != nil {
				return usageError{err}
			}
			if opts.ClusterDNS, err = parseAddresses("--cluster-dns", clusterDNS); err != nil {
				return usageError{err}
			}
			mappings, err := parseEach("--image", images, runtime.ParseImageMapping)
			if err != nil {
				return usageError{err}
			}
			files, err := parseEach("--image-files", imageFiles, runtime.ParseImageFiles)
			if err != nil {
				return usageError{err}
			}
			if opts.Kubeconfig == "" {
				opts.Kubeconfig = filepath.Join(opts.DataDir, "node.kubeconfig")
			}
			opts.Logger = newLogger(opts.Verbosity).With("component", "node", "node", opts.NodeName)
			opts.NewRuntime = func(ctx context.Context) (kubelet.Runtime, error) {
				bin, err := executables(binDir)
				if err != nil {
					return nil, err
				}
				return runtime.New(ctx, runtime.Options{
					Dir:          filepath.Join(opts.DataDir, "nodes", opts.NodeName),
					NodeName:     opts.NodeName,
					PodCIDRs:     opts.PodCIDRs,
					ClusterCIDRs: inside,
					NodeIPs:      opts.NodeIPs,
					Images:       mappings,
					ImageFiles:   files,
					CgroupParent: cgroupParent,
					InitPath:     filepath.Join(bin, "fairway-init"),
					BinDir:       bin,
					Hide:         []string{opts.DataDir},
					Logger:       opts.Logger,
				})
			}
			node, err := kubelet.New(opts)
			if err != nil {
				return usageError{err}
			}
			opts.DataDir = node.DataDir()
			if err := kubelet.EnterMountNamespace(); err != nil {
				return err
			}
			return node.Run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.DataDir, "data-dir", "/var/lib/fairway", "directory for all data, the same as the control plane's")
	flags.StringVar(&opts.NodeName, "node-name", "", "name of the node")
	flags.StringVar(&opts.Kubeconfig, "kubeconfig", "", "file that says how to reach the API server (default DIR/node.kubeconfig)")
	flags.StringSliceVar(&nodeIPs, "node-ip", nil, "the node's own addresses, at most one of each family")
	flags.StringSliceVar(&podCIDRs, "pod-cidr", nil, "ranges for the node's Pods, at most one of each family")
	flags.StringSliceVar(&clusterCIDRs, "cluster-cidr", nil, "all ranges of the cluster: Pods of all nodes, Services, nodes, load balancers; what Pods send elsewhere gets the node's address")
	flags.StringSliceVar(&clusterDNS, "cluster-dns", []string{"10.96.0.10"}, "addresses that Pods ask for names")
	flags.StringVar(&opts.ClusterDomain, "cluster-domain", "cluster.local", "DNS domain of the cluster")
	flags.StringArrayVar(&images, "image", nil, "REF=COMMAND, the command of this machine that an image stands for; may be repeated")
	flags.StringArrayVar(&imageFiles, "image-files", nil, "REF=DIR, files that containers of an image see besides the machine's, laid out as from /; may be repeated")
	flags.StringVar(&opts.Zone, "zone", "", "zone of the node, as its label topology.kubernetes.io/zone")
	flags.StringVar(&cgroupParent, "cgroup-parent", "fairway", "cgroup for the cgroup of all Pods, as a path from the mount of cgroup v2")
	flags.StringVar(&binDir, "bin-dir", "", "directory of fairway and fairway-init (default this program's)")
	flags.IntVar(&opts.Port, "kubelet-port", 10250, "TCP port of kubelet")
	flags.IntVar(&opts.MaxPods, "max-pods", 250, "how many Pods the node takes")
	flags.IntVarP(&opts.Verbosity, "v", "v", 0, "log level of kubelet; 0 logs warnings and errors only")
	return cmd
}

// parseEach parses all values of a flag that may be repeated.
func parseEach[T any](flag string, values []string, parse func(string) (T, error)) ([]T, error) {
	var out []T
	for _, value := range values {
		parsed, err := parse(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		out = append(out, parsed)
	}
	return out, nil
}

// executables is the directory given, or else this program's own, where the others lie beside it.
func executables(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find Fairway's executables: %w", err)
	}
	return filepath.Dir(self), nil
}
