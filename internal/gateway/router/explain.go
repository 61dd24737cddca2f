package router

import (
	"fmt"
	"slices"

	"fairway.dev/fairway/internal/gateway/request"
)

// Candidate is a rule that was looked at for a request.
type Candidate struct {
	Rule *Rule
	// Chosen marks the rule that takes the request; at most one does.
	Chosen bool
	// Near tells that host and path are the request's, so that the rule takes it
	// or would take it but for Reason.
	Near bool
	// Reason says why the rule does not take it; "" for the chosen one.
	Reason string
}

// Explain returns every rule for the request's host in the order of
// precedence, and why each but the chosen one does not take it. It reads all
// rules one by one and so tells what [Router.Match] should find.
func (r *Router) Explain(v *request.View) []Candidate {
	var list []Candidate
	var chosen *Rule
	var chosenName string
	add := func(rule *Rule, name string) {
		near, reason := true, ""
		if !rule.Spec.Default {
			near, reason = rule.explain(v)
		}
		switch {
		case reason != "":
		case chosen != nil:
			reason = beaten(rule, chosen, name != chosenName)
		default:
			chosen, chosenName = rule, name
		}
		list = append(list, Candidate{rule, reason == "", near, reason})
	}
	var space [3]string
	names := candidateHosts(v.Host, &space)
	for _, name := range names {
		if h := r.hosts[name]; h != nil {
			for _, rule := range h.all {
				add(rule, name)
			}
		}
	}
	seen := map[*Rule]bool{}
	for _, name := range names {
		for _, rule := range r.defaults[name] {
			if !seen[rule] {
				seen[rule] = true
				add(rule, name)
			}
		}
	}
	for _, l := range r.losers {
		if !l.rule.Spec.Default && slices.Contains(names, hostKey(l.rule.Spec.Host)) && l.rule.matchesPath(v.Path) {
			list = append(list, Candidate{Rule: l.rule, Near: true, Reason: l.reason()})
		}
	}
	return list
}

// reason says why the rule never gets a request.
func (l loser) reason() string {
	_, why := compareAge(l.winner, l.rule)
	return fmt.Sprintf("%s has the same host and path, and %s", l.winner.Ref(), why)
}

// explain tells whether a rule's path is the request's, and why the rule does
// not match it; "" if it does.
func (r *Rule) explain(v *request.View) (near bool, reason string) {
	if !r.matchesPath(v.Path) {
		return false, fmt.Sprintf("path %s does not match", describePath(r))
	}
	if what := r.unmet(v); what != "" {
		return true, what + " does not match"
	}
	return true, ""
}

// beaten says why a rule that matches comes after the chosen one.
func beaten(r, chosen *Rule, otherHost bool) string {
	switch {
	case r.Spec.Default && !chosen.Spec.Default:
		return "default backends take only what no rule takes"
	case r.Spec.Default && otherHost:
		return "that of a route with a rule for the host goes first"
	case otherHost:
		return fmt.Sprintf("host %s is less specific than %s", describeHost(r.Spec.Host), describeHost(chosen.Spec.Host))
	}
	if r.Spec.Default {
		_, why := compareAge(chosen, r)
		return why
	}
	_, why := compareRules(chosen, r)
	return why
}
