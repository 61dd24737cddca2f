package conntrack

import (
	"net/netip"
	"slices"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// claims tell who serves which UDP frontends.
type claims struct {
	// services has the frontends of each Service that has any.
	services map[model.Key][]frontend
	// of has the claims to each frontend in order: the first one's holds.
	of map[frontend][]claim
}

// claim is a Service's wish to serve a frontend.
type claim struct {
	plan.Claim
	// serving are the endpoints that its flows may lead to.
	serving []netip.AddrPort
}

func newClaims() claims {
	return claims{services: map[model.Key][]frontend{}, of: map[frontend][]claim{}}
}

// first returns the claim that holds; false if there is none.
func (c *claims) first(f frontend) (claim, bool) {
	if all := c.of[f]; len(all) > 0 {
		return all[0], true
	}
	return claim{}, false
}

// update takes changes in and returns the frontends that may have stale flows
// since: those that are new, those that went, and those that lost an endpoint or
// got their first. Services may pass a frontend on with the same changes, in
// whatever order they are.
func (c *claims) update(changes []reconcile.Change[model.Key, plan.Service]) []frontend {
	type holder struct {
		claim
		held bool
	}
	before := map[frontend]holder{}
	touch := func(f frontend) {
		if _, again := before[f]; !again {
			was, held := c.first(f)
			before[f] = holder{was, held}
		}
	}
	for i := range changes {
		ch := &changes[i]
		for _, f := range c.services[ch.Key] {
			touch(f)
			c.remove(f, ch.Key)
		}
		delete(c.services, ch.Key)
		if !ch.HasNew {
			continue
		}
		for j := range ch.New.Frontends {
			planned := &ch.New.Frontends[j]
			f := frontend{planned.Addr, planned.Port}
			if planned.Protocol != model.UDP || slices.Contains(c.services[ch.Key], f) { // of an address that it has twice, the first counts
				continue
			}
			touch(f)
			c.services[ch.Key] = append(c.services[ch.Key], f)
			c.add(f, claim{ch.New.Claim(planned), planned.Serving})
		}
	}
	var out []frontend
	for f, was := range before {
		is, held := c.first(f)
		lost := slices.ContainsFunc(was.serving, func(a netip.AddrPort) bool { return !slices.Contains(is.serving, a) })
		if was.held != held || lost || len(was.serving) == 0 && len(is.serving) > 0 {
			out = append(out, f)
		}
	}
	return out
}

func (c *claims) add(f frontend, new claim) {
	all := append(c.of[f], new)
	slices.SortFunc(all, func(a, b claim) int { return a.Compare(b.Claim) })
	c.of[f] = all
}

func (c *claims) remove(f frontend, key model.Key) {
	all := slices.DeleteFunc(c.of[f], func(o claim) bool { return o.Key == key })
	if len(all) == 0 {
		delete(c.of, f)
		return
	}
	c.of[f] = all
}
