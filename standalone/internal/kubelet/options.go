package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	internalapi "k8s.io/cri-api/pkg/apis"
)

// Runtime is the container runtime of a node, in the same process.
type Runtime interface {
	// Services are the runtime as kubelet sees it: the Container Runtime Interface.
	Services() (internalapi.RuntimeService, internalapi.ImageManagerService)
	// Close ends all containers and removes everything of theirs from the machine.
	Close(ctx context.Context) error
}

// Options configure a node.
type Options struct {
	// DataDir is the data directory of the whole cluster, with the certificates that the control plane made; required.
	DataDir string
	// NodeName is the name of the Node object; required.
	NodeName string
	// Kubeconfig is the file by which kubelet reaches the API server; required.
	Kubeconfig string
	// NodeIPs are the node's own addresses, one or one of each family; required. The first is its primary one.
	NodeIPs []netip.Addr
	// PodCIDRs are the ranges of the node's Pods, one or one of each family; required.
	PodCIDRs []netip.Prefix
	// ClusterDNS are the addresses that Pods ask for names; optional, without any Pods use the machine's resolvers.
	ClusterDNS []netip.Addr
	// ClusterDomain is the DNS domain of the cluster; required.
	ClusterDomain string
	// Zone becomes the node's label topology.kubernetes.io/zone; optional.
	Zone string
	// Port is the TCP port of kubelet's own API, which the API server uses for logs and exec; required.
	Port int
	// MaxPods is how many Pods the node takes; required.
	MaxPods int
	// NewRuntime makes the container runtime when all else is in order; required.
	NewRuntime func(ctx context.Context) (Runtime, error)
	// Verbosity is kubelet's log level: 0 for warnings and errors only.
	Verbosity int
	// LogOutput receives kubelet's log; required.
	LogOutput io.Writer
	// Logger receives the log of this package; required.
	Logger *slog.Logger
}

// maxSocketPath is how long the path of a Unix socket can be, see unix(7).
const maxSocketPath = 107

func (o *Options) validate() error {
	var errs []error
	if o.DataDir == "" {
		errs = append(errs, errors.New("--data-dir must not be empty"))
	}
	if problems := validation.IsDNS1123Subdomain(o.NodeName); len(problems) > 0 {
		errs = append(errs, fmt.Errorf("--node-name %q: %s", o.NodeName, strings.Join(problems, "; ")))
	}
	if o.Kubeconfig == "" {
		errs = append(errs, errors.New("--kubeconfig must not be empty"))
	}
	if n := len(o.NodeIPs); n == 0 || n > 2 || n == 2 && o.NodeIPs[0].Is4() == o.NodeIPs[1].Is4() {
		errs = append(errs, errors.New("--node-ip: give one address, or one of IPv4 and one of IPv6"))
	}
	if n := len(o.PodCIDRs); n == 0 || n > 2 || n == 2 && o.PodCIDRs[0].Addr().Is4() == o.PodCIDRs[1].Addr().Is4() {
		errs = append(errs, errors.New("--pod-cidr: give one range, or one of IPv4 and one of IPv6"))
	}
	for _, cidr := range o.PodCIDRs {
		if cidr != cidr.Masked() {
			errs = append(errs, fmt.Errorf("--pod-cidr %s: has bits beyond its mask; did you mean %s?", cidr, cidr.Masked()))
		}
	}
	if o.Port < 1 || o.Port > 65535 {
		errs = append(errs, fmt.Errorf("--kubelet-port %d: must be between 1 and 65535", o.Port))
	}
	if o.MaxPods < 1 {
		errs = append(errs, fmt.Errorf("--max-pods %d: must be at least 1", o.MaxPods))
	}
	if o.Zone != "" {
		if problems := validation.IsValidLabelValue(o.Zone); len(problems) > 0 {
			errs = append(errs, fmt.Errorf("--zone %q: %s", o.Zone, strings.Join(problems, "; ")))
		}
	}
	// The longest of kubelet's sockets. It would end the process without saying why.
	if path := filepath.Join(o.root(), "pod-resources", "kubelet.sock"); len(path) > maxSocketPath {
		errs = append(errs, fmt.Errorf("--data-dir %s: the path is %d bytes too long for kubelet's sockets below it; choose a shorter one",
			o.DataDir, len(path)-maxSocketPath))
	}
	return errors.Join(errs...)
}

// root is kubelet's own directory.
func (o *Options) root() string { return filepath.Join(o.DataDir, "nodes", o.NodeName, "kubelet") }

// volumePlugins is where kubelet looks for volume plugins of the user.
func (o *Options) volumePlugins() string { return filepath.Join(o.root(), "volume-plugins") }

// logs is the directory of the containers' logs.
func (o *Options) logs() string { return filepath.Join(o.DataDir, "nodes", o.NodeName, "log") }

func join[T fmt.Stringer](values []T) string { return strings.Join(texts(values), ",") }

func texts[T fmt.Stringer](values []T) []string {
	out := make([]string, len(values))
	for i, value := range values {
		out[i] = value.String()
	}
	return out
}
