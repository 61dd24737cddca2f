package healthport

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/state"
)

// stuckAfter is how long changes may wait for the data path before it counts as
// stuck. kube-proxy waits for twice its sync period, by default as long.
const stuckAfter = time.Minute

// ProxyOptions configure a [Proxy].
type ProxyOptions struct {
	// Store is what the data path follows. Required.
	Store *state.Store
	// NodeName is the name of this node. Required.
	NodeName string
	// Status tells where the data path stands. Required.
	Status func() reconcile.Status
	// Registerer gets the metrics. Optional.
	Registerer prometheus.Registerer
}

// Proxy tells how the data path does.
type Proxy struct {
	o              ProxyOptions
	healthz, livez *prometheus.CounterVec

	mu sync.Mutex
	progress
}

// NewProxy returns a Proxy; it is healthy at first.
func NewProxy(o ProxyOptions) (*Proxy, error) {
	if o.Store == nil || o.NodeName == "" || o.Status == nil {
		return nil, errors.New("healthport: Store, NodeName and Status are required")
	}
	p := &Proxy{o: o, healthz: counter("proxy_healthz_total", "healthz"), livez: counter("proxy_livez_total", "livez")}
	if o.Registerer != nil {
		for _, c := range []prometheus.Collector{p.healthz, p.livez} {
			if err := o.Registerer.Register(c); err != nil {
				return nil, fmt.Errorf("healthport: %w", err)
			}
		}
	}
	return p, nil
}

// counter has kube-proxy's name and label.
func counter(name, of string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Subsystem: "kubeproxy", Name: name, Help: "Answers of " + of + " by HTTP status.",
	}, []string{"code"})
}

// Run watches the data path until ctx ends.
func (p *Proxy) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		p.Healthy()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Healthy reports whether the data path follows the cluster.
func (p *Proxy) Healthy() bool {
	_, healthy := p.look(time.Now())
	return healthy
}

// look returns when the data path was last known to be up to date, and whether
// it is well.
func (p *Proxy) look(now time.Time) (time.Time, bool) {
	status, snap := p.o.Status(), p.o.Store.Snapshot()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.see(now, status, snap)
	return p.upToDate, p.well(now)
}

// progress remembers what was seen of the data path.
type progress struct {
	upToDate time.Time
	revision uint64
	// behind is since when nothing has been applied although there is something
	// to apply, broken since when nothing at all can be programmed; zero where
	// that is not so.
	behind, broken time.Time
}

func (p *progress) see(now time.Time, status reconcile.Status, snap *state.Snapshot) {
	moved := status.Revision != p.revision
	p.revision = status.Revision
	switch {
	case status.Revision >= snap.Revision:
		p.behind = time.Time{}
	case moved || p.behind.IsZero():
		p.behind = now
	}
	// Single Services that fail are told of each on its own, and are no reason
	// to keep clients from all the others.
	switch {
	case snap.Synced && !status.Ready, status.Failing > 0 && status.Objects == 0:
		if p.broken.IsZero() {
			p.broken = now
		}
	default:
		p.broken = time.Time{}
	}
	if p.behind.IsZero() && p.broken.IsZero() {
		p.upToDate = now
	}
}

func (p *progress) well(now time.Time) bool {
	for _, since := range []time.Time{p.behind, p.broken} {
		if !since.IsZero() && now.Sub(since) >= stuckAfter {
			return false
		}
	}
	return true
}

// nodeEligible reports whether the node will stay. A load balancer that does
// not look at endpoints shall send new connections elsewhere before it goes.
func (p *Proxy) nodeEligible() bool {
	n, ok := p.o.Store.Snapshot().Nodes.Get(p.o.NodeName)
	return ok && !n.Deleted
}

// report is what kube-proxy answers, field by field.
type report struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyReport `json:"status,omitempty"`
}

// familyReport is about one address family; one data path serves both.
type familyReport struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// Handler answers /healthz and /livez.
func (p *Proxy) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { p.answer(w, p.healthz, true) })
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { p.answer(w, p.livez, false) })
	return mux
}

func (p *Proxy) answer(w http.ResponseWriter, count *prometheus.CounterVec, withNode bool) {
	now := time.Now()
	last, healthy := p.look(now)
	r := report{LastUpdated: last, CurrentTime: now, Healthy: healthy, Status: map[string]familyReport{}}
	for _, family := range []string{"IPv4", "IPv6"} {
		r.Status[family] = familyReport{last, healthy}
	}
	well := healthy
	if withNode {
		eligible := p.nodeEligible()
		r.NodeEligible, well = &eligible, healthy && eligible
	}
	if well {
		// Those who look whether it is recent get told that all is well.
		r.LastUpdated = now
		count.WithLabelValues("200").Inc()
	} else {
		count.WithLabelValues("503").Inc()
	}
	writeJSON(w, well, r)
}
