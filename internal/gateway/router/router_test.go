package router

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/model"
)

// route builds an Ingress from lines "host type path service"; "-" is no host,
// and the type "Default" needs no path.
func route(t testing.TB, name string, age int, lines ...string) *model.Route {
	t.Helper()
	types := map[string]model.PathType{
		"Prefix": model.PathPrefix, "Exact": model.PathExact, "Glob": model.PathGlob, "Regex": model.PathRegex,
	}
	r := &model.Route{
		Ref:     model.Ref{Kind: "Ingress", Key: model.Key{Namespace: "ns", Name: name}},
		Created: time.Unix(1_700_000_000-int64(age), 0),
	}
	for i, line := range lines {
		f := strings.Fields(line)
		rule := model.RouteRule{Field: fmt.Sprintf("rules[%d]", i), Host: strings.TrimPrefix(f[0], "-")}
		rule.Default = f[1] == "Default"
		if !rule.Default {
			rule.Path = model.PathMatch{Type: types[f[1]], Value: f[2]}
		}
		rule.Backends = []model.WeightedBackend{{Weight: 1, Backend: model.Backend{Service: model.Key{Namespace: "ns", Name: f[len(f)-1]}}}}
		r.Rules = append(r.Rules, rule)
	}
	return r
}

func view(method, url string) *request.View {
	v := &request.View{Method: method, Header: http.Header{}}
	url = strings.TrimPrefix(url, "http://")
	i := strings.IndexByte(url, '/')
	v.Host, v.Path = url[:i], url[i:]
	v.Path, v.Query, _ = strings.Cut(v.Path, "?")
	return v
}

// served returns the Service that the request goes to; "404" for none.
func served(r *Router, v *request.View) string {
	m, ok := r.Match(v)
	if !ok {
		return "404"
	}
	return m.Rule.Spec.Backends[0].Service.Name
}

// TestIngressConformance has the scenarios of
// kubernetes-sigs/ingress-controller-conformance about hosts, paths and the
// default backend.
func TestIngressConformance(t *testing.T) {
	hosts := Compile([]*model.Route{route(t, "host-rules", 0,
		"*.foo.com Prefix / wildcard-foo-com",
		"foo.bar.com Prefix / foo-bar-com")})
	paths := Compile([]*model.Route{route(t, "path-rules", 0,
		"exact-path-rules Exact /foo foo-exact",
		"prefix-path-rules Prefix /foo foo-prefix",
		"prefix-path-rules Prefix /aaa/bbb aaa-slash-bbb-prefix",
		"prefix-path-rules Prefix /aaa aaa-prefix",
		"mixed-path-rules Prefix /foo foo-prefix",
		"mixed-path-rules Exact /foo foo-exact",
		"trailing-slash-path-rules Prefix /aaa/bbb/ aaa-slash-bbb-slash-prefix",
		"trailing-slash-path-rules Exact /foo/ foo-slash-exact")})
	fallback := Compile([]*model.Route{route(t, "default-backend", 0, "- Default echo-service")})
	tests := []struct {
		r               *Router
		name, url, want string
	}{
		{hosts, "host", "http://foo.bar.com/", "foo-bar-com"},
		{hosts, "other host", "http://subdomain.bar.com/", "404"},
		{hosts, "wildcard host", "http://bar.foo.com/", "wildcard-foo-com"},
		{hosts, "wildcard is one label", "http://baz.bar.foo.com/", "404"},
		{hosts, "wildcard is a label", "http://foo.com/", "404"},
		{paths, "exact", "http://exact-path-rules/foo", "foo-exact"},
		{paths, "exact and trailing slash", "http://exact-path-rules/foo/", "404"},
		{paths, "exact is case sensitive", "http://exact-path-rules/FOO", "404"},
		{paths, "exact and other path", "http://exact-path-rules/bar", "404"},
		{paths, "prefix", "http://prefix-path-rules/foo", "foo-prefix"},
		{paths, "prefix and trailing slash", "http://prefix-path-rules/foo/", "foo-prefix"},
		{paths, "prefix is case sensitive", "http://prefix-path-rules/FOO", "404"},
		{paths, "longest prefix", "http://prefix-path-rules/aaa/bbb", "aaa-slash-bbb-prefix"},
		{paths, "longest prefix, below", "http://prefix-path-rules/aaa/bbb/ccc", "aaa-slash-bbb-prefix"},
		{paths, "shorter prefix", "http://prefix-path-rules/aaa/ccc", "aaa-prefix"},
		{paths, "prefix goes by elements", "http://prefix-path-rules/aaaccc", "404"},
		{paths, "exact before prefix", "http://mixed-path-rules/foo", "foo-exact"},
		{paths, "prefix beside exact", "http://mixed-path-rules/foo/x", "foo-prefix"},
		{paths, "prefix with slash, request without", "http://trailing-slash-path-rules/aaa/bbb", "aaa-slash-bbb-slash-prefix"},
		{paths, "prefix with slash, request with", "http://trailing-slash-path-rules/aaa/bbb/", "aaa-slash-bbb-slash-prefix"},
		{paths, "exact with slash, request without", "http://trailing-slash-path-rules/foo", "404"},
		{paths, "exact with slash", "http://trailing-slash-path-rules/foo/", "foo-slash-exact"},
		{fallback, "default backend, any host", "http://my-host/", "echo-service"},
		{fallback, "default backend, any path", "http://my-host/sub-path", "echo-service"},
		{fallback, "default backend, no host", "http:///resource", "echo-service"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := served(tt.r, view("GET", tt.url)); got != tt.want {
				t.Errorf("%s is served by %s, want %s", tt.url, got, tt.want)
			}
		})
	}
}

