package protocols

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/internal/gateway"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// TestMain runs the tests in a network namespace of their own, without a way out.
func TestMain(m *testing.M) {
	const inside = "FAIRWAY_PROTOCOLS_TEST_NETNS"
	if os.Getenv(inside) != "" {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "set up the network namespace:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, "start in a network namespace:", err)
			os.Exit(1)
		}
		os.Exit(cmd.ProcessState.ExitCode())
	}
}

// backend is a Service with one endpoint, for requests to a host.
type backend struct {
	host, appProtocol string
	addr              netip.AddrPort
}

// world is a gateway, and the certificate that it shows for every host.
type world struct {
	*gateway.Gateway
	caFile string
}

// newWorld starts a gateway in front of backends.
func newWorld(t *testing.T, backends ...backend) *world {
	t.Helper()
	store := state.New()
	var hosts []string
	for _, b := range backends {
		hosts = append(hosts, b.host)
	}
	pair := certificate(t, hosts...)
	store.Update(func(tx *state.Tx) {
		tx.PutCertificate(pair)
		for _, b := range backends {
			name := model.Key{Namespace: "default", Name: b.host}
			tx.PutService(&model.Service{Key: name, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80, AppProtocol: b.appProtocol}}})
			tx.PutSlice(&model.EndpointSlice{Key: name, Service: name, Endpoints: []model.Endpoint{{
				Addr: b.addr.Addr(), Ready: true, Serving: true, Ports: []model.EndpointPort{{Protocol: model.TCP, Port: b.addr.Port()}},
			}}})
			tx.PutRoute(&model.Route{
				Ref: model.Ref{Kind: "Ingress", Key: name}, TLS: []model.RouteTLS{{Hosts: []string{b.host}, Secret: pair.Key}},
				Rules: []model.RouteRule{{Host: b.host, Path: model.PathMatch{Value: "/"},
					Backends: []model.WeightedBackend{{Weight: 1, Backend: model.Backend{Service: name, Port: model.PortRef{Number: 80}}}}}},
			})
		}
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
	for deadline := time.Now().Add(10 * time.Second); !g.Ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the gateway does not become ready")
		}
	}
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pair.Chain, 0o600); err != nil {
		t.Fatal(err)
	}
	return &world{Gateway: g, caFile: caFile}
}

// port returns a port of the gateway's.
func (w *world) port(secure bool) int {
	a := w.HTTPAddr()
	if secure {
		a = w.HTTPSAddr()
	}
	return a.(*net.TCPAddr).Port
}

// listen opens a port for a backend.
func listen(t *testing.T) (net.Listener, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, l.Addr().(*net.TCPAddr).AddrPort()
}

// certificate makes a Secret with a certificate for hosts, which signs itself.
func certificate(t *testing.T, hosts ...string) *model.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "gateway"}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return &model.Certificate{Key: model.Key{Namespace: "default", Name: "pair"},
		Chain:      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		PrivateKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})}
}
