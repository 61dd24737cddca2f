package servicetls

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/listen"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/state"
)

// DefaultPort is where node agents listen.
const DefaultPort = 10443

// Options configure a proxy.
type Options struct {
	// Store has the Services. Required.
	Store *state.Store
	// Node is the name of the node that the proxy runs on. Required.
	Node string
	// Listen are the addresses that the data path redirects to, at most one of
	// each family, specific and not loopback. They need not be on an interface
	// yet. Required.
	Listen []netip.AddrPort
	// Plan are the options that the node's data path plans with; TLSProxy is
	// set to Listen.
	Plan plan.Options
	// Cluster are the ranges of all Pods: clients in them and on this node are
	// inside the cluster, which externalTrafficPolicy: Local does not bind. Optional.
	Cluster []netip.Prefix
	// Domain is the cluster domain, for the names that endpoints are verified
	// by. Default "cluster.local".
	Domain string
	// HandshakeTimeout bounds the client's handshake. Default 10 s.
	HandshakeTimeout time.Duration
	// DialTimeout bounds the attempt to reach one endpoint. Default 2 s.
	DialTimeout time.Duration
	// DrainTimeout is how long open connections may go on after Run's context
	// ended. Default 10 s; negative closes them at once.
	DrainTimeout time.Duration
	// MaxConnections bounds open connections; more are refused. Default 50,000.
	MaxConnections int
	// Registerer takes the metrics. Optional.
	Registerer prometheus.Registerer
	// Logger is required.
	Logger *slog.Logger
}

func (o *Options) setDefaults() error {
	if o.Store == nil || o.Logger == nil || o.Node == "" {
		return errors.New("servicetls: Store, Node and Logger are required")
	}
	if len(o.Listen) == 0 {
		return errors.New("servicetls: Listen needs at least one address")
	}
	for _, a := range o.Listen {
		if !a.IsValid() || a.Addr().IsUnspecified() {
			return fmt.Errorf("servicetls: cannot listen on %s: give an address of the node", a)
		}
	}
	if o.Domain == "" {
		o.Domain = "cluster.local"
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = 2 * time.Second
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 10 * time.Second
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = 50_000
	}
	o.Plan.TLSProxy = o.Listen
	return nil
}

// Proxy ends TLS for one node.
type Proxy struct {
	opts     Options
	log      *slog.Logger
	metrics  *metrics
	table    *table
	affinity *affinity
	slots    chan struct{}

	listening atomic.Pointer[[]netip.AddrPort]

	connsMu sync.Mutex
	conns   map[*net.TCPConn]struct{}
}

// New returns a proxy; Run opens its sockets.
func New(o Options) (*Proxy, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("servicetls: metrics: %w", err)
	}
	return &Proxy{
		opts: o, log: o.Logger, metrics: m,
		table: &table{
			view: plan.View{Node: o.Node, Options: o.Plan}, domain: o.Domain, log: o.Logger, services: map[model.Key]*service{},
		},
		affinity: newAffinity(time.Now), slots: make(chan struct{}, o.MaxConnections), conns: map[*net.TCPConn]struct{}{},
	}, nil
}

// Ready reports whether the proxy is listening and knows all Services.
func (p *Proxy) Ready() bool { return p.listening.Load() != nil && p.table.isSynced() }

// Addrs returns the addresses that the proxy listens on; nil while it does not.
func (p *Proxy) Addrs() []netip.AddrPort {
	if l := p.listening.Load(); l != nil {
		return *l
	}
	return nil
}

// Run serves until ctx ends, lets open connections go on for DrainTimeout, and
// returns nil. An address that is in use is logged and tried again: Services without
// TLS, and all else on the node, are not to end with it.
func (p *Proxy) Run(ctx context.Context) error {
	listeners, err := listen.Free(ctx, p.log, "connections to Services with TLS are refused", "end what listens there (ss -ltnp shows it), or give another --service-tls-port",
		func() ([]*net.TCPListener, error) { return openAll(ctx, p.opts.Listen) })
	if err != nil {
		return fmt.Errorf("servicetls: %w", err)
	}
	if listeners == nil {
		return nil
	}
	var addrs []netip.AddrPort
	for _, l := range listeners {
		addrs = append(addrs, l.Addr().(*net.TCPAddr).AddrPort())
	}
	p.listening.Store(&addrs)
	defer p.listening.Store(nil)
	p.log.Info("serving TLS for Services", "addresses", addrs)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, len(listeners))
	var accepting, serving sync.WaitGroup
	accepting.Go(func() {
		_ = reconcile.Watch(ctx, reconcile.WatchOptions{Store: p.opts.Store, Logger: p.log}, p.table.sync) // nil by contract
	})
	// Connections outlive ctx by DrainTimeout.
	connCtx, closeConns := context.WithCancel(context.WithoutCancel(ctx))
	defer closeConns()
	for _, l := range listeners {
		accepting.Go(func() {
			if err := p.accept(connCtx, l, &serving); err != nil {
				failed <- err
			}
		})
	}
	select {
	case err = <-failed:
		err = fmt.Errorf("servicetls: %w", err)
	case <-ctx.Done():
	}
	cancel()
	for _, l := range listeners {
		l.Close()
	}
	accepting.Wait()
	p.drain(&serving, closeConns)
	return err
}

// drain waits for open connections, and closes what is left of them.
func (p *Proxy) drain(serving *sync.WaitGroup, closeConns func()) {
	done := make(chan struct{})
	go func() {
		serving.Wait()
		close(done)
	}()
	if p.opts.DrainTimeout > 0 {
		timer := time.NewTimer(p.opts.DrainTimeout)
		defer timer.Stop()
		select {
		case <-done:
			return
		case <-timer.C:
		}
	}
	closeConns()
	p.connsMu.Lock()
	if n := len(p.conns); n > 0 {
		p.log.Info("closing connections to Services with TLS", "connections", n)
	}
	for c := range p.conns {
		c.Close()
	}
	p.connsMu.Unlock()
	<-done
}

func (p *Proxy) accept(ctx context.Context, l *net.TCPListener, serving *sync.WaitGroup) error {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) ||
				errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ECONNABORTED) {
				p.log.Warn("cannot accept a connection", "err", err)
				time.Sleep(10 * time.Millisecond) // a shortage passes
				continue
			}
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		select {
		case p.slots <- struct{}{}:
		default:
			p.metrics.connections.WithLabelValues(resultRefused).Inc()
			reset(conn)
			continue
		}
		p.track(conn)
		serving.Go(func() {
			defer func() {
				p.untrack(conn)
				conn.Close()
				<-p.slots
			}()
			result := p.serve(ctx, conn)
			p.metrics.connections.WithLabelValues(result).Inc()
		})
	}
}

func (p *Proxy) track(c *net.TCPConn) {
	p.metrics.active.Inc()
	p.connsMu.Lock()
	defer p.connsMu.Unlock()
	p.conns[c] = struct{}{}
}

func (p *Proxy) untrack(c *net.TCPConn) {
	p.metrics.active.Dec()
	p.connsMu.Lock()
	defer p.connsMu.Unlock()
	delete(p.conns, c)
}

// openAll opens all addresses or none.
func openAll(ctx context.Context, addrs []netip.AddrPort) ([]*net.TCPListener, error) {
	config := net.ListenConfig{Control: listen.Freebind, KeepAliveConfig: keepAlive}
	var list []*net.TCPListener
	for _, a := range addrs {
		l, err := config.Listen(ctx, "tcp", a.String())
		if err != nil {
			for _, open := range list {
				open.Close()
			}
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
		list = append(list, l.(*net.TCPListener))
	}
	return list, nil
}
