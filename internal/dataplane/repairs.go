package dataplane

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Repairs counts by what it is what a data path has put back, since somebody
// else had removed or changed it: "frontends", for example. What there never
// was before is not put back: a nil Repairs counts nothing.
type Repairs map[string]int

// Add counts n more.
func (r Repairs) Add(what string, n int) {
	if r != nil && n > 0 {
		r[what] += n
	}
}

// String lists what was put back, for people.
func (r Repairs) String() string {
	var all []string
	for _, what := range slices.Sorted(maps.Keys(r)) {
		all = append(all, fmt.Sprint(r[what], " ", what))
	}
	return strings.Join(all, ", ")
}

// RepairCounter counts what data paths put back, in metric
// fairway_dataplane_repairs_total, and remembers the last time of each.
type RepairCounter struct {
	total *prometheus.CounterVec
	told  func()

	mu   sync.Mutex
	last map[string]Repaired // by data path
}

// Repaired is what a data path has put back at a time.
type Repaired struct {
	// Dataplane is its name, What a list for people.
	Dataplane, What string
	At              time.Time
}

// NewRepairCounter registers the metric. told, if not nil, is called after
// something was put back.
func NewRepairCounter(reg prometheus.Registerer, told func()) (*RepairCounter, error) {
	c := &RepairCounter{told: told, last: map[string]Repaired{}, total: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fairway_dataplane_repairs_total",
		Help: "What was put back in the kernel after somebody else had removed or changed it; the log has a line for each time.",
	}, []string{"dataplane", "what"})}
	if err := reg.Register(c.total); err != nil {
		return nil, fmt.Errorf("dataplane: %w", err)
	}
	return c, nil
}

// Report logs what the named data path has put back, in one line, and counts
// it. Nothing is said of nothing, and a nil counter only logs.
func (c *RepairCounter) Report(log *slog.Logger, name string, r Repairs) {
	if len(r) == 0 {
		return
	}
	log.Warn("data path: somebody else had removed or changed what it has in the kernel; it is put back", "dataplane", name, "what", r.String())
	if c == nil {
		return
	}
	for what, n := range r {
		c.total.WithLabelValues(name, what).Add(float64(n))
	}
	c.mu.Lock()
	c.last[name] = Repaired{name, r.String(), time.Now()}
	c.mu.Unlock()
	if c.told != nil {
		c.told()
	}
}

// Recent returns what was put back last by each data path, if not longer ago
// than that, ordered by data path.
func (c *RepairCounter) Recent(within time.Duration) []Repaired {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Repaired
	for _, name := range slices.Sorted(maps.Keys(c.last)) {
		if r := c.last[name]; time.Since(r.At) <= within {
			out = append(out, r)
		}
	}
	return out
}
