package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"fairway.dev/fairway/internal/agent"
	"fairway.dev/fairway/internal/dataplane/ebpf"
	"fairway.dev/fairway/internal/lb/ipam"
	"fairway.dev/fairway/internal/model"
)

// defaultCorefile is where kubeadm and others keep CoreDNS' configuration.
const defaultCorefile = "kube-system/coredns"

// roleCommand makes the command of a role: it runs until SIGTERM.
func roleCommand(name, short string, common *agent.Common, metrics string, run func(ctx context.Context) error) *cobra.Command {
	var level string
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var l slog.Level
			if err := l.UnmarshalText([]byte(level)); err != nil {
				return fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
			}
			common.Version = version
			common.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}))
			agent.LogClientGo(common.Logger)
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVar(&common.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the Kubernetes API (default: the Pod's service account)")
	f.StringVar(&common.ReadyFile, "ready-file", "", "`file` to write once this role serves, and to touch every second from then on")
	f.StringVar(&common.MetricsAddress, "metrics-address", metrics, "`address` for /metrics, /healthz and /readyz; empty for none")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func newNodeCommand() *cobra.Command {
	var o agent.NodeOptions
	var clusterCIDRs, serviceCIDRs, dns, dnsClients, nodePorts []string
	var corefile string
	var cleanup bool
	cmd := roleCommand("node", "Serve Services, names and Service TLS on this node", &o.Common, "127.0.0.1:10249", func(ctx context.Context) error {
		if cleanup {
			return agent.CleanupNode(o)
		}
		if o.NodeName == "" {
			return fmt.Errorf("--node-name is required: the name of the Node object of this machine")
		}
		if err := checkMapSizes(o.BPF); err != nil {
			return err
		}
		var err error
		for _, list := range []struct {
			flag string
			from []string
			to   *[]netip.Prefix
		}{
			{"--cluster-cidr", clusterCIDRs, &o.ClusterCIDRs},
			{"--service-cidr", serviceCIDRs, &o.ServiceCIDRs},
			{"--dns-clients", dnsClients, &o.DNSClients},
			{"--nodeport-addresses", nodePorts, &o.NodePortAddresses},
		} {
			if *list.to, err = parsePrefixes(list.flag, list.from); err != nil {
				return err
			}
		}
		if o.DNSAddresses, err = parseAddrs("--dns-address", dns); err != nil {
			return err
		}
		if o.DNSCorefileConfigMap, err = parseKey("--dns-corefile-configmap", corefile); err != nil {
			return err
		}
		return agent.RunNode(ctx, o)
	})
	f := cmd.Flags()
	f.StringVar(&o.NodeName, "node-name", "", "`name` of this machine's Node object")
	f.StringSliceVar(&clusterCIDRs, "cluster-cidr", nil, "`ranges` of Pod addresses, to tell clients in the cluster from others")
	f.StringSliceVar(&serviceCIDRs, "service-cidr", nil, "`ranges` of cluster IPs; addresses of them that no Service has are refused")
	f.StringSliceVar(&nodePorts, "nodeport-addresses", nil, "`ranges` of this node's addresses that serve NodePorts (default: all; loopback ones with eBPF only)")
	f.StringVar(&o.Dataplane, "dataplane", agent.DataplaneAuto, "auto, ebpf or nft")
	f.StringVar(&o.BPF.Cgroup, "cgroup", "", "`directory` of cgroup v2: sockets of all processes below it are balanced (default: the whole machine's, unless the node has another network)")
	f.StringSliceVar(&o.BPF.Covered, "covered-interfaces", nil, "`prefixes` of names of interfaces, behind which the sockets of all clients are balanced")
	f.StringVar(&o.BPF.Pins, "bpf-dir", ebpf.DefaultPins, "`directory` on a BPF file system for what outlives the process")
	f.Uint32Var(&o.BPF.MaxFrontends, "bpf-max-frontends", ebpf.DefaultMaxFrontends, "`number` of addresses and ports that eBPF maps have room for")
	f.Uint32Var(&o.BPF.MaxBackends, "bpf-max-backends", ebpf.DefaultMaxBackends, "`number` of endpoints that eBPF maps have room for")
	f.BoolVar(&o.ExternalIPs, "external-ips", true, "serve spec.externalIPs; whoever may write Services can claim any address with them")
	f.StringVar(&o.ClusterDomain, "cluster-domain", "cluster.local", "`domain` of the cluster's names")
	f.StringSliceVar(&dns, "dns-address", []string{"10.96.0.10"}, "`addresses` of Service kube-system/kube-dns")
	f.IntVar(&o.DNSPort, "dns-port", agent.DefaultDNSPort, "`port` at the node's addresses that DNS is served on, for that Service to lead to")
	dnsFlags(f, &o, &dnsClients)
	f.StringVar(&corefile, "dns-corefile-configmap", defaultCorefile, "ConfigMap with CoreDNS' configuration, as `namespace/name`, whose Corefile counts where no flag says otherwise; empty for none")
	f.IntVar(&o.TLSPort, "service-tls-port", agent.DefaultTLSPort, "`port` at the node's addresses where TLS of Services is ended")
	f.StringVar(&o.HealthzAddress, "healthz-bind-address", "0.0.0.0:10256", "`address` for /healthz and /livez, which load balancers ask; empty for none")
	f.StringVar(&o.RunDir, "run-dir", "/run/fairway", "`directory` for what has to outlive the process until the next boot: what kernel parameters were before")
	f.IntVar(&o.Sysctls.MaxPerCore, "conntrack-max-per-core", 32768, "connections for each processor that the kernel shall be able to remember, never lowered; 0 leaves it alone")
	f.IntVar(&o.Sysctls.Min, "conntrack-min", 131072, "least number of connections that the kernel shall be able to remember, with few processors")
	f.DurationVar(&o.Sysctls.Established, "conntrack-tcp-timeout-established", 24*time.Hour, "how long idle TCP connections are remembered; 0 leaves it alone")
	f.DurationVar(&o.Sysctls.CloseWait, "conntrack-tcp-timeout-close-wait", time.Hour, "how long TCP connections closed by one side are remembered; 0 leaves it alone")
	f.StringVar(&o.Sysctls.NodePorts, "service-node-port-range", "30000-32767", "`range` of NodePorts, which the kernel shall not give to connections of the machine's own; empty leaves that alone")
	f.BoolVar(&o.Announce, "announce", true, "announce LoadBalancer addresses by ARP and NDP on the networks they lie in")
	f.SetNormalizeFunc(kubeProxyNames)
	f.StringVar(&o.StateDir, "state-dir", "", "`directory` of this node alone, where what it last knew of Services is kept for a start while the API is away (default: none is kept)")
	f.BoolVar(&cleanup, "cleanup", false, "remove all packet rules, programs and maps of Fairway for this network namespace, put kernel parameters back, and end")
	return cmd
}

// checkMapSizes refuses sizes that no map can have.
func checkMapSizes(o agent.BPFOptions) error {
	for _, size := range []struct {
		flag string
		n    uint32
	}{{"--bpf-max-frontends", o.MaxFrontends}, {"--bpf-max-backends", o.MaxBackends}} {
		if size.n < 1 || size.n > ebpf.Largest {
			return fmt.Errorf("%s %d: want a number from 1 to %d", size.flag, size.n, ebpf.Largest)
		}
	}
	return nil
}

// kubeProxyNames lets flags be written as kube-proxy spells them.
func kubeProxyNames(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	if name == "metrics-bind-address" {
		name = "metrics-address"
	}
	return pflag.NormalizedName(name)
}

func newGatewayCommand() *cobra.Command {
	var o agent.GatewayOptions
	var publish, trusted []string
	var tcp, udp, certificate string
	cmd := roleCommand("gateway", "Serve Ingress, and TCP and UDP by port", &o.Common, "127.0.0.1:10254", func(ctx context.Context) error {
		var err error
		if o.PublishAddresses, err = parseAddrs("--publish-address", publish); err != nil {
			return err
		}
		if o.TrustedProxies, err = parsePrefixes("--trusted-proxies", trusted); err != nil {
			return err
		}
		if o.TCPServices, err = parseKey("--tcp-services", tcp); err != nil {
			return err
		}
		if o.UDPServices, err = parseKey("--udp-services", udp); err != nil {
			return err
		}
		if o.DefaultCertificate, err = parseKey("--default-certificate", certificate); err != nil {
			return err
		}
		return agent.RunGateway(ctx, o)
	})
	f := cmd.Flags()
	f.IntVar(&o.HTTPPort, "http-port", 80, "`port` for HTTP")
	f.IntVar(&o.HTTPSPort, "https-port", 443, "`port` for HTTPS")
	f.BoolVar(&o.HTTP3, "http3", true, "serve HTTP/3 as well, at the UDP port of the number of --https-port (never with --proxy-protocol)")
	f.StringVar(&o.TLSMinVersion, "tls-min-version", "1.2", "oldest `version` of TLS that clients may speak, 1.2 or 1.3")
	f.StringSliceVar(&o.TLSCipherSuites, "tls-cipher-suites", nil, "`suites` that TLS 1.2 may choose from, by their names of the IANA (default: all that are safe)")
	f.StringVar(&certificate, "default-certificate", "", "Secret with the certificate for hosts that have none, as `namespace/name` (default: one that nobody trusts)")
	f.StringVar(&o.ClusterDomain, "cluster-domain", "cluster.local", "`domain` of the cluster's names, which certificates of backends may be made out for")
	f.StringVar(&o.NodeName, "node-name", "", "`name` of the node this runs on, to prefer endpoints near it")
	f.StringSliceVar(&publish, "publish-address", nil, "`addresses` to write into Ingress status (default: none is written)")
	f.StringVar(&tcp, "tcp-services", "kube-system/tcp-services", "ConfigMap of TCP ports, as `namespace/name`")
	f.StringVar(&udp, "udp-services", "kube-system/udp-services", "ConfigMap of UDP ports, as `namespace/name`")
	f.BoolVar(&o.ServeNginx, "serve-nginx-class", false, "also serve Ingresses of ingress-nginx's class")
	f.StringSliceVar(&trusted, "trusted-proxies", nil, "`ranges` of proxies in front whose X-Forwarded-* headers are believed")
	f.BoolVar(&o.ProxyProtocol, "proxy-protocol", false, "expect a PROXY header on every HTTP and HTTPS connection")
	f.Int64Var(&o.MaxBodyBytes, "max-body-bytes", 0, "`limit` of request bodies where a route sets none; 0 for no limit")
	f.IntVar(&o.MaxConnectionsPerClient, "max-connections-per-client", 10000, "open connections, and UDP sessions, that one client, an IPv4 address or an IPv6 /64, may have; 0 for any number")
	f.Float64Var(&o.ShedMemory, "shed-memory", 0.9, "`share` of the memory limit (of the cgroup, or GOMEMLIMIT) from which on new requests get 503; 0 for never")
	f.StringVar(&o.AccessLog, "access-log", "", "`file` for an access log; - for standard output (default: none)")
	f.StringVar(&o.AccessLogSample, "access-log-sample", "all", "requests to log: all, errors (status 400 and more, and what broke off), or errors and a `share` of all such as 1%")
	f.StringVar(&o.AccessLogFormat, "access-log-format", "json", "json or combined")
	f.StringVar(&o.StateDir, "state-dir", "", "`directory` of this gateway alone, where OCSP proofs of certificates are kept for the next start (default: none are kept)")
	f.StringVar(&o.TraceEndpoint, "trace-endpoint", "", "`URL` of an OTLP receiver (HTTP) to send traces to, such as http://collector:4318 (default: none)")
	f.StringVar(&o.TraceSample, "trace-sample", "1%", "`share` of the traces begun here that are kept; where the client began one it decides")
	return cmd
}

func newControllerCommand() *cobra.Command {
	var o agent.ControllerOptions
	var dns []string
	var pool, tcp, udp, corefile string
	cmd := roleCommand("controller", "Hand out addresses, and say what is wrong with objects", &o.Common, "127.0.0.1:10255", func(ctx context.Context) error {
		var err error
		if o.Addresses, err = ipam.ParseFlag(pool); err != nil {
			return fmt.Errorf("--lb-pool: %w", err)
		}
		if o.DNSAddresses, err = parseAddrs("--dns-address", dns); err != nil {
			return err
		}
		if o.TCPServices, err = parseKey("--tcp-services", tcp); err != nil {
			return err
		}
		if o.UDPServices, err = parseKey("--udp-services", udp); err != nil {
			return err
		}
		if o.DNSCorefileConfigMap, err = parseKey("--dns-corefile-configmap", corefile); err != nil {
			return err
		}
		return agent.RunController(ctx, o)
	})
	f := cmd.Flags()
	f.StringVar(&pool, "lb-pool", "", "`addresses` for Services of type LoadBalancer: ranges, node (the nodes' own, shared by port), or none (leave it to others); empty uses IPAddressPools only")
	f.IntSliceVar(&o.GatewayPorts, "gateway-port", []int{80, 443}, "`ports` of gateways at the nodes' addresses, of TCP and UDP, which --lb-pool node leaves to them")
	f.StringSliceVar(&dns, "dns-address", []string{"10.96.0.10"}, "`addresses` of Service kube-system/kube-dns; empty makes no such Service")
	f.IntVar(&o.DNSPort, "dns-port", agent.DefaultDNSPort, "`port` at the nodes' addresses that DNS is served on")
	f.StringVar(&corefile, "dns-corefile-configmap", defaultCorefile, "ConfigMap with CoreDNS' configuration, as `namespace/name`, to say what nodes leave out of it; empty for none")
	f.StringVar(&o.ClusterDomain, "cluster-domain", "cluster.local", "`domain` of the cluster's names")
	f.BoolVar(&o.InstallCRDs, "install-crds", false, "make the IPAddressPool kind where the API lacks it")
	f.StringVar(&tcp, "tcp-services", "kube-system/tcp-services", "ConfigMap of TCP ports, as `namespace/name`")
	f.StringVar(&udp, "udp-services", "kube-system/udp-services", "ConfigMap of UDP ports, as `namespace/name`")
	f.BoolVar(&o.ServeNginx, "serve-nginx-class", false, "also serve Ingresses of ingress-nginx's class")
	return cmd
}

func parsePrefixes(flag string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%s %q: want a CIDR such as 10.0.0.0/16", flag, s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func parseAddrs(flag string, list []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range list {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("%s %q: want an IP address", flag, s)
		}
		out = append(out, a)
	}
	return out, nil
}

func parseKey(flag, s string) (model.Key, error) {
	if s == "" {
		return model.Key{}, nil
	}
	ns, name, ok := strings.Cut(s, "/")
	if !ok || ns == "" || name == "" {
		return model.Key{}, fmt.Errorf("%s %q: want namespace/name", flag, s)
	}
	return model.Key{Namespace: ns, Name: name}, nil
}
