package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"fairway.dev/fairway/internal/gateway"
	"fairway.dev/fairway/internal/gateway/garbage"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// serveAs runs what is written in Go in a process of its own, whose CPU time
// can be told from the others'.
func serveAs(name string, hosts, ports int, profile string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch name {
	case "fairway":
		stop, err := profiled(profile)
		if err != nil {
			return err
		}
		return errors.Join(serveFairway(ctx, hosts, ports), stop())
	case "backends":
		return serveBackends(ctx)
	case "reverseproxy":
		return serveReverseProxy(ctx)
	}
	return fmt.Errorf("-serve %q: not known", name)
}

// profiled writes a CPU profile of this process until stop; none without a name.
func profiled(name string) (stop func() error, err error) {
	if name == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

// quiet is for servers whose clients reset connections at the end.
var quiet = log.New(io.Discard, "", 0)

// serveBackends serves what nginx does not: gRPC, WebSocket, and an echo.
func serveBackends(ctx context.Context) error {
	// A unary call as far as a proxy sees it: a message of five bytes and more
	// each way, and the status in the trailers.
	calls := &http.Server{Addr: fmt.Sprintf("%s:%d", backendAddr, grpcPort), Protocols: new(http.Protocols), ErrorLog: quiet,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			message, _ := io.ReadAll(r.Body)
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Trailer", "Grpc-Status")
			_, _ = w.Write(message)
			w.Header().Set("Grpc-Status", "0")
		})}
	calls.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = calls.ListenAndServe() }()
	curve, err := tls.LoadX509KeyPair("tls.crt", "tls.key")
	if err != nil {
		return err
	}
	secure := &tls.Config{Certificates: []tls.Certificate{curve}}
	for port, serve := range map[int]func(net.Conn){
		socketPort:  echoWebSocket,
		echoPort:    echo,
		echoTLSPort: func(c net.Conn) { echo(tls.Server(c, secure)) },
	} {
		l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", backendAddr, port))
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					go serve(c)
				}
			}
		}()
	}
	<-ctx.Done()
	return nil
}

// echo sends back what comes. It does so by hand, for the kernel would carry it
// by itself, which is nothing for messages.
func echo(c net.Conn) {
	defer c.Close()
	_, _ = io.Copy(c, struct{ io.Reader }{c})
}

// socketKey is what the client sends, and socketAccept what a server makes of it
// (RFC 6455, 1.3), which some proxies check.
const socketKey, socketAccept = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

// echoWebSocket agrees to switch to WebSocket, and then sends back what comes.
func echoWebSocket(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if strings.TrimSpace(line) == "" {
			break
		}
	}
	if _, err := io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+socketAccept+"\r\n\r\n"); err != nil {
		return
	}
	_, _ = io.Copy(c, struct{ io.Reader }{r})
}

func serveReverseProxy(ctx context.Context) error {
	to := func(port int) func(p *httputil.ProxyRequest) {
		return func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: fmt.Sprintf("%s:%d", backendAddr, port)})
			p.Out.Host = p.In.Host
			p.SetXForwarded()
		}
	}
	h2c := new(http.Protocols)
	h2c.SetUnencryptedHTTP2(true)
	plainly := &httputil.ReverseProxy{Rewrite: to(backendPort), Transport: &http.Transport{MaxIdleConnsPerHost: 256}, ErrorLog: quiet}
	sockets := &httputil.ReverseProxy{Rewrite: to(socketPort), ErrorLog: quiet}
	calls := &httputil.ReverseProxy{Rewrite: to(grpcPort), Transport: &http.Transport{Protocols: h2c}, ErrorLog: quiet}
	proxy := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == socketPath:
			sockets.ServeHTTP(w, r)
		case strings.HasPrefix(r.Host, grpcHost):
			calls.ServeHTTP(w, r)
		default:
			plainly.ServeHTTP(w, r)
		}
	})
	curve, err := tls.LoadX509KeyPair("tls.crt", "tls.key")
	if err != nil {
		return err
	}
	old, err := tls.LoadX509KeyPair("rsa.crt", "rsa.key")
	if err != nil {
		return err
	}
	plain := &http.Server{Addr: "127.0.0.1:8083", Handler: proxy, ErrorLog: quiet}
	secure := &http.Server{Addr: "127.0.0.1:8443", Handler: proxy, ErrorLog: quiet, TLSConfig: &tls.Config{Certificates: []tls.Certificate{curve, old}}}
	go func() { _ = plain.ListenAndServe() }()
	go func() { _ = secure.ListenAndServeTLS("", "") }()
	<-ctx.Done()
	return nil
}

