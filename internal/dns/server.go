package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/dns/cache"
	"fairway.dev/fairway/internal/dns/forward"
	"fairway.dev/fairway/internal/dns/zone"
	"fairway.dev/fairway/internal/listen"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// DefaultPort is where node agents listen: 53 may belong to the machine's own
// resolver. The DNS Service's endpoints carry it as their port.
const DefaultPort = 10053

// Options configure a server.
type Options struct {
	// Store has the Services. Required.
	Store *state.Store
	// LastKnown is the state of an earlier run, to answer from until Store has
	// synced. Optional.
	LastKnown *state.Snapshot
	// LoadAfter, until it is closed, has what else there is to do first when Store
	// has synced: the server goes on as before, for some seconds at most. Optional.
	LoadAfter <-chan struct{}
	// Domain is the cluster domain. Default "cluster.local".
	Domain string
	// Listen are the addresses to serve by UDP and TCP, each a specific one so
	// that answers come from the address that was asked. They need not be on
	// an interface yet. Required.
	Listen []netip.AddrPort
	// ServiceAddrs are the cluster IPs that lead here, so that a resolv.conf
	// that names them is no way out. Optional.
	ServiceAddrs []netip.Addr
	// DNSService is the Service that clients use; its addresses are the zone's
	// name server. Default kube-system/kube-dns.
	DNSService model.Key
	// ReverseRanges are the ranges of Services and Pods: their reverse names
	// never leave the cluster. Optional.
	ReverseRanges []netip.Prefix
	// TTL is that of answers from the cluster. Default what the Store's
	// configuration says, or 5 s.
	TTL time.Duration
	// Upstreams are the servers for all other names. Default: those of the
	// Store's configuration, or in ResolvConf.
	Upstreams []forward.Server
	// UpstreamPolicy is the order in which they are asked. Default that of the
	// configuration, or sequential.
	UpstreamPolicy forward.Policy
	// Stubs are domains with servers of their own, beside those of the
	// configuration. Optional.
	Stubs []forward.Stub
	// Autopath answers the first step of a Pod's walk along its search path with
	// what the walk would end at. Default: off.
	Autopath bool
	// ResolvConf is read for Upstreams and followed as it changes. Default /etc/resolv.conf.
	ResolvConf string
	// UpstreamTimeout bounds a question to Upstreams, over all of them. Default 2 s.
	UpstreamTimeout time.Duration
	// CacheBytes bounds the memory for answers of Upstreams. Default 16 MiB.
	CacheBytes int
	// MaxUDPSize bounds answers by UDP, whatever clients offer. Default 1232.
	MaxUDPSize int
	// AllowFrom limits who may ask, beside all nodes and this machine; others
	// get REFUSED. Default: everybody.
	AllowFrom []netip.Prefix
	// TCPIdleTimeout is how long a TCP connection may be silent. Default 10 s.
	TCPIdleTimeout time.Duration
	// MaxTCPConnections bounds open TCP connections. Beyond it the one that has
	// been idle longest makes room for a new one. Default 1000.
	MaxTCPConnections int
	// MaxTCPPerClient bounds the open TCP connections of one client address, or
	// of an IPv6 /64; within ReverseRanges every IPv6 address counts by itself.
	// Default 100.
	MaxTCPPerClient int
	// ClientRate bounds the queries a second of one client, by UDP and TCP
	// together; what counts as one is as for MaxTCPPerClient. One second's worth
	// may come at once. More are dropped by UDP, and wait by TCP. Default 0: no limit.
	ClientRate int
	// QueryLog says which queries Logger is told of. Default: none.
	QueryLog QueryLog
	// Registerer takes the metrics. Optional.
	Registerer prometheus.Registerer
	// Logger is required.
	Logger *slog.Logger

	loadPatience time.Duration // with LoadAfter
}

func (o *Options) setDefaults() error {
	if o.Store == nil || o.Logger == nil {
		return errors.New("dns: Store and Logger are required")
	}
	if len(o.Listen) == 0 {
		return errors.New("dns: Listen needs at least one address")
	}
	for _, a := range o.Listen {
		if !a.IsValid() || a.Addr().IsUnspecified() {
			return fmt.Errorf("dns: cannot listen on %s: give a specific address, so that answers come from the one that was asked", a)
		}
	}
	if o.Domain == "" {
		o.Domain = "cluster.local"
	}
	if o.DNSService.IsZero() {
		o.DNSService = model.Key{Namespace: "kube-system", Name: "kube-dns"}
	}
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	if o.loadPatience == 0 {
		o.loadPatience = 5 * time.Second
	}
	if o.MaxUDPSize == 0 {
		o.MaxUDPSize = 1232
	}
	if o.MaxUDPSize < minUDPSize || o.MaxUDPSize > 65535 {
		return fmt.Errorf("dns: MaxUDPSize %d is outside of %d to 65535", o.MaxUDPSize, minUDPSize)
	}
	if o.TCPIdleTimeout == 0 {
		o.TCPIdleTimeout = 10 * time.Second
	}
	if o.MaxTCPConnections == 0 {
		o.MaxTCPConnections = 1000
	}
	if o.MaxTCPPerClient == 0 {
		o.MaxTCPPerClient = 100
	}
	if o.MaxTCPConnections < 0 || o.MaxTCPPerClient < 0 {
		return fmt.Errorf("dns: MaxTCPConnections %d and MaxTCPPerClient %d must not be negative", o.MaxTCPConnections, o.MaxTCPPerClient)
	}
	if o.ClientRate < 0 || o.ClientRate > 1e6 {
		return fmt.Errorf("dns: ClientRate %d is outside of 0 to 1000000", o.ClientRate)
	}
	return nil
}

