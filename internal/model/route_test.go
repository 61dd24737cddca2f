package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// TestClientAuthOwners: the namespace of the oldest route of a host decides, and of
// its routes the oldest that asks.
func TestClientAuthOwners(t *testing.T) {
	route := func(name string, change func(*Route), hosts ...string) *Route {
		ns, name, _ := strings.Cut(name, "/")
		r := &Route{Ref: Ref{Kind: "Ingress", Key: Key{ns, name}}}
		for _, h := range hosts {
			r.Rules = append(r.Rules, RouteRule{Host: h})
		}
		if change != nil {
			change(r)
		}
		return r
	}
	asks := func(hosts ...string) func(*Route) {
		return func(r *Route) { r.ClientAuth, r.ClientAuthHosts = &ClientAuth{}, hosts }
	}
	owners := ClientAuthOwners([]*Route{
		route("a/canary", func(r *Route) { r.Rules[0].Canary = &Canary{} }, "web.test"),
		route("b/web", nil, "web.test", "none.test"),
		route("c/foreign", asks("web.test", "own.test"), "web.test", "own.test"),
		route("b/asks", asks("web.test"), "web.test"),
		route("b/later", asks("web.test"), "web.test"),
		route("d/certificate", func(r *Route) { r.TLS = []RouteTLS{{Hosts: []string{"tls.test"}}} }),
		route("c/thief", asks("tls.test", "")),
	})
	got := map[string]string{}
	for host, o := range owners {
		decides := "nobody"
		if o.Decides != nil {
			decides = o.Decides.Key.String()
		}
		got[host] = fmt.Sprint(o.First.Key, " ", decides)
	}
	want := map[string]string{"web.test": "b/web b/asks", "own.test": "c/foreign c/foreign", "tls.test": "d/certificate nobody", "": "c/thief c/thief"}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestClientAuthAsks: what cannot be told lets nobody in, and so asks.
func TestClientAuthAsks(t *testing.T) {
	var asks []string
	for _, v := range []ClientVerify{ClientVerifyOn, ClientVerifyOptional, ClientVerifyOptionalNoCA, ClientVerifyOff} {
		asks = append(asks, fmt.Sprint(v, (&ClientAuth{Verify: v}).Asks()))
	}
	if want := []string{"on true", "optional true", "optional_no_ca true", "off false"}; !slices.Equal(asks, want) {
		t.Errorf("got %q, want %q", asks, want)
	}
	if !(&ClientAuth{Verify: ClientVerifyOff, Refused: "it is wrong"}).Asks() {
		t.Error("a host that is refused asks for nothing")
	}
}

// TestBackendProtocol: what is asked for goes before what the Service port says.
func TestBackendProtocol(t *testing.T) {
	for _, test := range []struct {
		asked   BackendProtocol
		app     string
		want    BackendProtocol
		secured bool
	}{
		{BackendAuto, "", BackendHTTP, false},
		{BackendAuto, "kubernetes.io/ws", BackendHTTP, false},
		{BackendAuto, "Kubernetes.io/H2C", BackendH2C, false},
		{BackendAuto, "grpc", BackendH2C, false},
		{BackendAuto, "grpcs", BackendGRPCS, true},
		{BackendAuto, "https", BackendHTTPS, true},
		{BackendAuto, "kubernetes.io/wss", BackendHTTPS, true},
		{BackendHTTP, "https", BackendHTTP, false},
		{BackendHTTPS, "grpc", BackendHTTPS, true},
		{BackendGRPC, "https", BackendH2C, false},
		{BackendGRPCS, "", BackendGRPCS, true},
	} {
		if got := test.asked.Or(test.app); got != test.want || test.asked.Secure(test.app) != test.secured {
			t.Errorf("%d or %q: %d, secure %t", test.asked, test.app, got, test.asked.Secure(test.app))
		}
	}
}
