package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	discoveryv1client "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/source/slim"
	"fairway.dev/fairway/internal/state"
)

// Kinds is a set of kinds to watch.
type Kinds uint

// The kinds.
const (
	Services Kinds = 1 << iota
	EndpointSlices
	Nodes
	Namespaces
	// Secrets are read for their TLS material only.
	Secrets
	// Ingresses are watched with the IngressClasses.
	Ingresses
	// Streams are the ConfigMaps named by TCPServices and UDPServices.
	Streams
	// Pools are MetalLB's IPAddressPools, if the API has that kind.
	Pools
	// Corefile is the ConfigMap of that name in [Options].
	Corefile
)

// What each role of Fairway needs.
const (
	ForNode       = Services | EndpointSlices | Nodes | Namespaces | Secrets | Corefile
	ForGateway    = Services | EndpointSlices | Nodes | Secrets | Ingresses | Streams
	ForController = Services | EndpointSlices | Nodes | Secrets | Ingresses | Streams | Pools | Corefile
)

// Options configure a [Source].
type Options struct {
	// Config reaches the API. Required, unless Client is given.
	Config *rest.Config
	// Client and Dynamic replace Config. Dynamic is needed for Pools only.
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	// Store takes the state; nobody else may write to the same rows. Required.
	Store *state.Store
	// Logger is told when the API goes away and comes back. Required.
	Logger *slog.Logger
	// Kinds are what is watched. Required.
	Kinds Kinds
	// About keeps of endpoints what only people are told (model.EndpointAbout).
	About bool
	// ServeNginx serves Ingresses of ingress-nginx's classes as well.
	ServeNginx bool
	// TCPServices and UDPServices name ingress-nginx's ConfigMaps of stream
	// services; optional.
	TCPServices, UDPServices model.Key
	// Corefile names the ConfigMap with CoreDNS' configuration; optional.
	Corefile model.Key
	// ClusterDomain is the domain that a Corefile is read for. Default "cluster.local".
	ClusterDomain string
	// ClusterDNS are the addresses of the cluster's DNS, which a Corefile should
	// not forward to. Optional.
	ClusterDNS []netip.Addr
	// NodeDNSPort is the port at the nodes' addresses, which need Nodes, that their
	// DNS is served on; a Corefile should not forward there either. Optional.
	NodeDNSPort uint16
	// LastDNS is what a Corefile said that could be read last, before this process;
	// it is asked for where the first one cannot be read. It may return nil. Optional.
	LastDNS func() *model.DNSConfig
	// Env looks up the variables that a Corefile names. Default: there are none.
	Env func(name string) (string, bool)

	// services and slices are clients that read less than Client does.
	services corev1client.ServicesGetter
	slices   discoveryv1client.EndpointSlicesGetter
}

// Source reads the state from a Kubernetes API.
type Source struct {
	store    *state.Store
	logger   *slog.Logger
	watchers []*watcher
	outage   *outage
	// heartbeat is nil for clients that are none of a real API.
	heartbeat *heartbeat

	synced  atomic.Bool
	waiting atomic.Int64 // watchers that have not delivered their first list

	mu      sync.Mutex
	pending []change
	wake    chan struct{}
}

// change is a part of a transaction.
type change func(tx *state.Tx)

// New returns a source; nothing is read before Run.
func New(o Options) (*Source, error) {
	if o.Store == nil || o.Logger == nil || o.Kinds == 0 {
		return nil, errors.New("kube source: Store, Logger and Kinds are required")
	}
	if o.Client == nil {
		if err := o.connect(); err != nil {
			return nil, err
		}
	} else {
		o.services, o.slices = o.Client.CoreV1(), o.Client.DiscoveryV1()
	}
	if o.Kinds&Pools != 0 && o.Dynamic == nil {
		return nil, errors.New("kube source: Dynamic is required to watch Pools")
	}
	if o.ClusterDomain == "" {
		o.ClusterDomain = model.DefaultClusterDomain
	}
	s := &Source{store: o.Store, logger: o.Logger, outage: &outage{logger: o.Logger}, wake: make(chan struct{}, 1)}
	for _, k := range kindsOf(&o) {
		s.watchers = append(s.watchers, &watcher{kind: k, source: s, known: map[model.Key]struct{}{}})
	}
	s.waiting.Store(int64(len(s.watchers)))
	if client, ok := o.Client.Discovery().RESTClient().(*rest.RESTClient); ok && client != nil {
		s.heartbeat = &heartbeat{client: client, logger: o.Logger, every: heartbeatEvery, timeout: heartbeatTimeout}
	}
	return s, nil
}

