package explain

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

// site is a cluster with Ingresses of every kind; change may alter it.
func site(t *testing.T, change ...func(tx *state.Tx)) *state.Snapshot {
	t.Helper()
	rule := gatewaytest.Rule
	filters := func(f model.Filters) func(*model.RouteRule) {
		return func(r *model.RouteRule) { r.Filters = f }
	}
	canary := func(c model.Canary) func(*model.RouteRule) {
		return func(r *model.RouteRule) { r.Canary = &c }
	}
	store := state.New()
	store.Update(func(tx *state.Tx) {
		gatewaytest.PutService(tx, "web", "", "10.99.0.11:8080", "10.99.0.12:8080")
		gatewaytest.PutService(tx, "api", "kubernetes.io/h2c", "10.99.0.13:8080")
		gatewaytest.PutService(tx, "beta", "", "10.99.0.14:8080")
		gatewaytest.PutService(tx, "empty", "")
		tx.PutSlice(&model.EndpointSlice{Key: gatewaytest.Key("web-down"), Service: gatewaytest.Key("web"), Endpoints: []model.Endpoint{{
			Addr: netip.MustParseAddr("10.99.0.15"), Node: "node-2", Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}},
			About: &model.EndpointAbout{Zone: "b", Pod: gatewaytest.Key("web-3")},
		}}})
		tx.PutService(&model.Service{Key: gatewaytest.Key("outside"), Type: model.ExternalName, ExternalName: "www.example.net"})
		tx.PutCertificate(gatewaytest.Secret(t, "shop-tls", "shop.test"))
		tx.PutRoute(gatewaytest.WithTLS(gatewaytest.Ingress("shop",
			rule("shop.test", "/", "web", filters(model.Filters{HTTPSRedirect: &model.HTTPSRedirect{Status: 308}, ReadTimeout: 5 * time.Second})),
			rule("shop.test", "/api", "api", filters(model.Filters{Rewrite: &model.Rewrite{Target: "/v1", Prefix: true}, AllowFrom: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})),
			rule("shop.test", "/empty", "empty"), rule("shop.test", "/gone", "nope"),
			rule("shop.test", "/h2", "api", filters(model.Filters{Rewrite: &model.Rewrite{Target: "/"}, MaxBodyBytes: 100})),
		), "shop-tls", "shop.test"))
		tx.PutRoute(gatewaytest.Ingress("any", rule("", "/", "web"), rule("*.test", "/wild", "web"), rule("out.test", "/", "outside"),
			rule("none.test", "/", "web", func(r *model.RouteRule) { r.Backends = nil })))
		later := gatewaytest.Ingress("later", rule("shop.test", "/api", "beta"))
		later.Created = gatewaytest.Created.Add(time.Hour)
		tx.PutRoute(later)
		tx.PutRoute(gatewaytest.Ingress("canary", rule("shop.test", "/", "beta", canary(model.Canary{Header: "X-Canary", Weight: 20}))))
		tx.PutRoute(gatewaytest.Ingress("canary-out", rule("out.test", "/", "empty", canary(model.Canary{Weight: 10}))))
		tx.PutProblems(model.Ref{Kind: "Ingress", Key: gatewaytest.Key("shop")}, model.Problems{{
			Object: model.Ref{Kind: "Ingress", Key: gatewaytest.Key("shop")}, Field: "metadata.annotations[x]", Message: "is not known; remove it",
		}})
		tx.PutProblems(model.Ref{Kind: "Ingress", Key: gatewaytest.Key("lost")}, model.Problems{{
			Object: model.Ref{Kind: "Ingress", Key: gatewaytest.Key("lost")}, Field: "spec.ingressClassName", Message: "nobody serves this Ingress",
		}})
		for _, c := range change {
			c(tx)
		}
		tx.SetSynced()
	})
	return store.Snapshot()
}

