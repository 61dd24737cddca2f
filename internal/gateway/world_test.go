package gateway

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/gateway/gatewaytest"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
	"fairway.dev/fairway/internal/testenv"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) { gatewaytest.Main(m) }

// world is a store with what the tests put into it, and a gateway over it.
type world struct {
	t     testing.TB
	store *state.Store
	g     *Gateway
	stop  context.CancelFunc
	done  chan error
	log   *testenv.Log
}

// newWorld starts a gateway; change may alter its options.
func newWorld(t testing.TB, change func(*Options)) *world {
	t.Helper()
	w := &world{t: t, store: state.New(), done: make(chan error, 1), log: &testenv.Log{}}
	o := Options{
		Store: w.store, Logger: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		HTTPAddrs: []string{"127.0.0.1:0"}, HTTPSAddrs: []string{"127.0.0.1:0"}, ConnectTimeout: time.Second, DrainTimeout: 10 * time.Second,
	}
	if change != nil {
		change(&o)
	}
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	w.g = g
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() { w.done <- g.Run(ctx) }()
	t.Cleanup(func() {
		plainClient.CloseIdleConnections() // the gateway would give them time
		http.DefaultClient.CloseIdleConnections()
		cancel()
		select {
		case err := <-w.done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
			w.done <- nil
		case <-time.After(20 * time.Second):
			t.Error("Run did not end")
		}
		if t.Failed() {
			t.Logf("gateway's log:\n%s", w.log)
		}
	})
	w.update(func(tx *state.Tx) { tx.SetSynced() })
	w.eventually("ready", g.Ready)
	return w
}

// update commits a change and waits until the gateway has taken it in.
func (w *world) update(fn func(tx *state.Tx)) {
	w.t.Helper()
	w.store.Update(fn)
	revision := w.store.Snapshot().Revision
	w.eventually("the snapshot is taken in", func() bool {
		w.g.syncMu.Lock()
		defer w.g.syncMu.Unlock()
		return w.g.applied.Revision >= revision
	})
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			w.t.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func key(name string) model.Key { return gatewaytest.Key(name) }

// service adds a Service whose port 80 "http" has endpoints at addr:port.
func (w *world) service(name, appProtocol string, endpoints ...string) {
	w.t.Helper()
	w.update(func(tx *state.Tx) { gatewaytest.PutService(tx, name, appProtocol, endpoints...) })
}

func putEndpoints(tx *state.Tx, name, port string, p model.Protocol, endpoints []string) {
	gatewaytest.PutEndpoints(tx, name, port, p, endpoints)
}

// endpoints replaces the endpoints of a Service.
func (w *world) endpoints(name string, endpoints ...string) {
	w.t.Helper()
	w.update(func(tx *state.Tx) { putEndpoints(tx, name, "http", model.TCP, endpoints) })
}

func rule(host, path, service string, change ...func(*model.RouteRule)) model.RouteRule {
	return gatewaytest.Rule(host, path, service, change...)
}

func filters(f model.Filters) func(*model.RouteRule) {
	return func(r *model.RouteRule) { r.Filters = f }
}

func regex(r *model.RouteRule) { r.Path.Type = model.PathRegex }

func ingress(name string, rules ...model.RouteRule) *model.Route {
	return gatewaytest.Ingress(name, rules...)
}

func (w *world) route(r *model.Route) {
	w.t.Helper()
	w.update(func(tx *state.Tx) { tx.PutRoute(r) })
}

// url returns the gateway's URL of a path, by http.
func (w *world) url(path string) string { return "http://" + w.g.HTTPAddr().String() + path }

// reply is what a test backend tells of a request.
type reply struct {
	Backend, Proto, Method, Host, URI string
	Header                            http.Header
	Body                              string
}

// backend starts an HTTP server that tells what it got; handler may be nil.
func backendServer(t testing.TB, addr string, handler http.HandlerFunc) *http.Server {
	t.Helper()
	if handler == nil {
		handler = echo(addr)
	}
	s := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	serve(t, addr, s.Serve)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func serve(t testing.TB, addr string, serve func(net.Listener) error) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { _ = serve(l) }()
}

// serveConns is serve with what becomes of each connection, which is closed then.
func serveConns(t testing.TB, addr string, handle func(net.Conn)) {
	serve(t, addr, func(l net.Listener) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	})
}

func echo(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_ = json.NewEncoder(w).Encode(reply{name, r.Proto, r.Method, r.Host, r.RequestURI, r.Header, string(body)})
	}
}

// get asks the gateway for a host and path; header are pairs. It returns the
// status, and the backend's report if that is what came.
func (w *world) get(host, path string, header ...string) (int, reply) {
	w.t.Helper()
	resp, body := w.do(http.MethodGet, host, path, nil, header...)
	var r reply
	_ = json.Unmarshal(body, &r)
	return resp.StatusCode, r
}

func (w *world) do(method, host, path string, body io.Reader, header ...string) (*http.Response, []byte) {
	w.t.Helper()
	req, err := http.NewRequest(method, w.url("/"), body)
	if err != nil {
		w.t.Fatal(err)
	}
	req.URL.Opaque, req.Host = path, host
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := plainClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp, data
}

// plainClient follows no redirects.
var plainClient = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Timeout:       20 * time.Second,
}

func secret(t testing.TB, name string, hosts ...string) *model.Certificate {
	t.Helper()
	return gatewaytest.Secret(t, name, hosts...)
}

// presented returns the common name of the certificate for a server name.
func (w *world) presented(serverName string) string {
	w.t.Helper()
	c, err := tls.Dial("tcp", w.g.HTTPSAddr().String(), &tls.Config{ServerName: serverName, InsecureSkipVerify: true})
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName
}

// problemText returns the problems, one per line.
func (w *world) problemText() string {
	var b strings.Builder
	for _, p := range w.g.Problems() {
		fmt.Fprintf(&b, "%s %s %s: %s\n", p.Object, p.Field, p.Reason, p.Message)
	}
	return b.String()
}

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

// slow answers "done" once release is closed.
func slow(started chan<- struct{}, release <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		started <- struct{}{}
		<-release
		_, _ = io.WriteString(w, "done")
	}
}
