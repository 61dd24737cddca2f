package gateway

import (
	"net/netip"
	"testing"

	"fairway.dev/fairway/internal/model"
)

// TestPathParameters: a path that is another route's for backends that leave
// parameters out is refused; all others have theirs.
func TestPathParameters(t *testing.T) {
	backendServer(t, "10.99.77.1:80", nil)
	w := newWorld(t, nil)
	w.service("a", "", "10.99.77.1:80")
	nobody := filters(model.Filters{AllowFrom: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}})
	w.route(ingress("main", rule("", "/", "a"), rule("", "/own", "a"), rule("", "/admin;v=1", "a")))
	w.route(ingress("admin", rule("", "/admin", "a", nobody)))
	for path, want := range map[string]int{
		"/a;v=1": 200, "/a/b;x/c": 200, "/own;v=1": 200, "/own;a;b/c%3Bd": 200, "/a/admin;x": 200, "/administrator;x": 200, "/admin;v=1": 200,
		"/admin": 403, "/admin/b;x": 403,
		"/admin;x": 400, "/admin;": 400, "/admin;x/b": 400, "/admin%3bx": 400, "/;x/admin": 400, "/%3B/admin": 400, "/.;/admin": 400, "/admin;v=2": 400,
	} {
		if resp, body := w.do("GET", "a", path, nil); resp.StatusCode != want {
			t.Errorf("%s: %d, want %d: %s", path, resp.StatusCode, want, body)
		}
	}
}
