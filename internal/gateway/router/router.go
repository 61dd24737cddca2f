package router

import (
	"net/http"
	"strings"

	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/model"
)

// Router finds rules. It never changes and is safe for concurrent use.
type Router struct {
	hosts    map[string]*host   // by hostKey
	defaults map[string][]*Rule // by hostKey
	rules    []*Rule
	losers   []loser
	problems []model.Problem
}

// loser is a rule that never gets a request, because winner takes them all.
type loser struct {
	rule, winner *Rule
}

// Match is the rule for a request, and what its path condition caught.
type Match struct {
	Rule *Rule
	// Captures are what the groups of a regular expression matched; the first
	// is the whole match. Nil for other path types.
	Captures []string
	// Prefix is the length of the path that a prefix rule matched.
	Prefix int
}

// Rules returns the rules that can get requests, canaries included, by ID.
// Do not modify it.
func (r *Router) Rules() []*Rule { return r.rules }

// Problems returns what is wrong with routes. Do not modify it.
func (r *Router) Problems() []model.Problem { return r.problems }

// Match returns the rule for a request; false if there is none.
func (r *Router) Match(v *request.View) (Match, bool) {
	var space [3]string
	names := candidateHosts(v.Host, &space)
	for _, name := range names {
		if h := r.hosts[name]; h != nil {
			if rule := h.find(v); rule != nil {
				return matched(rule, v.Path), true
			}
		}
	}
	for _, name := range names {
		if list := r.defaults[name]; len(list) > 0 {
			return matched(list[0], v.Path), true
		}
	}
	return Match{}, false
}

func matched(rule *Rule, path string) Match {
	m := Match{Rule: rule, Prefix: len(rule.pattern)}
	if rule.path == pattern {
		m.Captures = rule.regex.FindStringSubmatch(path)
		m.Prefix = len(m.Captures[0])
	}
	return m
}

// hostKey is under which name the rules for a host stand: a wildcard
// "*.example.com" under ".example.com", which is a part of the names that it
// matches, so that a lookup makes no string.
func hostKey(host string) string { return strings.TrimPrefix(host, "*") }

// candidateHosts returns the keys of the rules for a host, most specific
// first: the host, its wildcard, every host.
func candidateHosts(name string, space *[3]string) []string {
	names := space[:0]
	if name != "" {
		names = append(names, name)
	}
	if i := strings.IndexByte(name, '.'); i > 0 && name[0] != '[' {
		names = append(names, name[i:])
	}
	return append(names, "")
}

// host holds the rules of one host.
type host struct {
	exact    map[string][]*Rule
	prefixes node
	patterns []*Rule // globs and regular expressions, in order
	all      []*Rule // in order
}

// node is an element of the tree of prefixes.
type node struct {
	rules    []*Rule // in order
	children map[string]*node
}

func (h *host) add(r *Rule) {
	h.all = append(h.all, r)
	switch r.path {
	case exact:
		if h.exact == nil {
			h.exact = map[string][]*Rule{}
		}
		h.exact[r.pattern] = append(h.exact[r.pattern], r)
	case prefix:
		n := h.prefixes.descend(r.pattern)
		n.rules = append(n.rules, r)
	default:
		h.patterns = append(h.patterns, r)
	}
}

// descend returns the node of a path, which is made if need be.
func (n *node) descend(path string) *node {
	for path != "" {
		var element string
		element, path = cutElement(path)
		child := n.children[element]
		if child == nil {
			child = &node{}
			if n.children == nil {
				n.children = map[string]*node{}
			}
			n.children[element] = child
		}
		n = child
	}
	return n
}

// cutElement splits "/a/b" into "a" and "/b".
func cutElement(path string) (element, rest string) {
	path = path[1:]
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}

// find returns the first rule of the host that takes the request.
func (h *host) find(v *request.View) *Rule {
	for _, r := range h.exact[v.Path] {
		if r.unmet(v) == "" {
			return r
		}
	}
	// The nodes along the path that have rules, shallowest first.
	var space [16]*node
	found := space[:0]
	n := &h.prefixes
	for path := v.Path; ; {
		if len(n.rules) > 0 {
			found = append(found, n)
		}
		if path == "" || len(n.children) == 0 {
			break
		}
		var element string
		element, path = cutElement(path)
		if n = n.children[element]; n == nil {
			break
		}
	}
	patterns := h.patterns
	for len(found) > 0 {
		deepest := found[len(found)-1]
		found = found[:len(found)-1]
		for _, r := range deepest.rules {
			for len(patterns) > 0 && byPrecedence(patterns[0], r) < 0 {
				if p := patterns[0]; p.matchesPath(v.Path) && p.unmet(v) == "" {
					return p
				}
				patterns = patterns[1:]
			}
			if r.unmet(v) == "" {
				return r
			}
		}
	}
	for _, p := range patterns {
		if p.matchesPath(v.Path) && p.unmet(v) == "" {
			return p
		}
	}
	return nil
}

func canonicalHeader(name string) string { return http.CanonicalHeaderKey(name) }
