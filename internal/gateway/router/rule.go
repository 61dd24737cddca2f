package router

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/httppath"
	"fairway.dev/fairway/internal/model"
)

// Rule is one rule of a route, ready to match.
type Rule struct {
	// ID counts the rules of a router from 0, so that what belongs to a rule
	// can stand in a slice.
	ID int
	// Route and Spec are where it comes from.
	Route *model.Route
	Spec  *model.RouteRule
	// Canaries take a share of the rule's requests; they are rules of other
	// routes and match nothing by themselves.
	Canaries []*Rule

	path    pathType
	pattern string         // literal; prefixes without the final "/"
	regex   *regexp.Regexp // of globs and regular expressions
	headers []valueMatch
	query   []valueMatch
	order   int // position in the route
}

// pathType orders model.PathType by precedence.
type pathType uint8

const (
	exact pathType = iota
	prefix
	glob
	pattern
)

type valueMatch struct {
	name, value string
	regex       *regexp.Regexp
}

// newRule compiles a rule; the error names the cure.
func newRule(route *model.Route, order int) (*Rule, error) {
	spec := &route.Rules[order]
	r := &Rule{Route: route, Spec: spec, order: order}
	if spec.Default {
		return r, nil
	}
	if err := r.compilePath(spec.Path); err != nil {
		return nil, err
	}
	var err error
	if r.headers, err = compileValues(spec.Headers, canonicalHeader); err != nil {
		return nil, err
	}
	if r.query, err = compileValues(spec.Query, func(s string) string { return s }); err != nil {
		return nil, err
	}
	return r, nil
}

// NamesParameters reports whether the rule's path is written with parameters
// (";..."), so that it means them.
func (r *Rule) NamesParameters() bool {
	return strings.Contains(r.Spec.Path.Value, ";") || strings.Contains(strings.ToUpper(r.Spec.Path.Value), "%3B")
}

func (r *Rule) compilePath(m model.PathMatch) error {
	if m.Type == model.PathRegex {
		// As in ingress-nginx: from the start of the path, ignoring case.
		re, err := regexp.Compile("(?i)^(?:" + strings.TrimPrefix(m.Value, "^") + ")")
		if err != nil {
			return fmt.Errorf("path %q is no regular expression that Fairway can use (RE2 syntax, without look-around and back-references): %w", m.Value, err)
		}
		r.path, r.pattern, r.regex = pattern, m.Value, re
		return nil
	}
	value, err := httppath.Normalize(cmp.Or(m.Value, "/"))
	if err != nil {
		return fmt.Errorf("path %q: %w", m.Value, err)
	}
	switch below, isBelow := strings.CutSuffix(value, "/*"); {
	case m.Type == model.PathExact:
		r.path, r.pattern = exact, value
	case m.Type == model.PathGlob && strings.Contains(strings.TrimSuffix(value, "/*"), "*"):
		r.path, r.pattern, r.regex = glob, value, compileGlob(value)
	case m.Type == model.PathGlob && isBelow:
		r.path, r.pattern = prefix, strings.TrimSuffix(below, "/")
	default:
		r.path, r.pattern = prefix, strings.TrimSuffix(value, "/")
	}
	return nil
}

// compileGlob makes "*" match within one path element and a final "/*" the
// path before it and everything below.
func compileGlob(value string) *regexp.Regexp {
	value, below := strings.CutSuffix(value, "/*")
	expr := strings.ReplaceAll(regexp.QuoteMeta(value), `\*`, "[^/]*")
	if below {
		expr += "(?:/.*)?"
	}
	return regexp.MustCompile("^" + expr + "$")
}

func compileValues(specs []model.ValueMatch, canonical func(string) string) ([]valueMatch, error) {
	var list []valueMatch
	for _, s := range specs {
		m := valueMatch{name: canonical(s.Name), value: s.Value}
		if s.Regex {
			re, err := regexp.Compile("^(?:" + s.Value + ")$")
			if err != nil {
				return nil, fmt.Errorf("condition on %q: %q is no regular expression (RE2 syntax): %w", s.Name, s.Value, err)
			}
			m.regex = re
		}
		list = append(list, m)
	}
	return list, nil
}

