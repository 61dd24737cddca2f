package up

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DefaultDataDir is where a cluster is kept unless told otherwise.
const DefaultDataDir = "/var/lib/fairway"

// DefaultClusterDomain is the domain of all names of a cluster unless told otherwise.
const DefaultClusterDomain = "cluster.local"

// Options configures a Cluster.
type Options struct {
	// DataDir is the absolute path of the directory that everything is kept in. Required.
	DataDir string
	// BinDir is where the executables fairway and fairway-standalone are. Required.
	BinDir string
	// Nodes is how many nodes there are. At least 1.
	Nodes int
	// Zones are given to the nodes in turn. Optional.
	Zones []string
	// Images are mappings REF=COMMAND for the nodes' runtime. Optional.
	Images []string
	// ImageFiles are mappings REF=DIR of files that images bring, for the nodes' runtime. Optional.
	ImageFiles []string
	// HTTPPort, HTTPSPort and APIPort are TCP ports of the gateway and the Kubernetes API. Required.
	HTTPPort, HTTPSPort, APIPort int
	// LBPool is "node", "none", or one CIDR per family with a comma between; empty for what the data directory
	// remembers, or else a free range.
	LBPool string
	// Dataplane is handed to the node role: auto, ebpf or nft. Required.
	Dataplane string
	// DNSFlags are handed to the node role of each node, as --dns-NAME=VALUE. Optional.
	DNSFlags []string
	// ServiceCIDR, PodCIDR and NodeCIDR are one CIDR per family with a comma between; empty for what the data directory
	// remembers, or else a free range.
	ServiceCIDR, PodCIDR, NodeCIDR string
	// ClusterDomain is the domain of all names of the cluster; empty for what the data directory remembers, or
	// else DefaultClusterDomain.
	ClusterDomain string
	// Progress shows what happens. Required.
	Progress *Progress
	// OnReady is called once, when everything serves. Optional.
	OnReady func()
	// Force, when closed, makes stopping impatient. Optional.
	Force <-chan struct{}
	// Logger gets what is of interest only when something goes wrong. Required.
	Logger *slog.Logger
}

// Validate returns the first thing that is wrong with the options, naming its flag.
func (o Options) Validate() error {
	if !filepath.IsAbs(o.DataDir) || o.Progress == nil || o.Logger == nil {
		return errors.New("up: an absolute data directory, progress and logger are required")
	}
	if strings.ContainsRune(o.DataDir, filepath.ListSeparator) {
		return fmt.Errorf("--data-dir %s: must not contain %q, which separates files in KUBECONFIG; take another directory", o.DataDir, filepath.ListSeparator)
	}
	if o.Nodes < 1 || o.Nodes > 250 {
		return fmt.Errorf("--nodes %d: must be from 1 to 250", o.Nodes)
	}
	ports := map[int]string{}
	for _, p := range o.ports() {
		if p.port < 1 || p.port > 65535 {
			return fmt.Errorf("%s %d: must be from 1 to 65535", p.flag, p.port)
		}
		if other, ok := ports[p.port]; ok {
			return fmt.Errorf("%s and %s are both %d: give them different ports", other, p.flag, p.port)
		}
		ports[p.port] = p.flag
	}
	if !slices.Contains([]string{"auto", "ebpf", "nft"}, o.Dataplane) {
		return fmt.Errorf("--dataplane %q: must be auto, ebpf or nft", o.Dataplane)
	}
	for _, image := range o.Images {
		if ref, command, ok := strings.Cut(image, "="); !ok || ref == "" || command == "" {
			return fmt.Errorf("--image %q: must be REF=COMMAND, such as --image nginx:1.27=/usr/sbin/nginx", image)
		}
	}
	for _, files := range o.ImageFiles {
		ref, dir, _ := strings.Cut(files, "=")
		if info, err := os.Stat(dir); ref == "" || !filepath.IsAbs(dir) || err != nil || !info.IsDir() {
			return fmt.Errorf("--image-files %q: must be REF=DIR with the absolute path of a directory, such as --image-files nginx:1.27=/srv/nginx-root", files)
		}
	}
	for _, zone := range o.Zones {
		if zone == "" || strings.ContainsAny(zone, " /=") || len(zone) > 63 {
			return fmt.Errorf("--zones: %q is not a name for a zone", zone)
		}
	}
	if o.ClusterDomain != "" {
		if err := checkDomain(o.ClusterDomain); err != nil {
			return fmt.Errorf("--cluster-domain %q: %w", o.ClusterDomain, err)
		}
	}
	for _, bin := range []string{"fairway", "fairway-standalone"} {
		info, err := os.Stat(filepath.Join(o.BinDir, bin))
		if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			return fmt.Errorf("the executable %s must lie beside fairway in %s: build both with make build", bin, o.BinDir)
		}
	}
	return nil
}

// checkDomain returns what is wrong with a domain for the names of a cluster. It has to leave room for those names, which may
// have 253 bytes: that of a Service, that of its namespace, and ".svc." have up to 132.
func checkDomain(domain string) error {
	const most = 253 - 132
	if len(domain) > most {
		return fmt.Errorf("must have at most %d bytes, so that there is room for the names of Services", most)
	}
	for _, label := range strings.Split(domain, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return errors.New("must be a domain of lower case letters, digits and dashes without a final dot, such as cluster.local")
		}
	}
	return nil
}

// listener is a TCP port on node 1 and the flag that chooses it.
type listener struct {
	flag, what string
	port       int
}

func (o Options) ports() []listener {
	return []listener{
		{"--http-port", "the gateway", o.HTTPPort},
		{"--https-port", "the gateway", o.HTTPSPort},
		{"--api-port", "the Kubernetes API", o.APIPort},
	}
}

// parseCIDRs reads one CIDR per family.
func parseCIDRs(flag, text string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, part := range strings.Split(text, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%s %q: must be a CIDR such as 10.96.0.0/16, or one of each family with a comma between", flag, text)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s %s: has bits set beyond its length; do you mean %s?", flag, p, p.Masked())
		}
		for _, other := range prefixes {
			if other.Addr().Is4() == p.Addr().Is4() {
				return nil, fmt.Errorf("%s %q: has two ranges of one family", flag, text)
			}
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}
