package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/gateway/filter"
	"fairway.dev/fairway/internal/gateway/http1"
	"fairway.dev/fairway/internal/gateway/listener"
	"fairway.dev/fairway/internal/gateway/shed"
	"fairway.dev/fairway/internal/gateway/staple"
	"fairway.dev/fairway/internal/gateway/tracing"
	"fairway.dev/fairway/internal/gateway/upstream"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/state"
)

// DefaultCertificateName is the common name of the certificate that the gateway
// makes for itself, which clients see where no other is known.
const DefaultCertificateName = "Fairway default certificate"

// recheckInterval is how often ports that could not be opened are tried again.
const recheckInterval = 5 * time.Second

// besideInterval is how often a gateway that has no routes yet looks whether the
// process beside it still serves.
const besideInterval = 50 * time.Millisecond

// Options configure a [Gateway].
type Options struct {
	// Store is what to serve. Required.
	Store *state.Store
	// Logger gets what happens. Required.
	Logger *slog.Logger
	// HTTPAddrs and HTTPSAddrs are where to listen, "host:port" or ":port" for
	// all addresses. Optional; empty serves none.
	HTTPAddrs, HTTPSAddrs []string
	// HTTP3 serves HTTP/3 as well, at the UDP ports of HTTPSAddrs, and tells
	// clients so by Alt-Svc. A port that cannot be had is logged. It is not had
	// with ProxyProtocol, for QUIC carries no such header.
	HTTP3 bool
	// TLSMinVersion is the oldest version of TLS that clients may speak, such as
	// tls.VersionTLS13; 0 for TLS 1.2. TLSCipherSuites are the suites that TLS 1.2 may
	// choose from; nil for all that Go counts as safe. TLS 1.3 has its own.
	TLSMinVersion   uint16
	TLSCipherSuites []uint16
	// DefaultCertificate names a Secret whose certificate is shown to clients that
	// ask for a host without one, or for none. Optional; without it they are shown one
	// that the gateway has made for itself.
	DefaultCertificate model.Key
	// StreamHost is the address that TCP and UDP ports are opened at; empty
	// for all.
	StreamHost string
	// StateDir is a directory of this gateway alone, for what is to outlive it:
	// proofs that certificates are not revoked (OCSP). Optional.
	StateDir string
	// Version is the program's, for people. Optional.
	Version string
	// NodeName is the node that the gateway runs on, for topology hints. Optional.
	NodeName string
	// TrustedProxies are peers whose X-Forwarded-* headers are believed. Optional.
	TrustedProxies []netip.Prefix
	// ProxyProtocol makes connections to the HTTP and HTTPS ports begin with a
	// PROXY header.
	ProxyProtocol bool
	// MaxConnectionsPerClient limits the open connections of one client, an IPv4
	// address or an IPv6 /64, over all ports, and apart from them its UDP sessions;
	// 0 for no limit. Trusted proxies have none.
	MaxConnectionsPerClient int
	// MaxBodyBytes limits request bodies of routes that set no limit; 0 for none.
	MaxBodyBytes int64
	// ClusterDomain is the domain of the names of Services, which certificates of
	// backends may be made out for; default cluster.local.
	ClusterDomain string
	// ConnectTimeout limits connecting to an endpoint; default 5 s.
	ConnectTimeout time.Duration
	// AnswerTimeout limits waiting for a backend to begin its answer; default 60 s.
	AnswerTimeout time.Duration
	// SilenceTimeout ends requests to HTTP/2 backends that carry nothing either
	// way for so long, RPCs too, unless a route gives the backend more time to
	// read or send; default 1 h.
	SilenceTimeout time.Duration
	// UDPIdle ends silent UDP sessions; default 60 s.
	UDPIdle time.Duration
	// StartTimeout is how long connections wait at the start until routes are
	// known, before they are answered with 503; default 10 s. A gateway that starts
	// beside an old one on the same ports takes none before that, however long it is.
	StartTimeout time.Duration
	// DrainTimeout is how long what is under way may take when Run ends;
	// default 30 s.
	DrainTimeout time.Duration
	// Shedder turns requests and TCP connections away while it is active. Run
	// runs it. Optional.
	Shedder *shed.Shedder
	// Held counts what of bodies waits for who is to take them, and ends requests
	// when that is too much. Optional.
	Held *shed.Held
	// Tracer makes spans of requests. Run closes it. Optional.
	Tracer *tracing.Tracer
	// AccessLog gets one line per request; nil for none.
	AccessLog io.Writer
	// AccessLogFormat is "json" (the default) or "combined".
	AccessLogFormat string
	// AccessLogSkip is the percentage of requests that get no line, chosen at
	// random. Those that failed, or got a status of 400 or more, always do.
	AccessLogSkip float64
	// Registerer gets the metrics. Optional.
	Registerer prometheus.Registerer
}

