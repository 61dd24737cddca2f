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
	// Reason says why the rule does not take it; "" for the chosen one.
	Reason string
}

// Explain returns every rule for the request's host in the order of
// precedence, and why each but the chosen one does not take it. It reads all
// rules one by one and so tells what [Router.Match] should find.
func (r *Router) Explain(v *request.View) []Candidate {
	var list []Candidate
	var chosen *Rule
	add := func(rule *Rule, reason string) {
		switch {
		case reason != "":
		case chosen != nil:
			reason = "another rule goes first"
		default:
			chosen = rule
		}
		list = append(list, Candidate{rule, reason == "", reason})
	}
	var space [3]string
	names := candidateHosts(v.Host, &space)
	for _, name := range names {
		if h := r.hosts[name]; h != nil {
			for _, rule := range h.all {
				add(rule, rule.explain(v))
			}
		}
	}
	for _, name := range names {
		if defaults := r.defaults[name]; len(defaults) > 0 {
			add(defaults[0], "")
		}
	}
	for _, l := range r.losers {
		if l.rule.Spec.Default || slices.Contains(names, hostKey(l.rule.Spec.Host)) && l.rule.matchesPath(v.Path) {
			add(l.rule, fmt.Sprintf("%s has the same host and path and is older", l.winner.Ref()))
		}
	}
	return list
}

func (r *Rule) explain(v *request.View) string {
	if !r.matchesPath(v.Path) {
		return fmt.Sprintf("path %s does not match", describePath(r))
	}
	if what := r.unmet(v); what != "" {
		return what + " does not match"
	}
	return ""
}
