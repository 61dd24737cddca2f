package plan

import (
	"fmt"
	"slices"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// ReasonAddressTaken is a frontend that another Service has.
const ReasonAddressTaken = "AddressTaken"

// Review collects what is wrong with the plans of all Services: what each
// Service's own plan tells, and addresses that several of them claim. The zero
// Review is empty and ready; it is not safe for concurrent use.
type Review struct {
	index Index
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
}

// Problems returns what is wrong, ordered by object.
func (r *Review) Problems() model.Problems {
	var all model.Problems
	for _, s := range r.index.services {
		all = append(all, s.Problems...)
	}
	for at, claims := range r.index.claims {
		for _, lost := range claims[1:] {
			if lost.Key == claims[0].Key {
				continue
			}
			all = append(all, model.Problem{
				Object: model.Ref{Kind: "Service", Key: lost.Key, UID: r.index.services[lost.Key].UID},
				Reason: ReasonAddressTaken,
				Message: fmt.Sprintf("%s %s port %d is served by Service %s, whose claim is older or stronger; give this Service another address or port, or remove the other",
					lost.Kind, at.addr, at.port, claims[0].Key),
			})
		}
	}
	slices.SortFunc(all, func(a, b model.Problem) int {
		if n := a.Object.Compare(b.Object); n != 0 {
			return n
		}
		if a.Message < b.Message {
			return -1
		}
		return 1
	})
	return slices.Compact(all)
}
