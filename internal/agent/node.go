package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/internal/bootstrap"
	"fairway.dev/fairway/internal/conntrack"
	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/lastknown"
	"fairway.dev/fairway/internal/lb/l2"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/servicetls"
	"fairway.dev/fairway/internal/source/kube"
	"fairway.dev/fairway/internal/source/translate"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/sysctl"
)

// Ports at the node's own addresses that the node role serves on by default.
const (
	DefaultDNSPort = dns.DefaultPort
	DefaultTLSPort = servicetls.DefaultPort
)

// NodeOptions configure the node role.
type NodeOptions struct {
	Common
	// NodeName is the name of this machine's Node object. Required.
	NodeName string
	// Dataplane is one of DataplaneAuto, DataplaneEBPF and DataplaneNFT. Required.
	Dataplane string
	// BPF concerns the eBPF data path.
	BPF BPFOptions
	// ClusterCIDRs are the ranges of Pods. Without them every forwarded
	// connection counts as one from outside.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs are the ranges of cluster IPs. Optional.
	ServiceCIDRs []netip.Prefix
	// NodePortAddresses limit the node's addresses that serve NodePorts. Optional.
	NodePortAddresses []netip.Prefix
	// ExternalIPs serves spec.externalIPs.
	ExternalIPs bool
	// ClusterDomain is the domain of the cluster's names. Required.
	ClusterDomain string
	// DNSAddresses are those of Service kube-system/kube-dns.
	DNSAddresses []netip.Addr
	// DNSPort and TLSPort are ports at the node's addresses. Required.
	DNSPort, TLSPort int
	// DNSClients may ask DNS beside Pods and the addresses of nodes. Optional.
	DNSClients []netip.Prefix
	// DNSTTL is that of answers of the cluster domain. Default what the Corefile
	// says, or 5 s.
	DNSTTL time.Duration
	// DNSCorefile is a file with CoreDNS' configuration; optional.
	// DNSCorefileConfigMap names the ConfigMap that has it where there is none.
	DNSCorefile          string
	DNSCorefileConfigMap model.Key
	// DNSClientRate bounds the queries a second of one client; 0 for any number.
	DNSClientRate int
	// DNSUpstreams are servers for other names, ADDRESS, ADDRESS:PORT or
	// tls://ADDRESS#NAME; optional.
	DNSUpstreams []string
	// DNSPolicy is the order in which they are asked: sequential, round_robin
	// or random. Optional.
	DNSPolicy string
	// DNSNotrack has queries to DNSAddresses that this node's own server answers
	// reach it without translation and connection tracking.
	DNSNotrack bool
	// DNSAutopath goes along Pods' search paths in their place.
	DNSAutopath bool
	// DNSLog says which queries are logged: off, errors, all, or a share such as 1%.
	DNSLog string
	// DNSStubs are domains with servers of their own, DOMAIN=SERVER,SERVER...; optional.
	DNSStubs []string
	// RunDir keeps what has to outlive the process, until the next boot. Required.
	RunDir string
	// Sysctls are kernel parameters to set. Optional.
	Sysctls sysctl.Options
	// HealthzAddress serves kube-proxy's /healthz and /livez; empty for none.
	HealthzAddress string
	// Announce announces LoadBalancer addresses by ARP and NDP.
	Announce bool
	// StateDir is a directory of this node alone, where what it last knew is
	// kept for a start while the API is away. Empty keeps nothing.
	StateDir string
}

// node is the node role while it runs.
type node struct {
	NodeOptions
	config *rest.Config
	store  *state.Store
	source *kube.Source
	self   *model.Node
	last   *lastknown.State // of an earlier run; nil where it is not needed
	gates  gates
	parts  []part
	settle func() // collections of garbage, see deferCollections
	// problems are what only this node knows to be wrong.
	problems *nodeProblems

	// path is the controller of the data path, mode its name as kube-proxy
	// gives it at /proxyMode.
	path      *dataplane.Controller
	mode      string
	dataplane dataplane.Dataplane
	fresh     bool          // nothing of an earlier process serves clients
	applied   func() uint64 // the revision that the data path has
	farewell  atomic.Pointer[func(context.Context)]
	corefile  string // its text and that of what it imports, as of the last reading

	// lastKnown reads the state of an earlier run, once.
	lastKnown func() (*lastknown.State, error)
	// refused is why the Corefile that there is cannot be read; empty for nothing.
	refused          atomic.Pointer[string]
	corefilesRefused prometheus.Counter
	// stateFailing tells why the state cannot be written; nil where it is not to be.
	stateFailing func() *lastknown.Failure
	// silent are name servers that DNS has no answer from.
	silent func() []forward.Silence
}