// Server is one node's DNS server.
type Server struct {
	opts    Options
	log     *slog.Logger
	zone    *zone.Zone
	forward *forward.Forwarder
	handler *handler
	conns   *tcpConns
	cache   *cache.Cache
	// config is in use, and so is answering; both of who updates.
	config    *model.DNSConfig
	answering *state.Snapshot
	// loadAfter is nil once it need not be waited for; patience ends the wait.
	loadAfter <-chan struct{}
	patience  <-chan time.Time

	listening atomic.Pointer[[]netip.AddrPort]
	cookies   atomic.Pointer[[]uint64]

	mu   sync.Mutex
	run  *running // nil while Run is not at work
	also []*socket
}

// running is what Run starts sockets with.
type running struct {
	ctx     context.Context
	wg      *sync.WaitGroup
	failed  chan error
	sockets []*socket // of Options.Listen
}

// New returns a server; Run opens its sockets.
func New(o Options) (*Server, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	var nameServers []netip.Addr
	self := append([]netip.AddrPort(nil), o.Listen...)
	for _, a := range o.Listen {
		nameServers = append(nameServers, a.Addr())
	}
	for _, a := range o.ServiceAddrs {
		self = append(self, netip.AddrPortFrom(a, 53))
	}
	z, err := zone.New(zone.Options{
		Domain: o.Domain, Settings: zone.Settings{TTL: o.TTL}, ReverseRanges: o.ReverseRanges, DNSService: o.DNSService, NameServers: nameServers,
	})
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	c, err := cache.New(cache.Options{MaxBytes: o.CacheBytes})
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	f, err := forward.New(forward.Options{
		Upstreams: o.Upstreams, Policy: o.UpstreamPolicy, Stubs: o.Stubs, ResolvConf: o.ResolvConf, Self: self, Cache: c, Own: z.Owns,
		Timeout: o.UpstreamTimeout, Registerer: o.Registerer, Name: serverLabel(o.Listen[0]), Logger: o.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	queries := newQueryLog(o.QueryLog, o.Logger)
	m, err := newMetrics(o.Registerer, z.Domain(), queries)
	if err != nil {
		return nil, fmt.Errorf("dns: metrics: %w", err)
	}
	s := &Server{
		opts: o, log: o.Logger, zone: z, forward: f, conns: newTCPConns(o), cache: c, loadAfter: o.LoadAfter,
		handler: &handler{
			zone: z, forward: f, metrics: m, log: o.Logger,
			maxUDPSize: o.MaxUDPSize, acl: newACL(o.AllowFrom),
			limiter: newLimiter(o.ClientRate, o.ReverseRanges), waiting: make(chan struct{}, maxWaiting),
			autopath: o.Autopath, queries: queries,
		},
	}
	s.handler.config.Store(&config{})
	return s, nil
}

// Ready reports whether the server is listening and knows all Services.
func (s *Server) Ready() bool { return s.listening.Load() != nil && s.zone.Synced() }

// SilentUpstreams returns the name servers for other names that do not answer,
// or lead back here.
func (s *Server) SilentUpstreams() []forward.Silence { return s.forward.Silent() }

// Addrs returns the addresses that the server listens on; nil while it does not.
func (s *Server) Addrs() []netip.AddrPort {
	if l := s.listening.Load(); l != nil {
		return *l
	}
	return nil
}

// Sockets returns the cookies (SO_COOKIE) of the sockets that answer by UDP; nil
// while there are none.
func (s *Server) Sockets() []uint64 {
	if c := s.cookies.Load(); c != nil {
		return *c
	}
	return nil
}

// Also has the server answer at these addresses, beside those of Options.Listen, and
// no longer at those of the call before. It opens all of them or none. It is for
// addresses that come and go while Run is at work, and fails at any other time.
func (s *Server) Also(addrs []netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.EqualFunc(s.also, addrs, func(l *socket, a netip.AddrPort) bool { return l.addr == a }) {
		return nil
	}
	for _, l := range s.also {
		l.close()
	}
	s.also = nil
	if s.run == nil {
		return errors.New("dns: the server does not run")
	}
	sockets, err := openAll(s.run.ctx, addrs)
	if err != nil {
		s.noteSockets()
		return fmt.Errorf("dns: %w", err)
	}
	for _, l := range sockets {
		l.start(s.run.ctx, s.run.wg, s, s.run.failed)
	}
	s.also = sockets
	s.noteSockets()
	if len(addrs) > 0 {
		s.log.Info("serving DNS", "addresses", addrs)
	}
	return nil
}

// noteSockets notes the cookies of all sockets that there are.
func (s *Server) noteSockets() {
	var cookies []uint64
	for _, l := range slices.Concat(s.run.sockets, s.also) {
		for _, u := range l.udp {
			cookies = append(cookies, u.Cookie)
		}
	}
	s.cookies.Store(&cookies)
}

// Run serves until ctx ends; then it returns nil. An address that is in use is
// logged and tried again: Services, and all else on the node, are not to end with it.
func (s *Server) Run(ctx context.Context) error {
	sub := s.opts.Store.Subscribe()
	defer sub.Close()
	s.update()

	sockets, err := listen.Free(ctx, s.log, "names are not answered by this node", "end what listens there (ss -lnptu shows it), or give another --dns-port",
		func() ([]*socket, error) { return openAll(ctx, s.opts.Listen) })
	if err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	if sockets == nil {
		return nil
	}
	var addrs []netip.AddrPort
	for _, l := range sockets {
		addrs = append(addrs, l.addr)
	}
	s.listening.Store(&addrs)
	defer s.listening.Store(nil)
	s.log.Info("serving DNS", "addresses", addrs, "domain", s.zone.Domain(), "upstreams", s.forward.Servers())

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	failed := make(chan error, 2*len(sockets))
	for _, l := range sockets {
		l.start(ctx, &wg, s, failed)
	}
	s.mu.Lock()
	s.run = &running{ctx, &wg, failed, sockets}
	s.noteSockets()
	s.mu.Unlock()
	wg.Go(func() { _ = s.forward.Run(ctx) })
	wg.Go(func() { s.checkHealth(ctx) })
	if q := s.handler.queries; q != nil {
		wg.Go(func() { q.run(ctx) })
	}
	for {
		select {
		case <-sub.C():
			s.update()
			continue
		case <-s.loadAfter:
			s.load()
			continue
		case <-s.patience:
			s.load()
			continue
		case err = <-failed:
			err = fmt.Errorf("dns: %w", err)
		case <-ctx.Done():
		}
		break
	}
	cancel()
	s.mu.Lock()
	for _, l := range slices.Concat(sockets, s.also) {
		l.close()
	}
	s.run, s.also = nil, nil
	s.cookies.Store(nil)
	s.mu.Unlock()
	wg.Wait()
	return err
}

// load ends the wait for Options.LoadAfter.
func (s *Server) load() {
	s.loadAfter, s.patience = nil, nil
	s.update()
}

// update makes the newest snapshot the one to answer from.
func (s *Server) update() {
	snap := s.opts.Store.Snapshot()
	if snap.Synced && s.loadAfter != nil {
		if s.patience == nil {
			s.patience = time.After(s.opts.loadPatience)
		}
		return
	}
	if !snap.Synced && s.opts.LastKnown != nil {
		snap = s.opts.LastKnown
	}
	before := s.answering
	s.zone.Update(snap)
	s.answering = snap
	s.handler.metrics.programmed(before, snap)
	s.handler.acl.update(snap)
	if snap.DNS == s.config || reflect.DeepEqual(snap.DNS, s.config) { // the latter where LastKnown comes true
		return
	}
	s.config = snap.DNS
	if err := s.configure(snap.DNS); err != nil {
		s.log.Error("the configuration of DNS cannot be used; the last one stays in use", "error", err)
		return
	}
	s.log.Info("DNS is configured", "upstreams", s.forward.Servers())
}

// configure makes c what counts. Queries under way end as they began.
func (s *Server) configure(c *model.DNSConfig) error {
	compiled, err := newConfig(c)
	if err != nil {
		return err
	}
	list, err := domains(c)
	if err != nil {
		return err
	}
	if err := s.zone.Set(settings(s.opts.TTL, c)); err != nil {
		return err
	}
	if err := s.forward.Configure(list); err != nil {
		return err
	}
	usual := s.opts.CacheBytes
	if usual == 0 {
		usual = cache.DefaultBytes
	}
	s.cache.Resize(cacheBytes(usual, c))
	s.handler.config.Store(compiled)
	return nil
}
