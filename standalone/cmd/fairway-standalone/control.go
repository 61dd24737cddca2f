package main

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"fairway.dev/fairway/standalone/internal/control"
)

func controlCommand() *cobra.Command {
	var advertise, serviceCIDRs []string
	opts := control.Options{LogOutput: os.Stderr}
	cmd := &cobra.Command{
		Use:   "control --advertise-address ADDRESS[,ADDRESS]",
		Short: "Run the control plane: etcd, API server, controllers and scheduler in one process",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if opts.AdvertiseAddresses, err = parseAddresses("--advertise-address", advertise); err != nil {
				return usageError{err}
			}
			if opts.ServiceCIDRs, err = parsePrefixes("--service-cidr", serviceCIDRs); err != nil {
				return usageError{err}
			}
			opts.Logger = newLogger(opts.Verbosity).With("component", "control")
			c, err := control.New(opts)
			if err != nil {
				return usageError{err}
			}
			return c.Run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.DataDir, "data-dir", "/var/lib/fairway", "directory for all data")
	flags.StringSliceVar(&advertise, "advertise-address", nil, "addresses by which nodes and Pods reach the API server, at most one of each family")
	flags.IntVar(&opts.SecurePort, "secure-port", 6443, "TCP port of the API server")
	flags.StringSliceVar(&serviceCIDRs, "service-cidr", []string{"10.96.0.0/16", "fd00:10:96::/112"}, "ranges for ClusterIPs, at most one of each family")
	flags.StringVar(&opts.ClusterDomain, "cluster-domain", "cluster.local", "DNS domain of the cluster")
	flags.StringVar(&opts.NodePortRange, "node-port-range", "30000-32767", "range for node ports")
	flags.IntVarP(&opts.Verbosity, "v", "v", 0, "log level of the Kubernetes components; 0 logs warnings and errors only")
	return cmd
}

func parseAddresses(flag string, values []string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, value := range values {
		addr, err := netip.ParseAddr(value)
		if err != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("%s: %q is not an IP address", flag, value)
		}
		addrs = append(addrs, addr.Unmap())
	}
	return addrs, nil
}

func parsePrefixes(flag string, values []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, value := range values {
		prefix, err := netip.ParsePrefix(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %q is not an address range in the form ADDRESS/BITS", flag, value)
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}
