package zone

import (
	"slices"
	"strings"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// Astray is a Service of type ExternalName whose name is answered with SERVFAIL,
// for what it leads to.
type Astray struct {
	// Path are the Services on the way, its own first. In a circle the last one
	// stands in it twice; else it is the first that is not followed any more.
	Path []model.Key
	// Circle: the way leads round for ever. Otherwise it is too long.
	Circle bool
}

// MaxAliases bounds the Services of type ExternalName that an answer follows.
const MaxAliases = maxChain

// AstrayAliases returns those of snap, ordered by key. It looks at all Services.
func AstrayAliases(snap *state.Snapshot, domain string) []Astray {
	suffix := ".svc." + strings.ToLower(strings.Trim(domain, "."))
	// next is the Service that one of type ExternalName leads to, if it is one as well.
	next := map[model.Key]model.Key{}
	for key, s := range snap.Services.All() {
		if s.Type != model.ExternalName {
			continue
		}
		if name, ok := strings.CutSuffix(s.ExternalName, suffix); ok {
			if name, namespace, ok := strings.Cut(name, "."); ok && !strings.Contains(namespace, ".") {
				to := model.Key{Namespace: namespace, Name: name}
				if target, ok := snap.Services.Get(to); ok && target.Type == model.ExternalName {
					next[key] = to
				}
			}
		}
	}
	var list []Astray
	for key := range next {
		path := []model.Key{key}
		for at := key; ; {
			to, ok := next[at]
			if !ok {
				break // a way that ends, in time
			}
			circle := slices.Contains(path, to)
			if path = append(path, to); circle || len(path) > MaxAliases {
				list = append(list, Astray{Path: path, Circle: circle})
				break
			}
			at = to
		}
	}
	slices.SortFunc(list, func(a, b Astray) int { return a.Path[0].Compare(b.Path[0]) })
	return list
}
