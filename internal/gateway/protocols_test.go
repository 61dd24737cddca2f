package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"fairway.dev/fairway/internal/certs"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func (w *world) dialHTTPS(ctx context.Context, _, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", w.g.HTTPSAddr().String())
}

func TestWebSocket(t *testing.T) {
	ws := websocket.Server{Handler: func(c *websocket.Conn) {
		for {
			var m string
			if websocket.Message.Receive(c, &m) != nil || websocket.Message.Send(c, m) != nil {
				return
			}
		}
	}}
	backendServer(t, "10.99.30.1:80", ws.ServeHTTP)
	w := newWorld(t, nil)
	for name, app := range map[string]string{"plain": "", "ws": "kubernetes.io/ws", "h2c": "kubernetes.io/h2c"} {
		w.service(name, app, "10.99.30.1:80")
		w.route(ingress(name, rule(name+".test", "/", name)))
	}
	pair := secret(t, "pair", "plain.test")
	w.update(func(tx *state.Tx) {
		tx.PutCertificate(pair)
		tx.PutRoute(withTLS(ingress("plain", rule("plain.test", "/", "plain")), "pair", "plain.test"))
	})
	dial := func(t *testing.T, host string, secure bool) *websocket.Conn {
		cfg, err := websocket.NewConfig("ws://"+host+"/chat", "http://"+host)
		if err != nil {
			t.Fatal(err)
		}
		var conn net.Conn
		if secure {
			conn, err = tls.Dial("tcp", w.g.HTTPSAddr().String(), &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		} else {
			conn, err = net.Dial("tcp", w.g.HTTPAddr().String())
		}
		if err != nil {
			t.Fatal(err)
		}
		c, err := websocket.NewClient(cfg, conn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	say := func(t *testing.T, c *websocket.Conn, text string) {
		t.Helper()
		if err := websocket.Message.Send(c, text); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := websocket.Message.Receive(c, &got); err != nil || got != text {
			t.Fatalf("got %d bytes, %v", len(got), err)
		}
	}
	for _, host := range []string{"plain.test", "ws.test", "h2c.test"} {
		t.Run(host, func(t *testing.T) {
			c := dial(t, host, false)
			for _, n := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20} {
				say(t, c, strings.Repeat("x", n))
			}
		})
	}
	t.Run("over TLS, through a change of routes", func(t *testing.T) {
		c := dial(t, "plain.test", true)
		say(t, c, "before")
		w.update(func(tx *state.Tx) { tx.DeleteRoute(ingress("ws").Ref) })
		w.endpoints("plain")
		say(t, c, "after")
	})
	t.Run("silent for longer than proxy-read-timeout", func(t *testing.T) {
		w.endpoints("plain", "10.99.30.1:80")
		w.route(withTLS(ingress("plain", rule("plain.test", "/", "plain", func(r *model.RouteRule) { r.Filters.ReadTimeout = 2 * time.Second })), "pair", "plain.test"))
		for _, secure := range []bool{false, true} {
			c := dial(t, "plain.test", secure)
			var m string
			if err := websocket.Message.Receive(c, &m); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("by TLS %t: %q, %v in place of the end", secure, m, err)
			}
		}
	})
}

// grpcServer serves grpc.health.v1 at addr, with TLS if asked.
func grpcServer(t *testing.T, addr string, secure bool) *health.Server {
	t.Helper()
	var options []grpc.ServerOption
	if secure {
		cert, err := certs.SelfSigned("backend", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		options = append(options, grpc.Creds(credentials.NewServerTLSFromCert(cert)))
	}
	s := grpc.NewServer(options...)
	h := health.NewServer()
	healthpb.RegisterHealthServer(s, h)
	serve(t, addr, s.Serve)
	t.Cleanup(s.Stop)
	return h
}

func TestGRPC(t *testing.T) {
	servers := map[string]*health.Server{
		"kubernetes.io/h2c": grpcServer(t, "10.99.31.1:80", false),
		"grpc":              grpcServer(t, "10.99.31.2:80", false),
		"grpcs":             grpcServer(t, "10.99.31.3:80", true),
	}
	w := newWorld(t, nil)
	pair := secret(t, "pair", "grpc.test")
	w.update(func(tx *state.Tx) { tx.PutCertificate(pair) })
	addrs := map[string]string{"kubernetes.io/h2c": "10.99.31.1:80", "grpc": "10.99.31.2:80", "grpcs": "10.99.31.3:80"}
	for app, h := range servers {
		w.service("svc", app, addrs[app])
		w.route(withTLS(ingress("main", rule("grpc.test", "/", "svc")), "pair", "grpc.test"))
		for name, creds := range map[string]credentials.TransportCredentials{
			"plain": insecure.NewCredentials(),
			"tls":   credentials.NewTLS(&tls.Config{ServerName: "grpc.test", InsecureSkipVerify: true}),
		} {
			t.Run(app+" from "+name, func(t *testing.T) {
				addr := w.g.HTTPAddr().String()
				if name == "tls" {
					addr = w.g.HTTPSAddr().String()
				}
				conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds), grpc.WithAuthority("grpc.test"))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				exerciseGRPC(t, healthpb.NewHealthClient(conn), h)
			})
		}
	}
	t.Run("errors are gRPC statuses", func(t *testing.T) {
		conn, err := grpc.NewClient("passthrough:///"+w.g.HTTPAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("grpc.test"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		w.endpoints("svc", "10.99.31.9:80") // where nobody listens
		_, err = healthpb.NewHealthClient(conn).Check(context.Background(), &healthpb.HealthCheckRequest{})
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no connection to the backend") {
			t.Errorf("no connection: %v", err)
		}
		w.endpoints("svc")
		_, err = healthpb.NewHealthClient(conn).Check(context.Background(), &healthpb.HealthCheckRequest{})
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no endpoint is ready") {
			t.Errorf("no endpoint: %v", err)
		}
		w.update(func(tx *state.Tx) { tx.DeleteRoute(ingress("main").Ref) })
		_, err = healthpb.NewHealthClient(conn).Check(context.Background(), &healthpb.HealthCheckRequest{})
		if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "no route") {
			t.Errorf("no route: %v", err)
		}
	})
}

