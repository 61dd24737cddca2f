package upstream

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

func TestProtocolOf(t *testing.T) {
	tests := []struct {
		asked model.BackendProtocol
		app   string
		want  protocol
	}{
		{model.BackendAuto, "", h1},
		{model.BackendAuto, "http", h1},
		{model.BackendAuto, "kubernetes.io/ws", h1},
		{model.BackendAuto, "kubernetes.io/wss", https1},
		{model.BackendAuto, "HTTPS", https1},
		{model.BackendAuto, "kubernetes.io/h2c", h2c},
		{model.BackendAuto, "grpc", h2c},
		{model.BackendAuto, "grpcs", h2},
		{model.BackendAuto, "example.com/own", h1},
		{model.BackendHTTP, "https", h1},
		{model.BackendHTTPS, "", https1},
		{model.BackendH2C, "", h2c},
		{model.BackendGRPC, "https", h2c},
		{model.BackendGRPCS, "", h2},
	}
	for _, tt := range tests {
		if got := protocolOf(tt.asked, tt.app); got != tt.want {
			t.Errorf("protocolOf(%d, %q) = %d, want %d", tt.asked, tt.app, got, tt.want)
		}
	}
}

var webKey = Key{Service: model.Key{Namespace: "ns", Name: "web"}, Port: model.PortRef{Name: "http"}, Protocol: model.TCP}

func put(store *state.Store, ports []model.ServicePort, addrs ...string) *state.Snapshot {
	store.Update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: webKey.Service, Ports: ports})
		var list []model.Endpoint
		for _, a := range addrs {
			list = append(list, model.Endpoint{Addr: netip.MustParseAddr(a), Ready: true, Serving: true,
				Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}})
		}
		tx.PutSlice(&model.EndpointSlice{Key: webKey.Service, Service: webKey.Service, Endpoints: list})
	})
	return store.Snapshot()
}

var httpPort = []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}

func TestSyncKeepsWhatStays(t *testing.T) {
	store := state.New()
	keys := map[Key]struct{}{webKey: {}}
	s := NewSet(Options{})
	s.Sync(keys, store.Snapshot())
	p := s.Pool(webKey)
	if !errors.Is(p.Err(), ErrNoService) {
		t.Errorf("no Service: %v", p.Err())
	}
	s.Sync(keys, put(store, nil))
	if !errors.Is(p.Err(), ErrNoPort) {
		t.Errorf("no port: %v", p.Err())
	}
	s.Sync(keys, put(store, httpPort))
	if !errors.Is(p.Err(), ErrNoEndpoints) {
		t.Errorf("no endpoints: %v", p.Err())
	}
	s.Sync(keys, put(store, httpPort, "10.0.0.1", "10.0.0.2"))
	first := p.members.Load().endpoints
	first[1].unreachable(time.Now(), time.Now())
	s.Sync(keys, put(store, httpPort, "10.0.0.2", "10.0.0.3"))
	second := p.members.Load().endpoints
	if second[0] != first[1] || second[0].healthy() {
		t.Error("an endpoint that stays lost its state")
	}
	if !first[0].removed.Load() || first[1].removed.Load() {
		t.Error("the endpoint that left is not marked, or the one that stays is")
	}
	if d := cmp.Diff([]string{"10.0.0.2:8080", "10.0.0.3:8080"}, p.Addresses()); d != "" {
		t.Error(d)
	}
	s.Sync(nil, store.Snapshot())
	if s.Pool(webKey) != nil || !second[0].removed.Load() {
		t.Error("a pool that nobody wants is still there")
	}
	if e, err := p.pick(&Choice{}, nil, time.Now()); e == nil || err != nil {
		t.Errorf("who was sent to the pool before that is not served: %v", err)
	}
}