// Gateway serves routes. Make one with [New] and call Run.
type Gateway struct {
	options  Options
	logger   *slog.Logger
	config   atomic.Pointer[config]
	started  chan struct{} // closed with the first config
	draining atomic.Bool
	tlsHosts atomic.Pointer[hostSet]
	resolver *certs.Resolver
	stapler  *staple.Stapler
	certs    *certificates
	clients  *clientAuth
	pools    *upstream.Set
	streams  *listener.Streams
	http     []*listener.HTTP
	http3    bool // is served
	metrics  *metrics
	clock    clock
	access   *accessLog
	trust    filter.Trust
	shed     *shed.Shedder
	unacked  *shed.Held
	tracer   *tracing.Tracer
	env      filter.Environment

	backendTLS  *backendTLS
	tlsFailures *tlsFailures

	buffers   bufferPool
	questions questions
	discard   *log.Logger // for httputil, whose log has nothing that proxyFailed does not tell

	syncMu  sync.Mutex // held while a snapshot is taken in; guards what follows
	applied *state.Snapshot
	wanted  map[upstream.Key]struct{} // the pools that routes need
	// streamList are the routes of streams, and streamProblems what is wrong with them,
	// as of applied.
	streamList      []listener.Stream
	streamProblems  []model.Problem
	backendProblems []model.Problem
	found           []model.Problem // by the last sync
	pending         bool            // ports wait to be opened

	problemsMu sync.Mutex
	problems   model.Problems
	changed    chan struct{}
}

// New opens the HTTP and HTTPS ports; connections wait until Run. Where another
// process serves them they are left to it until routes are known.
func New(o Options) (*Gateway, error) {
	if o.Store == nil || o.Logger == nil {
		return nil, errors.New("gateway: Store and Logger are required")
	}
	if o.AnswerTimeout <= 0 {
		o.AnswerTimeout = 60 * time.Second
	}
	if o.SilenceTimeout <= 0 {
		o.SilenceTimeout = time.Hour
	}
	if o.DrainTimeout <= 0 {
		o.DrainTimeout = 30 * time.Second
	}
	if o.StartTimeout <= 0 {
		o.StartTimeout = 10 * time.Second
	}
	fallback, err := certs.SelfSigned(DefaultCertificateName, time.Now())
	if err != nil {
		return nil, fmt.Errorf("default certificate: %w", err)
	}
	g := &Gateway{
		options: o, logger: o.Logger,
		resolver:  certs.NewResolver(certs.NewIndex(fallback)),
		certs:     newCertificates(fallback, o.DefaultCertificate),
		clients:   &clientAuth{known: map[model.Key]*authorities{}},
		trust:     o.TrustedProxies,
		shed:      o.Shedder,
		unacked:   o.Held.Beside(),
		tracer:    o.Tracer,
		changed:   make(chan struct{}, 1),
		started:   make(chan struct{}),
		applied:   &state.Snapshot{},
		buffers:   newBufferPool(),
		questions: newQuestions(),
		discard:   log.New(io.Discard, "", 0),
	}
	g.tlsHosts.Store(&hostSet{})
	if g.metrics, err = newMetrics(o.Registerer, o.Shedder, o.Held, g.unacked, o.Tracer); err != nil {
		return nil, err
	}
	if g.access, err = newAccessLog(o.AccessLog, o.AccessLogFormat, o.AccessLogSkip); err != nil {
		return nil, err
	}
	g.backendTLS, g.tlsFailures = newBackendTLS(cmp.Or(o.ClusterDomain, model.DefaultClusterDomain)), newTLSFailures()
	proofs := staple.Options{Logger: o.Logger, OnFetch: g.metrics.proofFetched}
	if o.StateDir != "" {
		proofs.Dir = filepath.Join(o.StateDir, "ocsp")
	}
	g.stapler = staple.New(proofs)
	g.pools = upstream.NewSet(upstream.Options{
		NodeName: o.NodeName, ConnectTimeout: o.ConnectTimeout, OnFailure: g.metrics.endpointFailed, OnTLS: g.tlsFailures.add,
		OnCheck: g.metrics.checked, OnHealth: g.healthChanged, Held: o.Held,
	})
	if err := g.metrics.watch(o.Registerer, g.pools); err != nil {
		return nil, err
	}
	if err := g.listen(); err != nil {
		return nil, err
	}
	g.env = filter.Environment{
		HasTLS:    func(host string) bool { return g.tlsHosts.Load().has(host) },
		HTTPSPort: g.httpsPort(),
		MaxBody:   o.MaxBodyBytes,
	}
	return g, nil
}

