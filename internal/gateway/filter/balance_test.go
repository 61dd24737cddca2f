package filter

import (
	"net/netip"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/request"
	"fairway.dev/fairway/internal/gateway/router"
	"fairway.dev/fairway/internal/model"
)

func TestSetCookie(t *testing.T) {
	yes, no := true, false
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.FixedZone("", 3600))
	for _, tt := range []struct {
		session model.Session
		path    model.PathMatch
		scheme  string
		want    string
	}{
		{model.Session{}, model.PathMatch{Value: "/shop"}, "http", "c=v; Path=/shop; HttpOnly"},
		{model.Session{}, model.PathMatch{Value: "/"}, "https", "c=v; Path=/; HttpOnly; Secure"},
		{model.Session{Secure: &no}, model.PathMatch{Value: "/"}, "https", "c=v; Path=/; HttpOnly"},
		{model.Session{Secure: &yes, SameSite: "None"}, model.PathMatch{Value: "/"}, "http", "c=v; Path=/; HttpOnly; Secure; SameSite=None"},
		{model.Session{Path: "/own", Domain: "example.com"}, model.PathMatch{Value: "/shop"}, "http", "c=v; Path=/own; Domain=example.com; HttpOnly"},
		{model.Session{MaxAge: time.Hour, Expires: 2 * time.Hour}, model.PathMatch{Value: "/"}, "http",
			"c=v; Path=/; Expires=Thu, 01 Jan 2026 01:00:00 GMT; Max-Age=3600; HttpOnly"},
		{model.Session{}, model.PathMatch{Type: model.PathExact, Value: "/a/b"}, "http", "c=v; Path=/a/b; HttpOnly"},
		{model.Session{}, model.PathMatch{Type: model.PathGlob, Value: "/a/b*c/*"}, "http", "c=v; Path=/a; HttpOnly"},
		{model.Session{}, model.PathMatch{Type: model.PathGlob, Value: "/*"}, "http", "c=v; Path=/; HttpOnly"},
		{model.Session{}, model.PathMatch{Type: model.PathRegex, Value: "/a(/|$)(.*)"}, "http", "c=v; Path=/; HttpOnly"},
		{model.Session{}, model.PathMatch{Value: "/a;Domain=b"}, "http", "c=v; Path=/; HttpOnly"},
	} {
		tt.session.Cookie = "c"
		rule := &router.Rule{Spec: &model.RouteRule{Path: tt.path}}
		if got := SetCookie(&tt.session, rule, tt.scheme, "v", now); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

func TestBalanceString(t *testing.T) {
	for want, f := range map[string]model.Filters{
		"keeps clients at an endpoint by the cookie c": {Session: &model.Session{Cookie: "c"}},
		"prefers endpoints that answer sooner":         {Balance: model.BalanceEWMA},
		"sends requests with the same $remote_addr-$http_x_tenant$arg_id$cookie_u$scheme to the same endpoint": {HashBy: []model.HashPart{
			{Source: model.HashClient}, {Name: "-"}, {Source: model.HashHeader, Name: "X-Tenant"}, {Source: model.HashArg, Name: "id"},
			{Source: model.HashCookie, Name: "u"}, {Source: model.HashScheme},
		}},
	} {
		if got := newBalance(&f, Environment{}).String(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// TestHashAllocates: hashing a request makes no garbage.
func TestHashAllocates(t *testing.T) {
	b := newBalance(&model.Filters{HashBy: []model.HashPart{
		{Source: model.HashClient}, {Source: model.HashURI}, {Source: model.HashText, Name: "-"}, {Source: model.HashArg, Name: "id"}, {Source: model.HashHeader, Name: "X"},
	}}, Environment{})
	v := &request.View{Client: netip.MustParseAddr("192.0.2.1"), Path: "/a", Query: "x=1&id=2", Header: header{}}
	x := &Exchange{View: v}
	if n := testing.AllocsPerRun(100, func() { b.Apply(x) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	first := x.Hash
	v.Client = netip.MustParseAddr("192.0.2.2")
	if b.Apply(x); x.Hash == first || !x.Hashed {
		t.Error("another client has the same hash")
	}
	v.Client = netip.MustParseAddr("::ffff:192.0.2.1")
	if b.Apply(x); x.Hash != first {
		t.Error("the same client has another hash")
	}
}

// header is one without fields.
type header struct{}

// Values implements request.Header.
func (header) Values(string) []string { return nil }
