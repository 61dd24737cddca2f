package kubelet

import (
	"fmt"
	"net"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"

	"fairway.dev/fairway/standalone/internal/pki"
)

// serverConfig is kubelet's configuration for this node.
func serverConfig(o *Options, p *pki.PKI, cert pki.Pair) (*options.KubeletServer, error) {
	config, err := options.NewKubeletConfiguration()
	if err != nil {
		return nil, fmt.Errorf("kubelet's default configuration: %w", err)
	}
	flags := options.NewKubeletFlags()
	flags.HostnameOverride = o.NodeName
	flags.KubeConfig = o.Kubeconfig
	flags.NodeIP = join(o.NodeIPs)
	flags.RootDirectory = o.root()
	flags.CertDirectory = filepath.Join(o.root(), "pki")
	if o.Zone != "" {
		flags.NodeLabels[v1.LabelTopologyZone] = o.Zone
	}

	config.Address = wildcard()
	config.Port = int32(o.Port)
	config.ReadOnlyPort = 0
	config.HealthzPort = 0 // nodes of one network namespace would fight for it; /healthz is on Port as well
	config.TLSCertFile, config.TLSPrivateKeyFile = cert.CertFile, cert.KeyFile
	config.Authentication.Anonymous.Enabled = false
	config.Authentication.Webhook.Enabled = true
	config.Authentication.X509.ClientCAFile = p.CAFile()
	config.Authorization.Mode = kubeletconfig.KubeletAuthorizationModeWebhook
	config.RotateCertificates = false
	config.ServerTLSBootstrap = false

	config.PodLogsDir = o.logs()
	config.VolumePluginDir = o.volumePlugins()
	config.StaticPodPath = ""
	config.ClusterDomain = o.ClusterDomain
	config.ClusterDNS = texts(o.ClusterDNS)
	config.ResolverConfig = resolvConf(readFile)
	config.MaxPods = int32(o.MaxPods)
	config.EnableControllerAttachDetach = false
	if config.MaxOpenFiles, err = maxOpenFiles(); err != nil {
		return nil, err
	}

	// The runtime owns the containers' cgroups, and the machine is not the node's alone: kubelet neither manages cgroups
	// nor evicts Pods when somebody else fills the disk, and it leaves the machine's packet filter alone.
	config.CgroupsPerQOS = false
	config.CgroupRoot = ""
	config.EnforceNodeAllocatable = nil
	config.EvictionHard = nil
	config.FailCgroupV1 = false
	config.FailSwapOn = false
	config.MakeIPTablesUtilChains = false
	config.ProtectKernelDefaults = false
	config.MemorySwap.SwapBehavior = ""

	// Images are commands of the machine: nothing to pull, nothing to collect.
	config.ImageGCHighThresholdPercent = 100
	config.RegistryPullQPS = 0
	config.SerializeImagePulls = false

	// The defaults spare API servers of thousands of nodes. Here there are few, and people watch.
	config.NodeStatusUpdateFrequency.Duration = 5 * time.Second
	config.NodeStatusReportFrequency.Duration = time.Minute
	config.SyncFrequency.Duration = 10 * time.Second
	config.KubeAPIQPS, config.KubeAPIBurst = 200, 400
	config.EventRecordQPS, config.EventBurst = 100, 200
	return &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *config}, nil
}

// maxOpenFiles is as many files as the process may open: kubelet raises its limit to what it is told.
func maxOpenFiles() (int64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	return int64(min(limit.Max, 1_000_000)), nil
}

// wildcard is the address for listening on every address of the network namespace.
func wildcard() string {
	if listener, err := net.Listen("tcp", "[::1]:0"); err == nil {
		listener.Close()
		return "::"
	}
	return "0.0.0.0"
}
