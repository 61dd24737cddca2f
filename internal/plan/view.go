package plan

import (
	"slices"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// View is one node's view of a snapshot: it feeds a reconcile.Loop whose
// objects are the Services of the node.
type View struct {
	// Node is the name of the node. Required.
	Node    string
	Options Options
}

// Dirty marks the Services whose plan may differ between two snapshots: those
// that changed, whose endpoints changed or whose certificate changed, and all
// of them when the node itself did. It marks nothing before every source has
// synced, and everything then: a Service whose endpoints are not known yet must
// not be refused where an earlier process serves it well.
func (v View) Dirty(prev, next *state.Snapshot, mark func(model.Key)) {
	if !next.Synced {
		return
	}
	if !prev.Synced { // endpoints and certificates without a Service need no look
		for key := range next.Services.All() {
			mark(key)
		}
		return
	}
	for d := range state.Diff(prev.Services, next.Services) {
		mark(d.Key)
	}
	for d := range state.Diff(prev.Endpoints, next.Endpoints) {
		mark(d.Key)
	}
	before, _ := prev.Nodes.Get(v.Node)
	now, _ := next.Nodes.Get(v.Node)
	if before != now {
		for key := range next.Services.All() {
			mark(key)
		}
	}
	changed := map[model.Key]bool{}
	for d := range state.Diff(prev.Certificates, next.Certificates) {
		changed[d.Key] = true
	}
	if len(changed) == 0 {
		return
	}
	for key, svc := range next.Services.All() {
		if svc.TLS != nil && slices.ContainsFunc(svc.TLS.Certificates, func(k model.Key) bool { return changed[k] }) {
			mark(key)
		}
	}
}

// Compile returns the plan of one Service, or false where the node serves
// nothing of it.
func (v View) Compile(s *state.Snapshot, key model.Key) (Service, bool) {
	svc, ok := s.Services.Get(key)
	if !ok {
		return Service{}, false
	}
	in := Input{Service: svc, Node: &model.Node{Name: v.Node}, Options: v.Options}
	in.Endpoints, _ = s.Endpoints.Get(key)
	if n, ok := s.Nodes.Get(v.Node); ok {
		in.Node = n
	}
	in.CertificateReady = svc.TLS != nil && slices.ContainsFunc(svc.TLS.Certificates, func(k model.Key) bool {
		c, ok := s.Certificates.Get(k)
		return ok && c.Problem == ""
	})
	out := Compile(in)
	return out, len(out.Frontends) > 0 || len(out.Problems) > 0
}