// exerciseGRPC makes a unary call, one that fails, and a stream.
func exerciseGRPC(t *testing.T, c healthpb.HealthClient, h *health.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "key-bin", "\x00\xff")
	h.SetServingStatus("x", healthpb.HealthCheckResponse_SERVING)
	resp, err := c.Check(ctx, &healthpb.HealthCheckRequest{Service: "x"})
	if err != nil || resp.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("unary: %v, %v", resp, err)
	}
	if _, err = c.Check(ctx, &healthpb.HealthCheckRequest{Service: "unknown"}); status.Code(err) != codes.NotFound {
		t.Fatalf("status in trailers: %v", err)
	}
	stream, err := c.Watch(ctx, &healthpb.HealthCheckRequest{Service: "x"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{
		healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING, healthpb.HealthCheckResponse_SERVING,
	} {
		h.SetServingStatus("x", want)
		if m, err := stream.Recv(); err != nil || m.Status != want {
			t.Fatalf("stream: %v, %v, want %v", m, err, want)
		}
	}
}

func TestBackendProtocols(t *testing.T) {
	backendServer(t, "10.99.32.1:80", nil)
	cert, err := certs.SelfSigned("backend", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	secure := &http.Server{Handler: echo("secure"), TLSConfig: &tls.Config{Certificates: []tls.Certificate{*cert}}}
	serve(t, "10.99.32.2:443", func(l net.Listener) error { return secure.ServeTLS(l, "", "") })
	t.Cleanup(func() { _ = secure.Close() })
	w := newWorld(t, nil)
	protocol := func(p model.BackendProtocol) func(*model.RouteRule) {
		return func(r *model.RouteRule) { r.Backends[0].Protocol = p }
	}
	w.service("plain", "", "10.99.32.1:80")
	w.service("h2c", "kubernetes.io/h2c", "10.99.32.1:80")
	w.service("https", "https", "10.99.32.2:443")
	w.service("secure", "", "10.99.32.2:443")
	w.route(ingress("main", rule("", "/plain", "plain"), rule("", "/h2c", "h2c"), rule("", "/https", "https"),
		rule("", "/ann-h2c", "plain", protocol(model.BackendH2C)), rule("", "/ann-https", "secure", protocol(model.BackendHTTPS)),
		rule("", "/ann-http", "h2c", protocol(model.BackendHTTP)), rule("", "/ann-grpcs", "secure", protocol(model.BackendGRPCS))))
	for path, want := range map[string]string{
		"/plain": "HTTP/1.1", "/h2c": "HTTP/2.0", "/https": "HTTP/1.1", "/ann-h2c": "HTTP/2.0", "/ann-https": "HTTP/1.1", "/ann-http": "HTTP/1.1", "/ann-grpcs": "HTTP/2.0",
	} {
		status, r := w.get("a", path)
		if status != 200 || r.Proto != want || r.URI != path {
			t.Errorf("%s: %d by %s, want %s", path, status, r.Proto, want)
		}
	}
}

func TestExternalName(t *testing.T) {
	backendServer(t, "127.0.0.1:8099", nil)
	w := newWorld(t, nil)
	w.update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: key("ext"), Type: model.ExternalName, ExternalName: "localhost"})
	})
	w.route(ingress("main", rule("ext.test", "/", "ext", func(r *model.RouteRule) { r.Backends[0].Port = model.PortRef{Number: 8099} })))
	if status, r := w.get("ext.test", "/x"); status != 200 || r.Host != "ext.test" {
		t.Errorf("got %d with host %q", status, r.Host)
	}
}

func TestTrustedProxyAndProxyProtocol(t *testing.T) {
	backendServer(t, "10.99.33.1:80", nil)
	w := newWorld(t, func(o *Options) {
		o.ProxyProtocol = true
		o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	})
	w.service("a", "", "10.99.33.1:80")
	w.route(ingress("main", rule("", "/", "a")))
	ask := func(head string) string {
		c, err := net.Dial("tcp", w.g.HTTPAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(c, "%sGET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n", head)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err.Error()
		}
		body, _ := io.ReadAll(resp.Body)
		return string(body)
	}
	if got := ask("PROXY TCP4 198.51.100.1 10.0.0.1 1234 443\r\n"); !strings.Contains(got, `"X-Forwarded-For":["198.51.100.1"]`) || !strings.Contains(got, `"X-Forwarded-Proto":["http"]`) {
		t.Errorf("a stranger: %s", got)
	}
	if got := ask("PROXY TCP4 192.0.2.1 10.0.0.1 1234 443\r\n"); !strings.Contains(got, `"X-Real-Ip":["203.0.113.9"]`) || !strings.Contains(got, `"X-Forwarded-Proto":["https"]`) {
		t.Errorf("a trusted proxy: %s", got)
	}
	if got := ask(""); strings.Contains(got, "Backend") {
		t.Errorf("without a PROXY header: %s", got)
	}
}
