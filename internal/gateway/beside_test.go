package gateway

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// beside makes a gateway at the ports of another that knows no routes, and runs it.
func beside(t *testing.T, old *world) *world {
	t.Helper()
	w := &world{t: t, store: state.New(), done: make(chan error, 1)}
	g, err := New(Options{Store: w.store, Logger: discardLogger(), HTTP3: true, StartTimeout: time.Millisecond, DrainTimeout: time.Second,
		HTTPAddrs: []string{old.g.HTTPAddr().String()}, HTTPSAddrs: []string{old.g.HTTPSAddr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	w.g = g
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() { w.done <- g.Run(ctx) }()
	t.Cleanup(cancel)
	return w
}

// statuses asks over new connections, by HTTP/1.1, TLS and HTTP/3 in turn, and
// counts the answers; 0 for none.
func (w *world) statuses(each int) map[int]int {
	w.t.Helper()
	insecure := &tls.Config{InsecureSkipVerify: true, ServerName: "a.test"}
	count := map[int]int{}
	ask := func(rt http.RoundTripper, url string) {
		ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		req.Host = "a.test"
		resp, err := rt.RoundTrip(req)
		if err != nil {
			w.t.Log(err)
			count[0]++
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		count[resp.StatusCode]++
	}
	for range each {
		ask(&http.Transport{DisableKeepAlives: true}, w.url("/"))
		ask(&http.Transport{DisableKeepAlives: true, TLSClientConfig: insecure}, "https://"+w.g.HTTPSAddr().String()+"/")
		quic := &http3.Transport{TLSClientConfig: insecure}
		ask(quic, "https://"+w.g.HTTPSAddr().String()+"/")
		_ = quic.Close()
	}
	return count
}

// TestBesideWithoutRoutes: a gateway that starts beside another and does not
// get to know its routes, such as one that cannot reach the API, takes nothing
// from it. It serves when the other is gone, and takes its share once it can.
func TestBesideWithoutRoutes(t *testing.T) {
	backendServer(t, "10.99.11.1:80", nil)
	old := newWorld(t, func(o *Options) { o.HTTP3, o.DrainTimeout = true, time.Second })
	routes := func(tx *state.Tx) { tx.PutRoute(ingress("main", rule("", "/", "a"))) }
	old.service("a", "", "10.99.11.1:80")
	old.update(routes)
	const each = 10
	next := beside(t, old)
	// Its patience is over long before.
	if got := old.statuses(each); got[http.StatusOK] != 3*each {
		t.Errorf("beside a gateway without routes: %v", got)
	}
	if next.g.Ready() {
		t.Error("it says that it is ready")
	}
	// One that gives up leaves nothing behind.
	next.stop()
	if err := <-next.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if got := old.statuses(each); got[http.StatusOK] != 3*each {
		t.Errorf("after it: %v", got)
	}
	next = beside(t, old)
	old.stop()
	if err := <-old.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	old.done <- nil
	next.eventually("the next one answers itself", func() bool { return next.statuses(1)[http.StatusServiceUnavailable] == 3 })
	next.update(func(tx *state.Tx) {
		gatewaytest.PutService(tx, "a", "", "10.99.11.1:80")
		routes(tx)
		tx.SetSynced()
	})
	next.eventually("the next one is ready", next.g.Ready)
	if got := next.statuses(1); got[http.StatusOK] != 3 {
		t.Errorf("from the next one, once it knows its routes: %v", got)
	}
	next.stop()
	if err := <-next.done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// TestBesideUDP: UDP sessions stay with the process that has them while another
// starts, no answer is lost when it ends, and the other one goes on.
func TestBesideUDP(t *testing.T) {
	const port, clients = "127.0.0.1:15071", 20
	endpoints := []string{"10.99.48.1:53", "10.99.48.2:53", "10.99.48.3:53"}
	slow := make(chan struct{}) // closed when late answers may be sent
	for _, e := range endpoints {
		c, err := net.ListenPacket("udp", e)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			buf := make([]byte, 100)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				text := e + " " + string(buf[:n])
				go func() {
					if strings.HasSuffix(text, "late") {
						<-slow
					}
					_, _ = c.WriteTo([]byte(text), from)
				}()
			}
		}()
	}
	start := func() *world {
		w := newWorld(t, nil)
		w.update(func(tx *state.Tx) {
			tx.PutService(&model.Service{Key: key("dns"), Ports: []model.ServicePort{{Name: "udp", Protocol: model.UDP, Port: 80}}})
			putEndpoints(tx, "dns", "udp", model.UDP, endpoints)
		})
		w.streams(stream("udp", model.UDP, 15071, "dns"))
		return w
	}
	answer := func(c net.Conn) string {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	old := start()
	var conns []net.Conn
	at := map[net.Conn]string{}
	for range clients {
		c, err := net.Dial("udp", port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		conns = append(conns, c)
		_, _ = io.WriteString(c, "hello")
		at[c] = answer(c)
	}
	start()
	for _, c := range conns {
		_, _ = io.WriteString(c, "hello")
		if got := answer(c); got != at[c] {
			t.Errorf("a session has moved from %s to %s", at[c], got)
		}
		_, _ = io.WriteString(c, "late")
	}
	old.stop()
	old.eventually("the old one leaves the port to the next", func() bool {
		c, err := net.Dial("udp", port)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "new")
		answer(c)
		return len(old.g.streams.State()) == 0
	})
	close(slow)
	for _, c := range conns {
		if got := answer(c); !strings.HasSuffix(got, "late") {
			t.Errorf("got %s", got)
		}
	}
	if err := <-old.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	old.done <- nil
	for _, c := range conns {
		_, _ = io.WriteString(c, "after")
		if got := answer(c); !strings.HasSuffix(got, "after") {
			t.Errorf("got %s", got)
		}
	}
}
