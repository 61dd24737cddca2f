package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestAsk(t *testing.T) {
	web := listen(t)
	go func() {
		_ = http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/host" && r.Host != "app.test":
				w.WriteHeader(http.StatusTeapot)
			case r.URL.Path == "/moved":
				http.Redirect(w, r, "/gone", http.StatusFound)
			case r.URL.Path == "/gone":
				w.WriteHeader(http.StatusServiceUnavailable)
			case r.URL.Path == "/hangs":
				<-r.Context().Done()
			}
		}))
	}()
	rpc := listen(t)
	server, state := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(server, state)
	state.SetServingStatus("up", healthpb.HealthCheckResponse_SERVING)
	state.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	go func() { _ = server.Serve(rpc) }()
	t.Cleanup(server.Stop)
	closed := listen(t)
	_ = closed.Close()

	s := NewSet(Options{})
	defer s.Close()
	ok := []model.StatusRange{{Low: 200, High: 399}}
	for _, tt := range []struct {
		at   net.Listener
		spec model.HealthCheck
		want string
	}{
		{web, model.HealthCheck{Kind: model.CheckHTTP, Path: "/healthz?x=1", Status: ok}, ""},
		{web, model.HealthCheck{Kind: model.CheckHTTP, Path: "/host", Host: "app.test", Status: ok}, ""},
		{web, model.HealthCheck{Kind: model.CheckHTTP, Path: "/host", Status: ok}, "status 418"},
		{web, model.HealthCheck{Kind: model.CheckHTTP, Path: "/moved", Status: ok}, ""},
		{web, model.HealthCheck{Kind: model.CheckHTTP, Path: "/gone", Status: ok}, "status 503"},
		{web, model.HealthCheck{Kind: model.CheckHTTP, Path: "/gone", Status: []model.StatusRange{{Low: 200, High: 200}, {Low: 503, High: 503}}}, ""},
		{web, model.HealthCheck{Kind: model.CheckTCP}, ""},
		{rpc, model.HealthCheck{Kind: model.CheckGRPC}, ""},
		{rpc, model.HealthCheck{Kind: model.CheckGRPC, Service: "up"}, ""},
		{rpc, model.HealthCheck{Kind: model.CheckGRPC, Service: "down"}, "not serving (2)"},
		{rpc, model.HealthCheck{Kind: model.CheckGRPC, Service: "unknown"}, `gRPC status "5"`},
		{closed, model.HealthCheck{Kind: model.CheckTCP}, "connect to endpoint"},
		{closed, model.HealthCheck{Kind: model.CheckHTTP, Path: "/", Status: ok}, "connect to endpoint"},
		{closed, model.HealthCheck{Kind: model.CheckTCP, Port: uint16(web.Addr().(*net.TCPAddr).Port)}, ""},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		e := &endpoint{addr: tt.at.Addr().String(), dial: s.dial}
		pool := &Pool{}
		pool.members.Store(&members{})
		err := s.checks.ask(ctx, e, &tt.spec, checkProtocol(&tt.spec, ""), pool)
		cancel()
		got := fmt.Sprint(err)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || len(got) < len(tt.want) || got[:len(tt.want)] != tt.want) {
			t.Errorf("%+v: %v, want %q", tt.spec, err, tt.want)
		}
		if isDialError(err) != (tt.want == "connect to endpoint") {
			t.Errorf("%+v: is %v a failed connection?", tt.spec, err)
		}
	}
}

func TestCheckProtocol(t *testing.T) {
	for _, tt := range []struct {
		kind model.CheckKind
		tls  bool
		app  string
		want protocol
	}{
		{model.CheckHTTP, false, "", h1}, {model.CheckHTTP, true, "", https1}, {model.CheckHTTP, false, "https", https1},
		{model.CheckHTTP, false, "h2c", h2c}, {model.CheckHTTP, true, "h2c", h2}, {model.CheckHTTP, true, "https", https1},
		{model.CheckGRPC, false, "", h2c}, {model.CheckGRPC, true, "", h2}, {model.CheckGRPC, false, "https", h2}, {model.CheckGRPC, true, "grpcs", h2},
	} {
		if got := checkProtocol(&model.HealthCheck{Kind: tt.kind, TLS: tt.tls}, tt.app); got != tt.want {
			t.Errorf("%s, TLS %v, appProtocol %q: %v, want %v", tt.kind, tt.tls, tt.app, got, tt.want)
		}
	}
}

