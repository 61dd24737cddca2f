package echo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// start runs a server on loopback until the test ends.
func start(t *testing.T, change func(*Options)) *Server {
	t.Helper()
	const any = "127.0.0.1:0"
	o := Options{
		Identity: Identity{Name: "web", Pod: "web-0", Namespace: "shop", Node: "node-1", IP: "10.244.0.7"},
		HTTP:     []string{any}, HTTPS: []string{any}, TCP: []string{any}, TLS: []string{any}, UDP: []string{any}, MySQL: []string{any},
		Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func get(t *testing.T, client *http.Client, method, url, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Test", "yes")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func report(t *testing.T, body string) Report {
	t.Helper()
	var r Report
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	return r
}

func TestReport(t *testing.T) {
	s := start(t, nil)
	resp, body := get(t, http.DefaultClient, "POST", "http://"+s.Addr("http")+"/a%2Fb/c?x=1&x=2&y=%26", "hello")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("X-Served-By") != "web" {
		t.Errorf("got %s %v", resp.Status, resp.Header)
	}
	got := report(t, body)
	if got.RemoteAddress == "" || got.LocalAddress != s.Addr("http") || got.Headers["X-Test"][0] != "yes" {
		t.Errorf("addresses or headers are wrong: %+v", got)
	}
	got.RemoteAddress, got.LocalAddress, got.Headers = "", "", nil
	want := Report{
		Identity: s.opts.Identity, Method: "POST", Host: s.Addr("http"), URI: "/a%2Fb/c?x=1&x=2&y=%26", Path: "/a/b/c",
		Query: map[string][]string{"x": {"1", "2"}, "y": {"&"}}, Protocol: "HTTP/1.1", Body: "hello", BodyBytes: 5,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("report (-want +got):\n%s", d)
	}
	if strings.Contains(body, `\u0026`) {
		t.Error("the report escapes & for HTML")
	}
}

func TestReportOfLargeBinaryBody(t *testing.T) {
	s := start(t, nil)
	_, body := get(t, http.DefaultClient, "PUT", "http://"+s.Addr("http")+"/", "\xff"+strings.Repeat("x", 100_000))
	if r := report(t, body); r.BodyBytes != 100_001 || r.Body != "" {
		t.Errorf("got %d bytes, body of %d", r.BodyBytes, len(r.Body))
	}
}

func TestProtocols(t *testing.T) {
	s := start(t, nil)
	h2c := new(http.Protocols)
	h2c.SetUnencryptedHTTP2(true)
	tests := []struct {
		name, url, protocol, serverName string
		transport                       *http.Transport
	}{
		{"http/1.1", "http://" + s.Addr("http"), "HTTP/1.1", "", &http.Transport{}},
		{"h2c", "http://" + s.Addr("http"), "HTTP/2.0", "", &http.Transport{Protocols: h2c}},
		{"https", "https://" + s.Addr("https"), "HTTP/1.1", "shop.test", &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "shop.test"}}},
		{"h2", "https://" + s.Addr("https"), "HTTP/2.0", "shop.test", &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "shop.test"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			defer tt.transport.CloseIdleConnections()
			_, body := get(t, &http.Client{Transport: tt.transport}, "GET", tt.url+"/api/v1/getdata", "")
			r := report(t, body)
			if r.Protocol != tt.protocol || r.Path != "/api/v1/getdata" {
				t.Errorf("got %s %s, want %s", r.Protocol, r.Path, tt.protocol)
			}
			if (r.TLS != nil) != (tt.serverName != "") || r.TLS != nil && (r.TLS.ServerName != tt.serverName || r.TLS.Version != "TLS 1.3") {
				t.Errorf("TLS: got %+v", r.TLS)
			}
		})
	}
}

