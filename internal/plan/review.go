package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// Review collects what is wrong with the plans of all Services: what each
// Service's own plan tells, addresses that several of them claim, and those
// that are a node's. The zero Review is empty and ready; it is not safe for
// concurrent use.
type Review struct {
	index Index
	nodes map[netip.Addr]string // by address
}

// Follow takes in what has changed between two snapshots, as a view plans it.
func (r *Review) Follow(v View, prev, next *state.Snapshot) {
	v.Dirty(prev, next, func(key model.Key) {
		if s, ok := v.Compile(next, key); ok {
			r.index.Put(s)
		} else {
			r.index.Delete(key)
		}
	})
	for range state.Diff(prev.Nodes, next.Nodes) {
		r.nodes = map[netip.Addr]string{}
		for name, n := range next.Nodes.All() {
			for _, a := range n.Addrs {
				r.nodes[a] = name
			}
		}
		break
	}
}

// Problems returns what is wrong, ordered by object.
func (r *Review) Problems() model.Problems {
	var all model.Problems
	for _, s := range r.index.services {
		all = append(all, s.Problems...)
		all = append(all, r.ofNodes(&s)...)
	}
	all = append(all, r.taken()...)
	slices.SortFunc(all, func(a, b model.Problem) int {
		return cmp.Or(a.Object.Compare(b.Object), strings.Compare(a.Field+a.Message, b.Field+b.Message))
	})
	return slices.Compact(all)
}

// ofNodes tells of external IPs that are nodes' own. A load balancer address
// may be: that is how a cluster without a pool of addresses gives them.
func (r *Review) ofNodes(s *Service) model.Problems {
	var out model.Problems
	for i := range s.Frontends {
		f := &s.Frontends[i]
		node, ok := r.nodes[f.Addr]
		if f.Kind != ExternalIP || !ok {
			continue
		}
		out = append(out, model.Problem{
			Object: model.Ref{Kind: "Service", Key: s.Key, UID: s.UID}, Reason: ReasonExternalIPOfNode, Field: "spec.externalIPs",
			Message: fmt.Sprintf("%s is the address of Node %s: what listens there at port %d/%s itself is not reached any more; use type NodePort or LoadBalancer, or an address of its own",
				f.Addr, node, f.Port, f.Protocol),
		})
	}
	return out
}

// taken tells Services of the frontends that others have: once for each other
// Service and address, with all ports.
func (r *Review) taken() model.Problems {
	type loss struct {
		kind   Kind
		addr   netip.Addr
		loser  model.Key
		winner model.Key
	}
	ports := map[loss][]string{}
	for at, claims := range r.index.claims {
		for _, lost := range claims[1:] {
			if lost.Key != claims[0].Key {
				l := loss{lost.Kind, at.addr, lost.Key, claims[0].Key}
				ports[l] = append(ports[l], fmt.Sprintf("%d/%s", at.port, at.protocol))
			}
		}
	}
	out := make(model.Problems, 0, len(ports))
	for l, list := range ports {
		slices.Sort(list)
		out = append(out, model.Problem{
			Object: model.Ref{Kind: "Service", Key: l.loser, UID: r.index.services[l.loser].UID},
			Reason: ReasonAddressTaken,
			Message: fmt.Sprintf("%s %s port %s is served by Service %s, whose claim is older or stronger; give this Service another address or port, or remove the other",
				l.kind, l.addr, strings.Join(list, ", "), l.winner),
		})
	}
	return out
}