func TestPrecedence(t *testing.T) {
	r := Compile([]*model.Route{
		route(t, "a", 9,
			"a.test Prefix / a-root",
			"a.test Regex /api/v[0-9]+/.* a-regex-long",
			"a.test Regex /api(/|$)(.*) a-regex",
			"a.test Prefix /api/v1 a-api-v1",
			"a.test Exact /api/v1/exact a-exact",
			"a.test Glob /files/*/raw a-glob",
			"a.test Glob /files/* a-files",
			"a.test Glob /img*.png a-img",
			"*.test Prefix /wild wild",
			"- Prefix /any any",
			"- Default a-default"),
		route(t, "b", 5,
			"b.test Exact /only b-only",
			"- Default b-default"),
		route(t, "old-root", 20, "glob.test Glob /* glob-all"),
	})
	tests := []struct{ name, url, want string }{
		{"exact first", "http://a.test/api/v1/exact", "a-exact"},
		{"longer pattern first", "http://a.test/api/v1/x", "a-regex-long"},
		{"regex longer than prefix", "http://a.test/api/v1", "a-regex"},
		{"regex ignores case", "http://a.test/API/x", "a-regex"},
		{"regex is anchored at the start", "http://a.test/x/api/", "a-root"},
		{"glob within an element", "http://a.test/files/1/raw", "a-glob"},
		{"glob is not across elements", "http://a.test/files/1/2/raw", "a-files"},
		{"glob at the end is the path itself", "http://a.test/files", "a-files"},
		{"glob in a name", "http://a.test/img42.png", "a-img"},
		{"glob in a name is the whole path", "http://a.test/img42.png/x", "a-root"},
		{"glob for everything", "http://glob.test/x/y", "glob-all"},
		{"host before wildcard", "http://a.test/wild", "a-root"},
		{"wildcard", "http://b.test/wild/x", "wild"},
		{"host without the path: rules for every host", "http://b.test/any", "any"},
		{"host without the path: its own default", "http://b.test/none", "b-default"},
		{"other host: the oldest default", "http://c.other/none", "a-default"},
		{"IPv6 host", "http://[::1]/any", "any"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := served(r, view("GET", tt.url)); got != tt.want {
				t.Errorf("%s is served by %s, want %s", tt.url, got, tt.want)
			}
		})
	}
	if p := r.Problems(); len(p) != 0 {
		t.Errorf("problems: %v", p)
	}
}

func TestCaptures(t *testing.T) {
	r := Compile([]*model.Route{route(t, "a", 0, "a Regex /api(/|$)(.*) svc", "a Prefix /foo/ foo")})
	m, _ := r.Match(view("GET", "http://a/api/x/y"))
	if got := strings.Join(m.Captures, ","); got != "/api/x/y,/,x/y" {
		t.Errorf("captures %q", got)
	}
	if m, _ = r.Match(view("GET", "http://a/foo/bar")); m.Prefix != len("/foo") {
		t.Errorf("prefix %d", m.Prefix)
	}
}