func TestPaths(t *testing.T) {
	t.Setenv("OTHERSERVICE_SERVICE_HOST", "10.96.1.2")
	s := start(t, func(o *Options) { o.Status = 203 })
	tests := []struct {
		name, method, path string
		status             int
		body               string
	}{
		{"status option", "GET", "/", 203, `"path": "/"`},
		{"env", "GET", "/env", 200, `"OTHERSERVICE_SERVICE_HOST": "10.96.1.2"`},
		{"healthz", "GET", "/healthz", 200, "ok"},
		{"ready", "GET", "/ready", 200, "ok"},
		{"bad switch", "POST", "/ready", 400, "/ready?ok=false"},
		{"unready", "POST", "/ready?ok=false", 200, "ready=false"},
		{"not ready", "GET", "/ready", 503, "not ready"},
		{"healthy still", "GET", "/healthz", 200, "ok"},
		{"ready again", "POST", "/ready?ok=true", 200, "ready=true"},
		{"is ready", "GET", "/ready", 200, "ok"},
		{"status", "GET", "/status/503", 503, `"path": "/status/503"`},
		{"empty status", "GET", "/status/204", 204, ""},
		{"bad status", "GET", "/status/99", 400, "/status/503"},
		{"delay", "GET", "/delay/1ms", 203, `"path": "/delay/1ms"`},
		{"bad delay", "GET", "/delay/-1s", 400, "/delay/200ms"},
		{"bad bytes", "GET", "/bytes/x", 400, "/bytes/1024"},
		{"stream", "GET", "/stream?n=2&interval=1ms", 200, "id: 1\ndata: web\n\nid: 2\ndata: web\n\n"},
		{"bad stream", "GET", "/stream?n=x", 400, "/stream?n=5"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := get(t, http.DefaultClient, tt.method, "http://"+s.Addr("http")+tt.path, "")
			if resp.StatusCode != tt.status || !strings.Contains(body, tt.body) {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, tt.status, tt.body)
			}
		})
	}
	for _, n := range []int{0, 5, 100_000} {
		resp, body := get(t, http.DefaultClient, "GET", "http://"+s.Addr("http")+"/bytes/"+strconv.Itoa(n), "")
		if len(body) != n || resp.ContentLength != int64(n) {
			t.Errorf("/bytes/%d: got %d, Content-Length %d", n, len(body), resp.ContentLength)
		}
	}
}

