package filter

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"

	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/gateway/router"
	"fairway.dev/fairway/internal/model"
)

// Canaries chooses between a rule and its canaries, in ingress-nginx's terms:
// for each canary its header decides, else its cookie, else its weight. There
// may be several; their weights add up.
type Canaries struct {
	rules []canary
}

type canary struct {
	rule    *router.Rule
	spec    *model.Canary
	header  string
	pattern *regexp.Regexp
	share   float64
	total   uint32
	// What decides, in words.
	headerText, cookieText string
}

// defaultWeightTotal is the denominator of weights that name none.
const defaultWeightTotal = 100

// NewCanaries compiles the canaries of a rule; nil if there are none.
func NewCanaries(rule *router.Rule) *Canaries {
	if len(rule.Canaries) == 0 {
		return nil
	}
	c := &Canaries{}
	for _, r := range rule.Canaries {
		spec := r.Spec.Canary
		k := canary{rule: r, spec: spec, header: http.CanonicalHeaderKey(spec.Header)}
		if spec.HeaderPattern != "" {
			// As in ingress-nginx, a pattern that is none matches nothing.
			k.pattern, _ = regexp.Compile(spec.HeaderPattern)
		}
		total := spec.WeightTotal
		if total == 0 {
			total = defaultWeightTotal
		}
		k.total, k.headerText, k.cookieText = total, "header "+k.header, "cookie "+spec.Cookie
		k.share = float64(spec.Weight) / float64(total)
		c.rules = append(c.rules, k)
	}
	return c
}

// verdict is what a header or cookie says about a canary.
type verdict uint8

const (
	undecided verdict = iota
	always
	never
)

// Share is the part of the requests of one kind that a rule or one of its
// canaries gets.
type Share struct {
	Rule *router.Rule
	// Part is from 0 to 1; the parts of all shares add up to 1.
	Part float64
	// Why tells what of the request, or which weight, decides.
	Why string
}

// Shares returns how [Canaries.Choose] divides requests like this one between
// the rule, which stands first, and its canaries: for people.
func (c *Canaries) Shares(rule *router.Rule, v *request.View) []Share {
	list := []Share{{Rule: rule, Part: 1, Why: "what canaries leave"}}
	if c == nil {
		list[0].Why = ""
		return list
	}
	// Choose takes one that is certain at once, also after others with weights.
	sum := 0.0
	for i := range c.rules {
		k := &c.rules[i]
		d, why := k.decide(v)
		s := Share{Rule: k.rule, Why: why}
		switch d {
		case always:
			for j := range list {
				list[j].Part = 0
			}
			s.Part = 1
			list = append(list, s)
			for _, rest := range c.rules[i+1:] {
				list = append(list, Share{Rule: rest.rule, Why: "another canary's header or cookie decides"})
			}
			return list
		case undecided:
			s.Part = min(k.share, 1-sum)
			sum += s.Part
			s.Why = fmt.Sprintf("weight %d of %d", k.spec.Weight, k.total)
		}
		list = append(list, s)
	}
	if rest := 1 - sum; rest > 1e-9 { // else it is what adding up leaves
		list[0].Part = rest
	} else {
		list[0].Part = 0
	}
	return list
}

// Choose returns the canary that takes the request, nil for the rule itself.
func (c *Canaries) Choose(v *request.View) *router.Rule {
	return c.choose(v, rand.Float64())
}

// choose takes a number in [0,1) for the decision by weight.
func (c *Canaries) choose(v *request.View, at float64) *router.Rule {
	if c == nil {
		return nil
	}
	var byWeight *router.Rule
	sum := 0.0
	for i := range c.rules {
		k := &c.rules[i]
		switch d, _ := k.decide(v); d {
		case always:
			return k.rule
		case never:
			continue
		}
		sum += k.share
		if byWeight == nil && at < sum {
			byWeight = k.rule
		}
	}
	return byWeight
}

// decide says what the request itself makes of a canary, and by what.
func (k *canary) decide(v *request.View) (verdict, string) {
	if d := k.byHeader(v); d != undecided {
		return d, k.headerText
	}
	if k.spec.Cookie == "" {
		return undecided, ""
	}
	value, _ := v.Cookie(k.spec.Cookie)
	return alwaysOrNever(value), k.cookieText
}

func (k *canary) byHeader(v *request.View) verdict {
	if k.header == "" {
		return undecided
	}
	value, ok := v.First(k.header)
	switch {
	case !ok:
		return undecided
	case k.spec.HeaderValue != "":
		if value == k.spec.HeaderValue {
			return always
		}
		return undecided
	case k.spec.HeaderPattern != "":
		if k.pattern != nil && k.pattern.MatchString(value) {
			return always
		}
		return undecided
	}
	return alwaysOrNever(value)
}

func alwaysOrNever(value string) verdict {
	switch value {
	case "always":
		return always
	case "never":
		return never
	}
	return undecided
}