func TestConditions(t *testing.T) {
	a := route(t, "a", 0, "a Prefix /x plain", "a Prefix /x post", "a Prefix /x header", "a Prefix /x headers", "a Prefix /x query", "a Prefix / root")
	a.Rules[1].Methods = []string{"POST"}
	a.Rules[2].Headers = []model.ValueMatch{{Name: "x-user", Value: "b.*", Regex: true}}
	a.Rules[3].Headers = []model.ValueMatch{{Name: "X-User", Value: "bob"}, {Name: "X-Env", Value: "dev"}}
	a.Rules[4].Query = []model.ValueMatch{{Name: "q", Value: "1"}}
	r := Compile([]*model.Route{a})
	with := func(v *request.View, pairs ...string) *request.View {
		for i := 0; i < len(pairs); i += 2 {
			v.Header.(http.Header).Set(pairs[i], pairs[i+1])
		}
		return v
	}
	tests := []struct {
		name string
		v    *request.View
		want string
	}{
		{"none holds", view("GET", "http://a/x"), "plain"},
		{"method before header", with(view("POST", "http://a/x"), "X-User", "bob"), "post"},
		{"regex header", with(view("GET", "http://a/x"), "X-User", "bill"), "header"},
		{"regex is for the whole value", with(view("GET", "http://a/x"), "X-User", "a bill"), "plain"},
		{"more headers first", with(view("GET", "http://a/x"), "X-User", "bob", "X-Env", "dev"), "headers"},
		{"header before query", with(view("GET", "http://a/x?q=1"), "X-User", "bob"), "header"},
		{"query", view("GET", "http://a/x?q=1"), "query"},
		{"other query", view("GET", "http://a/x?q=2"), "plain"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := served(r, tt.v); got != tt.want {
				t.Errorf("served by %s, want %s", got, tt.want)
			}
		})
	}
	// A rule whose conditions fail leaves the request to a shorter path.
	only := route(t, "b", 0, "b Prefix /x post", "b Prefix / root")
	only.Rules[0].Methods = []string{"POST"}
	if got := served(Compile([]*model.Route{only}), view("GET", "http://b/x")); got != "root" {
		t.Errorf("served by %s, want root", got)
	}
}

