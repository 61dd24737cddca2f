package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// serviceWithUID is [world.service] for a Service whose cookies others cannot guess.
func (w *world) serviceWithUID(name, uid, appProtocol string, endpoints ...string) {
	w.t.Helper()
	w.update(func(tx *state.Tx) {
		gatewaytest.PutService(tx, name, appProtocol, endpoints...)
		tx.PutService(&model.Service{Key: key(name), UID: uid, Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80, AppProtocol: appProtocol}}})
	})
}

// sessionOf returns the session's cookie among those that an answer sets, and
// that line.
func sessionOf(resp *http.Response) (pair, line string) {
	for _, line := range resp.Header.Values("Set-Cookie") {
		if strings.HasPrefix(line, "INGRESSCOOKIE=") {
			pair, _, _ := strings.Cut(line, ";")
			return pair, line
		}
	}
	return "", ""
}

// named answers with its name, sets a cookie of its own, and switches protocols
// where it is asked to.
func named(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Set-Cookie", "own=1")
		if r.Header.Get("Upgrade") != "" {
			w.Header().Set("Upgrade", "echo")
			w.Header().Set("Connection", "Upgrade")
			w.WriteHeader(http.StatusSwitchingProtocols)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, name)
	}
}

var sticky = &model.Session{Cookie: "INGRESSCOOKIE"}

func stickyRule(service string) model.RouteRule {
	return rule("a.test", "/shop", service, filters(model.Filters{Session: sticky}))
}

// TestStickySessions asks by every protocol, in front of both kinds of backend,
// and goes on at another gateway.
func TestStickySessions(t *testing.T) {
	for i, appProtocol := range []string{"", "kubernetes.io/h2c"} {
		t.Run("backend "+appProtocol, func(t *testing.T) {
			var endpoints []string
			for j := range 5 {
				addr := fmt.Sprintf("10.99.7%d.%d:80", i, j+1)
				backendServer(t, addr, named(addr))
				endpoints = append(endpoints, addr)
			}
			at := fmt.Sprintf("10.99.7%d.100:443", i)
			w, pair := http3World(t, at, appProtocol, endpoints[0])
			w.serviceWithUID("a", "uid", appProtocol, endpoints...)
			w.update(func(tx *state.Tx) {
				tx.PutRoute(withTLS(ingress("main", stickyRule("a")), "pair", "a.test"))
			})
			second := newWorld(t, nil)
			second.serviceWithUID("a", "uid", appProtocol, endpoints...)
			second.route(ingress("main", stickyRule("a")))

			h2 := &http.Transport{Protocols: new(http.Protocols)}
			h2.Protocols.SetUnencryptedHTTP2(true)
			t.Cleanup(h2.CloseIdleConnections)
			for _, c := range []struct {
				name   string
				client *http.Client
				url    string
				end    string
			}{
				{"HTTP/1.1", plainClient, w.url("/shop"), "; Path=/shop; HttpOnly"},
				{"HTTP/2", &http.Client{Transport: h2}, w.url("/shop"), "; Path=/shop; HttpOnly"},
				{"HTTP/3", http3Client(t, at, pair), "https://a.test/shop", "; Path=/shop; HttpOnly; Secure"},
			} {
				for _, method := range []string{"GET", "POST"} {
					t.Run(c.name+" "+method, func(t *testing.T) {
						send := func(cookie string) (*http.Response, string) {
							var body io.Reader
							if method == "POST" {
								body = strings.NewReader("body")
							}
							return ask(t, c.client, method, c.url, body, func(r *http.Request) {
								r.Host = "a.test"
								if cookie != "" {
									r.Header.Set("Cookie", "other=x; "+cookie)
								}
							})
						}
						resp, home := send("")
						cookie, line := sessionOf(resp)
						if cookie == "" || line != cookie+c.end || len(resp.Header.Values("Set-Cookie")) != 2 {
							t.Fatalf("cookies of %d: %q", resp.StatusCode, resp.Header.Values("Set-Cookie"))
						}
						for range 10 {
							resp, got := send(cookie)
							if again, _ := sessionOf(resp); got != home || again != "" {
								t.Fatalf("the session went from %s to %s and got %q", home, got, again)
							}
						}
						if resp, body := second.do("GET", "a.test", "/shop", nil, "Cookie", cookie); string(body) != home {
							t.Errorf("at another gateway it went to %s, not %s", body, home)
						} else if again, _ := sessionOf(resp); again != "" {
							t.Errorf("another gateway renewed it: %s", again)
						}
					})
				}
			}
		})
	}
}

