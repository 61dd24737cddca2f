package dataplane_test

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"fairway.dev/fairway/internal/conntrack"
	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/dataplane/nft"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/state"
)

func logger(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// run runs a controller until the test ends.
func run(t *testing.T, o dataplane.Options) *dataplane.Controller {
	t.Helper()
	c, err := dataplane.NewController(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Errorf("controller: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return c
}

func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if fn() {
			return
		}
	}
	t.Fatal("waited in vain: ", what)
}

// TestFromStateToPackets drives the real data path from the store: a UDP
// client that keeps its socket is served by whoever serves, as endpoints come
// and go.
func TestFromStateToPackets(t *testing.T) {
	network := cases.NewNetwork(t)
	ns := int(network.Hosts["node-1"].Handle)
	dp, err := nft.New(nft.Options{Logger: logger(t), NetNS: ns})
	if err != nil {
		t.Fatal(err)
	}
	flows, err := conntrack.New(conntrack.Options{NetNS: ns})
	if err != nil {
		t.Fatal(err)
	}
	store := state.New()
	key := model.Key{Namespace: "ns", Name: "dns"}
	endpoints := func(tx *state.Tx, addrs ...string) {
		s := &model.EndpointSlice{Key: key, Service: key}
		for _, a := range addrs {
			s.Endpoints = append(s.Endpoints, model.Endpoint{
				Addr: netip.MustParseAddr(a), Ready: true, Serving: true, Node: "node-1", Ports: []model.EndpointPort{{Protocol: model.UDP, Port: 8080}},
			})
		}
		tx.PutSlice(s)
	}
	settings := network.Settings
	settings.LocalPods = nil // the Node tells
	c := run(t, dataplane.Options{Store: store, Logger: logger(t), NodeName: "node-1", Dataplane: dp, Flows: flows, Settings: settings})

	vip := netip.MustParseAddrPort("10.96.0.10:53")
	client, err := network.Hosts["pod-a"].Dial(t.Context(), "udp", netip.AddrPort{}, vip)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ask := func() string {
		_ = client.SetDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := client.Write([]byte("?")); err != nil {
			return ""
		}
		buf := make([]byte, 100)
		n, err := client.Read(buf)
		if err != nil || n < 5 {
			return ""
		}
		return string(buf[:5])
	}
	if got := ask(); got != "" {
		t.Fatalf("before there is a Service %q answered", got)
	}
	select {
	case <-c.Loaded():
		t.Error("loaded before anything is known")
	default:
	}
	store.Update(func(tx *state.Tx) {
		tx.PutNode(network.Node1)
		tx.PutService(&model.Service{
			Key: key, IPv4: true, ClusterIPs: []netip.Addr{vip.Addr()}, Ports: []model.ServicePort{{Protocol: model.UDP, Port: 53}},
		})
		endpoints(tx, "10.244.0.3")
		tx.SetSynced()
	})
	<-c.Loaded()
	eventually(t, "the first endpoint", func() bool { return ask() == "pod-b" })
	store.Update(func(tx *state.Tx) { endpoints(tx, "10.244.1.2") })
	eventually(t, "the other endpoint", func() bool { return ask() == "pod-c" })
	if s := c.Status(); !s.Ready || s.Objects != 1 || s.Failing != 0 {
		t.Errorf("status %+v", s)
	}
	store.Update(func(tx *state.Tx) { endpoints(tx) })
	eventually(t, "nobody", func() bool { return ask() == "" })
	store.Update(func(tx *state.Tx) { endpoints(tx, "10.244.0.3") })
	eventually(t, "the first endpoint again", func() bool { return ask() == "pod-b" })
	a, err := network.Hosts["pod-a"].Ask("udp", netip.AddrPort{}, vip, time.Second)
	if err != nil || a.Client.Addr() != netip.MustParseAddr("10.244.0.2") {
		t.Errorf("the endpoint sees %v, %v", a, err)
	}
	store.Update(func(tx *state.Tx) { tx.DeleteService(key) })
	eventually(t, "refusal", func() bool {
		_, err := network.Hosts["pod-a"].Ask("udp", netip.AddrPort{}, vip, time.Second)
		var timeout net.Error
		return err != nil && !(errors.As(err, &timeout) && timeout.Timeout())
	})
}

// fake is a data path that fails as it is told.
type fake struct {
	mu       sync.Mutex
	nodes    []dataplane.Node
	failNode int
	failKey  model.Key
	taken    model.Key
	verified int
}

func (f *fake) Apply(ctx context.Context, changes []reconcile.Change[model.Key, plan.Service]) map[model.Key]error {
	f.mu.Lock()
	defer f.mu.Unlock()
	failed := map[model.Key]error{}
	for _, c := range changes {
		if c.Key == f.failKey {
			failed[c.Key] = errors.New("refused")
		}
		if c.Key == f.taken {
			failed[c.Key] = &dataplane.TakenError{Service: c.Key}
		}
	}
	return failed
}

func (f *fake) Prune(context.Context, iter.Seq2[model.Key, plan.Service]) error { return nil }

func (f *fake) SetNode(ctx context.Context, n dataplane.Node) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failNode > 0 {
		f.failNode--
		return errors.New("not now")
	}
	f.nodes = append(f.nodes, n)
	return nil
}

func (f *fake) Verify(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.verified++
	return errors.New("somebody was here")
}

