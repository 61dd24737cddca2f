package filter

import (
	"math/rand/v2"
	"regexp"

	"net/http"

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
		switch k.decide(v) {
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

func (k *canary) decide(v *request.View) verdict {
	if d := k.byHeader(v); d != undecided {
		return d
	}
	if k.spec.Cookie == "" {
		return undecided
	}
	value, _ := v.Cookie(k.spec.Cookie)
	return alwaysOrNever(value)
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
