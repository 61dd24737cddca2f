package agent

import (
	"cmp"
	"context"
	"net/netip"
	"os"

	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/lb/ipam"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/source/kube"
	"fairway.dev/fairway/internal/state"
	status "fairway.dev/fairway/internal/status/kube"
)

// leaseNamespace holds the Leases by which leaders are elected.
const leaseNamespace = "kube-system"

// ControllerOptions configure the controller role.
type ControllerOptions struct {
	Common
	// Addresses are those for Services of type LoadBalancer.
	Addresses ipam.Options
	// GatewayPorts are served by gateways at the nodes' addresses, so that no
	// Service gets them there. Optional.
	GatewayPorts []int
	// DNSAddresses are those of Service kube-system/kube-dns; none makes no such Service.
	DNSAddresses []netip.Addr
	// DNSPort is the port at the nodes' addresses that DNS is served on.
	DNSPort int
	// InstallCRDs makes the IPAddressPool kind where the API lacks it.
	InstallCRDs bool
	// TCPServices and UDPServices name ConfigMaps in ingress-nginx's form; optional.
	TCPServices, UDPServices model.Key
	// ServeNginx serves Ingresses of ingress-nginx's class as well.
	ServeNginx bool
	// DNSCorefileConfigMap names the ConfigMap with CoreDNS' configuration, which
	// nodes read for ClusterDomain; optional. What they leave out of it becomes Events.
	DNSCorefileConfigMap model.Key
	ClusterDomain        string
}

// RunController runs the controller role until ctx ends.
func RunController(ctx context.Context, o ControllerOptions) error {
	config, err := o.restConfig("controller")
	if err != nil {
		return err
	}
	store := state.New()
	source, err := kube.New(kube.Options{
		Config: config, Store: store, Logger: o.Logger, Kinds: kube.ForController,
		TCPServices: o.TCPServices, UDPServices: o.UDPServices, ServeNginx: o.ServeNginx,
		Corefile: o.DNSCorefileConfigMap, ClusterDomain: o.ClusterDomain, ClusterDNS: o.DNSAddresses, NodeDNSPort: uint16(o.DNSPort), Env: os.LookupEnv,
	})
	if err != nil {
		return err
	}
	o.Addresses.Reserved = map[ipam.PortKey]string{}
	for _, port := range o.GatewayPorts {
		for _, protocol := range []model.Protocol{model.TCP, model.UDP} { // UDP for HTTP/3
			o.Addresses.Reserved[ipam.PortKey{Protocol: protocol, Port: uint16(port)}] = "the gateway"
		}
	}
	review := &planReview{store: store, logger: o.Logger, domain: cmp.Or(o.ClusterDomain, model.DefaultClusterDomain), changed: make(chan struct{}, 1)}
	writer, err := status.New(status.Options{
		Config: config, Store: store, Logger: o.Logger, Events: true, Addresses: &o.Addresses,
		Problems: review.problems, ProblemsChanged: review.changed,
		Lease: model.Key{Namespace: leaseNamespace, Name: "fairway-controller"}, Identity: identity(""),
	})
	if err != nil {
		return err
	}
	dns := follow(store, dnsService)
	objects, err := bootstrap.New(bootstrap.Options{
		Config: config, Logger: o.Logger, ClusterDNS: o.DNSAddresses, Changed: dns.changed, PoolKind: o.InstallCRDs,
	})
	if err != nil {
		return err
	}
	registry := newRegistry()
	ready := gates{{"the Kubernetes API", source.Synced}}
	return runAll(ctx, o.Logger, []part{
		{"source", source.Run},
		{"DNS Service", dns.run},
		{"objects", objects.Run},
		{"review of plans", review.run},
		{"status", writer.Run},
		{"metrics", func(ctx context.Context) error {
			return serveMetrics(ctx, o.Logger, o.MetricsAddress, registry, ready)
		}},
		{"ready file", func(ctx context.Context) error { return ready.announce(ctx, o.Logger, o.ReadyFile, nil) }},
	})
}