// TestStickyUpgrade: the answer that switches protocols brings the cookie, too.
func TestStickyUpgrade(t *testing.T) {
	w := newWorld(t, nil)
	backendServer(t, "10.99.72.1:80", named("a"))
	w.serviceWithUID("a", "uid", "", "10.99.72.1:80")
	w.route(ingress("main", stickyRule("a")))
	_, r := w.raw("GET /shop HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(r), nil)
	if err != nil {
		t.Fatal(err)
	}
	if cookie, _ := sessionOf(resp); resp.StatusCode != 101 || cookie == "" {
		t.Errorf("%d with %q", resp.StatusCode, resp.Header)
	}
}

// TestStickyThroughChanges: a session survives its endpoint, and is taken over
// by one other.
func TestStickyThroughChanges(t *testing.T) {
	for _, persistent := range []bool{false, true} {
		w := newWorld(t, nil)
		var endpoints []string
		servers := map[string]*http.Server{}
		for i := range 4 {
			addr := fmt.Sprintf("10.99.73.%d:80", i+1)
			servers[addr] = backendServer(t, addr, named(addr))
			endpoints = append(endpoints, addr)
		}
		w.serviceWithUID("a", "uid", "", endpoints...)
		session := &model.Session{Cookie: "INGRESSCOOKIE", Persistent: persistent}
		w.route(ingress("main", rule("a.test", "/", "a", filters(model.Filters{Session: session}))))
		cookie := ""
		send := func() string {
			resp, body := w.do("GET", "a.test", "/", nil, "Cookie", cookie)
			if resp.StatusCode != 200 {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
			if renewed, _ := sessionOf(resp); renewed != "" {
				cookie = renewed
			}
			return string(body)
		}
		home := send()
		first := cookie
		// Its server is gone before the endpoint is.
		_ = servers[home].Close()
		next := send()
		if next == home || cookie != first {
			t.Fatalf("from %s to %s with cookie %q", home, next, cookie)
		}
		for range 5 {
			if got := send(); got != next {
				t.Fatalf("it wanders from %s to %s", next, got)
			}
		}
		var rest []string
		for _, addr := range endpoints {
			if addr != home {
				rest = append(rest, addr)
			}
		}
		w.endpoints("a", rest...)
		for range 5 {
			if got := send(); got != next {
				t.Fatalf("it wanders from %s to %s", next, got)
			}
		}
		if renewed := cookie != first; renewed != persistent {
			t.Errorf("persistent %t: renewed %t after the endpoint was gone", persistent, renewed)
		}
		for _, s := range servers {
			_ = s.Close()
		}
	}
}

// TestStickyCanary: a session stays with the canary or the main backend that it
// began with, unless the old behaviour is asked for.
func TestStickyCanary(t *testing.T) {
	w := newWorld(t, nil)
	backendServer(t, "10.99.74.1:80", named("main"))
	backendServer(t, "10.99.74.2:80", named("canary"))
	w.serviceWithUID("a", "uid-a", "", "10.99.74.1:80")
	w.serviceWithUID("b", "uid-b", "", "10.99.74.2:80")
	set := func(legacy bool, weight uint32) {
		session := &model.Session{Cookie: "INGRESSCOOKIE", LegacyCanary: legacy}
		w.route(ingress("main", rule("a.test", "/", "a", filters(model.Filters{Session: session}))))
		w.route(ingress("canary", rule("a.test", "/", "b", func(r *model.RouteRule) {
			r.Canary = &model.Canary{Weight: weight, WeightTotal: 100, Header: "X-Canary"}
		})))
	}
	for _, legacy := range []bool{false, true} {
		set(legacy, 0)
		resp, body := w.do("GET", "a.test", "/", nil)
		onMain, _ := sessionOf(resp)
		resp, canary := w.do("GET", "a.test", "/", nil, "X-Canary", "always")
		onCanary, _ := sessionOf(resp)
		if string(body) != "main" || string(canary) != "canary" || onMain == "" || onCanary == "" {
			t.Fatalf("begun at %s and %s with %q and %q", body, canary, onMain, onCanary)
		}
		_, atZero := w.do("GET", "a.test", "/", nil, "Cookie", onCanary)
		set(legacy, 100)
		_, atAll := w.do("GET", "a.test", "/", nil, "Cookie", onMain)
		want := "canary main"
		if legacy {
			want = "main canary"
		}
		if got := string(atZero) + " " + string(atAll); got != want {
			t.Errorf("legacy %t: sessions of the canary and of main went to %s, want %s", legacy, got, want)
		}
		r, err := NewRehearsal(RehearsalOptions{Snapshot: w.store.Snapshot()})
		if err != nil {
			t.Fatal(err)
		}
		did := r.Try(Attempt{Method: "GET", Target: "/", Authority: "a.test", Header: http.Header{"Cookie": {onMain}}, Client: netip.MustParseAddr("192.0.2.1"), Port: 80})
		if stays := did.Shares[0].Part == 1 && did.Shares[1].Part == 0; stays == legacy {
			t.Errorf("legacy %t: a rehearsal says %+v", legacy, did.Shares)
		}
	}
}

// TestHashBy: requests that are alike in what is hashed go to one endpoint.
func TestHashBy(t *testing.T) {
	w := newWorld(t, nil)
	var endpoints []string
	for i := range 8 {
		addr := fmt.Sprintf("10.99.75.%d:80", i+1)
		backendServer(t, addr, named(addr))
		endpoints = append(endpoints, addr)
	}
	w.serviceWithUID("a", "uid", "", endpoints...)
	part := func(s model.HashSource, name string) model.HashPart { return model.HashPart{Source: s, Name: name} }
	for name, by := range map[string][]model.HashPart{
		"uri":     {part(model.HashURI, "")},
		"client":  {part(model.HashClient, "")},
		"header":  {part(model.HashText, "tenant "), part(model.HashHeader, "X-Tenant")},
		"arg":     {part(model.HashArg, "id")},
		"cookie":  {part(model.HashCookie, "user")},
		"several": {part(model.HashHost, ""), part(model.HashHeader, "X-Tenant")},
	} {
		w.route(ingress(name, rule(name+".test", "/", "a", filters(model.Filters{HashBy: by}))))
	}
	seen := func(host string, request func(i int) (path string, header []string)) int {
		found := map[string]bool{}
		for i := range 40 {
			path, header := request(i)
			resp, body := w.do("GET", host, path, nil, header...)
			if resp.StatusCode != 200 {
				t.Fatalf("%s: %d", host, resp.StatusCode)
			}
			found[string(body)] = true
		}
		return len(found)
	}
	always := func(path string, header ...string) func(int) (string, []string) {
		return func(int) (string, []string) { return path, header }
	}
	for _, tt := range []struct {
		what, host string
		one        bool
		request    func(int) (string, []string)
	}{
		{"the same URI", "uri.test", true, always("/x?y=1")},
		{"different paths", "uri.test", false, func(i int) (string, []string) { return fmt.Sprintf("/%d", i), nil }},
		{"different queries", "uri.test", false, func(i int) (string, []string) { return fmt.Sprintf("/?%d", i), nil }},
		{"one client", "client.test", true, func(i int) (string, []string) { return fmt.Sprintf("/%d", i), nil }},
		{"one tenant", "header.test", true, func(i int) (string, []string) { return fmt.Sprintf("/%d", i), []string{"X-Tenant", "t"} }},
		{"different tenants", "header.test", false, func(i int) (string, []string) { return "/", []string{"X-Tenant", fmt.Sprint(i)} }},
		{"no tenant", "header.test", false, always("/")},
		{"one argument", "arg.test", true, func(i int) (string, []string) { return fmt.Sprintf("/%d?other=%d&id=7", i, i), nil }},
		{"no argument", "arg.test", false, always("/?other")},
		{"one cookie", "cookie.test", true, func(i int) (string, []string) {
			return "/", []string{"Cookie", fmt.Sprintf("other=%d; user=joe", i)}
		}},
		{"different cookies", "cookie.test", false, func(i int) (string, []string) {
			return "/", []string{"Cookie", fmt.Sprintf("user=%d", i)}
		}},
		{"host and different tenants", "several.test", false, func(i int) (string, []string) { return "/", []string{"X-Tenant", fmt.Sprint(i)} }},
		{"host and no tenant", "several.test", true, always("/")},
	} {
		if n := seen(tt.host, tt.request); n == 1 != tt.one {
			t.Errorf("%s: %d endpoints", tt.what, n)
		}
	}
}

// TestEWMA: an endpoint that answers late gets hardly anything.
func TestEWMA(t *testing.T) {
	w := newWorld(t, nil)
	backendServer(t, "10.99.76.1:80", named("fast"))
	backendServer(t, "10.99.76.2:80", func(rw http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Second)
		named("slow")(rw, r)
	})
	w.serviceWithUID("a", "uid", "", "10.99.76.1:80", "10.99.76.2:80")
	w.route(ingress("main", rule("a.test", "/", "a", filters(model.Filters{Balance: model.BalanceEWMA}))))
	slow := 0
	for range 40 {
		if _, body := w.do("GET", "a.test", "/", nil); string(body) == "slow" {
			slow++
		}
	}
	if slow > 10 {
		t.Errorf("the slow endpoint got %d of 40", slow)
	}
}

// TestEWMAOfUploads: how long a client takes to send a body says nothing of the
// endpoint that waits for it.
func TestEWMAOfUploads(t *testing.T) {
	backendServer(t, "10.99.76.3:80", nil)
	for _, appProtocol := range []string{"", "kubernetes.io/h2c"} {
		w := newWorld(t, nil)
		w.service("a", appProtocol, "10.99.76.3:80")
		w.route(ingress("main", rule("a.test", "/", "a", filters(model.Filters{Balance: model.BalanceEWMA}))))
		mean := func() float64 { return w.g.State("services").Services[0].Endpoints[0].LatencySeconds }
		if appProtocol == "" {
			_, r := w.raw("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\n\r\nx")
			if answerOf(t, r, "POST"); mean() == 0 {
				t.Error("a request whose body has come with its head is not measured")
			}
		}
		for _, client := range []*http.Client{plainClient, http2Plain(t)} {
			w.do("GET", "a.test", "/", nil)
			before := mean()
			body, send := io.Pipe()
			go func() {
				_, _ = io.WriteString(send, "x")
				time.Sleep(500 * time.Millisecond)
				_ = send.Close()
			}()
			req, err := http.NewRequest("POST", w.url("/"), body)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = "a.test"
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if after := mean(); before == 0 || after > before { // it fades
				t.Errorf("%s to backend %q: a slow upload made %g s of %g s", resp.Proto, appProtocol, after, before)
			}
		}
	}
}