// listen opens the gateway's own ports.
func (g *Gateway) listen() error {
	ctx := context.Background()
	clients := listener.NewClients(listener.ClientsOptions{
		Most: g.options.MaxConnectionsPerClient, Exempt: g.trust.Has, OnRefused: g.metrics.refusedForLimit.Inc, Logger: g.logger,
	})
	sessions := listener.NewClients(listener.ClientsOptions{
		Most: g.options.MaxConnectionsPerClient, Sessions: true, Exempt: g.trust.Has, OnRefused: g.metrics.refusedSession.Inc, Logger: g.logger,
	})
	open := func(addrs []string, secure bool) error {
		if len(addrs) == 0 {
			return nil
		}
		o := listener.HTTPOptions{
			Addrs: addrs, HTTP1: g, HTTP2: g, Requests: netHandler{g, secure}, ProxyProtocol: g.options.ProxyProtocol, Clients: clients,
			DrainTimeout: g.options.DrainTimeout, Short: g.shed.Active, Held: g.options.Held, Unacked: g.unacked, OnFlood: g.metrics.flooded, Logger: g.logger,
		}
		if secure {
			o.TLS = g.resolver.ServerConfig("h2", "http/1.1")
			o.TLS.GetCertificate = g.unlessPassed(g.stapler.Wrap(o.TLS.GetCertificate))
			o.Through = func(sock *http1.Socket, conn net.Conn, wait time.Duration) net.Conn {
				return g.streams.Through(sock, conn, wait)
			}
			o.TLS.MinVersion = max(o.TLS.MinVersion, g.options.TLSMinVersion)
			o.TLS.CipherSuites = g.options.TLSCipherSuites
			o.TLS.GetConfigForClient = g.clients.config(o.TLS.Clone())
			o.Client = g.clients.client
			o.HTTP3 = g.options.HTTP3 && !g.options.ProxyProtocol
		}
		server, err := listener.NewHTTP(ctx, o)
		if err != nil {
			return err
		}
		g.http = append(g.http, server)
		g.http3 = g.http3 || server.HTTP3()
		return nil
	}
	if err := open(g.options.HTTPAddrs, false); err != nil {
		return fmt.Errorf("http port: %w", err)
	}
	if err := open(g.options.HTTPSAddrs, true); err != nil {
		return errors.Join(fmt.Errorf("https port: %w", err), g.close())
	}
	var reserved, reservedUDP []uint16
	for _, s := range g.http {
		for _, a := range s.Addrs() {
			reserved = append(reserved, portOf(a))
			if s.HTTP3() {
				reservedUDP = append(reservedUDP, portOf(a))
			}
		}
	}
	g.streams = listener.NewStreams(listener.StreamOptions{
		Host: g.options.StreamHost, Reserved: reserved, ReservedUDP: reservedUDP, UDPIdle: g.options.UDPIdle, DrainTimeout: g.options.DrainTimeout,
		Clients: clients, Sessions: sessions, Refuse: g.refuseConnection, OnConnection: g.metrics.connectionEnded, Logger: g.logger,
	})
	return nil
}

// unlessPassed has no handshake for a host whose TLS passes through: only QUIC asks
// for one, and a client that cannot have it takes TCP.
func (g *Gateway) unlessPassed(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if g.streams.Passed(hello.ServerName) != nil {
			return nil, fmt.Errorf("TLS for %s passes through to its backend, by TCP alone", hello.ServerName)
		}
		return get(hello)
	}
}

// refuseConnection turns TCP connections and UDP sessions of stream routes away while memory is short.
func (g *Gateway) refuseConnection() bool {
	if !g.shed.Active() {
		return false
	}
	g.shed.Shed()
	g.metrics.refusedForMemory.Inc()
	return true
}

// healthChanged tells what health checks say of an endpoint; err is nil if it is well again.
func (g *Gateway) healthChanged(pool upstream.Key, endpoint string, err error) {
	if err == nil {
		g.logger.Info("an endpoint is well again and gets requests", "service", pool.Service.String(), "endpoint", endpoint)
		return
	}
	g.metrics.endpointFailed(pool, "unhealthy", endpoint)
	g.logger.Warn("an endpoint fails its health checks and gets no requests", "service", pool.Service.String(), "endpoint", endpoint, "error", err)
}