// shaken is a data path that somebody disturbs now and then; Verify repairs it.
type shaken struct {
	fake
	glances   int
	disturbed bool
}

func (s *shaken) Disturbed() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.glances++; s.glances < 3 {
		return false, errors.New("the kernel does not say")
	}
	return s.disturbed, nil
}

func (s *shaken) Verify(ctx context.Context) error {
	err := s.fake.Verify(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disturbed = false
	return err
}

// TestDisturbed checks that a data path is verified when somebody disturbs it, and
// not before.
func TestDisturbed(t *testing.T) {
	dp := &shaken{}
	run(t, dataplane.Options{Store: state.New(), Logger: logger(t), NodeName: "node-1", Dataplane: dp, VerifyEvery: time.Hour, GlanceEvery: time.Millisecond})
	looked := func(glances int) func() bool {
		return func() bool { dp.mu.Lock(); defer dp.mu.Unlock(); return dp.glances > glances && !dp.disturbed }
	}
	eventually(t, "a look at the data path", looked(10))
	dp.mu.Lock()
	if dp.verified != 0 {
		t.Errorf("verified %d times, though nobody was here", dp.verified)
	}
	dp.disturbed = true
	glances := dp.glances
	dp.mu.Unlock()
	eventually(t, "the repair", looked(glances+10))
	dp.mu.Lock()
	defer dp.mu.Unlock()
	if dp.verified != 1 {
		t.Errorf("verified %d times after it was disturbed once", dp.verified)
	}
}

func (f *fake) Pulse(time.Duration, []uint64, []netip.AddrPort) error { return nil }

// told remembers which Services' flows were looked at.
type told struct {
	mu   sync.Mutex
	keys []string
	// calls is how often, and again how often without changes; the first ones fail.
	failing, calls, again int
}

func (f *told) Changed(ctx context.Context, changes []reconcile.Change[model.Key, plan.Service]) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range changes {
		f.keys = append(f.keys, c.Key.Name)
	}
	if f.calls++; len(changes) == 0 {
		f.again++
	}
	if f.calls <= f.failing {
		return errors.New("no conntrack")
	}
	return nil
}

func TestController(t *testing.T) {
	proxy := []netip.AddrPort{netip.MustParseAddrPort("10.245.0.1:443")}
	pods := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}
	dp, flows, store := &fake{failNode: 1, failKey: model.Key{Name: "bad"}, taken: model.Key{Name: "late"}}, &told{failing: 3}, state.New()
	var failures sync.Map
	run(t, dataplane.Options{
		Store: store, Logger: logger(t), NodeName: "node-1", Dataplane: dp, Flows: flows, Plan: plan.Options{TLSProxy: proxy},
		VerifyEvery: time.Millisecond,
		Failed: func(errs map[model.Key]error) {
			for k, err := range errs {
				failures.Store(k.Name, err)
			}
		},
	})
	store.Update(func(tx *state.Tx) {
		for _, name := range []string{"good", "bad", "late"} {
			tx.PutService(&model.Service{Key: model.Key{Name: name}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []model.ServicePort{{Port: 1, Protocol: model.TCP}}})
		}
		tx.PutNode(&model.Node{Name: "node-1", PodCIDRs: pods})
		tx.SetSynced()
	})
	eventually(t, "a failure to be told", func() bool { _, ok := failures.Load("bad"); return ok })
	eventually(t, "settings after a failure", func() bool { dp.mu.Lock(); defer dp.mu.Unlock(); return len(dp.nodes) == 1 })
	eventually(t, "verification", func() bool { dp.mu.Lock(); defer dp.mu.Unlock(); return dp.verified > 2 })
	store.Update(func(tx *state.Tx) { tx.PutNode(&model.Node{Name: "node-1", PodCIDRs: pods, Zone: "elsewhere"}) })
	others := []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("10.244.2.0/24")}
	store.Update(func(tx *state.Tx) {
		tx.PutNode(&model.Node{Name: "node-1"})
		tx.PutNode(&model.Node{Name: "node-3", PodCIDRs: others[1:]})
		tx.PutNode(&model.Node{Name: "node-2", PodCIDRs: others[:1]})
	})
	eventually(t, "settings after a change", func() bool { dp.mu.Lock(); defer dp.mu.Unlock(); return len(dp.nodes) == 2 })
	dp.mu.Lock()
	defer dp.mu.Unlock()
	want := []dataplane.Node{{LocalPods: pods, TLSProxy: proxy}, {Cluster: others, TLSProxy: proxy}}
	if !dp.nodes[0].Equal(want[0]) || !dp.nodes[1].Equal(want[1]) {
		t.Errorf("settings %v, want %v", dp.nodes, want)
	}
	eventually(t, "flows to be looked at until it succeeds", func() bool {
		flows.mu.Lock()
		defer flows.mu.Unlock()
		return flows.calls > flows.failing && flows.again > 0
	})
	flows.mu.Lock()
	defer flows.mu.Unlock()
	if slices.Contains(flows.keys, "bad") {
		t.Error("flows of a Service were looked at before it was programmed")
	}
	for _, name := range []string{"good", "late"} {
		if !slices.Contains(flows.keys, name) {
			t.Errorf("nobody looked at the flows of %q", name)
		}
	}
}

func TestControllerOptions(t *testing.T) {
	if _, err := dataplane.NewController(dataplane.Options{}); err == nil {
		t.Error("no error without options")
	}
}
