package dataplane

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

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
// fairway_dataplane_repairs_total.
type RepairCounter struct{ total *prometheus.CounterVec }

// NewRepairCounter registers the metric.
func NewRepairCounter(reg prometheus.Registerer) (*RepairCounter, error) {
	c := &RepairCounter{prometheus.NewCounterVec(prometheus.CounterOpts{
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
}