func (g *Gateway) close() error {
	var errs []error
	for _, s := range g.http {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func portOf(a net.Addr) uint16 {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort().Port()
	case *net.UDPAddr:
		return a.AddrPort().Port()
	}
	return 0
}

func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// HTTPAddr and HTTPSAddr return the first address in use, for ports that the
// kernel chose; nil if there is none.
func (g *Gateway) HTTPAddr() net.Addr { return g.addr(false) }

// HTTPSAddr is like HTTPAddr.
func (g *Gateway) HTTPSAddr() net.Addr { return g.addr(true) }

func (g *Gateway) addr(secure bool) net.Addr {
	for _, s := range g.http {
		if s.Secure() == secure {
			return s.Addrs()[0]
		}
	}
	return nil
}

func (g *Gateway) httpsPort() uint16 {
	if a := g.HTTPSAddr(); a != nil {
		return portOf(a)
	}
	return 0
}

// Run serves until ctx ends, and then lets what is under way finish, up to the
// drain timeout. It returns nil unless a server failed.
func (g *Gateway) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, func() { g.draining.Store(true) })()
	defer g.pools.Close()
	for _, s := range g.http {
		group.Go(func() error {
			if err := g.awaitRoutes(ctx, s); err != nil {
				return errors.Join(err, s.Close())
			}
			return s.Run(ctx)
		})
	}
	group.Go(func() error { return g.streams.Run(ctx) })
	group.Go(func() error { return g.stapler.Run(ctx) })
	if g.shed != nil {
		group.Go(func() error { return g.shed.Run(ctx) })
	}
	group.Go(func() error {
		return reconcile.Watch(ctx, reconcile.WatchOptions{Store: g.options.Store, Logger: g.logger},
			func(ctx context.Context, _, next *state.Snapshot) error {
				g.sync(ctx, next)
				return nil
			})
	})
	group.Go(func() error {
		g.recheck(ctx)
		return nil
	})
	var end time.Time
	group.Go(func() error {
		<-ctx.Done()
		end = time.Now().Add(g.options.DrainTimeout)
		return nil
	})
	err := group.Wait()
	// A receiver that hangs keeps nobody longer than the drain may take.
	g.tracer.Close(end)
	return err
}

// awaitRoutes returns once routes are known, or clients of a server have waited
// for that long enough. Where another process serves at the ports clients are
// left to it, for as long as that takes: this one may never get to know any.
func (g *Gateway) awaitRoutes(ctx context.Context, s *listener.HTTP) error {
	poll := time.NewTicker(besideInterval)
	defer poll.Stop()
	var patience <-chan time.Time
	for {
		if patience == nil && s.Alone() {
			if err := s.Listen(ctx); err != nil {
				return err
			}
			patience = time.After(g.options.StartTimeout)
			poll.Stop()
		}
		select {
		case <-g.started:
			return nil
		case <-patience:
			g.logger.Warn("routes are not known yet, answering 503 until then")
			return nil
		case <-ctx.Done():
			return nil
		case <-poll.C:
		}
	}
}

// recheck tries ports again that could not be opened, looks now and then whether
// certificates have expired, and tells of TLS with backends that came to nothing.
func (g *Gateway) recheck(ctx context.Context) {
	ticker := time.NewTicker(recheckInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-g.tlsFailures.news:
		}
		g.syncMu.Lock()
		if g.pending || g.certs.due(time.Now()) || g.clients.due(time.Now()) {
			g.syncLocked(ctx, g.applied)
		} else if g.tlsFailures.any() {
			g.tellProblems()
		}
		g.syncMu.Unlock()
	}
}

// Ready reports whether routes are being served: every source has delivered
// its first list, that has been taken in, clients can connect, and Run has not
// been told to end.
func (g *Gateway) Ready() bool {
	for _, s := range g.http {
		if !s.Listening() {
			return false
		}
	}
	return g.config.Load() != nil && !g.draining.Load()
}

// ReasonPortInUse is the reason of a problem that only a gateway can find: a port
// for TCP or UDP that this machine does not give. The other is [ReasonBackendTLS].
const ReasonPortInUse = listener.ReasonPortInUse

// Problems returns what is wrong with the objects that the gateway serves,
// ordered by object. Do not modify it. Apart from [ReasonPortInUse] and
// [ReasonBackendTLS] all of it follows from the store, and the controller's cross
// check tells it as well.
func (g *Gateway) Problems() model.Problems {
	g.problemsMu.Lock()
	defer g.problemsMu.Unlock()
	return g.problems
}

// ProblemsChanged fires after Problems has changed, once for several changes.
// It has one reader.
func (g *Gateway) ProblemsChanged() <-chan struct{} { return g.changed }
