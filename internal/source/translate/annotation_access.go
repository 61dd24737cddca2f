package translate

import "net/netip"

const (
	annotationAllowlist = prefixNginx + "allowlist-source-range"
	annotationWhitelist = prefixNginx + "whitelist-source-range"
)

var annotationsAccess = []string{annotationAllowlist, annotationWhitelist}

// accessAnnotations reads the ranges of clients that are let in. A range that
// cannot be read lets in nobody.
func (in *ingress) accessAnnotations(s *settings) {
	name := annotationAllowlist
	v, ok := in.annotation(name)
	if old, hasOld := in.annotation(annotationWhitelist); hasOld {
		if ok {
			in.add(ReasonIneffective, annotationField(annotationWhitelist), "has no effect beside %s; remove one of them", annotationAllowlist)
		} else {
			name, v, ok = annotationWhitelist, old, true
		}
	}
	if !ok {
		return
	}
	list := commaList(v)
	if len(list) == 0 && v != "" {
		in.invalid(annotationField(name), "%q has commas and no range of addresses between them; write one as 192.0.2.0/24, or remove the annotation to let in everybody. It lets in nobody", v)
		s.filters.AllowFrom = []netip.Prefix{nobody}
		return
	}
	for _, text := range list {
		p, ok := prefix(text)
		if !ok {
			in.invalid(annotationField(name), "%q is no range of addresses; write it as 192.0.2.0/24. It lets in nobody", text)
			continue
		}
		s.filters.AllowFrom = append(s.filters.AllowFrom, p)
	}
	if len(list) > 0 && len(s.filters.AllowFrom) == 0 {
		s.filters.AllowFrom = []netip.Prefix{nobody}
	}
}
