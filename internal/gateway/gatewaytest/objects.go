package gatewaytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// Created is when every Ingress was made.
var Created = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Key names an object in namespace default.
func Key(name string) model.Key { return model.Key{Namespace: "default", Name: name} }

// PutService adds a Service whose port 80 "http" has endpoints at addr:port.
func PutService(tx *state.Tx, name, appProtocol string, endpoints ...string) {
	tx.PutService(&model.Service{Key: Key(name), Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80, AppProtocol: appProtocol}}})
	PutEndpoints(tx, name, "http", model.TCP, endpoints)
}

// PutEndpoints replaces the endpoints of a Service's port, eight at most.
func PutEndpoints(tx *state.Tx, name, port string, p model.Protocol, endpoints []string) {
	slice := func(i int, list []model.Endpoint) *model.EndpointSlice {
		return &model.EndpointSlice{Key: Key(fmt.Sprintf("%s-%d", name, i)), Service: Key(name), Endpoints: list}
	}
	for i := range 8 {
		if i < len(endpoints) {
			ap := netip.MustParseAddrPort(endpoints[i])
			tx.PutSlice(slice(i, []model.Endpoint{{Addr: ap.Addr(), Ready: true, Serving: true,
				Ports: []model.EndpointPort{{Name: port, Protocol: p, Port: ap.Port()}}}}))
		} else {
			tx.DeleteSlice(Key(fmt.Sprintf("%s-%d", name, i)))
		}
	}
}

// Rule makes a rule for a prefix.
func Rule(host, path, service string, change ...func(*model.RouteRule)) model.RouteRule {
	r := model.RouteRule{Field: "spec.rules[0].http.paths[0]", Host: host, Path: model.PathMatch{Value: path},
		Backends: []model.WeightedBackend{{Weight: 1, Backend: model.Backend{Service: Key(service), Port: model.PortRef{Number: 80}}}}}
	for _, c := range change {
		c(&r)
	}
	return r
}

// Ingress makes a route of rules.
func Ingress(name string, rules ...model.RouteRule) *model.Route {
	return &model.Route{Ref: model.Ref{Kind: "Ingress", Key: Key(name)}, Created: Created, Rules: rules}
}

// WithTLS binds a Secret to hosts, and returns the route.
func WithTLS(r *model.Route, secret string, hosts ...string) *model.Route {
	r.TLS = append(r.TLS, model.RouteTLS{Secret: Key(secret), Hosts: hosts})
	return r
}

// Secret makes a Secret with a certificate for hosts, which signs itself.
func Secret(tb testing.TB, name string, hosts ...string) *model.Certificate {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		tb.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		tb.Fatal(err)
	}
	return &model.Certificate{Key: Key(name),
		Chain:      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		PrivateKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})}
}