// RunNode runs the node role until ctx ends. It serves, beside DNS, once the API has told
// what there is; when the API goes away later, it goes on with what it knows. Where
// another one runs in the network namespace, it fails before it has touched anything.
func RunNode(ctx context.Context, o NodeOptions) error {
	if err := checkDataplane(o.Dataplane); err != nil {
		return err
	}
	config, err := o.restConfig("node")
	if err != nil {
		return err
	}
	lock, err := holdNode(ctx, o.Logger)
	if ctx.Err() != nil && err != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	n := &node{NodeOptions: o, config: config, corefilesRefused: newCorefilesRefused(), store: state.New(), settle: deferCollections()}
	defer n.settle()
	n.lastKnown = sync.OnceValues(func() (*lastknown.State, error) { return lastknown.Load(n.StateDir, n.NodeName, n.config.Host) })
	options := kube.Options{
		Config: config, Store: n.store, Logger: o.Logger, Kinds: kube.ForNode,
		Corefile: o.DNSCorefileConfigMap, ClusterDomain: o.ClusterDomain, ClusterDNS: o.DNSAddresses, NodeDNSPort: uint16(o.DNSPort), Env: os.LookupEnv,
		LastDNS: n.lastCorefile,
	}
	if o.DNSCorefile != "" {
		options.Corefile = model.Key{}
		n.readCorefile()
	}
	if n.source, err = kube.New(options); err != nil {
		return err
	}
	ctx, done := lingering(ctx, func(ctx context.Context) {
		if f := n.farewell.Load(); f != nil {
			(*f)(ctx)
		}
	})
	defer done()
	return runAll(ctx, o.Logger, []part{
		{"source", n.source.Run},
		{"services", n.serve},
	})
}

// serve waits for this machine's Node object, whose addresses everything
// listens at, and runs the consumers of the node's state. Where the API does
// not answer, the object is that of the last known state; without one, DNS alone
// is served meanwhile.
func (n *node) serve(ctx context.Context) error {
	var err error
	if err = n.recall(ctx); err != nil {
		return err
	}
	if n.self == nil {
		if n.self, err = n.waitServing(ctx); err != nil || n.self == nil {
			return err
		}
	}
	registry := newRegistry()
	n.gates = gates{{"the Kubernetes API", n.source.Synced}}
	for _, wire := range []func() error{
		func() error { return n.wireDataplane(ctx, registry) },
		func() error { return n.wireHealth(registry) },
		func() error { return n.wireServiceTLS(registry) },
		func() error { return n.wireDNS(registry) },
		n.wireAnnouncer,
		func() error { return n.wireLastKnown(registry) },
		n.wireEvents,
		n.wireSysctls,
	} {
		if err := wire(); err != nil {
			return err
		}
	}
	n.parts = append(n.parts,
		part{"node object", n.watchNode},
		part{"Corefile", n.followCorefile},
		part{"metrics", func(ctx context.Context) error {
			return serveMetrics(ctx, n.Logger, n.MetricsAddress, registry, n.gates, n.serveMode)
		}},
		part{"memory", func(ctx context.Context) error { return n.gates.saveMemory(ctx, n.settle) }},
		part{"ready file", func(ctx context.Context) error { return n.gates.announce(ctx, n.Logger, n.ReadyFile, n.troubles) }},
	)
	return runAll(ctx, n.Logger, n.parts)
}

// listen returns the node's primary address of each family with a port.
func (n *node) listen(port int) []netip.AddrPort {
	var out []netip.AddrPort
	for _, is4 := range []bool{true, false} {
		for _, a := range n.self.Addrs {
			if a.Is4() == is4 {
				out = append(out, netip.AddrPortFrom(a, uint16(port)))
				break
			}
		}
	}
	return out
}

