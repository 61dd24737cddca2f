package ipam

import (
	"cmp"
	"fmt"
	"slices"

	"fairway.dev/fairway/internal/model"
)

const poolKind = "IPAddressPool"

// poolRange is a range of a pool, with its place in there.
type poolRange struct {
	model.AddrRange
	pool  *model.Pool
	index int
}

// reviewPools reports what is wrong with pools beside each other and beside
// the rest of the cluster. The flag's pool is no object to report on: its
// reserved addresses are left out in silence.
func (r *round) reviewPools() {
	byKey := slices.Clone(r.pools)
	slices.SortFunc(byKey, func(x, y *model.Pool) int { return x.Key.Compare(y.Key) })
	var ranges []poolRange
	named := map[string]*model.Pool{}
	for _, p := range byKey {
		if other := named[p.Name]; other != nil {
			r.poolProblem(p, ReasonPoolName, "metadata.name", "is also that of %s; Services that name it get addresses of either, so give it another name", r.poolName(other))
		} else {
			named[p.Name] = p
		}
		for i, rng := range p.Ranges {
			ranges = append(ranges, poolRange{rng, p, i})
			if part, ok := r.reserved.within(p, rng); ok {
				r.poolProblem(p, ReasonReserved, r.field(p, i), "%s contains %s, %s, which is never given to a Service; take %s out of the range",
					rangeText(rng), part.First, part.what, cmp.Or(part.all, rangeText(part.AddrRange)))
			}
		}
	}
	r.reviewOverlaps(ranges)
}

// reviewOverlaps reports ranges that overlap those of other pools, on the pool
// with the greater key and once for each range. It goes through the ranges by
// their first address and needs to know only how far those before reach: a
// pool may have very many.
func (r *round) reviewOverlaps(ranges []poolRange) {
	slices.SortStableFunc(ranges, func(x, y poolRange) int { return x.First.Compare(y.First) })
	// furthest reaches furthest, second does among those of other pools than furthest's.
	var furthest, second *poolRange
	type place struct {
		pool  model.Key
		index int
	}
	reported := map[place]bool{}
	for i := range ranges {
		current := &ranges[i]
		other := furthest
		if other != nil && other.pool == current.pool {
			other = second
		}
		if other != nil && other.Contains(current.First) {
			first, late := other, current
			if late.pool.Key.Compare(first.pool.Key) < 0 {
				first, late = late, first
			}
			if at := (place{late.pool.Key, late.index}); !reported[at] {
				reported[at] = true
				r.poolProblem(late.pool, ReasonPoolOverlap, r.field(late.pool, late.index), "%s overlaps %s of %s; take the addresses out of one of them",
					rangeText(late.AddrRange), rangeText(first.AddrRange), r.poolName(first.pool))
			}
		}
		switch {
		case furthest == nil || furthest.Last.Less(current.Last):
			if furthest != nil && furthest.pool != current.pool {
				second = furthest
			}
			furthest = current
		case furthest.pool != current.pool && (second == nil || second.Last.Less(current.Last)):
			second = current
		}
	}
}

func (r *round) poolProblem(p *model.Pool, reason, field, format string, args ...any) {
	if p == r.options.Pool {
		return
	}
	ref := model.Ref{Kind: poolKind, Key: p.Key}
	r.result.Problems[ref] = append(r.result.Problems[ref], model.Problem{
		Object: model.Ref{Kind: poolKind, Key: p.Key, UID: p.UID}, Reason: reason, Field: field, Message: fmt.Sprintf(format, args...),
	})
}

// field is the field of a range. Entries that could not be read have no range,
// so with such ones the place in the list is not known.
func (r *round) field(p *model.Pool, index int) string {
	if r.isDamaged(p) {
		return "spec.addresses"
	}
	return fmt.Sprintf("spec.addresses[%d]", index)
}

func (r *round) poolName(p *model.Pool) string {
	if p == r.options.Pool {
		return "the pool of --lb-pool"
	}
	return poolKind + " " + p.Key.String()
}
