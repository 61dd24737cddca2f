package filter

import (
	"net/http"
	"strings"

	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/model"
)

// rewrite changes the path that the backend sees (rewrite-target of
// ingress-nginx, ReplacePrefixMatch of Gateway API).
type rewrite model.Rewrite

func newRewrite(f *model.Filters, _ Environment) Filter {
	if f.Rewrite == nil {
		return nil
	}
	r := rewrite(*f.Rewrite)
	return &r
}

// String implements fmt.Stringer.
func (r *rewrite) String() string {
	if r.Prefix {
		return "replaces the matched prefix of the path by " + r.Target
	}
	return "replaces the path by " + r.Target
}

func (r *rewrite) Apply(x *Exchange) *Answer {
	path, query, hasQuery := strings.Cut(r.Target, "?")
	path = expand(path, x.Match.Captures)
	if r.Prefix {
		path = strings.TrimSuffix(r.Target, "/") + x.View.Path[min(x.Match.Prefix, len(x.View.Path)):]
	}
	if strings.HasPrefix(r.Target, "http://") || strings.HasPrefix(r.Target, "https://") {
		// nginx: a replacement that is a URL is a redirect.
		return &Answer{Status: http.StatusFound, Location: expand(r.Target, x.Match.Captures)}
	}
	query = argument(query, x.Match.Captures)
	path, err := request.ParseRewritten(path)
	if err != nil {
		return &Answer{Status: http.StatusBadRequest, Reason: "the path would leave its directory once it is rewritten"}
	}
	x.Path = path
	if hasQuery {
		// nginx: arguments of the replacement go before those of the request,
		// which a final "?" drops.
		switch {
		case query == "":
			x.Query = ""
		case x.View.Query != "":
			x.Query = query + "&" + x.View.Query
		default:
			x.Query = query
		}
	}
	return nil
}

// argument is the query of a target. As in nginx a "+" of the path, which is just
// that there, stays one where backends take it for a space.
func argument(query string, captures []string) string {
	if strings.Contains(query, "$") {
		plain := make([]string, len(captures))
		for i, c := range captures {
			plain[i] = strings.ReplaceAll(c, "+", "%2B")
		}
		query = expand(query, plain)
	}
	return request.ParseQuery(query)
}

// expand replaces $1 to $9 by what the path's groups matched; as in nginx, a
// group that is not there is empty.
func expand(target string, captures []string) string {
	if !strings.Contains(target, "$") {
		return target
	}
	var b strings.Builder
	for i := 0; i < len(target); i++ {
		if target[i] != '$' || i+1 == len(target) || target[i+1] < '0' || target[i+1] > '9' {
			b.WriteByte(target[i])
			continue
		}
		i++
		if n := int(target[i] - '0'); n < len(captures) {
			b.WriteString(captures[n])
		}
	}
	return b.String()
}
