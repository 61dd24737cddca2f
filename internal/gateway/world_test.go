package gateway

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// TestMain runs the tests in a network namespace of their own, without a way
// out, where 10.99.0.0/16 and fd00:99::/64 are addresses of Pods.
func TestMain(m *testing.M) {
	const inside = "FAIRWAY_GATEWAY_TEST_NETNS"
	if os.Getenv(inside) != "" {
		if err := setUpNetwork(); err != nil {
			fmt.Fprintln(os.Stderr, "set up the network namespace:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, "start in a network namespace:", err)
			os.Exit(1)
		}
		os.Exit(cmd.ProcessState.ExitCode())
	}
}

func setUpNetwork() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	// Connections that wait to be accepted move to another socket of the same
	// port when theirs is closed (Linux 5.14).
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_migrate_req", []byte("1"), 0); err != nil {
		return err
	}
	for _, a := range []string{"10.99.0.1/16", "fd00:99::1/128", "fd00:99::2/128"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return err
		}
	}
	return nil
}

// world is a store with what the tests put into it, and a gateway over it.
type world struct {
	t     testing.TB
	store *state.Store
	g     *Gateway
	stop  context.CancelFunc
	done  chan error
	log   *syncBuffer
}

// newWorld starts a gateway; change may alter its options.
func newWorld(t testing.TB, change func(*Options)) *world {
	t.Helper()
	w := &world{t: t, store: state.New(), done: make(chan error, 1), log: &syncBuffer{}}
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
	return w
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
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

func key(name string) model.Key { return model.Key{Namespace: "default", Name: name} }

// service adds a Service whose port 80 "http" has endpoints at addr:port.
func (w *world) service(name, appProtocol string, endpoints ...string) {
	w.t.Helper()
	w.update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: key(name), Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80, AppProtocol: appProtocol}}})
		putEndpoints(tx, name, "http", model.TCP, endpoints)
	})
}

func putEndpoints(tx *state.Tx, name, port string, p model.Protocol, endpoints []string) {
	slice := func(i int, list []model.Endpoint) *model.EndpointSlice {
		return &model.EndpointSlice{Key: key(fmt.Sprintf("%s-%d", name, i)), Service: key(name), Endpoints: list}
	}
	for i := range 8 {
		if i < len(endpoints) {
			ap := netip.MustParseAddrPort(endpoints[i])
			tx.PutSlice(slice(i, []model.Endpoint{{Addr: ap.Addr(), Ready: true, Serving: true,
				Ports: []model.EndpointPort{{Name: port, Protocol: p, Port: ap.Port()}}}}))
		} else {
			tx.DeleteSlice(key(fmt.Sprintf("%s-%d", name, i)))
		}
	}
}

// endpoints replaces the endpoints of a Service.
func (w *world) endpoints(name string, endpoints ...string) {
	w.t.Helper()
	w.update(func(tx *state.Tx) { putEndpoints(tx, name, "http", model.TCP, endpoints) })
}

// rule makes a rule for a prefix.
func rule(host, path, service string, change ...func(*model.RouteRule)) model.RouteRule {
	r := model.RouteRule{Field: "spec.rules[0].http.paths[0]", Host: host, Path: model.PathMatch{Value: path},
		Backends: []model.WeightedBackend{{Weight: 1, Backend: model.Backend{Service: key(service), Port: model.PortRef{Number: 80}}}}}
	for _, c := range change {
		c(&r)
	}
	return r
}

func filters(f model.Filters) func(*model.RouteRule) {
	return func(r *model.RouteRule) { r.Filters = f }
}

func regex(r *model.RouteRule) { r.Path.Type = model.PathRegex }

var created = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func ingress(name string, rules ...model.RouteRule) *model.Route {
	return &model.Route{Ref: model.Ref{Kind: "Ingress", Key: key(name)}, Created: created, Rules: rules}
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

// secret makes a Secret with a certificate for names.
func secret(t testing.TB, name string, names ...string) *model.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return &model.Certificate{Key: key(name),
		Chain:      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		PrivateKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})}
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
