package model

import (
	"net/netip"
	"slices"
	"testing"
)

func TestStrings(t *testing.T) {
	ref := Ref{Kind: "Service", Key: Key{"default", "web"}, UID: "u"}
	for got, want := range map[string]string{
		Key{"default", "web"}.String():               "default/web",
		Key{"", "node-1"}.String():                   "node-1",
		ref.String():                                 "Service default/web",
		(HashPart{HashText, "a-"}).String():          "a-",
		(HashPart{Source: HashURI}).String():         "$request_uri",
		(HashPart{Source: HashClient}).String():      "$remote_addr",
		(HashPart{Source: HashScheme}).String():      "$scheme",
		(HashPart{HashHeader, "X-User-Id"}).String(): "$http_x_user_id",
		(HashPart{HashArg, "user"}).String():         "$arg_user",
		(HashPart{HashCookie, "session"}).String():   "$cookie_session",
		TCP.String():                    "TCP",
		UDP.String():                    "UDP",
		SCTP.String():                   "SCTP",
		Protocol(1).String():            "unknown",
		ClusterIP.String():              "ClusterIP",
		ExternalName.String():           "ExternalName",
		PathPrefix.String():             "Prefix",
		PathRegex.String():              "Regex",
		Secret("x").LogValue().String(): "[redacted]",
		Problem{Object: ref, Field: "spec.type", Message: "is wrong"}.Error(): "Service default/web: spec.type: is wrong",
		Problem{Object: ref, Message: "is wrong"}.String():                    "Service default/web: is wrong",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestOrder(t *testing.T) {
	refs := []Ref{
		{Kind: "Service", Key: Key{"a", "b"}}, {Kind: "Ingress", Key: Key{"b", "a"}},
		{Kind: "Service", Key: Key{"a", "a"}}, {Kind: "Service", Key: Key{"", "z"}},
	}
	slices.SortFunc(refs, Ref.Compare)
	want := []Ref{
		{Kind: "Ingress", Key: Key{"b", "a"}}, {Kind: "Service", Key: Key{"", "z"}},
		{Kind: "Service", Key: Key{"a", "a"}}, {Kind: "Service", Key: Key{"a", "b"}},
	}
	if !slices.Equal(refs, want) {
		t.Errorf("order %v, want %v", refs, want)
	}
	if !(Key{}).IsZero() || (Key{Name: "x"}).IsZero() {
		t.Error("IsZero")
	}
}

func TestServicePort(t *testing.T) {
	s := &Service{Ports: []ServicePort{{Name: "http", Protocol: TCP, Port: 80}, {Name: "dns", Protocol: UDP, Port: 53}, {Name: "80", Protocol: TCP, Port: 8080}}}
	for _, c := range []struct {
		name string
		ref  PortRef
		want uint16
	}{
		{"by name", PortRef{Name: "dns"}, 53},
		{"by number", PortRef{Number: 80}, 80},
		{"a name that looks like a number", PortRef{Name: "80"}, 8080},
		{"no such name", PortRef{Name: "https"}, 0},
		{"no such number", PortRef{Number: 81}, 0},
	} {
		if got, ok := s.Port(c.ref); got.Port != c.want || ok != (c.want != 0) {
			t.Errorf("%s: port %d, %v; want %d", c.name, got.Port, ok, c.want)
		}
	}
}

func TestTLSCovers(t *testing.T) {
	http, https, udp := ServicePort{Name: "http", Protocol: TCP, Port: 80}, ServicePort{Name: "https", Protocol: TCP, Port: 443}, ServicePort{Name: "q", Protocol: UDP, Port: 443}
	for _, c := range []struct {
		name string
		tls  *ServiceTLS
		want []bool // http, https, udp
	}{
		{"no TLS", nil, []bool{false, false, false}},
		{"every TCP port", &ServiceTLS{}, []bool{true, true, false}},
		{"by name", &ServiceTLS{Ports: []PortRef{{Name: "https"}}}, []bool{false, true, false}},
		{"by number", &ServiceTLS{Ports: []PortRef{{Number: 80}, {Number: 1}}}, []bool{true, false, false}},
	} {
		for i, p := range []ServicePort{http, https, udp} {
			if got := c.tls.Covers(p); got != c.want[i] {
				t.Errorf("%s: port %s: %v", c.name, p.Name, got)
			}
		}
	}
}

func TestEndpointPort(t *testing.T) {
	e := &Endpoint{Ports: []EndpointPort{{Name: "dns", Protocol: UDP, Port: 53}, {Name: "dns", Protocol: TCP, Port: 5353}}}
	if n, ok := e.Port("dns", TCP); n != 5353 || !ok {
		t.Errorf("port %d, %v", n, ok)
	}
	if _, ok := e.Port("http", TCP); ok {
		t.Error("found a port that is not there")
	}
}

func TestRangeContains(t *testing.T) {
	r := AddrRange{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.20")}
	for a, want := range map[string]bool{"192.0.2.9": false, "192.0.2.10": true, "192.0.2.20": true, "192.0.2.21": false, "::ffff:192.0.2.10": false, "2001:db8::1": false} {
		if got := r.Contains(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
}
