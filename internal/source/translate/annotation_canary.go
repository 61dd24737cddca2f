package translate

import (
	"regexp"

	"fairway.dev/fairway/internal/model"
)

const (
	annotationCanary              = prefixNginx + "canary"
	annotationCanaryWeight        = prefixNginx + "canary-weight"
	annotationCanaryWeightTotal   = prefixNginx + "canary-weight-total"
	annotationCanaryHeader        = prefixNginx + "canary-by-header"
	annotationCanaryHeaderValue   = prefixNginx + "canary-by-header-value"
	annotationCanaryHeaderPattern = prefixNginx + "canary-by-header-pattern"
	annotationCanaryCookie        = prefixNginx + "canary-by-cookie"
)

var annotationsCanary = []string{
	annotationCanary, annotationCanaryWeight, annotationCanaryWeightTotal, annotationCanaryHeader,
	annotationCanaryHeaderValue, annotationCanaryHeaderPattern, annotationCanaryCookie,
}

const defaultWeightTotal = 100

// canaryAnnotations marks the Ingress as the canary of another one with the
// same hosts and paths.
func (in *ingress) canaryAnnotations(s *settings) {
	if !in.boolean(annotationCanary, false) {
		for _, name := range annotationsCanary[1:] {
			if _, ok := in.annotation(name); ok {
				in.add(ReasonIneffective, annotationField(name), `has no effect without %s: "true"`, annotationCanary)
			}
		}
		return
	}
	c := &model.Canary{WeightTotal: defaultWeightTotal}
	if total, ok := in.number(annotationCanaryWeightTotal, 1, 1<<31); ok {
		c.WeightTotal = uint32(total)
	}
	if w, ok := in.number(annotationCanaryWeight, 0, uint64(c.WeightTotal)); ok {
		c.Weight = uint32(w)
	}
	in.canaryHeader(c)
	if v, ok := in.annotation(annotationCanaryCookie); ok {
		if token.MatchString(v) {
			c.Cookie = v
		} else {
			in.invalid(annotationField(annotationCanaryCookie), "%q is no name of a cookie", v)
		}
	}
	if _, hasWeight := in.annotation(annotationCanaryWeight); !hasWeight && c.Header == "" && c.Cookie == "" {
		in.add(ReasonIneffective, annotationField(annotationCanary), "no request goes to this canary; add %s, %s or %s",
			annotationCanaryWeight, annotationCanaryHeader, annotationCanaryCookie)
	}
	if s.appRoot != "" {
		in.add(ReasonIneffective, annotationField(annotationAppRoot), "has no effect on a canary; the Ingress that it takes requests of sends clients to the root of the application")
	}
	s.canary = c
}

// token is the syntax of names of headers and cookies (RFC 9110, 5.6.2).
var token = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

func (in *ingress) canaryHeader(c *model.Canary) {
	value, hasValue := in.annotation(annotationCanaryHeaderValue)
	pattern, hasPattern := in.annotation(annotationCanaryHeaderPattern)
	header, ok := in.annotation(annotationCanaryHeader)
	if !ok {
		for _, name := range []string{annotationCanaryHeaderValue, annotationCanaryHeaderPattern} {
			if _, ok := in.annotation(name); ok {
				in.add(ReasonIneffective, annotationField(name), "has no effect without annotation %s", annotationCanaryHeader)
			}
		}
		return
	}
	if !token.MatchString(header) {
		in.invalid(annotationField(annotationCanaryHeader), "%q is no name of a header", header)
		return
	}
	c.Header = header
	if hasValue {
		c.HeaderValue = value
		if hasPattern {
			in.add(ReasonIneffective, annotationField(annotationCanaryHeaderPattern), "has no effect beside %s", annotationCanaryHeaderValue)
		}
		return
	}
	if !hasPattern {
		return
	}
	if _, err := regexp.Compile(pattern); err != nil {
		// Without the header the canary gets no request by it, which is what
		// a pattern that never matches means in ingress-nginx.
		c.Header = ""
		in.invalid(annotationField(annotationCanaryHeaderPattern), "%q is no regular expression: %v. No request is chosen by header", pattern, err)
		return
	}
	c.HeaderPattern = pattern
}
