package healthport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/state"
)

// ServicesOptions configure [Services].
type ServicesOptions struct {
	// Store is followed. Required.
	Store *state.Store
	// Logger is required.
	Logger *slog.Logger
	// NodeName is the name of this node. Required.
	NodeName string
	// Healthy reports whether the data path is well; [Proxy.Healthy] does.
	// Required.
	Healthy func() bool
	// NodePorts limit the node's addresses that health checks are answered at,
	// as they limit those that serve NodePorts; empty means all.
	NodePorts []netip.Prefix
	// Failed is passed on to reconcile.LoopOptions: it is told of ports that
	// cannot be listened at. Optional.
	Failed func(map[model.Key]error)
	// Registerer gets the metrics. Optional.
	Registerer prometheus.Registerer
}

// Services serves the health checks of Services.
type Services struct {
	o    ServicesOptions
	loop *reconcile.Loop[model.Key, plan.HealthCheck]

	// openPort is net.Listen; tests listen in a namespace of their own.
	openPort func(network, addr string) (net.Listener, error)

	mu   sync.Mutex
	open map[model.Key]*check
}

// NewServices returns a server that listens nowhere before Run.
func NewServices(o ServicesOptions) (*Services, error) {
	if o.Store == nil || o.Logger == nil || o.NodeName == "" || o.Healthy == nil {
		return nil, errors.New("healthport: Store, Logger, NodeName and Healthy are required")
	}
	s := &Services{o: o, openPort: net.Listen, open: map[model.Key]*check{}}
	var err error
	s.loop, err = reconcile.NewLoop(reconcile.LoopOptions[model.Key, plan.HealthCheck]{
		WatchOptions: reconcile.WatchOptions{Store: o.Store, Logger: o.Logger},
		Name:         "health checks",
		Dirty:        dirty(plan.View{Node: o.NodeName}),
		Compile:      s.compile,
		Equal:        func(a, b plan.HealthCheck) bool { return a == b },
		Compare:      model.Key.Compare,
		Target:       s,
		Failed:       o.Failed,
	})
	if err != nil {
		return nil, err
	}
	if o.Registerer != nil {
		for _, c := range []prometheus.Collector{
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "fairway_healthcheck_node_ports", Help: "Services whose healthCheckNodePort is answered.",
			}, func() float64 { return float64(s.loop.Status().Objects) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "fairway_healthcheck_node_ports_failed", Help: "Services whose healthCheckNodePort cannot be listened at, for example because it is in use.",
			}, func() float64 { return float64(s.loop.Status().Failing) }),
		} {
			if err := o.Registerer.Register(c); err != nil {
				return nil, fmt.Errorf("healthport: %w", err)
			}
		}
	}
	return s, nil
}

func (s *Services) compile(snap *state.Snapshot, key model.Key) (plan.HealthCheck, bool) {
	svc, ok := snap.Services.Get(key)
	if !ok {
		return plan.HealthCheck{}, false
	}
	node, ok := snap.Nodes.Get(s.o.NodeName)
	if !ok {
		node = &model.Node{Name: s.o.NodeName}
	}
	eps, _ := snap.Endpoints.Get(key)
	return plan.Health(svc, eps, node)
}

// dirty marks what the view does, but for Services without a health check, as
// nearly all are.
func dirty(v plan.View) func(prev, next *state.Snapshot, mark func(model.Key)) {
	return func(prev, next *state.Snapshot, mark func(model.Key)) {
		checked := func(s *state.Snapshot, key model.Key) bool {
			svc, ok := s.Services.Get(key)
			return ok && svc.HealthCheckNodePort != 0
		}
		v.Dirty(prev, next, func(key model.Key) {
			if checked(prev, key) || checked(next, key) {
				mark(key)
			}
		})
	}
}