func (n *node) planOptions() plan.Options {
	return plan.Options{ExternalIPs: n.ExternalIPs, SCTP: dataplane.SupportsSCTP(), TLSProxy: n.listen(n.TLSPort), OwnServer: n.listen(n.DNSPort)}
}

func (n *node) wireDataplane(ctx context.Context, registry prometheus.Registerer) error {
	planned := n.planOptions()
	n.problems = newNodeProblems(n.NodeName, n.store, n.Logger, planned)
	repairs, err := dataplane.NewRepairCounter(registry, n.problems.tell)
	if err != nil {
		return err
	}
	n.problems.repaired = repairs.Recent
	n.BPF.dnsPort = n.DNSPort
	path, err := chooseDataplane(ctx, n.Logger, n.Dataplane, n.BPF, repairs)
	if err != nil {
		return fmt.Errorf("data path: %w", err)
	}
	flows, err := conntrack.New(conntrack.Options{})
	if err != nil {
		return fmt.Errorf("data path: %w", err)
	}
	controller, err := dataplane.NewController(dataplane.Options{
		Store: n.store, Logger: n.Logger, NodeName: n.NodeName, Dataplane: path, Flows: flows, Plan: planned,
		Settings:   dataplane.Node{Cluster: n.ClusterCIDRs, Services: n.ServiceCIDRs, NodePorts: n.NodePortAddresses},
		Failed:     n.problems.notProgrammed,
		Registerer: registry,
	})
	if err != nil {
		return err
	}
	n.applied = func() uint64 { return controller.Status().Revision }
	n.path, n.mode, n.dataplane, n.fresh = controller, path.mode(), path, path.fresh
	n.gates = append(n.gates, gate{"the data path", func() bool { return controller.Status().Ready }})
	n.parts = append(n.parts, part{"data path", controller.Run})
	return nil
}

func (n *node) wireAnnouncer() error {
	if !n.Announce {
		return nil
	}
	networks, err := bootstrap.NewNodeNetworks(bootstrap.NodeNetworksOptions{
		Config: n.config, Logger: n.Logger, Node: n.NodeName, Annotation: translate.AnnotationNetworks,
	})
	if err != nil {
		return err
	}
	announcer, err := l2.New(l2.Options{Store: n.store, NodeName: n.NodeName, Logger: n.Logger, OnNetworks: networks.Set})
	if err != nil {
		return err
	}
	n.parts = append(n.parts, part{"announcing addresses", announcer.Run}, part{"networks", networks.Run})
	return nil
}

// waitForNode returns this machine's Node once it is known with an address, or
// nil when ctx ends before.
func waitForNode(ctx context.Context, logger *slog.Logger, store *state.Store, name string) (*model.Node, error) {
	sub := store.Subscribe()
	defer sub.Close()
	slow := time.NewTicker(10 * time.Second)
	defer slow.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, nil
		case <-slow.C:
			if !store.Snapshot().Synced {
				logger.Warn("waiting for the Kubernetes API, to learn of the Node object of this machine; names of the cluster get SERVFAIL until then", "node", name)
				continue
			}
			logger.Warn("waiting for the Node object of this machine; --node-name must be the name in `kubectl get nodes`", "node", name)
		case <-sub.C():
			if n, ok := store.Snapshot().Nodes.Get(name); ok && len(n.Addrs) > 0 {
				return n, nil
			}
		}
	}
}

// errNodeChanged ends the role, so that it is started again with what is true now.
var errNodeChanged = errors.New("the Node object has other addresses or another zone, or was made anew; starting again")

// watchNode ends the role when the addresses that everything listens at or the
// zone have changed, or when the Node was deleted and made again: what it owned, such as
// the EndpointSlices of this node's DNS server, went with the old one.
func (n *node) watchNode(ctx context.Context) error {
	sub := n.store.Subscribe()
	defer sub.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sub.C():
			now, ok := n.store.Snapshot().Nodes.Get(n.NodeName)
			if ok && (now.UID != n.self.UID || now.Zone != n.self.Zone || !slices.Equal(now.Addrs, n.self.Addrs)) {
				return errNodeChanged
			}
		}
	}
}
