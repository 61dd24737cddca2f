package gateway

import (
	"io"
	"log/slog"
	"math"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"

	"fairway.dev/fairway/internal/gateway/shed"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

// TestMemoryIsShort fills the memory of this process up to a limit, while a
// request and a connection are under way.
func TestMemoryIsShort(t *testing.T) {
	debug.FreeOSMemory()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	limit := int64(stats.Sys-stats.HeapReleased) + 48<<20
	old := debug.SetMemoryLimit(limit)
	t.Cleanup(func() { debug.SetMemoryLimit(old) })
	memory, err := shed.NewMemory()
	if err != nil {
		t.Fatal(err)
	}
	started, release := make(chan struct{}, 1), make(chan struct{})
	backendServer(t, "10.99.71.1:80", slow(started, release))
	backendServer(t, "10.99.71.2:80", nil)
	greeter(t, "10.99.71.3:80", "hi")
	registry := prometheus.NewRegistry()
	var log testenv.Log
	shedder, err := shed.New(shed.Options{Above: 0.9, Share: memory.Share, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	w, pair := http3World(t, "127.0.0.1:15445", "", "10.99.71.2:80", func(o *Options) { o.Shedder, o.Registerer = shedder, registry })
	w.service("slow", "", "10.99.71.1:80")
	w.service("tcp", "", "10.99.71.3:80")
	w.route(ingress("more", rule("slow.test", "/", "slow"), rule("b.test", "/", "tcp")))
	udpEcho(t, "10.99.71.4:53", "dns")
	w.update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: key("dns"), Ports: []model.ServicePort{{Name: "udp", Protocol: model.UDP, Port: 80}}})
		putEndpoints(tx, "dns", "udp", model.UDP, []string{"10.99.71.4:53"})
	})
	w.streams(stream("tcp", model.TCP, 15202, "tcp"), stream("udp", model.UDP, 15203, "dns"))

	_, underWay := w.raw("GET / HTTP/1.1\r\nHost: slow.test\r\n\r\n")
	<-started
	opened := dialFrom(t, "127.0.0.1", "127.0.0.1:15202")
	if !served(opened, "") {
		t.Fatal("the TCP connection is not served")
	}
	session := func() net.Conn {
		c, err := net.Dial("udp", "127.0.0.1:15203")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = io.WriteString(c, "x")
		return c
	}
	talking := session()
	if _, err := talking.Read(make([]byte, 100)); err != nil {
		t.Fatalf("the UDP session is not served: %v", err)
	}

	ballast := make([]byte, limit)
	for i := 0; i < len(ballast); i += 4096 {
		ballast[i] = 1
	}
	w.eventually("memory is found to be short", shedder.Active)

	conn, r := w.raw(plainRequest)
	resp, body := answerOf(t, r, "GET")
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !resp.Close || !strings.Contains(body, "short of memory") {
		t.Errorf("HTTP/1.1: %v %q", resp, body)
	}
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("HTTP/1.1: the connection goes on: %v", err)
	}
	h2 := w.rawHTTP2(t, true)
	_ = h2.request(1, true, ":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a.test")
	status, leaves, ended := "", false, false
	for !leaves || !ended { // in any order
		frame, err := h2.ReadFrame()
		if err != nil {
			t.Fatalf("HTTP/2: status %q, GOAWAY %v: %v", status, leaves, err)
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			status, ended = f.PseudoValue("status"), ended || f.StreamEnded()
		case *http2.DataFrame:
			ended = ended || f.StreamEnded()
		case *http2.GoAwayFrame:
			leaves = f.ErrCode == http2.ErrCodeNo
		}
	}
	if status != "503" {
		t.Errorf("HTTP/2: %s", status)
	}
	h3 := http3Client(t, "127.0.0.1:15445", pair)
	if resp, _ := ask(t, h3, "GET", "https://a.test/", nil); resp.StatusCode != 503 {
		t.Errorf("HTTP/3: %v", resp)
	}
	if served(dialFrom(t, "127.0.0.1", "127.0.0.1:15202"), "") {
		t.Error("TCP: a new connection was served")
	}
	session()
	w.eventually("UDP: no session begins", func() bool { return value(t, registry, "fairway_gateway_connections_refused_total") == 2 })
	_, _ = io.WriteString(talking, "x")
	if _, err := talking.Read(make([]byte, 100)); err != nil {
		t.Errorf("UDP: the session that there is: %v", err)
	}
	for name, want := range map[string]float64{"fairway_gateway_shedding": 1, "fairway_gateway_requests_shed_total": 3, "fairway_gateway_connections_refused_total": 2} {
		if got := value(t, registry, name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if got := value(t, registry, "fairway_gateway_memory_share"); got < 0.85 || math.IsNaN(got) {
		t.Errorf("share of memory: %v", got)
	}
	close(release)
	if resp, body := answerOf(t, underWay, "GET"); resp.StatusCode != 200 || body != "done" {
		t.Errorf("the request under way: %v %q", resp, body)
	}
	if _, err := io.WriteString(opened, "data\n"); err != nil {
		t.Errorf("the connection under way: %v", err)
	}
	runtime.KeepAlive(ballast)
	ballast = nil
	w.eventually("memory is found to be free", func() bool { return !shedder.Active() })
	if resp, _ := ask(t, h3, "GET", "https://a.test/", nil); resp.StatusCode != 200 {
		t.Errorf("afterwards: %v", resp)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, &log)
	}
}