// TestStreamFlushes would hang if events were kept back until the end.
func TestStreamFlushes(t *testing.T) {
	s := start(t, nil)
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.Addr("http")+"/stream?n=2&interval=1h", nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil || line != "id: 1\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestStreams(t *testing.T) {
	for _, banner := range []bool{false, true} {
		s := start(t, func(o *Options) { o.Banner = banner })
		want := "one\ntwo\n"
		if banner {
			want = "web\n" + want
		}
		tcp, err := net.Dial("tcp", s.Addr("tcp"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(tcp, "one\ntwo\n")
		_ = tcp.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(tcp); string(got) != want || err != nil {
			t.Errorf("tcp: got %q, %v", got, err)
		}
		tc, err := tls.Dial("tcp", s.Addr("tls"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(tc, "one\ntwo\n")
		_ = tc.CloseWrite()
		if got, err := io.ReadAll(tc); string(got) != want || err != nil {
			t.Errorf("tls: got %q, %v", got, err)
		}
	}
}

func TestUDP(t *testing.T) {
	tests := []struct{ name, listen, dial, want string }{
		{"one address", "127.0.0.1:0", "127.0.0.1", "ping"},
		{"all IPv4 from 127.0.0.2", "0.0.0.0:0", "127.0.0.2", "ping"},
		{"all, IPv4 from 127.0.0.2", "[::]:0", "127.0.0.2", "ping"},
		{"all, IPv6", "[::]:0", "::1", "ping"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, func(o *Options) { o.UDP = []string{tt.listen} })
			_, port, _ := net.SplitHostPort(s.Addr("udp"))
			// A connected socket takes answers from the address it sent to only.
			c, err := net.Dial("udp", net.JoinHostPort(tt.dial, port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.WriteString(c, "ping")
			b := make([]byte, 100)
			n, err := c.Read(b)
			if string(b[:n]) != tt.want || err != nil {
				t.Errorf("got %q, %v", b[:n], err)
			}
		})
	}
	s := start(t, func(o *Options) { o.Banner = true })
	c, _ := net.Dial("udp", s.Addr("udp"))
	_, _ = io.WriteString(c, "ping")
	b := make([]byte, 100)
	if n, err := c.Read(b); string(b[:n]) != "web\nping" {
		t.Errorf("banner: got %q, %v", b[:n], err)
	}
}

func TestWebSocket(t *testing.T) {
	s := start(t, nil)
	for _, url := range []string{"ws://" + s.Addr("http") + "/chat", "wss://" + s.Addr("https") + "/chat"} {
		config, err := websocket.NewConfig(url, "http://elsewhere.test")
		if err != nil {
			t.Fatal(err)
		}
		config.TlsConfig = &tls.Config{InsecureSkipVerify: true}
		ws, err := websocket.DialConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []byte{websocket.TextFrame, websocket.BinaryFrame} {
			sent := message{kind, bytes.Repeat([]byte("x"), 70_000)}
			var got message
			if err := sameKind().Send(ws, &sent); err != nil {
				t.Fatal(err)
			}
			if err := sameKind().Receive(ws, &got); err != nil {
				t.Fatal(err)
			}
			if got.kind != kind || !bytes.Equal(got.data, sent.data) {
				t.Errorf("%s: got kind %d of %d bytes", url, got.kind, len(got.data))
			}
		}
		_ = ws.Close()
	}
}

func TestGRPC(t *testing.T) {
	s := start(t, nil)
	conn, err := grpc.NewClient(s.Addr("http"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	check := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		var header metadata.MD
		got, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}, grpc.Header(&header))
		if err != nil || got.Status != want {
			t.Errorf("got %v, %v; want %v", got, err, want)
		}
		if d := cmp.Diff([]string{"web"}, header.Get("x-served-by")); d != "" {
			t.Errorf("x-served-by (-want +got):\n%s", d)
		}
	}
	check(healthpb.HealthCheckResponse_SERVING)
	get(t, http.DefaultClient, "POST", "http://"+s.Addr("http")+"/ready?ok=false", "")
	check(healthpb.HealthCheckResponse_NOT_SERVING)

	var out wrapperspb.StringValue
	if err := conn.Invoke(t.Context(), "/shop.v1.Cart/Add", wrapperspb.String("apples"), &out); err != nil || out.Value != "apples" {
		t.Errorf("unknown method: got %q, %v", out.Value, err)
	}
}

func TestDrain(t *testing.T) {
	s, err := New(Options{Identity: Identity{Name: "web"}, HTTP: []string{"127.0.0.1:0"}, Drain: time.Hour, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	for s.ready.Load() {
		time.Sleep(time.Millisecond)
	}
	if resp, _ := get(t, http.DefaultClient, "GET", "http://"+s.Addr("http")+"/ready", ""); resp.StatusCode != 503 {
		t.Errorf("ready while draining: %s", resp.Status)
	}
	if resp, _ := get(t, http.DefaultClient, "GET", "http://"+s.Addr("http")+"/", ""); resp.StatusCode != 200 {
		t.Errorf("while draining: %s", resp.Status)
	}
	s.close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNewErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	tests := []struct {
		name string
		o    Options
		want string
	}{
		{"nothing", Options{}, "nothing to listen on"},
		{"taken", Options{TCP: []string{taken.Addr().String()}}, "--tcp 127.0.0.1"},
		{"no port", Options{HTTP: []string{"8080"}}, "--http 8080"},
		{"status", Options{HTTP: []string{"127.0.0.1:0"}, Status: 99}, "200 to 599"},
		{"key only", Options{HTTP: []string{"127.0.0.1:0"}, KeyFile: "x"}, "both files"},
		{"no file", Options{HTTP: []string{"127.0.0.1:0"}, KeyFile: "/nowhere", CertFile: "/nowhere"}, "/nowhere"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.Logger = slog.New(slog.DiscardHandler)
			if _, err := New(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestIdentify(t *testing.T) {
	t.Setenv("POD_NAME", "web-0")
	t.Setenv("POD_NAMESPACE", "shop")
	t.Setenv("NODE_NAME", "node-1")
	t.Setenv("POD_IP", "10.244.0.7")
	want := Identity{Name: "web-0", Pod: "web-0", Namespace: "shop", Node: "node-1", IP: "10.244.0.7"}
	if d := cmp.Diff(want, Identify("")); d != "" {
		t.Errorf("identity (-want +got):\n%s", d)
	}
	if got := Identify("v2"); got.Name != "v2" || got.Pod != "web-0" {
		t.Errorf("got %+v", got)
	}
}
