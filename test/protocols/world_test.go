package protocols

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway"
	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) { gatewaytest.Main(m) }

// backend is a Service with one endpoint, for requests to a host.
type backend struct {
	host, appProtocol, addr string
}

// world is a gateway, and the certificate that it shows for every host.
type world struct {
	*gateway.Gateway
	store *state.Store
	roots *x509.CertPool
}

// newWorld starts a gateway in front of backends.
func newWorld(t *testing.T, backends ...backend) *world {
	t.Helper()
	store := state.New()
	var hosts []string
	for _, b := range backends {
		hosts = append(hosts, b.host)
	}
	pair := gatewaytest.Secret(t, "pair", hosts...)
	store.Update(func(tx *state.Tx) {
		tx.PutCertificate(pair)
		var rules []model.RouteRule
		for _, b := range backends {
			gatewaytest.PutService(tx, b.host, b.appProtocol, b.addr)
			rules = append(rules, gatewaytest.Rule(b.host, "/", b.host))
		}
		tx.PutRoute(gatewaytest.WithTLS(gatewaytest.Ingress("main", rules...), "pair", hosts...))
		tx.SetSynced()
	})
	g, err := gateway.New(gateway.Options{
		Store: store, Logger: slog.New(slog.DiscardHandler), HTTPAddrs: []string{"127.0.0.1:0"}, HTTPSAddrs: []string{"127.0.0.1:0"}, DrainTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	for deadline := time.Now().Add(time.Minute); !g.Ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the gateway does not become ready")
		}
	}
	w := &world{g, store, x509.NewCertPool()}
	w.roots.AppendCertsFromPEM(pair.Chain)
	return w
}

// addr returns the gateway's address.
func (w *world) addr(secure bool) string {
	if secure {
		return w.HTTPSAddr().String()
	}
	return w.HTTPAddr().String()
}

// port returns the gateway's port.
func (w *world) port(secure bool) int {
	if secure {
		return w.HTTPSAddr().(*net.TCPAddr).Port
	}
	return w.HTTPAddr().(*net.TCPAddr).Port
}

// tls returns what a client needs to trust the gateway.
func (w *world) tls(host string) *tls.Config { return &tls.Config{RootCAs: w.roots, ServerName: host} }

// listen opens a port for a backend.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "10.99.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}