func TestConflicts(t *testing.T) {
	older := route(t, "older", 10, "a Prefix /x/ first", "a Exact /e e1", "- Default d1")
	younger := route(t, "younger", 5, "a Prefix /x second", "a Prefix /y mine", "a Glob /y/* mine-again")
	third := route(t, "third", 1, "- Default d2")
	tie := route(t, "a-tie", 10, "a Exact /e e2")
	bad := route(t, "bad", 1, "a Regex /(?!x) bad", "a Prefix /good good")
	for _, order := range [][]*model.Route{{older, younger, third, tie, bad}, {bad, tie, third, younger, older}} {
		r := Compile(order)
		for url, want := range map[string]string{
			"http://a/x": "first", "http://a/y": "mine", "http://a/e": "e2", "http://b/": "d1", "http://a/good": "good",
		} {
			if got := served(r, view("GET", url)); got != want {
				t.Errorf("%s is served by %s, want %s", url, got, want)
			}
		}
		var got []string
		for _, p := range r.Problems() {
			got = append(got, p.Object.Name+" "+p.Field+" "+p.Reason+": "+p.Message)
		}
		want := []string{
			`bad rules[0] RouteInvalid: path "/(?!x)" is no regular expression`,
			`older rules[1] RouteConflict: host "a" and path "/e" (Exact) already belongs to Ingress ns/a-tie`,
			`third rules[0] RouteConflict: Ingress ns/older is older and its default backend serves`,
			`younger rules[0] RouteConflict: host "a" and path "/x" (Prefix) already belongs to Ingress ns/older, which is older`,
			`younger rules[2] RouteConflict: host "a" and path "/y/*" (Glob) already stands at rules[1]`,
		}
		if len(got) != len(want) {
			t.Fatalf("got %d problems, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
		}
		for i := range want {
			if !strings.HasPrefix(got[i], want[i]) {
				t.Errorf("problem %d: got %q, want it to begin with %q", i, got[i], want[i])
			}
		}
	}
}

func TestCanaries(t *testing.T) {
	primary := route(t, "primary", 10, "a Regex /r/ main-r", "a Prefix /x main", "a Exact /e main-e", "- Default main-d")
	canary := func(name string, age int, lines ...string) *model.Route {
		r := route(t, name, age, lines...)
		for i := range r.Rules {
			r.Rules[i].Canary = &model.Canary{Weight: 10}
		}
		return r
	}
	foreign := canary("foreign", 30, "a Prefix /x foreign", "- Default foreign-d")
	foreign.Namespace = "evil"
	r := Compile([]*model.Route{
		foreign, canary("c2", 1, "a Prefix /x c2"), primary,
		canary("c1", 20, "a Exact /x c1", "- Default c1-d", "a Prefix /r c1-r"),
		canary("lost", 1, "a Prefix /nowhere lost"),
	})
	m, _ := r.Match(view("GET", "http://a/x"))
	var names []string
	for _, c := range m.Rule.Canaries {
		names = append(names, c.Ref().Name)
	}
	// Canaries match nothing themselves, stand oldest first, and need not have
	// the path type of their primary.
	if m.Rule.Ref().Name != "primary" || strings.Join(names, ",") != "c1,c2" {
		t.Errorf("rule of %s has canaries %v", m.Rule.Ref(), names)
	}
	if m, _ = r.Match(view("GET", "http://a/r/")); len(m.Rule.Canaries) != 1 {
		t.Errorf("rule with another path type has canaries %v", m.Rule.Canaries)
	}
	if m, _ = r.Match(view("GET", "http://b/")); len(m.Rule.Canaries) != 1 {
		t.Errorf("default backend has canaries %v", m.Rule.Canaries)
	}
	if got := served(r, view("GET", "http://a/nowhere")); got != "main-d" {
		t.Errorf("a canary without primary serves: %s", got)
	}
	p := r.Problems()
	p = slices.DeleteFunc(slices.Clone(p), func(p model.Problem) bool { // two of them, for it draws no requests
		return p.Object.Namespace == "evil" && p.Reason == ReasonNoPrimary
	})
	if n := len(r.Problems()) - len(p); n != 2 {
		t.Errorf("%d problems of a canary in another namespace, want 2", n)
	}
	if len(p) != 1 || p[0].Reason != ReasonNoPrimary || p[0].Object.Name != "lost" || !strings.Contains(p[0].Message, `"/nowhere"`) {
		t.Errorf("problems %v", p)
	}
	// An app-root is a rule for the path that the canary is meant for, too.
	rooted := route(t, "rooted", 10, "a Exact / none", "a Regex / main")
	rooted.Rules[0].Backends, rooted.Rules[0].Filters.Redirect = nil, &model.Redirect{Location: "/app"}
	if m, _ = Compile([]*model.Route{rooted, canary("c", 1, "a Prefix / c")}).Match(view("GET", "http://a/x")); len(m.Rule.Canaries) != 1 {
		t.Errorf("rule beside a redirect has canaries %v", m.Rule.Canaries)
	}
	for i, rule := range r.Rules() {
		if rule.ID != i {
			t.Errorf("rule %d has ID %d", i, rule.ID)
		}
	}
	if len(r.Rules()) != 8 {
		t.Errorf("%d rules, want 8", len(r.Rules()))
	}
}

// TestExplainTellsLosers has rules that lose for every reason there is.
func TestExplainTellsLosers(t *testing.T) {
	old := route(t, "old", 10, "www.a.x Prefix /x main", "www.a.x Prefix / root", "www.a.x Exact /e e", "www.a.x Prefix /x twice", "- Default d")
	post := route(t, "post", 20, "www.a.x Prefix /x post", "www.a.x Prefix /x beta", "www.a.x Prefix /x q")
	post.Rules[0].Methods = []string{"POST"}
	post.Rules[1].Headers = []model.ValueMatch{{Name: "x-beta", Value: "1"}}
	post.Rules[2].Query = []model.ValueMatch{{Name: "q", Value: "1"}}
	r := Compile([]*model.Route{
		old, post,
		route(t, "new", 1, "www.a.x Prefix /x dup", "- Default later"), route(t, "same-age", 10, "www.a.x Prefix /x tie"),
		route(t, "wild", 30, "*.a.x Exact /x wild", "- Prefix /x everywhere"), route(t, "regex", 1, "www.a.x Regex /x regex", "www.a.x Regex /. short"),
	})
	for target, want := range map[string][]string{
		"http://www.a.x/x": {
			`e far: path "/e" (Exact) does not match`,
			"post near: method does not match",
			"beta near: header X-Beta does not match",
			"q near: query parameter q does not match",
			"main chosen",
			"regex near: of paths of one length a prefix goes first, then a glob, then a regular expression",
			"short near: of paths of one length a prefix goes first, then a glob, then a regular expression",
			"root near: the longer path goes first",
			`wild near: host "*.a.x" is less specific than "www.a.x"`,
			`everywhere near: host "*" is less specific than "www.a.x"`,
			"d near: default backends take only what no rule takes",
			"dup near: Ingress ns/old has the same host and path, and the older object goes first",
			"later near: default backends take only what no rule takes",
			"tie near: Ingress ns/old has the same host and path, and of objects of one age the first by namespace and name goes first",
			"twice near: Ingress ns/old has the same host and path, and within an object the first goes first",
		},
		"http://www.a.x/e": {
			"e chosen",
			"short near: an exact path goes first",
			"root near: an exact path goes first",
		},
		"http://b.x/": {
			"d chosen",
			"later near: the older object goes first",
		},
	} {
		var got []string
		for _, c := range r.Explain(view("GET", target)) {
			line := c.Rule.Spec.Backends[0].Service.Name + map[bool]string{true: " near: ", false: " far: "}[c.Near] + c.Reason
			if c.Chosen {
				line = c.Rule.Spec.Backends[0].Service.Name + " chosen"
			}
			if target == "http://www.a.x/x" || slices.Contains(want, line) {
				got = append(got, line)
			}
		}
		if target == "http://www.a.x/x" {
			slices.Sort(got) // the index does not keep the order of losers
			slices.Sort(want)
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s: got\n%s\nwant\n%s", target, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// random makes routes that collide a lot.
func random(t testing.TB, rng *rand.Rand) []*model.Route {
	hosts := []string{"-", "a.x", "b.x", "*.x", "c"}
	paths := []string{
		"Prefix /", "Prefix /a", "Prefix /a/b", "Prefix /a/b/", "Exact /a", "Exact /a/", "Exact /", "Exact /a/b",
		"Glob /*", "Glob /a/*", "Glob /*/b", "Glob /a*", "Glob /a/*/c/*", "Regex /a(.*)", "Regex /", "Regex /a/b|/b", "Regex /.*c$", "Default",
	}
	var routes []*model.Route
	for i := range 1 + rng.IntN(6) {
		var lines []string
		for j := range 1 + rng.IntN(6) {
			lines = append(lines, fmt.Sprintf("%s %s s%d-%d", hosts[rng.IntN(len(hosts))], paths[rng.IntN(len(paths))], i, j))
		}
		r := route(t, fmt.Sprint("r", i), rng.IntN(3), lines...)
		for j := range r.Rules {
			switch rng.IntN(8) {
			case 0:
				r.Rules[j].Methods = []string{"POST"}
			case 1:
				r.Rules[j].Headers = []model.ValueMatch{{Name: "X", Value: "1"}}
			case 2:
				r.Rules[j].Query = []model.ValueMatch{{Name: "q", Value: "[12]", Regex: true}}
			case 3:
				r.Rules[j].Canary = &model.Canary{Weight: 1}
			}
		}
		routes = append(routes, r)
	}
	return routes
}

// FuzzMatch compares the index with reading all rules one by one.
func FuzzMatch(f *testing.F) {
	for seed := range uint64(300) {
		f.Add(seed, "/a/b/c", "a.x", "GET")
	}
	f.Add(uint64(1), "/", "c", "POST")
	f.Fuzz(func(t *testing.T, seed uint64, path, host, method string) {
		rng := rand.New(rand.NewPCG(seed, 0))
		r := Compile(random(t, rng))
		paths := []string{"/", "/a", "/a/", "/a/b", "/a/b/c", "/a/x/c", "/b", "/b/b", "/ab", "/x"}
		if p, err := request.ParsePath(path); err == nil {
			paths = append(paths, p)
		}
		hosts := []string{"", "a.x", "b.x", "q.x", "x", "c", "z.y.x"}
		if h, _, err := request.ParseHost(host); err == nil {
			hosts = append(hosts, h)
		}
		for _, p := range paths {
			for _, h := range hosts {
				v := &request.View{Method: method, Host: h, Path: p, Header: http.Header{}, Query: "q=1"}
				if rng.IntN(2) == 0 {
					v.Header.(http.Header).Set("X", "1")
				}
				compare(t, r, v)
			}
		}
	})
}

func compare(t *testing.T, r *Router, v *request.View) {
	t.Helper()
	want := naive(r, v)
	if m, _ := r.Match(v); m.Rule != want {
		t.Fatalf("%s %s%s: index found %+v, reading all found %+v", v.Method, v.Host, v.Path, m.Rule, want)
	}
	var explained *Rule
	for _, c := range r.Explain(v) {
		if c.Chosen {
			explained = c.Rule
		}
	}
	if explained != want {
		t.Fatalf("%s %s%s: explained %+v, reading all found %+v", v.Method, v.Host, v.Path, explained, want)
	}
}

// naive reads all rules and keeps the one that goes first by the order in the
// package's comment.
func naive(r *Router, v *request.View) *Rule {
	hostRank := func(pattern string) int {
		_, domain, _ := strings.Cut(v.Host, ".")
		switch {
		case pattern == "":
			return 3
		case pattern == v.Host:
			return 1
		case strings.HasPrefix(pattern, "*.") && domain != "" && pattern[2:] == domain && !strings.HasPrefix(v.Host, "."):
			return 2
		}
		return 0
	}
	// A default backend ranks by the best host among its route's rules, after
	// all other rules.
	rank := func(rule *Rule) int {
		if !rule.Spec.Default {
			return hostRank(rule.Spec.Host)
		}
		best := 3
		for i := range rule.Route.Rules {
			if other := &rule.Route.Rules[i]; !other.Default && hostRank(other.Host) > 0 {
				best = min(best, hostRank(other.Host))
			}
		}
		return best + 3
	}
	var best *Rule
	for _, rule := range r.Rules() {
		switch {
		case rule.Spec.Canary != nil || rank(rule) == 0:
		case !rule.Spec.Default && (!rule.matchesPath(v.Path) || rule.unmet(v) != ""):
		case best == nil || rank(rule) < rank(best) || rank(rule) == rank(best) && byPrecedence(rule, best) < 0:
			best = rule
		}
	}
	return best
}

// TestMatchDoesNotAllocate guards against a lookup that reads all rules: it must not
// allocate, whatever the number of rules.
func TestMatchDoesNotAllocate(t *testing.T) {
	var lines []string
	for i := range 10_000 {
		lines = append(lines, fmt.Sprintf("h%d.x Prefix /p%d s", i, i%7), fmt.Sprintf("shared Prefix /p%d/q s", i))
	}
	r := Compile([]*model.Route{route(t, "many", 0, lines...)})
	v := view("GET", "http://shared/p9999/q/r/s")
	if served(r, v) != "s" || served(r, view("GET", "http://h7777.x/p0/z")) != "s" {
		t.Fatal("not found")
	}
	for _, v := range []*request.View{v, view("GET", "http://h7777.x/p0/z"), view("GET", "http://unknown.example.com/")} {
		if n := testing.AllocsPerRun(100, func() { r.Match(v) }); n > 0 {
			t.Errorf("%v allocations for a lookup of %s", n, v.Host)
		}
	}
}

func manyRoutes(t testing.TB, n int) []*model.Route {
	var routes []*model.Route
	for i := range n {
		host := fmt.Sprintf("host-%d.example.com", i)
		routes = append(routes, route(t, fmt.Sprint("r", i), i, host+" Prefix / a", host+" Prefix /api/v1 b"))
	}
	return routes
}

func BenchmarkCompile(b *testing.B) {
	routes := manyRoutes(b, 10_000)
	for b.Loop() {
		Compile(routes)
	}
}

func BenchmarkMatch(b *testing.B) {
	r := Compile(manyRoutes(b, 10_000))
	v := view("GET", "http://host-7777.example.com/api/v1/users/42")
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := r.Match(v); !ok {
			b.Fatal("no match")
		}
	}
}
