package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"fairway.dev/fairway/internal/gateway"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

const (
	fairway     = "Fairway"
	backendPort = 9000
	// backendAddr is an address of the namespace; endpoints at loopback ones are
	// left out, as the API wants it.
	backendAddr = "10.99.0.1"
)

// peer is a proxy that is measured, or the backend behind all of them.
type peer struct {
	name          string
	port, tlsPort int // 0 for the backend
	cmd           *exec.Cmd
}

func (p *peer) stop() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-done
	}
}

// start starts the backend and all peers, which share one certificate.
func start(dir string) ([]*peer, error) {
	if err := certificate(dir); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, 1<<20), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "medium"), []byte(strings.Repeat("x", 10<<10)), 0o644); err != nil {
		return nil, err
	}
	files := map[string]string{
		"backend.conf": fmt.Sprintf(`user root; worker_processes 1; daemon off; pid %[1]s/backend.pid; error_log /dev/null;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 1000000; sendfile on; server { listen %[4]s:%[2]d backlog=4096; root %[1]s;
  location = /small { default_type text/plain; return 200 "%[3]s"; } } }`, dir, backendPort, strings.Repeat("x", 100), backendAddr),
		"nginx.conf": fmt.Sprintf(`user root; worker_processes 2; daemon off; pid %[1]s/nginx.pid; error_log /dev/null;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 1000000; ssl_certificate %[1]s/tls.crt; ssl_certificate_key %[1]s/tls.key; ssl_protocols TLSv1.3; ssl_session_cache off; ssl_session_tickets off;
  upstream backend { server %[3]s:%[2]d; keepalive 256; keepalive_requests 1000000; }
  server { listen 127.0.0.1:8081 backlog=4096; listen 127.0.0.1:8441 ssl backlog=4096; server_name bench.test;
    location / { proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_buffering on;
      proxy_set_header X-Request-ID $request_id; proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Host $host;
      proxy_set_header X-Forwarded-Port $server_port; proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Scheme $scheme; proxy_set_header X-Scheme $scheme; } } }`, dir, backendPort, backendAddr),
		"haproxy.cfg": fmt.Sprintf(`global
  maxconn 8192
  nbthread 2
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  tune.ssl.cachesize 0
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option forwardfor
  http-reuse always
frontend f
  bind 127.0.0.1:8082
  bind 127.0.0.1:8442 ssl crt %[1]s/both.pem
  unique-id-format %%{+X}o\ %%ci%%cp%%ts%%rt
  unique-id-header X-Request-ID
  http-request set-header X-Real-IP %%[src]
  http-request set-header X-Forwarded-Host %%[req.hdr(Host)]
  http-request set-header X-Forwarded-Port %%[dst_port]
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Scheme http
  http-request set-header X-Scheme http
  default_backend b
backend b
  server s %[3]s:%[2]d
`, dir, backendPort, backendAddr),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	list := []*peer{
		{name: "backend", cmd: exec.Command("nginx", "-c", filepath.Join(dir, "backend.conf"))},
		{name: fairway, port: 8080, tlsPort: 8440, cmd: exec.Command(self, "-serve", "fairway")},
		{name: "nginx", port: 8081, tlsPort: 8441, cmd: exec.Command("nginx", "-c", filepath.Join(dir, "nginx.conf"))},
		{name: "HAProxy", port: 8082, tlsPort: 8442, cmd: exec.Command("haproxy", "-db", "-q", "-f", filepath.Join(dir, "haproxy.cfg"))},
		{name: "ReverseProxy", port: 8083, tlsPort: 8443, cmd: exec.Command(self, "-serve", "reverseproxy")},
	}
	for i, p := range list {
		p.cmd.Dir, p.cmd.Stderr = dir, os.Stderr
		if err := p.cmd.Start(); err != nil {
			return list[:i], fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for _, p := range list {
		addrs := []string{fmt.Sprintf("%s:%d", backendAddr, backendPort)}
		if p.port != 0 {
			addrs = []string{fmt.Sprintf("127.0.0.1:%d", p.port), fmt.Sprintf("127.0.0.1:%d", p.tlsPort)}
		}
		for _, addr := range addrs {
			if err := await(addr); err != nil {
				return list, fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	return list, nil
}

func await(addr string) error {
	var err error
	for range 200 {
		var c net.Conn
		if c, err = net.Dial("tcp", addr); err == nil {
			return c.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

func certificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench.test"}, DNSNames: []string{"bench.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	crt := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pk := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	for name, data := range map[string][]byte{"tls.crt": crt, "tls.key": pk, "both.pem": append(append([]byte{}, crt...), pk...)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// serveProxy runs a proxy written in Go, in a process of its own whose CPU
// time can be told from the others'.
func serveProxy(name string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if name == "fairway" {
		return serveFairway(ctx)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(&url.URL{Scheme: "http", Host: fmt.Sprintf("%s:%d", backendAddr, backendPort)})
		p.Out.Host = p.In.Host
		p.SetXForwarded()
	}, Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	quiet := log.New(io.Discard, "", 0) // wrk resets connections at the end
	plain := &http.Server{Addr: "127.0.0.1:8083", Handler: proxy, ErrorLog: quiet}
	secure := &http.Server{Addr: "127.0.0.1:8443", Handler: proxy, ErrorLog: quiet}
	go func() { _ = plain.ListenAndServe() }()
	go func() { _ = secure.ListenAndServeTLS("tls.crt", "tls.key") }()
	<-ctx.Done()
	return nil
}

func serveFairway(ctx context.Context) error {
	crt, err := os.ReadFile("tls.crt")
	if err != nil {
		return err
	}
	key, err := os.ReadFile("tls.key")
	if err != nil {
		return err
	}
	store := state.New()
	name := model.Key{Namespace: "bench", Name: "backend"}
	pair := model.Key{Namespace: "bench", Name: "pair"}
	store.Update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: name, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}})
		tx.PutSlice(&model.EndpointSlice{Key: name, Service: name, Endpoints: []model.Endpoint{{
			Addr: netip.MustParseAddr(backendAddr), Ready: true, Serving: true, Ports: []model.EndpointPort{{Protocol: model.TCP, Port: backendPort}},
		}}})
		tx.PutCertificate(&model.Certificate{Key: pair, Chain: crt, PrivateKey: key})
		tx.PutRoute(&model.Route{
			Ref: model.Ref{Kind: "Ingress", Key: name}, TLS: []model.RouteTLS{{Hosts: []string{"tls.test"}, Secret: pair}},
			Rules: []model.RouteRule{{Host: "bench.test", Path: model.PathMatch{Value: "/"},
				Backends: []model.WeightedBackend{{Weight: 1, Backend: model.Backend{Service: name, Port: model.PortRef{Number: 80}}}}}},
		})
		tx.SetSynced()
	})
	g, err := gateway.New(gateway.Options{
		Store: store, Logger: slog.New(slog.DiscardHandler), HTTPAddrs: []string{"127.0.0.1:8080"}, HTTPSAddrs: []string{"127.0.0.1:8440"}, DrainTimeout: time.Second,
	})
	if err != nil {
		return err
	}
	return g.Run(ctx)
}
