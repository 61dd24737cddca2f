package agent

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/healthport"
	"fairway.dev/fairway/internal/servicetls"
	status "fairway.dev/fairway/internal/status/kube"
	"fairway.dev/fairway/internal/sysctl"
)

func (n *node) wireHealth(registry prometheus.Registerer) error {
	proxy, err := healthport.NewProxy(healthport.ProxyOptions{Store: n.store, NodeName: n.NodeName, Status: n.path.Status, Registerer: registry})
	if err != nil {
		return err
	}
	services, err := healthport.NewServices(healthport.ServicesOptions{
		Store: n.store, Logger: n.Logger, NodeName: n.NodeName, Healthy: proxy.Healthy, NodePorts: n.NodePortAddresses,
		Failed: n.problems.healthPorts, Registerer: registry,
	})
	if err != nil {
		return err
	}
	n.parts = append(n.parts,
		part{"health", proxy.Run},
		part{"health checks of Services", services.Run},
		part{"healthz", func(ctx context.Context) error {
			return serveHTTP(ctx, n.Logger, "--healthz-bind-address", n.HealthzAddress, proxy.Handler())
		}},
	)
	return nil
}

// wireEvents has an Event written for each problem that only this node knows.
func (n *node) wireEvents() error {
	reporter, err := status.NewReporter(status.ReporterOptions{
		Config: n.config, Logger: n.Logger, Problems: n.problems.problems, Changed: n.problems.changed,
	})
	if err != nil {
		return err
	}
	n.parts = append(n.parts, part{"what is left out", n.problems.run}, part{"Events", reporter.Run})
	return nil
}

func (n *node) wireSysctls() error {
	setter, err := sysctl.New(n.Sysctls, n.RunDir, n.Logger)
	if err != nil {
		return err
	}
	n.parts = append(n.parts, part{"kernel parameters", setter.Run})
	return nil
}

// serveMode answers /proxyMode, as kube-proxy does.
func (n *node) serveMode(mux *http.ServeMux) {
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = io.WriteString(w, n.mode) // an error means that the client has gone
	})
}

func (n *node) wireServiceTLS(registry prometheus.Registerer) error {
	proxy, err := servicetls.New(servicetls.Options{
		Store: n.store, Node: n.NodeName, Listen: n.listen(n.TLSPort), Plan: n.planOptions(),
		Cluster: n.ClusterCIDRs, Domain: n.ClusterDomain, Registerer: registry, Logger: n.Logger,
	})
	if err != nil {
		return fmt.Errorf("service TLS: %w", err)
	}
	n.gates = append(n.gates, gate{"Service TLS", proxy.Ready})
	n.parts = append(n.parts, part{"service TLS", proxy.Run})
	return nil
}

// dnsOptions are those of a DNS server at these addresses.
func (n *node) dnsOptions(listen []netip.AddrPort, registry prometheus.Registerer) (dns.Options, error) {
	upstreams, err := parseUpstreams(n.DNSUpstreams)
	if err != nil {
		return dns.Options{}, err
	}
	stubs, err := parseStubs(n.DNSStubs)
	if err != nil {
		return dns.Options{}, err
	}
	queries, err := dns.ParseQueryLog(n.DNSLog)
	if err != nil {
		return dns.Options{}, fmt.Errorf("--dns-log: %w", err)
	}
	return dns.Options{
		Store: n.store, Domain: n.ClusterDomain, Listen: listen, ServiceAddrs: n.DNSAddresses,
		ReverseRanges: append(append([]netip.Prefix{}, n.ServiceCIDRs...), n.ClusterCIDRs...),
		TTL:           n.DNSTTL, ClientRate: n.DNSClientRate, Upstreams: upstreams, Stubs: stubs, UpstreamPolicy: forward.Policy(n.DNSPolicy), Autopath: n.DNSAutopath,
		AllowFrom: n.dnsClients(), QueryLog: queries, Registerer: registry, Logger: n.Logger,
	}, nil
}