func TestPick(t *testing.T) {
	store := state.New()
	s := NewSet(Options{})
	s.Sync(map[Key]struct{}{webKey: {}}, put(store, httpPort, "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"))
	p, now := s.Pool(webKey), time.Now()
	all := p.members.Load().endpoints
	counts := map[*endpoint]int{}
	for range 400 {
		e, err := p.pick(&Choice{}, nil, now)
		if err != nil {
			t.Fatal(err)
		}
		counts[e]++
	}
	for _, e := range all {
		if counts[e] != 100 {
			t.Errorf("idle endpoints are not taken in turns: %v", counts)
		}
	}
	// A loaded endpoint gets less.
	all[0].inflight.Store(50)
	clear(counts)
	for range 400 {
		e, _ := p.pick(&Choice{}, nil, now)
		counts[e]++
	}
	if counts[all[0]] > 60 {
		t.Errorf("a loaded endpoint got %d of 400", counts[all[0]])
	}
	// An ejected one gets nothing until its time is over.
	all[1].unreachable(now, now)
	for range 100 {
		if e, _ := p.pick(&Choice{}, nil, now); e == all[1] {
			t.Fatal("an ejected endpoint was picked")
		}
	}
	found := false
	for range 100 {
		e, _ := p.pick(&Choice{Repeatable: true}, nil, now.Add(ejectMin+time.Millisecond))
		found = found || e == all[1]
	}
	if !found {
		t.Error("an endpoint stays ejected for ever")
	}
	// With all ejected there is still one to try, and tried ones are left out.
	for _, e := range all {
		e.unreachable(now, now)
	}
	var tried []*endpoint
	for range all {
		e, err := p.pick(&Choice{}, tried, now)
		if e == nil || err != nil {
			t.Fatalf("nothing to try after %d: %v", len(tried), err)
		}
		tried = append(tried, e)
	}
	if e, _ := p.pick(&Choice{}, tried, now); e != nil {
		t.Error("picked one that was tried")
	}
}

func TestExplain(t *testing.T) {
	store := state.New()
	if reason, text := Explain(webKey, store.Snapshot()); reason != "ServiceNotFound" || !strings.Contains(text, "ns/web does not exist") {
		t.Errorf("%s: %s", reason, text)
	}
	snap := put(store, []model.ServicePort{{Name: "web", Port: 80, Protocol: model.TCP}, {Name: "dns", Port: 53, Protocol: model.UDP}})
	if reason, text := Explain(webKey, snap); reason != "ServicePortNotFound" || !strings.Contains(text, "no port http/TCP, it has 80/TCP (web), 53/UDP (dns)") {
		t.Errorf("%s: %s", reason, text)
	}
	byNumber := webKey
	byNumber.Port = model.PortRef{Number: 80}
	if reason, text := Explain(byNumber, snap); reason != "" {
		t.Errorf("%s: %s", reason, text)
	}
	if _, text := Explain(webKey, put(store, nil)); !strings.Contains(text, "it has no others") {
		t.Errorf("%s", text)
	}
}

func TestBodyIsReadByOneAttempt(t *testing.T) {
	dog := newWatchdog(func(error) {}, 0, 0)
	s := &source{inner: io.NopCloser(strings.NewReader("payload"))}
	first, err := s.next(dog)
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.next(dog)
	if err != nil {
		t.Fatal("nothing was read yet, and there is no second attempt")
	}
	if _, err := first.Read(make([]byte, 3)); !errors.Is(err, errBodyGone) {
		t.Errorf("the attempt that was given up reads on: %v", err)
	}
	if data, err := io.ReadAll(second); err != nil || string(data) != "payload" {
		t.Errorf("got %q, %v", data, err)
	}
	if _, err := s.next(dog); !errors.Is(err, errBodyGone) {
		t.Errorf("a third attempt may read the rest: %v", err)
	}
	if s.untouched() {
		t.Error("a body that was read counts as untouched")
	}
}

// TestAnswerBeforeBody: the end of a request's body begins no wait for an answer
// that has begun already, be it that its client is slow to take it.
func TestAnswerBeforeBody(t *testing.T) {
	for answered, want := range map[bool]bool{false: true, true: false} {
		dog := newWatchdog(func(error) {}, time.Hour, time.Hour)
		body, err := (&source{inner: io.NopCloser(strings.NewReader("x"))}).next(dog)
		if err != nil {
			t.Fatal(err)
		}
		if answered {
			dog.answered()
		}
		_, _ = io.ReadAll(body)
		if waits := dog.reading != nil && dog.reading.Stop(); waits != want {
			t.Errorf("answered %t: the answer is waited for: %t", answered, waits)
		}
		dog.stop()
	}
}

func TestDialError(t *testing.T) {
	store := state.New()
	var failures int
	s := NewSet(Options{ConnectTimeout: time.Second, OnFailure: func(Key, string, string) { failures++ }})
	store.Update(func(tx *state.Tx) {
		tx.PutService(&model.Service{Key: webKey.Service, Type: model.ExternalName, ExternalName: "localhost", Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 1}}})
	})
	s.Sync(map[Key]struct{}{webKey: {}}, store.Snapshot())
	_, err := s.Pool(webKey).Dial(context.Background(), "tcp")
	var dial *DialError
	if !errors.As(err, &dial) || dial.Endpoint != "localhost:1" || failures != 1 {
		t.Errorf("got %v after %d failures", err, failures)
	}
}
