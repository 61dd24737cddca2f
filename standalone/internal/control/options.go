package control

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
)

// Options configure a control plane.
type Options struct {
	// DataDir is the directory for everything that must survive a restart; required. It is made if need be.
	DataDir string
	// AdvertiseAddresses are the addresses by which nodes and Pods reach the API server, at most one of each family;
	// required. The first is the one behind the Service default/kubernetes.
	AdvertiseAddresses []netip.Addr
	// SecurePort is the API server's TCP port, on all addresses of the network namespace; required.
	SecurePort int
	// ServiceCIDRs are the ranges for ClusterIPs, one or one of each family; required. The first decides the family of
	// Services that ask for none. They cannot be changed once the data directory holds a cluster.
	ServiceCIDRs []netip.Prefix
	// ClusterDomain is the DNS domain of the cluster, without a final dot; required.
	ClusterDomain string
	// NodePortRange is the range for node ports in the form FIRST-LAST, inclusive; required.
	NodePortRange string
	// Verbosity is the log level of the Kubernetes components: 0 for warnings and errors only.
	Verbosity int
	// LogOutput receives the log of the Kubernetes components; required.
	LogOutput io.Writer
	// Logger receives the log of this package; required.
	Logger *slog.Logger
}

func (o *Options) validate() error {
	var errs []error
	if o.DataDir == "" {
		errs = append(errs, errors.New("--data-dir must not be empty"))
	}
	if err := validateFamilies("--advertise-address", len(o.AdvertiseAddresses), func(i int) netip.Addr {
		return o.AdvertiseAddresses[i]
	}); err != nil {
		errs = append(errs, err)
	}
	for _, addr := range o.AdvertiseAddresses {
		if addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() {
			errs = append(errs, fmt.Errorf("--advertise-address %s: nodes and Pods cannot reach the API server there; give an "+
				"address of an interface that is not the loopback", addr))
		}
	}
	if o.SecurePort < 1 || o.SecurePort > 65535 {
		errs = append(errs, fmt.Errorf("--secure-port %d: must be between 1 and 65535", o.SecurePort))
	}
	if err := validateFamilies("--service-cidr", len(o.ServiceCIDRs), func(i int) netip.Addr {
		return o.ServiceCIDRs[i].Addr()
	}); err != nil {
		errs = append(errs, err)
	}
	for _, cidr := range o.ServiceCIDRs {
		if cidr != cidr.Masked() {
			errs = append(errs, fmt.Errorf("--service-cidr %s: has bits beyond its mask; did you mean %s?", cidr, cidr.Masked()))
		}
		// The limits of the API server's allocator, and of the first address for Service default/kubernetes.
		if size := cidr.Addr().BitLen() - cidr.Bits(); size > 20 || size < 3 {
			errs = append(errs, fmt.Errorf("--service-cidr %s: must hold between 8 and 1048576 addresses, so give a mask between /%d and /%d",
				cidr, cidr.Addr().BitLen()-20, cidr.Addr().BitLen()-3))
		}
	}
	if o.ClusterDomain == "" || strings.HasSuffix(o.ClusterDomain, ".") {
		errs = append(errs, fmt.Errorf("--cluster-domain %q: must be a domain without a final dot, such as cluster.local", o.ClusterDomain))
	}
	return errors.Join(errs...)
}

// validateFamilies checks that there are one or two addresses and that two are not of the same family.
func validateFamilies(flag string, n int, addr func(int) netip.Addr) error {
	switch {
	case n == 0:
		return fmt.Errorf("%s must not be empty", flag)
	case n > 2, n == 2 && addr(0).Is4() == addr(1).Is4():
		return fmt.Errorf("%s: give one value, or one of IPv4 and one of IPv6", flag)
	}
	return nil
}

// firstAddress is the first address of a Service range, which belongs to Service default/kubernetes.
func firstAddress(cidr netip.Prefix) netip.Addr { return cidr.Masked().Addr().Next() }

func join[T fmt.Stringer](values []T) string {
	texts := make([]string, len(values))
	for i, value := range values {
		texts[i] = value.String()
	}
	return strings.Join(texts, ",")
}