// CheckDNS returns what is wrong with the options of DNS, by their flags, for
// whoever hands them on to a node role that is yet to start.
func CheckDNS(o NodeOptions) error {
	switch {
	case o.DNSTTL != 0 && (o.DNSTTL < time.Second || o.DNSTTL > 24*time.Hour):
		return fmt.Errorf("--dns-ttl %v: want 1s to 24h", o.DNSTTL)
	case o.DNSClientRate < 0 || o.DNSClientRate > 1e6:
		return fmt.Errorf("--dns-client-rate %d: want a number from 0 to 1000000", o.DNSClientRate)
	case !slices.Contains([]string{"", string(forward.Sequential), string(forward.RoundRobin), string(forward.Random)}, o.DNSPolicy):
		return fmt.Errorf("--dns-policy %q: want sequential, round_robin or random", o.DNSPolicy)
	}
	if o.DNSCorefile != "" {
		if _, err := readSmall(o.DNSCorefile); err != nil {
			return fmt.Errorf("--dns-corefile: %w; give a file that can be read, of at most 1 MiB", err)
		}
	}
	_, err := (&node{NodeOptions: o}).dnsOptions(nil, nil)
	return err
}

func (n *node) wireDNS(registry prometheus.Registerer) error {
	options, err := n.dnsOptions(n.listen(n.DNSPort), registry)
	if err != nil {
		return err
	}
	if n.last != nil {
		options.LastKnown = n.last.Snapshot
	}
	if n.fresh {
		// No client gets here before the data path leads it here, which is ready the
		// sooner: with many Services both would have the processors for a while.
		options.LoadAfter = n.path.Loaded()
	}
	server, err := dns.New(options)
	if err != nil {
		return fmt.Errorf("DNS: %w", err)
	}
	n.registerStale(registry)
	n.silent = server.SilentUpstreams
	n.registerCorefile(registry)
	registry.MustRegister(buildInfo(n.Version))
	n.gates = append(n.gates, gate{"DNS", server.Ready})
	own := follow(n.store, dnsOf(n.NodeName))
	endpoints, err := bootstrap.NewDNSEndpoints(bootstrap.DNSEndpointsOptions{
		Config: n.config, Logger: n.Logger, Node: n.self, Listen: n.listen(n.DNSPort), Changed: own.changed,
	})
	if err != nil {
		return err
	}
	pulse := newPulse(n, n.listen(n.DNSPort), server)
	// Published once it can answer: until then, other nodes' servers do better.
	n.parts = append(n.parts, part{"DNS", server.Run}, part{"own DNS endpoints", own.run},
		part{"pulse of DNS", runWhenReady(server.Ready, pulse.run)},
		part{"DNS endpoints", runWhenReady(server.Ready, endpoints.Run)})
	farewell := func(ctx context.Context) { n.handOverDNS(ctx, pulse.end, endpoints, n.applied) }
	n.farewell.Store(&farewell)
	return nil
}

// buildInfo is under CoreDNS' name, for dashboards that show who answers.
func buildInfo(version string) prometheus.Collector {
	revision := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "coredns_build_info", Help: "1, with the version of Fairway.",
	}, []string{"version", "revision", "goversion"})
	g.WithLabelValues(version, revision, runtime.Version()).Set(1)
	return g
}

// dnsClients are who may ask, beside the nodes and this machine: Pods, Services
// and what was asked for. The rest of the world may not, for a resolver that is
// open to it is a weapon. Without ranges of Pods there is no telling.
func (n *node) dnsClients() []netip.Prefix {
	if len(n.ClusterCIDRs) == 0 {
		return nil
	}
	return slices.Concat(n.ClusterCIDRs, n.ServiceCIDRs, n.DNSClients)
}

func parseUpstreams(list []string) ([]forward.Server, error) {
	var out []forward.Server
	for _, s := range list {
		server, err := forward.ParseServer(s)
		if err != nil {
			return nil, fmt.Errorf("--dns-upstream: %w", err)
		}
		out = append(out, server)
	}
	return out, nil
}

func parseStubs(list []string) ([]forward.Stub, error) {
	var out []forward.Stub
	for _, s := range list {
		stub, err := forward.ParseStub(s)
		if err != nil {
			return nil, fmt.Errorf("--dns-stub: %w", err)
		}
		out = append(out, stub)
	}
	return out, nil
}