// connect makes clients for the configuration. Built-in kinds travel as
// protobuf, which is several times cheaper to read than JSON, and of the two that
// there are thousands of only what is needed is read.
func (o *Options) connect() error {
	if o.Config == nil {
		return errors.New("kube source: Config or Client is required")
	}
	config := rest.CopyConfig(o.Config)
	var err error
	if o.Dynamic, err = dynamic.NewForConfig(config); err != nil {
		return fmt.Errorf("kube source: %w", err)
	}
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return fmt.Errorf("kube source: %w", err)
	}
	if o.Client, err = kubernetes.NewForConfigAndClient(config, client); err != nil {
		return fmt.Errorf("kube source: %w", err)
	}
	config.NegotiatedSerializer = slim.NewSerializer(slim.Options{
		Base: rest.CodecFactoryForGeneratedClient(scheme.Scheme, scheme.Codecs).WithoutConversion(), About: o.About,
	})
	core, err := restClient(*config, client, "/api", corev1.SchemeGroupVersion)
	if err != nil {
		return err
	}
	discovery, err := restClient(*config, client, "/apis", discoveryv1.SchemeGroupVersion)
	if err != nil {
		return err
	}
	o.services, o.slices = corev1client.New(core), discoveryv1client.New(discovery)
	return nil
}

func restClient(config rest.Config, client *http.Client, path string, version schema.GroupVersion) (rest.Interface, error) {
	config.APIPath, config.GroupVersion = path, &version
	c, err := rest.RESTClientForConfigAndClient(&config, client)
	if err != nil {
		return nil, fmt.Errorf("kube source: %w", err)
	}
	return c, nil
}

// Synced reports whether every kind has been listed once and is in the store.
func (s *Source) Synced() bool { return s.synced.Load() }

// Outage returns since when the API does not answer; zero while it does, or
// while nothing was asked of it yet.
func (s *Source) Outage() time.Time {
	s.outage.mu.Lock()
	since := s.outage.since
	s.outage.mu.Unlock()
	if s.heartbeat != nil {
		if silent := s.heartbeat.silentSince(); since.IsZero() || !silent.IsZero() && silent.Before(since) {
			return silent
		}
	}
	return since
}

// endPatience bounds how long Run waits for those that watch when it is to end.
// A reflector that sleeps before it asks for a list again does not wake up for
// that, and with an API that is away it sleeps for seconds. What it does later
// reaches nobody.
const endPatience = 100 * time.Millisecond

// Run watches until ctx ends; it then returns nil. What goes wrong with the
// API is logged and tried again.
func (s *Source) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(s.logger.Handler()))
	var wg sync.WaitGroup
	defer func() {
		ended := make(chan struct{})
		go func() { wg.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(endPatience):
		}
	}()
	for _, w := range s.watchers {
		wg.Go(func() { w.run(ctx) })
	}
	if s.heartbeat != nil {
		wg.Go(func() { s.heartbeat.run(ctx) })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			s.flush()
		}
	}
}

// commit adds changes to the next batch.
func (s *Source) commit(changes ...change) {
	s.mu.Lock()
	s.pending = append(s.pending, changes...)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// flush commits what came in since the last time as one transaction. While it
// runs the next batch gathers, so that the load decides how large batches are.
func (s *Source) flush() {
	s.mu.Lock()
	batch := s.pending
	s.pending = nil
	s.mu.Unlock()
	s.store.Update(func(tx *state.Tx) {
		for _, c := range batch {
			c(tx)
		}
	})
}

// listed is called by each watcher once its first list is in a batch.
func (s *Source) listed() {
	if s.waiting.Add(-1) > 0 {
		return
	}
	s.commit(func(tx *state.Tx) {
		tx.SetSynced()
		s.synced.Store(true)
	})
}

// backoff paces attempts at an API that is away: it is asked again soon enough
// for traffic to follow what changed meanwhile.
func backoff() *wait.Backoff {
	return &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: 5 * time.Second}
}

// outage logs when the API goes away and when it is back, once for all kinds.
type outage struct {
	logger *slog.Logger

	mu    sync.Mutex
	since time.Time // zero while all is well
	last  time.Time
}

// logEvery is the pause between two lines about one outage.
const logEvery = time.Minute

func (o *outage) failed(kind string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.since.IsZero() {
		o.since = now
	}
	if now.Sub(o.last) >= logEvery {
		o.last = now
		o.logger.Warn("Kubernetes API does not answer, what it has told so far stays in use", "kind", kind, "since", o.since, "error", err)
	}
}

func (o *outage) succeeded() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.since.IsZero() {
		o.logger.Info("Kubernetes API answers again", "after", time.Since(o.since).Round(time.Millisecond))
		o.since, o.last = time.Time{}, time.Time{}
	}
}

var _ cache.TransformingStore = (*watcher)(nil)