// TestThresholds: an endpoint is left out and comes back after so many checks
// in a row that agree.
func TestThresholds(t *testing.T) {
	var told []string
	s := NewSet(Options{OnHealth: func(_ Key, _ string, err error) { told = append(told, fmt.Sprint(err)) }})
	defer s.Close()
	e := &endpoint{addr: "a"}
	c := &check{checks: s.checks, pool: &Pool{}, endpoint: e}
	c.use(&model.HealthCheck{Interval: time.Hour, HealthyAfter: 2, UnhealthyAfter: 3}, h1)
	defer c.end()
	bad := errors.New("bad")
	for i, step := range []struct {
		err  error
		down bool
	}{{nil, false}, {bad, false}, {bad, false}, {nil, false}, {bad, false}, {bad, false}, {bad, true}, {nil, true}, {bad, true}, {nil, true}, {nil, false}} {
		c.ended(step.err)
		if e.down.Load() != step.down || e.healthy() == step.down || e.admits(time.Now(), true) == step.down {
			t.Errorf("step %d: down %v", i, e.down.Load())
		}
	}
	if got := fmt.Sprint(told); got != "[bad <nil>]" {
		t.Errorf("told %s", got)
	}
	for range 3 {
		c.ended(&DialError{"a", os.NewSyscallError("socket", syscall.EMFILE)})
	}
	if e.down.Load() {
		t.Error("left out because the gateway has no file for the check")
	}
	c.ended(bad)
	c.ended(bad)
	c.ended(&DialError{"a", bad})
	if !e.lost() {
		t.Error("not lost although no connection could be opened")
	}
	c.end()
	c.ended(bad) // of a check that was under way
	if e.down.Load() || e.lost() {
		t.Error("left out by a check that has ended")
	}
}

// TestPanic: where all endpoints are left out all get requests, those first
// that can be connected to.
func TestPanic(t *testing.T) {
	f := newFleet(t, "uid", 1, 2, 3)
	defer f.set.Close()
	list := f.pool.members.Load().endpoints
	for _, e := range list {
		e.down.Store(true)
	}
	list[1].downUnreached.Store(true)
	for _, c := range []*Choice{{}, {Balance: model.BalanceEWMA}, {Hashed: true, Hash: 7}} {
		got := map[*endpoint]int{}
		for range 30 {
			e, err := f.pool.pick(c, nil, time.Now())
			if err != nil || e == nil {
				t.Fatalf("nobody: %v", err)
			}
			got[e]++
		}
		if got[list[0]] == 0 || got[list[1]] != 0 || got[list[2]] == 0 {
			t.Errorf("%+v: %v", c, got)
		}
	}
	list[2].down.Store(false)
	for range 30 {
		if e, _ := f.pool.pick(&Choice{}, nil, time.Now()); e != list[2] {
			t.Fatal("an endpoint that is down got a request beside one that is well")
		}
	}
}

// TestChecksGoOn: changes of other endpoints, of routes and of the Service begin
// no check anew, and what is not in use is not checked.
func TestChecksGoOn(t *testing.T) {
	f := newFleet(t, "uid", 1, 2)
	defer f.set.Close()
	f.set.dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("none") }
	entry := f.set.pools[webKey]
	if len(entry.checks) != 0 {
		t.Fatalf("%d checks that nobody asked for", len(entry.checks))
	}
	spec := func(h *model.HealthCheck) {
		f.store.Update(func(tx *state.Tx) {
			svc, _ := f.store.Snapshot().Services.Get(webKey.Service)
			next := *svc
			next.Upstream = &model.ServiceUpstream{Health: h}
			tx.PutService(&next)
		})
		f.set.Sync(map[Key]struct{}{webKey: {}}, f.store.Snapshot())
	}
	hourly := func() *model.HealthCheck {
		return &model.HealthCheck{Interval: time.Hour, Timeout: time.Second, HealthyAfter: 1, UnhealthyAfter: 1}
	}
	spec(hourly())
	list := f.pool.members.Load().endpoints
	before := map[*endpoint]*check{}
	for _, e := range list {
		before[e] = entry.checks[e]
		if before[e] == nil {
			t.Fatal("an endpoint is not checked")
		}
		before[e].timer.Stop()
		before[e].ended(errors.New("bad"))
		before[e].timer.Stop()
	}
	spec(hourly())
	f.keep(hourly, []int{1, 2, 3}, []int{4}, []int{5})
	m := f.pool.members.Load()
	if len(m.others) != 2 || len(entry.checks) != 3 {
		t.Fatalf("%d checks of %d endpoints and %d others", len(entry.checks), len(m.endpoints), len(m.others))
	}
	for _, e := range list {
		if entry.checks[e] != before[e] || !e.down.Load() {
			t.Error("a check began anew")
		}
	}
	f.keep(hourly, []int{2}, nil, nil)
	if len(entry.checks) != 1 || !before[list[0]].stopped || before[list[1]].stopped {
		t.Errorf("%d checks are left", len(entry.checks))
	}
	spec(nil)
	if len(entry.checks) != 0 || list[1].down.Load() {
		t.Error("left out by checks that nobody asks for any more")
	}
	spec(hourly())
	c := entry.checks[list[1]]
	f.set.Sync(nil, f.store.Snapshot())
	if !c.stopped {
		t.Error("the check of a pool that is gone goes on")
	}
}

// keep changes endpoints and keeps the health check.
func (f *fleet) keep(h func() *model.HealthCheck, ready, draining, elsewhere []int) {
	f.health = h()
	f.change(ready, draining, elsewhere)
}
