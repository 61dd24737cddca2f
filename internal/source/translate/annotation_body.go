package translate

import (
	"math"
	"strconv"
	"strings"
)

const annotationBodySize = prefixNginx + "proxy-body-size"

var annotationsBody = []string{annotationBodySize}

// bodyAnnotations reads the limit for request bodies; 0 lifts it.
func (in *ingress) bodyAnnotations(s *settings) {
	v, ok := in.annotation(annotationBodySize)
	if !ok {
		return
	}
	n, ok := byteSize(v)
	switch {
	case !ok:
		in.invalid(annotationField(annotationBodySize), "%q is no size; write a number of bytes, or with k, m or g, such as 8m; 0 means no limit. The default is used", v)
	case n == 0:
		s.filters.MaxBodyBytes = -1
	default:
		s.filters.MaxBodyBytes = n
	}
}

// byteSize parses a size as nginx writes it: a number with k, m or g, in powers
// of 1024.
func byteSize(s string) (int64, bool) {
	s = strings.ToLower(s)
	factor := int64(1)
	for unit, f := range map[string]int64{"k": 1 << 10, "m": 1 << 20, "g": 1 << 30} {
		if rest, ok := strings.CutSuffix(s, unit); ok {
			s, factor = rest, f
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/factor {
		return 0, false
	}
	return n * factor, true
}
