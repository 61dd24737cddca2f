package router

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
)

// The reasons of problems that Compile finds.
const (
	ReasonConflict  = "RouteConflict"
	ReasonBadPath   = "RouteInvalid"
	ReasonNoPrimary = "CanaryWithoutPrimary"
)

// Compile makes the index of all routes, whose order does not matter. Rules
// that are of no use are left out and reported; all others serve.
func Compile(routes []*model.Route) *Router {
	c := &compiler{
		router: &Router{hosts: map[string]*host{}, defaults: map[string][]*Rule{}},
		byHost: map[string][]*Rule{},
	}
	for _, route := range routes {
		c.addRoute(route)
	}
	for key, rules := range c.byHost {
		c.indexHost(key, rules)
	}
	c.indexDefaults()
	slices.SortFunc(c.canaries, byAge)
	for _, canary := range c.canaries {
		c.attach(canary)
	}
	c.number()
	return c.router
}

type compiler struct {
	router   *Router
	byHost   map[string][]*Rule
	defaults []*Rule
	canaries []*Rule
}

func (c *compiler) addRoute(route *model.Route) {
	for i := range route.Rules {
		r, err := newRule(route, i)
		if err != nil {
			c.report(route.Ref, ReasonBadPath, route.Rules[i].Field, err.Error())
			continue
		}
		switch {
		case r.Spec.Canary != nil:
			c.canaries = append(c.canaries, r)
		case r.Spec.Default:
			c.defaults = append(c.defaults, r)
		default:
			key := hostKey(r.Spec.Host)
			c.byHost[key] = append(c.byHost[key], r)
		}
	}
}

func (c *compiler) report(ref model.Ref, reason, field, message string) {
	c.router.problems = append(c.router.problems, model.Problem{Object: ref, Reason: reason, Field: field, Message: message})
}

// indexHost puts a host's rules in order and lets the first of each set of
// equal ones serve.
func (c *compiler) indexHost(key string, rules []*Rule) {
	slices.SortFunc(rules, byPrecedence)
	h := &host{}
	first := 0 // where in h.all the rules with the present path begin
	for _, r := range rules {
		if len(h.all) > first && (h.all[first].path != r.path || h.all[first].pattern != r.pattern) {
			first = len(h.all)
		}
		if i := slices.IndexFunc(h.all[first:], func(w *Rule) bool { return sameMatch(w, r) }); i >= 0 {
			c.lose(r, h.all[first+i])
			continue
		}
		h.add(r)
	}
	c.router.hosts[key] = h
}

// lose records that winner takes every request that rule would take.
func (c *compiler) lose(rule, winner *Rule) {
	c.router.losers = append(c.router.losers, loser{rule, winner})
	what := fmt.Sprintf("host %s and path %s", describeHost(rule.Spec.Host), describePath(rule))
	if rule.Route == winner.Route {
		c.report(rule.Ref(), ReasonConflict, rule.Spec.Field,
			fmt.Sprintf("%s already stands at %s, which serves it: remove one of the two", what, winner.Spec.Field))
		return
	}
	c.report(rule.Ref(), ReasonConflict, rule.Spec.Field,
		fmt.Sprintf("%s already belongs to %s, which is older and serves it: change or remove one of the two", what, winner.Ref()))
}

func describeHost(name string) string {
	if name == "" {
		return `"*"`
	}
	return fmt.Sprintf("%q", name)
}

func describePath(r *Rule) string {
	value := r.Spec.Path.Value
	if value == "" {
		value = "/"
	}
	return fmt.Sprintf("%q (%s)", value, r.Spec.Path.Type)
}

// indexDefaults gives each default backend to the hosts of its route, and the
// oldest to all others.
func (c *compiler) indexDefaults() {
	slices.SortFunc(c.defaults, byAge)
	for _, r := range c.defaults {
		keys := []string{""}
		for i := range r.Route.Rules {
			if rule := &r.Route.Rules[i]; !rule.Default && !slices.Contains(keys, hostKey(rule.Host)) {
				keys = append(keys, hostKey(rule.Host))
			}
		}
		for _, key := range keys {
			c.router.defaults[key] = append(c.router.defaults[key], r)
		}
		if winner := c.router.defaults[""][0]; len(keys) == 1 && winner != r {
			c.router.losers = append(c.router.losers, loser{r, winner})
			c.report(r.Ref(), ReasonConflict, r.Spec.Field,
				fmt.Sprintf("%s is older and its default backend serves: give the rules a host, or remove one of the two", winner.Ref()))
		}
	}
}

// attach puts a canary beside the rule of another object with the same host
// and path. Both have to be in one namespace: else whoever may write an Ingress
// anywhere could draw the requests, and credentials, of somebody else.
func (c *compiler) attach(canary *Rule) {
	if primary := c.primary(canary); primary != nil {
		primary.Canaries = append(primary.Canaries, canary)
		return
	}
	what := "a default backend"
	if !canary.Spec.Default {
		what = fmt.Sprintf("a rule for host %s and path %s", describeHost(canary.Spec.Host), describePath(canary))
	}
	c.report(canary.Ref(), ReasonNoPrimary, canary.Spec.Field,
		fmt.Sprintf("a canary needs %s in another object of its namespace that is no canary: create that, or correct this one", what))
}

func (c *compiler) primary(canary *Rule) *Rule {
	if canary.Spec.Default {
		if list := c.router.defaults[""]; len(list) > 0 && list[0].Route.Namespace == canary.Route.Namespace {
			return list[0]
		}
		return nil
	}
	h := c.router.hosts[hostKey(canary.Spec.Host)]
	if h == nil {
		return nil
	}
	var other *Rule
	for _, r := range h.all {
		switch {
		case r.Route == canary.Route || r.Route.Namespace != canary.Route.Namespace || strings.TrimSuffix(r.pattern, "/") != strings.TrimSuffix(canary.pattern, "/"):
		case r.path == canary.path && r.pattern == canary.pattern:
			return r
		case other == nil || other.Spec.Filters.Redirect != nil && r.Spec.Filters.Redirect == nil:
			// The path type may differ: ingress-nginx does not look at it, and
			// a rewrite-target makes one of the two a regular expression. But a
			// rule that redirects, as for an app-root, has no requests to share.
			other = r
		}
	}
	return other
}

// number gives the rules their IDs.
func (c *compiler) number() {
	r := c.router
	take := func(rule *Rule) {
		rule.ID = len(r.rules)
		r.rules = append(r.rules, rule)
		for _, canary := range rule.Canaries {
			canary.ID = len(r.rules)
			r.rules = append(r.rules, canary)
		}
	}
	for _, h := range r.hosts {
		for _, rule := range h.all {
			take(rule)
		}
	}
	seen := map[*Rule]bool{}
	for _, list := range r.defaults {
		if rule := list[0]; !seen[rule] {
			seen[rule] = true
			take(rule)
		}
	}
	slices.SortFunc(r.problems, func(a, b model.Problem) int {
		return cmp.Or(a.Object.Compare(b.Object), cmp.Compare(a.Field, b.Field))
	})
}
