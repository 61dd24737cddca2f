package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/state"
)

// Reasons of the Events that a node writes.
const (
	// ReasonNotProgrammed is a Service that the node's kernel refused.
	ReasonNotProgrammed = "NotProgrammed"
	// ReasonDataPathRepaired is what somebody else had removed or changed of the
	// data path of a Node.
	ReasonDataPathRepaired = "DataPathRepaired"
	// ReasonHealthCheckPortFailed is a healthCheckNodePort that the node cannot
	// listen at.
	ReasonHealthCheckPortFailed = "HealthCheckPortFailed"
)

const (
	// triesBeforeEvent is how often something fails before there is an Event: what
	// the first retry cures concerns nobody.
	triesBeforeEvent = 2
	// servicesTold bounds the Services that a node tells of at a time. Where more
	// fail, the cause is the same.
	servicesTold = 50
	// repairsTold is for how long it is told that something was put back: who has
	// changed it once does so again.
	repairsTold = 10 * time.Minute
)

// nodeProblems collects what is wrong with Services that only this node knows:
// what its kernel refuses, ports that are in use on it, and what its flags or
// its kernel leave out. The controller tells everything else for all nodes.
type nodeProblems struct {
	node    string
	store   *state.Store
	logger  *slog.Logger
	options plan.Options
	changed chan struct{}
	// repaired returns what was put back within a time; nil for nothing.
	repaired func(time.Duration) []dataplane.Repaired

	mu      sync.Mutex
	failing map[failing]failure
	left    map[model.Key]model.Problems // by the plan
}

// failing is something of a Service that fails.
type failing struct {
	key    model.Key
	reason string
}

type failure struct {
	tries   int
	message string
}

func newNodeProblems(node string, store *state.Store, logger *slog.Logger, options plan.Options) *nodeProblems {
	return &nodeProblems{
		node: node, store: store, logger: logger, options: options, changed: make(chan struct{}, 1),
		failing: map[failing]failure{}, left: map[model.Key]model.Problems{},
	}
}

// notProgrammed takes the errors of the data path, as reconcile.LoopOptions.Failed does.
func (p *nodeProblems) notProgrammed(errs map[model.Key]error) {
	p.failed(ReasonNotProgrammed, errs, func(err error) string {
		if err = dataplane.Refusal(err); err == nil {
			return ""
		}
		return fmt.Sprintf("Node %s does not serve it as it should; other Services are not affected: %v", p.node, err)
	})
}

// healthPorts takes the errors of health check ports.
func (p *nodeProblems) healthPorts(errs map[model.Key]error) {
	p.failed(ReasonHealthCheckPortFailed, errs, func(err error) string {
		if err == nil {
			return ""
		}
		return fmt.Sprintf("Node %s: %v; it is tried again", p.node, err)
	})
}

// failed books errors; those whose message is empty are none.
func (p *nodeProblems) failed(reason string, errs map[model.Key]error, message func(error) string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := false
	for key, err := range errs {
		k := failing{key, reason}
		had := p.failing[k]
		now := failure{had.tries + 1, message(err)}
		if now.message == "" {
			delete(p.failing, k)
			changed = changed || had.told()
			continue
		}
		p.failing[k] = now
		changed = changed || now.told() && (!had.told() || had.message != now.message)
	}
	if changed {
		p.tell()
	}
}

func (f failure) told() bool { return f.tries >= triesBeforeEvent }

func (p *nodeProblems) tell() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// problems returns what is wrong now, ordered by object.
func (p *nodeProblems) problems() model.Problems {
	p.mu.Lock()
	defer p.mu.Unlock()
	services := map[model.Key]model.Problems{}
	snap := p.store.Snapshot()
	for f, why := range p.failing {
		svc, ok := snap.Services.Get(f.key)
		if !ok || !why.told() {
			continue
		}
		field := ""
		if f.reason == ReasonHealthCheckPortFailed {
			field = "spec.healthCheckNodePort"
		}
		services[f.key] = append(services[f.key], model.Problem{
			Object: model.Ref{Kind: "Service", Key: f.key, UID: svc.UID}, Reason: f.reason, Field: field, Message: why.message,
		})
	}
	for key, list := range p.left {
		services[key] = append(services[key], list...)
	}
	keys := slices.SortedFunc(maps.Keys(services), model.Key.Compare)
	if len(keys) > servicesTold {
		keys = keys[:servicesTold]
	}
	var out model.Problems
	for _, key := range keys {
		list := services[key]
		slices.SortFunc(list, func(a, b model.Problem) int { return strings.Compare(a.Reason+a.Message, b.Reason+b.Message) })
		out = append(out, list...)
	}
	if self, ok := snap.Nodes.Get(p.node); ok {
		for _, text := range p.repairs() {
			out = append(out, model.Problem{
				Object: model.Ref{Kind: "Node", Key: model.Key{Name: p.node}, UID: self.UID}, Reason: ReasonDataPathRepaired,
				Message: strings.ToUpper(text[:1]) + text[1:],
			})
		}
	}
	return out
}

// repairs are sentences about what was put back lately.
func (p *nodeProblems) repairs() (out []string) {
	if p.repaired == nil {
		return nil
	}
	for _, r := range p.repaired(repairsTold) {
		out = append(out, fmt.Sprintf("somebody else had removed or changed what data path %s has in the kernel of node %s, and at %s it was put back (%s); find the program that does so, such as a firewall that flushes all rules, and have it leave the tables of Fairway alone",
			r.Dataplane, p.node, r.At.UTC().Format(troubleTime), r.What))
	}
	return out
}

// run follows what this node's flags and kernel leave out. Every node that
// leaves it out says it in the same words, which makes one Event of all.
func (p *nodeProblems) run(ctx context.Context) error {
	if p.options.ExternalIPs && p.options.SCTP {
		return nil
	}
	options := reconcile.WatchOptions{Store: p.store, Logger: p.logger}
	return reconcile.Watch(ctx, options, func(_ context.Context, prev, next *state.Snapshot) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		changed := false
		for d := range state.Diff(prev.Services, next.Services) {
			now := p.leftOut(next, d.Key)
			changed = changed || !slices.Equal(p.left[d.Key], now)
			if delete(p.left, d.Key); len(now) > 0 {
				p.left[d.Key] = now
			}
		}
		if changed {
			p.tell()
		}
		return nil
	})
}

func (p *nodeProblems) leftOut(snap *state.Snapshot, key model.Key) model.Problems {
	svc, ok := snap.Services.Get(key)
	sctp := func(p model.ServicePort) bool { return p.Protocol == model.SCTP }
	if !ok || len(svc.ExternalIPs) == 0 && !slices.ContainsFunc(svc.Ports, sctp) {
		return nil // as nearly all
	}
	planned := plan.Compile(plan.Input{Service: svc, Node: &model.Node{Name: p.node}, Options: p.options})
	return slices.DeleteFunc(planned.Problems, func(q model.Problem) bool {
		return q.Reason != plan.ReasonExternalIPsIgnored && q.Reason != plan.ReasonProtocolUnsupported
	})
}
