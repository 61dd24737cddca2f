package filter

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/gateway/router"
	"fairway.dev/fairway/internal/model"
)

// exchange is a request for host and path at port 80 from 192.0.2.1.
func exchange(host, path string, header ...string) *Exchange {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Add(header[i], header[i+1])
	}
	v := &request.View{Method: "GET", Authority: host, Header: h, Port: 80, Peer: netip.MustParseAddr("192.0.2.1")}
	v.Host, _, _ = request.ParseHost(host)
	v.Path, v.Query, _ = strings.Cut(path, "?")
	Trust(nil).Resolve(v)
	return &Exchange{View: v, Path: v.Path, Query: v.Query, BodyLength: 0, RequestID: "id"}
}

func TestFilters(t *testing.T) {
	env := Environment{HasTLS: func(host string) bool { return host == "tls.test" }, HTTPSPort: 443}
	env8443, envLimit := env, env
	env8443.HTTPSPort, envLimit.MaxBody = 8443, 10
	https := func(x *Exchange) *Exchange { x.View.Scheme = "https"; return x }
	length := func(x *Exchange, n int64) *Exchange { x.BodyLength = n; return x }
	captured := func(x *Exchange, captures ...string) *Exchange { x.Match.Captures = captures; return x }
	from := func(x *Exchange, a string) *Exchange { x.View.Client = netip.MustParseAddr(a); return x }
	ssl := model.Filters{HTTPSRedirect: &model.HTTPSRedirect{}}
	force := model.Filters{HTTPSRedirect: &model.HTTPSRedirect{Status: 301, Force: true}}
	allow := model.Filters{AllowFrom: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}}
	to := func(target string) model.Filters { return model.Filters{Rewrite: &model.Rewrite{Target: target}} }
	tests := []struct {
		name    string
		filters model.Filters
		env     Environment
		x       *Exchange
		want    string // "status location", or "path?query" for the backend
	}{
		{"none", model.Filters{}, env, exchange("a", "/x?q"), "/x?q"},
		{"https redirect", ssl, env, exchange("tls.test", "/x?q=1"), "308 https://tls.test/x?q=1"},
		{"https redirect drops port", ssl, env, exchange("tls.test:8080", "/"), "308 https://tls.test/"},
		{"https redirect at own port", ssl, env8443, exchange("tls.test:8080", "/"), "308 https://tls.test:8443/"},
		{"https redirect behind a Service", ssl, env8443, exchange("tls.test", "/"), "308 https://tls.test/"},
		{"https redirect without certificate", ssl, env, exchange("a", "/x"), "/x"},
		{"https redirect of https", ssl, env, https(exchange("tls.test", "/x")), "/x"},
		{"forced https redirect", force, env, exchange("a", "/x"), "301 https://a/x"},
		{"redirect elsewhere", model.Filters{Redirect: &model.Redirect{Location: "https://b/", Status: 301}}, env, exchange("a", "/x"), "301 https://b/"},
		{"redirect to a path", model.Filters{Redirect: &model.Redirect{Location: "/app"}}, env, exchange("a:8080", "/"), "302 http://a:8080/app"},
		{"https redirect before redirect", model.Filters{HTTPSRedirect: ssl.HTTPSRedirect, Redirect: &model.Redirect{Location: "/app"}}, env, exchange("tls.test", "/"), "308 https://tls.test/"},
		{"allowed", allow, env, exchange("a", "/x"), "/x"},
		{"allowed, mapped", allow, env, from(exchange("a", "/x"), "::ffff:192.0.2.9"), "/x"},
		{"allowed, IPv6", allow, env, from(exchange("a", "/x"), "2001:db8::1"), "/x"},
		{"not allowed", allow, env, from(exchange("a", "/x"), "198.51.100.1"), "403 "},
		{"body fits", model.Filters{MaxBodyBytes: 5}, env, length(exchange("a", "/x"), 5), "/x"},
		{"body too large", model.Filters{MaxBodyBytes: 5}, env, length(exchange("a", "/x"), 6), "413 "},
		{"body too large for the gateway", model.Filters{}, envLimit, length(exchange("a", "/x"), 11), "413 "},
		{"body without limit", model.Filters{MaxBodyBytes: -1}, envLimit, length(exchange("a", "/x"), 11), "/x"},
		{"rewrite", to("/y"), env, exchange("a", "/x?q"), "/y?q"},
		{"rewrite with captures", to("/new/$2"), env, captured(exchange("a", "/api/x"), "/api/x", "/", "x"), "/new/x"},
		{"rewrite with a capture that is not there", to("/new/$3"), env, captured(exchange("a", "/api/x"), "/api/x", "/", "x"), "/new/"},
		{"rewrite with query", to("/new?a=1"), env, exchange("a", "/x?q=2"), "/new?a=1&q=2"},
		{"rewrite that drops the query", to("/new?"), env, exchange("a", "/x?q=2"), "/new"},
		{"rewrite with a capture in the query", to("/new?p=$2"), env, captured(exchange("a", "/api/c++%2B?q"), "/api/c++%2B", "/", "c++%2B"), "/new?p=c%2B%2B%2B&q"},
		{"rewrite with a query that no URI has", to("/new?a=b c#d\u00e9"), env, exchange("a", "/x"), "/new?a=b%20c%23d%C3%A9"},
		{"rewrite to elsewhere", to("https://b/$1"), env, captured(exchange("a", "/x"), "/x", "x"), "302 https://b/x"},
		{"rewrite that climbs", to("/pub/$1"), env, captured(exchange("a", "/api../x"), "/api../x", "../x"), "400 "},
		{"rewrite that climbs at the start", to("/$1"), env, captured(exchange("a", "/api../admin"), "/api../admin", "../admin"), "400 "},
		{"rewrite merges slashes", to("/$1"), env, captured(exchange("a", "/api/x"), "/api/x", "/x"), "/x"},
		{"rewrite of a prefix", model.Filters{Rewrite: &model.Rewrite{Target: "/new/", Prefix: true}}, env, prefixed(exchange("a", "/old/x"), 4), "/new/x"},
		{"rewrite of a prefix to nothing", model.Filters{Rewrite: &model.Rewrite{Target: "/", Prefix: true}}, env, prefixed(exchange("a", "/old"), 4), "/"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got string
			if a := Compile(&tt.filters, tt.env).Apply(tt.x); a != nil {
				got = fmt.Sprintf("%d %s", a.Status, a.Location)
			} else if got = tt.x.Path; tt.x.Query != "" {
				got += "?" + tt.x.Query
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func prefixed(x *Exchange, n int) *Exchange { x.Match.Prefix = n; return x }

func TestLimitsReachTheExchange(t *testing.T) {
	x := exchange("a", "/")
	Compile(&model.Filters{
		RequestTimeout: 1 * time.Second, ConnectTimeout: 2 * time.Second, ReadTimeout: 3 * time.Second, SendTimeout: 4 * time.Second, MaxBodyBytes: 5,
	}, Environment{}).Apply(x)
	if x.Total != time.Second || x.Connect != 2*time.Second || x.Read != 3*time.Second || x.Send != 4*time.Second || x.MaxBody != 5 {
		t.Errorf("got %+v", x)
	}
}

func canaries(specs ...model.Canary) *Canaries {
	rule := &router.Rule{}
	for i := range specs {
		rule.Canaries = append(rule.Canaries, &router.Rule{ID: i + 1, Spec: &model.RouteRule{Canary: &specs[i]}})
	}
	return NewCanaries(rule)
}

func TestCanaryChoice(t *testing.T) {
	byHeader := canaries(model.Canary{Header: "x-canary", Cookie: "canary", Weight: 50})
	byValue := canaries(model.Canary{Header: "X-Region", HeaderValue: "eu", HeaderPattern: "us", Weight: 50})
	byPattern := canaries(model.Canary{Header: "X-Region", HeaderPattern: "^eu-", Cookie: "canary"})
	badPattern := canaries(model.Canary{Header: "X-Region", HeaderPattern: "(", Weight: 0})
	two := canaries(model.Canary{Header: "X-A", Weight: 20}, model.Canary{Header: "X-B", Weight: 1, WeightTotal: 2})
	tests := []struct {
		name   string
		c      *Canaries
		header []string
		at     float64
		want   int // ID of the canary, 0 for the rule itself
	}{
		{"no canary", nil, nil, 0, 0},
		{"header always", byHeader, []string{"X-Canary", "always"}, 0.99, 1},
		{"header never", byHeader, []string{"X-Canary", "never"}, 0, 0},
		{"header never before cookie", byHeader, []string{"X-Canary", "never", "Cookie", "canary=always"}, 0, 0},
		{"other header value falls through to cookie", byHeader, []string{"X-Canary", "x", "Cookie", "canary=always"}, 0.99, 1},
		{"cookie always", byHeader, []string{"Cookie", "canary=always"}, 0.99, 1},
		{"cookie never", byHeader, []string{"Cookie", "canary=never"}, 0, 0},
		{"other cookie value falls through to weight", byHeader, []string{"Cookie", "canary=1"}, 0.49, 1},
		{"weight", byHeader, nil, 0.49, 1},
		{"weight, the others", byHeader, nil, 0.5, 0},
		{"value", byValue, []string{"X-Region", "eu"}, 0.99, 1},
		{"value goes before pattern", byValue, []string{"X-Region", "us"}, 0.99, 0},
		{"with a value, always is just another one", byValue, []string{"X-Region", "always"}, 0.99, 0},
		{"pattern", byPattern, []string{"X-Region", "eu-1"}, 0.99, 1},
		{"other than the pattern", byPattern, []string{"X-Region", "us-1"}, 0, 0},
		{"other than the pattern, cookie", byPattern, []string{"X-Region", "us-1", "Cookie", "canary=always"}, 0.5, 1},
		{"bad pattern", badPattern, []string{"X-Region", "("}, 0, 0},
		{"first of two by weight", two, nil, 0.1, 1},
		{"second of two by weight", two, nil, 0.3, 2},
		{"none of two", two, nil, 0.7, 0},
		{"second of two by header", two, []string{"X-B", "always"}, 0.1, 2},
		{"first of two excluded", two, []string{"X-A", "never"}, 0.1, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := 0
			if r := tt.c.choose(exchange("a", "/", tt.header...).View, tt.at); r != nil {
				got = r.ID
			}
			if got != tt.want {
				t.Errorf("chose %d, want %d", got, tt.want)
			}
		})
	}
}

// TestCanaryShares has what is told be what is chosen, over all numbers that
// decide.
func TestCanaryShares(t *testing.T) {
	header := model.Canary{Header: "X-A", Cookie: "a", Weight: 20}
	byWeight := model.Canary{Weight: 90}
	for _, test := range []struct {
		specs  []model.Canary
		header []string
		want   string
	}{
		{nil, nil, "0: 1.00"},
		{[]model.Canary{header}, nil, "0: 0.80 what canaries leave, 1: 0.20 weight 20 of 100"},
		{[]model.Canary{header}, []string{"X-A", "always"}, "0: 0.00 what canaries leave, 1: 1.00 header X-A"},
		{[]model.Canary{header}, []string{"X-A", "never"}, "0: 1.00 what canaries leave, 1: 0.00 header X-A"},
		{[]model.Canary{header}, []string{"Cookie", "a=never"}, "0: 1.00 what canaries leave, 1: 0.00 cookie a"},
		{[]model.Canary{byWeight, header}, nil, "0: 0.00 what canaries leave, 1: 0.90 weight 90 of 100, 2: 0.10 weight 20 of 100"},
		{[]model.Canary{byWeight, header, byWeight}, []string{"X-A", "always"},
			"0: 0.00 what canaries leave, 1: 0.00 weight 90 of 100, 2: 1.00 header X-A, 3: 0.00 another canary's header or cookie decides"},
		{slices.Repeat([]model.Canary{{Weight: 10}}, 10), nil, ""}, // whose sum is not quite 1
		{slices.Repeat([]model.Canary{{Weight: 1, WeightTotal: 3}}, 3), nil,
			"0: 0.00 what canaries leave, 1: 0.33 weight 1 of 3, 2: 0.33 weight 1 of 3, 3: 0.33 weight 1 of 3"},
		{[]model.Canary{{Weight: 1, WeightTotal: 4}}, nil, "0: 0.75 what canaries leave, 1: 0.25 weight 1 of 4"},
	} {
		c := canaries(test.specs...)
		v := exchange("a", "/", test.header...).View
		main := &router.Rule{}
		const numbers = 1000
		chosen := make([]int, len(test.specs)+1)
		for i := range numbers {
			if r := c.choose(v, (float64(i)+0.5)/numbers); r != nil {
				chosen[r.ID]++
			} else {
				chosen[0]++
			}
		}
		var got []string
		for i, s := range c.Shares(main, v) {
			got = append(got, strings.TrimSpace(fmt.Sprintf("%d: %.2f %s", s.Rule.ID, s.Part, s.Why)))
			if n := float64(chosen[i]) / numbers; s.Rule.ID != i || n-s.Part > 0.002 || s.Part-n > 0.002 {
				t.Errorf("%v: share %d is %v of rule %d, chosen for %v", test.specs, i, s.Part, s.Rule.ID, n)
			}
		}
		if test.want == "" {
			if rest := c.Shares(main, v)[0].Part; rest != 0 {
				t.Errorf("canaries that take all leave %v", rest)
			}
			continue
		}
		if s := strings.Join(got, ", "); s != test.want {
			t.Errorf("got %s\nwant %s", s, test.want)
		}
	}
}

// TestFiltersTellWhatTheyDo asks each filter for its words.
func TestFiltersTellWhatTheyDo(t *testing.T) {
	chain := Compile(&model.Filters{
		HTTPSRedirect: &model.HTTPSRedirect{}, Redirect: &model.Redirect{Location: "/shop", Status: 301}, Rewrite: &model.Rewrite{Target: "/$1"},
		RequestTimeout: time.Minute, ReadTimeout: time.Second, AllowFrom: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, MaxBodyBytes: 10,
	}, Environment{})
	var got []string
	for _, f := range chain {
		got = append(got, f.String())
	}
	want := []string{
		"refuses request bodies of more than 10 bytes", "redirects plain http to https with 308 where the host has TLS", "redirects every request to /shop with 301",
		"lets in clients from 192.0.2.0/24 only", "limits the whole exchange to 1m0s, each read to 1s", "replaces the path by /$1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want-, got+:\n%s", diff)
	}
}

func TestCanaryDistribution(t *testing.T) {
	c := canaries(model.Canary{Weight: 20}, model.Canary{Weight: 30, WeightTotal: 1000})
	rng := rand.New(rand.NewPCG(1, 2))
	counts := map[int]int{}
	for range 100_000 {
		id := 0
		if r := c.choose(exchange("a", "/").View, rng.Float64()); r != nil {
			id = r.ID
		}
		counts[id]++
	}
	for id, want := range map[int]int{0: 77_000, 1: 20_000, 2: 3_000} {
		if d := counts[id] - want; d < -600 || d > 600 {
			t.Errorf("choice %d was made %d times of 100000, want about %d", id, counts[id], want)
		}
	}
}

func headers(x *Exchange) map[string]string {
	m := map[string]string{}
	for _, c := range x.Header {
		m[c.Name] = c.Value
	}
	return m
}

func TestForward(t *testing.T) {
	spoof := []string{"X-Forwarded-For", "10.9.9.9", "X-Forwarded-Host", "evil", "X-Forwarded-Proto", "https", "X-Forwarded-Port", "1", "X-Real-Ip", "10.9.9.9", "Forwarded", "for=10.9.9.9"}
	x := exchange("a:8080", "/", spoof...)
	Forward(x)
	want := map[string]string{
		"X-Request-Id": "id", "X-Real-Ip": "192.0.2.1", "X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "a:8080", "X-Forwarded-Port": "80",
		"X-Forwarded-Proto": "http", "X-Forwarded-Scheme": "http", "X-Scheme": "http", "X-Original-Forwarded-For": "10.9.9.9",
		"Forwarded": "", "X-Forwarded-Prefix": "", "X-Forwarded-Server": "", "Proxy": "",
	}
	if d := cmp.Diff(want, headers(x)); d != "" {
		t.Errorf("from a stranger (-want +got):\n%s", d)
	}
	x = exchange("a", "/", "X-Forwarded-For", "198.51.100.7, 203.0.113.5", "X-Forwarded-For", "192.0.2.99", "X-Forwarded-Host", "front", "X-Forwarded-Proto", "https", "X-Forwarded-Port", "443")
	Trust{netip.MustParsePrefix("192.0.2.0/24")}.Resolve(x.View)
	Forward(x)
	want = map[string]string{
		"X-Request-Id": "id", "X-Real-Ip": "203.0.113.5", "X-Forwarded-For": "198.51.100.7, 203.0.113.5, 192.0.2.99, 192.0.2.1", "X-Forwarded-Host": "front",
		"X-Forwarded-Port": "443", "X-Forwarded-Proto": "https", "X-Forwarded-Scheme": "https", "X-Scheme": "https",
		"X-Original-Forwarded-For": "198.51.100.7, 203.0.113.5, 192.0.2.99", "Proxy": "",
	}
	if d := cmp.Diff(want, headers(x)); d != "" {
		t.Errorf("from a trusted proxy (-want +got):\n%s", d)
	}
	x = exchange("a", "/", "X-Forwarded-For", "")
	Trust{netip.MustParsePrefix("192.0.2.0/24")}.Resolve(x.View)
	Forward(x)
	if got := headers(x)["X-Forwarded-For"]; got != "192.0.2.1" {
		t.Errorf("from a trusted proxy that names nobody: %q", got)
	}
}

func TestTrustStopsAtGarbage(t *testing.T) {
	trust := Trust{netip.MustParsePrefix("192.0.2.0/24")}
	for list, want := range map[string]string{
		"":                            "192.0.2.1",
		"nonsense, 192.0.2.5":         "192.0.2.5",
		"198.51.100.7:1234":           "198.51.100.7",
		"[2001:db8::1]:5, 192.0.2.3":  "2001:db8::1",
		"192.0.2.8":                   "192.0.2.8",
		"10.0.0.1, nonsense":          "192.0.2.1",
		"10.0.0.1,203.0.113.1":        "203.0.113.1",
		"::ffff:10.0.0.1, 192.0.2.11": "10.0.0.1",
		`2001:db8::2%"x`:              "2001:db8::2",
	} {
		x := exchange("a", "/", "X-Forwarded-For", list)
		trust.Resolve(x.View)
		if x.View.Client.String() != want {
			t.Errorf("X-Forwarded-For %q gives client %s, want %s", list, x.View.Client, want)
		}
	}
}

// TestLinkLocal: an address of a link is what it is, whatever this machine calls
// the link, of which nobody else knows.
func TestLinkLocal(t *testing.T) {
	link := netip.MustParsePrefix("fe80::/10")
	trust := Trust{link}
	x := exchange("a", "/", "X-Forwarded-For", "198.51.100.7")
	x.View.Peer = netip.MustParseAddr("fe80::1%eth0")
	if trust.Resolve(x.View); !trust.Has(netip.MustParseAddr("fe80::1%eth0")) || x.View.Client.String() != "198.51.100.7" {
		t.Errorf("behind a trusted proxy on the link the client is %s", x.View.Client)
	}
	x = exchange("a", "/")
	x.View.Peer = netip.MustParseAddr("fe80::1%eth0")
	Trust{}.Resolve(x.View)
	Forward(x)
	if got := headers(x)["X-Real-Ip"]; got != "fe80::1" {
		t.Errorf("the backend is told of %s", got)
	}
	if a := allowFrom([]netip.Prefix{link}).Apply(x); a != nil {
		t.Errorf("a client that is let in gets %+v", a)
	}
}

func TestRequestID(t *testing.T) {
	if got, ok := RequestID(exchange("a", "/", "X-Request-Id", "abc-1").View); got != "abc-1" || !ok {
		t.Errorf("got %q", got)
	}
	if _, ok := RequestID(exchange("a", "/").View); ok {
		t.Error("got one from nowhere")
	}
	for _, bad := range []string{"", "a b", "a\nb", strings.Repeat("x", 129), "é"} {
		if got, ok := RequestID(exchange("a", "/", "X-Request-Id", bad).View); ok {
			t.Errorf("took %q over", got)
		}
	}
	var a, b [32]byte
	NewRequestID(&a)
	NewRequestID(&b)
	if _, err := hex.DecodeString(string(a[:])); err != nil || a == b {
		t.Errorf("made %q and %q", a, b)
	}
}

func TestSpoofs(t *testing.T) {
	for name, want := range map[string]bool{
		"X_forwarded_for": true, "X-Real_ip": true, "X_Request-Id": true, "X-Real-Ip": false, "My_Header": false, "X_Scheme": true,
		"Content_Length": true, "TRANSFER_encoding": true, "Content_Lengths": false, "Content_Type": false,
	} {
		if Spoofs(name) != want {
			t.Errorf("Spoofs(%q) = %v", name, !want)
		}
	}
}