func (m *valueMatch) matches(value string, ok bool) bool {
	switch {
	case !ok:
		return false
	case m.regex != nil:
		return m.regex.MatchString(value)
	}
	return value == m.value
}

// Ref names the object that the rule comes from.
func (r *Rule) Ref() model.Ref { return r.Route.Ref }

// compareRules orders the rules of one host by precedence (see the package's
// comment), and says in words what decides. It is a total order over different
// rules.
func compareRules(a, b *Rule) (c int, why string) {
	if c, why = compareMatch(a, b); c != 0 {
		return c, why
	}
	return compareAge(a, b)
}

func compareMatch(a, b *Rule) (c int, why string) {
	if a.path == exact || b.path == exact {
		if c = cmp.Compare(a.path, b.path); c != 0 {
			return c, "an exact path goes first"
		}
	}
	if c = cmp.Compare(len(b.pattern), len(a.pattern)); c != 0 {
		return c, "the longer path goes first"
	}
	if c = cmp.Compare(a.path, b.path); c != 0 {
		return c, "of paths of one length a prefix goes first, then a glob, then a regular expression"
	}
	if c = cmp.Compare(a.pattern, b.pattern); c != 0 {
		return c, "of paths of one length the one first in the alphabet goes first"
	}
	if c = cmp.Compare(min(len(b.Spec.Methods), 1), min(len(a.Spec.Methods), 1)); c != 0 {
		return c, "with the same path one with a method goes first"
	}
	if c = cmp.Compare(len(b.headers), len(a.headers)); c != 0 {
		return c, "with the same path more headers go first"
	}
	return cmp.Compare(len(b.query), len(a.query)), "with the same path more query parameters go first"
}

func compareAge(a, b *Rule) (c int, why string) {
	if c = a.Route.Created.Compare(b.Route.Created); c != 0 {
		return c, "the older object goes first"
	}
	if c = cmp.Or(a.Route.Key.Compare(b.Route.Key), cmp.Compare(a.Route.Kind, b.Route.Kind)); c != 0 {
		return c, "of objects of one age the first by namespace and name goes first"
	}
	return cmp.Compare(a.order, b.order), "within an object the first goes first"
}

// byPrecedence and byAge are orders alone, for sorting.
func byPrecedence(a, b *Rule) int { c, _ := compareRules(a, b); return c }

func byAge(a, b *Rule) int { c, _ := compareAge(a, b); return c }

// sameMatch reports whether two rules of one host take exactly the same requests.
func sameMatch(a, b *Rule) bool {
	return a.path == b.path && a.pattern == b.pattern &&
		sameSet(a.Spec.Methods, b.Spec.Methods) &&
		sameSet(a.Spec.Headers, b.Spec.Headers) && sameSet(a.Spec.Query, b.Spec.Query)
}

// sameSet compares lists without regard to order.
func sameSet[T comparable](a, b []T) bool {
	if len(a) != len(b) {
		return false
	}
	for _, x := range a {
		if !slices.Contains(b, x) {
			return false
		}
	}
	return true
}

// matchesPath reports whether the path condition holds, by itself. The index
// finds exact and prefix rules without it.
func (r *Rule) matchesPath(path string) bool {
	switch r.path {
	case exact:
		return path == r.pattern
	case prefix:
		return strings.HasPrefix(path, r.pattern) && (len(path) == len(r.pattern) || path[len(r.pattern)] == '/')
	}
	return r.regex.MatchString(path)
}

// unmet returns the first condition other than host and path that does not
// hold, in words; "" if all do.
func (r *Rule) unmet(v *request.View) string {
	if len(r.Spec.Methods) > 0 && !slices.Contains(r.Spec.Methods, v.Method) {
		return "method"
	}
	for i := range r.headers {
		if m := &r.headers[i]; !m.matches(v.First(m.name)) {
			return "header " + m.name
		}
	}
	for i := range r.query {
		if m := &r.query[i]; !m.matches(v.QueryValue(m.name)) {
			return "query parameter " + m.name
		}
	}
	return ""
}