func told(t *testing.T, o RequestOptions) *RequestReport {
	t.Helper()
	r, err := Request(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRequestText(t *testing.T) {
	o := RequestOptions{Snapshot: site(t), URL: "https://Shop.test:443/a/../api/x?q=1#top", Header: []string{"X-Forwarded-For: 10.1.1.1", "Forwarded: for=a", "X-Request-ID: 7"}}
	want := `GET https://Shop.test:443/a/../api/x?q=1#top
  goes to Service default/api, port 80
  from 198.51.100.1, read as host "shop.test" and path "/api/x" with query "q=1"
  only some clients are let in, and it is told for one of them; --from names another
  problem: Ingress default/shop: metadata.annotations[x]: is not known; remove it

route
            OBJECT                 FIELD                          HOST       PATH           WHY
  takes it  Ingress default/shop   spec.rules[0].http.paths[0]    shop.test  /api (Prefix)  it goes before the others for this host and path
  does not  Ingress default/shop   spec.rules[0].http.paths[0]    shop.test  / (Prefix)     the longer path goes first
  does not  Ingress default/any    spec.rules[0].http.paths[0]    *          / (Prefix)     host "*" is less specific than "shop.test"
  does not  Ingress default/later  spec.rules[0].http.paths[0]    shop.test  /api (Prefix)  Ingress default/shop has the same host and path, and the older object goes first

tls
  the certificate for shop.test is that of Secret default/shop-tls, made out for shop.test, valid until TIME

filters, in order
  lets in clients from 198.51.100.0/24 only
  replaces the matched prefix of the path by /v1

the backend gets
  GET /v1/x?q=1
  Host: Shop.test:443
  X-Request-Id: 7
  X-Real-Ip: 198.51.100.1
  X-Forwarded-Proto: https
  X-Forwarded-Scheme: https
  X-Scheme: https
  X-Forwarded-For: 198.51.100.1
  X-Original-Forwarded-For: 10.1.1.1
  X-Forwarded-Port: 443
  X-Forwarded-Host: Shop.test:443
  and the client's other headers without Forwarded

backend: Service default/api, port 80, 100 %, by HTTP/2 without TLS
  ENDPOINT         POD  NODE  ZONE      WHY
  10.99.0.13:8080                   in  ready
`
	r := told(t, o)
	got := r.Text()
	if r.TLS != nil {
		got = strings.ReplaceAll(got, r.TLS.NotAfter, "TIME")
	}
	if diff := cmp.Diff(squeeze(want), squeeze(got)); diff != "" {
		t.Errorf("want-, got+:\n%s\n%s", diff, got)
	}
	if !r.Reaches {
		t.Error("it does not reach a backend")
	}
}

// TestRequests has a request for each thing that can become of one.
func TestRequests(t *testing.T) {
	snap := site(t)
	from := netip.MustParseAddr
	for _, test := range []struct {
		o       RequestOptions
		reaches bool
		has     []string
		hasNo   []string
	}{
		{RequestOptions{URL: "http://shop.test/x"}, false, []string{
			"the gateway answers 308 Permanent Redirect to https://shop.test/x", "where the host has TLS: ANSWERS", "each read to 5s (not reached)",
			"plain http is redirected to https: spec.tls of Ingress default/shop covers the host", "that of Secret default/shop-tls",
			"what comes then: fairway explain https://shop.test/x",
		}, []string{"the backend gets"}},
		{RequestOptions{URL: "http://shop.test:8080/x", HTTPSPort: 8443}, false, []string{"to https://shop.test:8443/x"}, nil},
		{RequestOptions{URL: "https://shop.test/x"}, true, []string{
			"80 % goes to Service default/web, port 80; 20 % goes to Service default/beta, port 80",
			"backend: Service default/web, port 80, 80 % (what canaries leave), by HTTP/1.1", "canary of Ingress default/canary: Service default/beta, port 80, 20 % (weight 20 of 100)",
			"10.99.0.11:8080 in ready", "10.99.0.15:8080 web-3 node-2 b out not ready", "X-Request-Id: (a new one for each request)",
		}, []string{"plain http is", "ANSWERS"}},
		{RequestOptions{URL: "https://shop.test/x", Header: []string{"x-canary: always"}}, true,
			[]string{"  goes to Service default/beta", "port 80, 100 % (header X-Canary)", "Service default/web, port 80, 0 %"}, nil},
		{RequestOptions{URL: "http://shop.test/api", Client: from("203.0.113.1")}, false,
			[]string{"403 Forbidden: clients from this address are not allowed here", "plain http is served: spec.tls of Ingress default/shop does not name the host, or"}, nil},
		{RequestOptions{URL: "http://shop.test/empty"}, false, []string{"gets 503 Service Unavailable: service default/empty: no endpoint is ready"}, nil},
		{RequestOptions{URL: "http://shop.test/gone"}, false, []string{"gets 503 Service Unavailable: service default/nope: "}, nil},
		{RequestOptions{URL: "http://none.test/"}, false, []string{"gets 503 Service Unavailable: the route has no backend"}, nil},
		{RequestOptions{URL: "http://out.test/"}, false, []string{
			"90 % goes to Service default/outside, port 80; 10 % gets 503", "www.example.net:80 in the Service stands for this name",
		}, nil},
		{RequestOptions{URL: "http://b.test/wild/x"}, true, []string{
			"takes it Ingress default/any spec.rules[0].http.paths[0] *.test /wild (Prefix) it goes before", `host "*" is less specific than "*.test"`,
			"plain http is served: Ingress default/any has no spec.tls",
		}, nil},
		{RequestOptions{URL: "https://b.test/"}, true, []string{"no other rule is for this host and path", "the certificate for b.test is the gateway's own", "clients will refuse it: it is the gateway's own"}, []string{"does not"}},
		{RequestOptions{URL: "http://192.0.2.9/"}, true, []string{`host "192.0.2.9"`}, []string{"certificate"}},
		{RequestOptions{URL: "https://192.0.2.9/"}, true, []string{"the certificate for no server name"}, nil},
		{RequestOptions{URL: "http://shop.test/a%2f..%2fb"}, false, []string{"400 Bad Request: path could be read in two ways"}, []string{"route"}},
		{RequestOptions{URL: "http://shop.test/a b"}, false, []string{"400 Bad Request: the request target has a character that must be escaped"}, nil},
		{RequestOptions{URL: "http://sh%op.test/"}, false, []string{"400 Bad Request: host is not a valid name"}, nil},
		{RequestOptions{URL: "http://b.test/", Method: "CONNECT"}, false, []string{"405 Method Not Allowed"}, nil},
		{RequestOptions{URL: "http://192.0.2.9/", Header: []string{"Host: shop.test"}}, false, []string{"308 Permanent Redirect to https://shop.test/"}, nil},
		{RequestOptions{URL: "http://shop.test/x", Problems: map[model.Ref]model.Problems{
			{Kind: "Ingress", Key: gatewaytest.Key("later")}: {{Object: model.Ref{Kind: "Ingress", Key: gatewaytest.Key("later")}, Message: "not of interest"}},
			{Kind: "Ingress", Key: gatewaytest.Key("shop")}:  {{Object: model.Ref{Kind: "Ingress", Key: gatewaytest.Key("shop")}, Message: "of interest"}},
		}}, false, []string{"problem: Ingress default/shop: of interest"}, []string{"not of interest"}},
	} {
		t.Run(strings.Join(append([]string{test.o.Method, test.o.URL}, test.o.Header...), " "), func(t *testing.T) {
			test.o.Snapshot = snap
			r := told(t, test.o)
			text := squeeze(r.Text())
			if r.Reaches != test.reaches {
				t.Errorf("reaches: %t\n%s", r.Reaches, text)
			}
			for _, s := range test.has {
				if !strings.Contains(text, strings.Join(strings.Fields(s), " ")) {
					t.Errorf("no %q in:\n%s", s, text)
				}
			}
			for _, s := range test.hasNo {
				if strings.Contains(text, s) {
					t.Errorf("%q in:\n%s", s, text)
				}
			}
		})
	}
}

// TestRequestPassedThrough tells of a host whose TLS is its backend's.
func TestRequestPassedThrough(t *testing.T) {
	store := state.New()
	store.Update(func(tx *state.Tx) {
		gatewaytest.PutService(tx, "vault", "", "10.99.0.31:8200")
		r := gatewaytest.Ingress("vault", gatewaytest.Rule("vault.test", "/", "vault", func(r *model.RouteRule) {
			r.Backends, r.Filters = nil, model.Filters{PassedThrough: true, HTTPSRedirect: &model.HTTPSRedirect{Force: true}}
		}))
		tx.PutRoute(r)
		tx.PutStreams(r.Ref, []model.StreamRoute{{
			Ref: r.Ref, Field: r.Rules[0].Field, Protocol: model.TCP, Hosts: []string{"vault.test"}, Backend: model.Backend{Service: gatewaytest.Key("vault"), Port: model.PortRef{Number: 80}},
		}})
		tx.SetSynced()
	})
	for _, test := range []struct {
		url     string
		reaches bool
		has     []string
		hasNo   []string
	}{
		{"https://Vault.test/any", true, []string{
			"goes to Service default/vault, port 80", "the gateway sees the name that the client asks for", "TLS for the host passes through (annotation ssl-passthrough)",
			"port 80, 100 %, by TLS, as it comes", "10.99.0.31:8200 in ready",
		}, []string{"certificate for", "421", "the backend gets"}},
		{"http://vault.test/any", false, []string{"308 Permanent Redirect to https://vault.test/any", "plain http is redirected to https: TLS for the host passes through"}, []string{"force-ssl-redirect"}},
	} {
		r := told(t, RequestOptions{Snapshot: store.Snapshot(), URL: test.url})
		text := squeeze(r.Text())
		if r.Reaches != test.reaches {
			t.Errorf("%s reaches: %t\n%s", test.url, r.Reaches, text)
		}
		for _, s := range test.has {
			if !strings.Contains(text, s) {
				t.Errorf("no %q in:\n%s", s, text)
			}
		}
		for _, s := range test.hasNo {
			if strings.Contains(text, s) {
				t.Errorf("%q in:\n%s", s, text)
			}
		}
	}
}

// TestRequestWithoutRoute tells what there is instead.
func TestRequestWithoutRoute(t *testing.T) {
	store := state.New()
	store.Update(func(tx *state.Tx) {
		gatewaytest.PutService(tx, "web", "", "10.99.0.11:8080")
		for i := range 30 {
			tx.PutRoute(gatewaytest.Ingress(fmt.Sprintf("i%02d", i), gatewaytest.Rule("a.test", fmt.Sprintf("/p%02d", i), "web"), gatewaytest.Rule(fmt.Sprintf("h%02d.test", i), "/", "web")))
		}
		tx.PutProblems(model.Ref{Kind: "Ingress", Key: gatewaytest.Key("lost")}, model.Problems{{
			Object: model.Ref{Kind: "Ingress", Key: gatewaytest.Key("lost")}, Field: "spec.ingressClassName", Message: "nobody serves this Ingress",
		}})
		tx.SetSynced()
	})
	for url, has := range map[string][]string{
		"http://a.test/x": {`404 Not Found: no route for this host and path`, `does not Ingress default/i00 spec.rules[0].http.paths[0] a.test /p00 (Prefix) path "/p00" (Prefix) does not match`,
			"and 10 more that do not", "problem: Ingress default/lost: spec.ingressClassName: nobody serves this Ingress"},
		"http://b.test/": {`no Ingress that Fairway serves has a rule for host "b.test"; the hosts that there are: a.test, h00.test,`, "h18.test and 11 more"},
	} {
		r := told(t, RequestOptions{Snapshot: store.Snapshot(), URL: url})
		text := squeeze(r.Text())
		for _, s := range has {
			if !strings.Contains(text, s) {
				t.Errorf("no %q in:\n%s", s, text)
			}
		}
		if r.Reaches {
			t.Errorf("%s reaches a backend", url)
		}
	}
}

func TestRequestJSON(t *testing.T) {
	data, err := json.Marshal(told(t, RequestOptions{Snapshot: site(t), URL: "http://shop.test/empty?q"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		`"reaches":false`, `"host":"shop.test","path":"/empty","query":"q"`, `"route":{"object":"Ingress default/shop"`, `"notes":[]`,
		`"sent":{"method":"GET","target":"/empty?q","host":"shop.test","set":["X-Request-Id`,
		`"service":"default/empty","port":"80","protocol":"HTTP/1.1","endpoints":[],"answer":{"status":503,"reason":"service default/empty: `,
	} {
		if !strings.Contains(string(data), s) {
			t.Errorf("no %s in %s", s, data)
		}
	}
}

// TestRequestOpensNoPorts has a route at a port that an explanation must leave
// to the gateway that may run here.
func TestRequestOpensNoPorts(t *testing.T) {
	ref := model.Ref{Kind: "Ingress", Key: gatewaytest.Key("tcp")}
	told(t, RequestOptions{URL: "http://shop.test/", Snapshot: site(t, func(tx *state.Tx) {
		tx.PutStreams(ref, []model.StreamRoute{{Ref: ref, Protocol: model.TCP, Port: 7000, Backend: model.Backend{Service: gatewaytest.Key("web"), Port: model.PortRef{Number: 80}}}})
	})})
	l, err := net.Listen("tcp", ":7000")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestRequestToAPortWithoutHTTP has a route that asks for the gateway's own port
// for HTTP as well, which it does not get.
func TestRequestToAPortWithoutHTTP(t *testing.T) {
	snap := site(t, func(tx *state.Tx) {
		for _, port := range []uint16{80, 3306} {
			ref := model.Ref{Kind: "Ingress", Key: gatewaytest.Key(fmt.Sprintf("tcp-%d", port))}
			tx.PutStreams(ref, []model.StreamRoute{{Ref: ref, Field: "spec.rules[0]", Protocol: model.TCP, Port: port, Backend: model.Backend{Service: gatewaytest.Key("web"), Port: model.PortRef{Number: 80}}}})
		}
	})
	_, err := Request(RequestOptions{URL: "http://shop.test:3306/", Snapshot: snap})
	want := "http://shop.test:3306/: the gateway reads no HTTP at port 3306: Ingress " + gatewaytest.Key("tcp-3306").String() + " (spec.rules[0]) has TCP connections to it go on as they are, to Service " + gatewaytest.Key("web").String()
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error %v, want %s", err, want)
	}
	for url, o := range map[string]RequestOptions{"http://shop.test/": {}, "http://shop.test:3306/": {HTTPPort: 3306}, "https://shop.test:3306/": {HTTPSPort: 3306}, "http://shop.test:3307/": {}} {
		o.URL, o.Snapshot = url, snap
		if _, err := Request(o); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestWhatIsNoRequest(t *testing.T) {
	snap := site(t)
	for want, o := range map[string]RequestOptions{
		"say http:// or https:// before it":                {URL: "shop.test/x"},
		"the scheme must be http or https":                 {URL: "ftp://shop.test/x"},
		"has no host; write it as":                         {URL: "http:///x"},
		"leave user and password out":                      {URL: "http://me:you@shop.test/x"},
		`-H "nonsense": want a header`:                     {URL: "http://shop.test/", Header: []string{"nonsense"}},
		`-H "a b: c": want a header as 'name: value'`:      {URL: "http://shop.test/", Header: []string{"a b: c"}},
		"-H \"a: b\\x00\": want a header as 'name: value'": {URL: "http://shop.test/", Header: []string{"a: b\x00"}},
	} {
		o.Snapshot = snap
		if _, err := Request(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// TestRequestWithClientAuth: it is told that clients are asked for certificates,
// what the backend gets of one that has a good one, and what others get.
func TestRequestWithClientAuth(t *testing.T) {
	root := testenv.NewAuthority(t, "root")
	store := state.New()
	store.Update(func(tx *state.Tx) {
		gatewaytest.PutService(tx, "web", "", "10.99.0.11:8080")
		tx.PutCertificate(&model.Certificate{Key: gatewaytest.Key("ca"), CA: root.PEM()})
		for _, name := range []string{"ca", "gone"} {
			r := gatewaytest.Ingress(name, gatewaytest.Rule(name+".test", "/", "web"))
			r.ClientAuth, r.ClientAuthHosts = &model.ClientAuth{Secret: gatewaytest.Key(name), CommonName: "web", Depth: 1}, []string{name + ".test"}
			tx.PutRoute(r)
		}
		tx.SetSynced()
	})
	for _, test := range []struct {
		o       RequestOptions
		reaches bool
		has     []string
	}{
		{RequestOptions{URL: "https://ca.test/x"}, true, []string{
			"the gateway asks clients for a certificate by Secret default/ca, and lets in common names that match web; a request by https is taken here as one with a good certificate",
			"Ssl-Client-Verify: SUCCESS",
		}},
		{RequestOptions{URL: "http://ca.test/x"}, false, []string{"400 Bad Request: No required SSL certificate was sent", "asks clients for a certificate by Secret default/ca, and lets in common names that match web: ANSWERS", "plain http is not redirected, and a client that comes by it has shown no certificate"}},
		{RequestOptions{URL: "https://other.test/x", Header: []string{"Host: ca.test"}}, false, []string{"421 Misdirected Request: the connection was opened for a host that asks other things of its clients"}},
		{RequestOptions{URL: "https://gone.test/x"}, false, []string{"503 Service Unavailable: certificates of clients cannot be judged", "lets in nobody, for certificates of clients cannot be judged: Secret default/gone does not exist: ANSWERS"}},
	} {
		test.o.Snapshot = store.Snapshot()
		r := told(t, test.o)
		text := squeeze(r.Text())
		if r.Reaches != test.reaches {
			t.Errorf("%s reaches: %t\n%s", test.o.URL, r.Reaches, text)
		}
		for _, s := range test.has {
			if !strings.Contains(text, s) {
				t.Errorf("%s: no %q in:\n%s", test.o.URL, s, text)
			}
		}
	}
}