// Run answers until ctx ends. It then closes every port: a load balancer that
// asks shall not be told what nobody looks after any more.
func (s *Services) Run(ctx context.Context) error {
	err := s.loop.Run(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, c := range s.open {
		c.close()
		delete(s.open, key)
	}
	return err
}

// Apply implements reconcile.Target: it opens, changes and closes ports. What
// is to be closed comes first, so that another Service can have the port.
func (s *Services) Apply(_ context.Context, changes []reconcile.Change[model.Key, plan.HealthCheck]) map[model.Key]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, change := range changes {
		c := s.open[change.Key]
		if c != nil && (!change.HasNew || !c.serves(change.New)) {
			c.close()
			delete(s.open, change.Key)
		}
	}
	failed := map[model.Key]error{}
	for _, change := range changes {
		if !change.HasNew {
			continue
		}
		c := s.open[change.Key]
		if c == nil {
			var err error
			if c, err = s.listen(change.Key, change.New); err != nil {
				failed[change.Key] = err
				continue
			}
			s.open[change.Key] = c
		}
		c.now.Store(&change.New)
	}
	return failed
}

// Prune implements reconcile.Target. Ports do not outlive their process, so
// that there is nothing left over from an earlier one.
func (s *Services) Prune(context.Context, iter.Seq2[model.Key, plan.HealthCheck]) error { return nil }

// check is the open port of one Service.
type check struct {
	key     model.Key
	port    uint16
	healthy func() bool
	now     atomic.Pointer[plan.HealthCheck]
	servers [2]*http.Server // by family, as in plan.HealthCheck
}

var networks = [2]string{"tcp4", "tcp6"}

// listen opens the port of a Service in its families.
func (s *Services) listen(key model.Key, h plan.HealthCheck) (*check, error) {
	c := &check{key: key, port: h.Port, healthy: s.o.Healthy}
	c.now.Store(&h)
	for i, network := range networks {
		if !h.Families[i].Served {
			continue
		}
		l, err := s.openPort(network, ":"+strconv.Itoa(int(h.Port)))
		if err != nil {
			c.close()
			return nil, fmt.Errorf("health check of Service %s at port %d: %w; end what listens there (ss -ltnp shows it), the port is the Service's", key, h.Port, err)
		}
		c.servers[i] = &http.Server{
			Handler:     http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { c.answer(w, i) }),
			ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
			ErrorLog: slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelDebug),
		}
		go func(server *http.Server) {
			if err := server.Serve(nodePortListener{l, s.o.NodePorts}); !errors.Is(err, http.ErrServerClosed) {
				s.o.Logger.Warn("health check of a Service has ended", "service", key, "port", h.Port, "error", err)
			}
		}(c.servers[i])
	}
	return c, nil
}

// serves reports whether the port is open where h wants it.
func (c *check) serves(h plan.HealthCheck) bool {
	if c.port != h.Port {
		return false
	}
	for i, server := range c.servers {
		if (server != nil) != h.Families[i].Served {
			return false
		}
	}
	return true
}

func (c *check) close() {
	for _, server := range c.servers {
		if server != nil {
			_ = server.Close() // the listener is closed in any case
		}
	}
}

// verdict is what kube-proxy answers, field by field.
type verdict struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

func (c *check) answer(w http.ResponseWriter, family int) {
	v := verdict{LocalEndpoints: c.now.Load().Families[family].Ready, ServiceProxyHealthy: c.healthy()}
	v.Service.Namespace, v.Service.Name = c.key.Namespace, c.key.Name
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(v.LocalEndpoints))
	writeJSON(w, v.LocalEndpoints > 0 && v.ServiceProxyHealthy, v)
}

// writeJSON answers with 200 or 503, as kube-proxy does.
func writeJSON(w http.ResponseWriter, well bool, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !well {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "\t")
	_ = encoder.Encode(body) // an error means that the client has gone
}

// nodePortListener closes connections to addresses of the node that serve no
// NodePorts. It looks at each connection, since addresses come and go.
type nodePortListener struct {
	net.Listener
	only []netip.Prefix
}

// Accept implements net.Listener.
func (l nodePortListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || len(l.only) == 0 {
			return conn, err
		}
		at := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().WithZone("")
		if slices.ContainsFunc(l.only, func(p netip.Prefix) bool { return p.Contains(at) }) {
			return conn, nil
		}
		_ = conn.Close() // nothing was said on it
	}
}