func serveFairway(ctx context.Context, hosts, ports int) error {
	key := func(name string) model.Key { return model.Key{Namespace: "bench", Name: name} }
	store := state.New()
	var failed error
	store.Update(func(tx *state.Tx) {
		service := func(name, appProtocol string, port uint16) {
			tx.PutService(&model.Service{Key: key(name), Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80, AppProtocol: appProtocol}}})
			tx.PutSlice(&model.EndpointSlice{Key: key(name), Service: key(name), Endpoints: []model.Endpoint{{
				Addr: netip.MustParseAddr(backendAddr), Ready: true, Serving: true, Ports: []model.EndpointPort{{Protocol: model.TCP, Port: port}},
			}}})
		}
		service("backend", "", backendPort)
		service("calls", "kubernetes.io/h2c", grpcPort)
		service("sockets", "", socketPort)
		service("echo", "", echoPort)
		service("secure-echo", "", echoTLSPort)
		stream := func(port uint16, service string, hosts ...string) model.StreamRoute {
			return model.StreamRoute{Ref: model.Ref{Kind: "Gateway", Key: key("streams")}, Protocol: model.TCP, Port: uint16(fairwayStreams+ports) + port, Hosts: hosts,
				Backend: model.Backend{Service: key(service), Port: model.PortRef{Number: 80}}}
		}
		tx.PutStreams(model.Ref{Kind: "Gateway", Key: key("streams")}, []model.StreamRoute{
			stream(messagePort, "echo"), stream(bulkPort, "backend"), stream(passedPort, "backend"), stream(passedPort, "secure-echo", passedHost),
		})
		rule := func(host, path, service string) model.RouteRule {
			return model.RouteRule{Host: host, Path: model.PathMatch{Value: path},
				Backends: []model.WeightedBackend{{Weight: 1, Backend: model.Backend{Service: key(service), Port: model.PortRef{Number: 80}}}}}
		}
		route := func(name string, r ...model.RouteRule) *model.Route {
			return &model.Route{Ref: model.Ref{Kind: "Ingress", Key: key(name)}, Rules: r}
		}
		main := route("main", rule(host, "/", "backend"), rule(host, socketPath, "sockets"), rule(rsaHost, "/", "backend"), rule(grpcHost, "/", "calls"))
		for name, served := range map[string][]string{"tls": {host, grpcHost}, "rsa": {rsaHost}} {
			chain, err := os.ReadFile(name + ".crt")
			failed = errors.Join(failed, err)
			private, err := os.ReadFile(name + ".key")
			failed = errors.Join(failed, err)
			tx.PutCertificate(&model.Certificate{Key: key(name), Chain: chain, PrivateKey: private})
			main.TLS = append(main.TLS, model.RouteTLS{Hosts: served, Secret: key(name)})
		}
		tx.PutRoute(main)
		for i := 1; i < hosts; i++ {
			tx.PutRoute(route(hostName(i), rule(hostName(i), "/", "backend")))
		}
		tx.SetSynced()
	})
	if failed != nil {
		return failed
	}
	g, err := gateway.New(gateway.Options{
		Store: store, Logger: slog.New(slog.DiscardHandler), DrainTimeout: time.Second,
		HTTPAddrs: []string{fmt.Sprintf("127.0.0.1:%d", 8080+ports)}, HTTPSAddrs: []string{fmt.Sprintf("127.0.0.1:%d", 8440+ports)},
	})
	if err != nil {
		return err
	}
	go func() { _ = garbage.CollectRarely(ctx) }() // as fairway gateway does
	return g.Run(ctx)
}
