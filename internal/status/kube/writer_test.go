package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"fairway.dev/fairway/internal/lb/ipam"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

var ctx = context.Background()

func key(name string) model.Key { return model.Key{Namespace: "default", Name: name} }

func service(name string) *model.Service {
	return &model.Service{Key: key(name), UID: "uid-" + name, Type: model.LoadBalancer, IPv4: true, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}}
}

func apiService(name string, addrs ...string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
	for _, a := range addrs {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
	}
	return s
}

func pool(t *testing.T, s string) *ipam.Options {
	t.Helper()
	o, err := ipam.ParseFlag(s)
	if err != nil {
		t.Fatal(err)
	}
	return &o
}

// clock is a time to set.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

type fixture struct {
	*testing.T
	client *fake.Clientset
	store  *state.Store
	clock  *clock
}

func newFixture(t *testing.T, objects ...runtime.Object) *fixture {
	t.Helper()
	return &fixture{T: t, client: fake.NewClientset(objects...), store: state.New(), clock: &clock{at: time.Now()}}
}

func (f *fixture) put(fn func(tx *state.Tx)) {
	f.store.Update(func(tx *state.Tx) { fn(tx); tx.SetSynced() })
}

// run starts a writer; the function returned stops it and waits for its end.
func (f *fixture) run(o Options) (*Writer, func()) {
	f.Helper()
	o.Client, o.Store, o.Now = f.client, f.store, f.clock.now
	if o.Settle == 0 {
		o.Settle = time.Millisecond
	}
	o.Logger = slog.New(slog.DiscardHandler)
	o.Lease = model.Key{Namespace: "kube-system", Name: "fairway-test"}
	if o.Identity == "" {
		o.Identity = "a"
	}
	if o.LeaseDuration == 0 {
		o.LeaseDuration = 2 * time.Second
	}
	w, err := New(o)
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				f.Errorf("Run: %v", err)
			}
		})
	}
	f.Cleanup(stop)
	return w, stop
}

func (f *fixture) eventually(what string, ok func() bool) {
	f.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.Fatalf("not reached: %s", what)
		}
	}
}

// serviceAddrs are the addresses in the status of a Service in the API.
func (f *fixture) serviceAddrs(name string) string {
	f.Helper()
	s, err := f.client.CoreV1().Services("default").Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	var out []string
	for _, in := range s.Status.LoadBalancer.Ingress {
		mode := "none"
		if in.IPMode != nil {
			mode = string(*in.IPMode)
		}
		out = append(out, in.IP+" "+mode)
	}
	return strings.Join(out, ", ")
}

func (f *fixture) ingressAddrs(name string) string {
	f.Helper()
	in, err := f.client.NetworkingV1().Ingresses("default").Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	var out []string
	for _, a := range in.Status.LoadBalancer.Ingress {
		out = append(out, a.IP)
	}
	return strings.Join(out, ", ")
}

func (f *fixture) events() []corev1.Event {
	f.Helper()
	list, err := f.client.CoreV1().Events("").List(ctx, metav1.ListOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return list.Items
}

func TestServiceAddresses(t *testing.T) {
	f := newFixture(t, apiService("old", "192.0.2.1"), apiService("new"), apiService("late"), apiService("foreign", "203.0.113.9"))
	f.put(func(tx *state.Tx) {
		// The snapshot lags behind: it has not seen the address of "old" yet.
		tx.PutService(service("old"))
		tx.PutService(service("new"))
		foreign := service("foreign")
		foreign.LoadBalancer.Class = "example.com/other"
		tx.PutService(foreign)
	})
	f.run(Options{Addresses: pool(t, "192.0.2.0/30")})
	f.eventually("address of new", func() bool { return f.serviceAddrs("new") == "192.0.2.2 VIP" })
	f.eventually("address of old", func() bool { return f.serviceAddrs("old") == "192.0.2.1 VIP" })
	if got := f.serviceAddrs("foreign"); got != "203.0.113.9 none" {
		t.Errorf("another class has %s", got)
	}

	f.put(func(tx *state.Tx) {
		s := service("old")
		s.Type = model.ClusterIP
		tx.PutService(s)
		tx.PutService(service("late"))
		n := service("new")
		n.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: netip.MustParseAddr("192.0.2.2")}}
		tx.PutService(n)
	})
	f.eventually("the address that came free", func() bool { return f.serviceAddrs("late") == "192.0.2.1 VIP" })

	f.put(func(tx *state.Tx) {
		n := service("new")
		n.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: netip.MustParseAddr("192.0.2.2")}}
		n.LoadBalancer.Requested = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
		tx.PutService(n)
	})
	f.eventually("the address taken back", func() bool { return f.serviceAddrs("new") == "" })
}

func TestFailedWritesAreTriedAgain(t *testing.T) {
	f := newFixture(t, apiService("a"))
	var failures atomic.Int32
	f.client.PrependReactor("patch", "services", func(k8stesting.Action) (bool, runtime.Object, error) {
		return failures.Add(1) <= 2, nil, errors.New("no connection")
	})
	f.put(func(tx *state.Tx) { tx.PutService(service("a")) })
	f.run(Options{Addresses: pool(t, "192.0.2.0/30")})
	f.eventually("address", func() bool { return f.serviceAddrs("a") == "192.0.2.1 VIP" })
}

// TestAServiceThatIsNeverTaken: one whose status the API refuses for good, such as
// for a webhook, keeps no other Service waiting for its address.
func TestAServiceThatIsNeverTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, apiService("a"), apiService("b"))
		var tries atomic.Int32
		f.client.PrependReactor("patch", "services", func(a k8stesting.Action) (bool, runtime.Object, error) {
			if a.(k8stesting.PatchAction).GetName() != "a" {
				return false, nil, nil
			}
			tries.Add(1)
			return true, nil, apierrors.NewInternalError(errors.New("failed calling webhook"))
		})
		f.put(func(tx *state.Tx) { tx.PutService(service("a")) })
		_, stop := f.run(Options{Addresses: pool(t, "192.0.2.0/29"), LeaseDuration: time.Hour})
		time.Sleep(10 * time.Minute)
		f.put(func(tx *state.Tx) { tx.PutService(service("b")) })
		time.Sleep(time.Second)
		if f.serviceAddrs("b") == "" {
			t.Error("no address after a second")
		}
		before := tries.Load()
		time.Sleep(10 * time.Minute)
		if again := tries.Load() - before; again < 10 || again > 40 {
			t.Errorf("%d tries in 10 minutes, want one each half a minute", again)
		}
		stop()
	})
}

func TestGoneServicesAreNoError(t *testing.T) {
	f := newFixture(t, apiService("b"))
	f.put(func(tx *state.Tx) { tx.PutService(service("gone")); tx.PutService(service("b")) })
	w, _ := f.run(Options{Addresses: pool(t, "192.0.2.0/30")})
	f.eventually("address", func() bool { return f.serviceAddrs("b") != "" })
	if err := w.sync(ctx, f.store.Snapshot()); err != nil {
		t.Errorf("a Service that was deleted is an error: %v", err)
	}
}

func ingress(name string, addrs ...string) *networkingv1.Ingress {
	in := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)}}
	for _, a := range addrs {
		in.Status.LoadBalancer.Ingress = append(in.Status.LoadBalancer.Ingress, networkingv1.IngressLoadBalancerIngress{IP: a})
	}
	return in
}

func ref(name string) model.Ref {
	return model.Ref{Kind: "Ingress", Key: key(name), UID: "uid-" + name}
}

func TestIngressAddresses(t *testing.T) {
	mine := ingress("was-ours", "192.0.2.99")
	mine.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: FieldManager, Operation: metav1.ManagedFieldsOperationUpdate, Subresource: "status"}}
	f := newFixture(t, ingress("http"), ingress("tcp"), ingress("right", "192.0.2.1", "2001:db8::1"), ingress("other", "203.0.113.7"), mine)
	f.put(func(tx *state.Tx) {
		tx.PutRoute(&model.Route{Ref: ref("http")})
		tx.PutRoute(&model.Route{Ref: ref("right")})
		tx.PutStreams(ref("tcp"), []model.StreamRoute{{Ref: ref("tcp")}})
	})
	f.run(Options{Publish: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}})
	const want = "192.0.2.1, 2001:db8::1"
	f.eventually("HTTP", func() bool { return f.ingressAddrs("http") == want })
	f.eventually("TCP", func() bool { return f.ingressAddrs("tcp") == want })
	f.eventually("ours of before", func() bool { return f.ingressAddrs("was-ours") == "" })
	if got := f.ingressAddrs("other"); got != "203.0.113.7" {
		t.Errorf("an Ingress of another controller has %q", got)
	}
	for _, a := range f.client.Actions() {
		if p, ok := a.(k8stesting.PatchAction); ok && p.GetName() == "right" {
			t.Error("a status that is right was written again")
		}
	}
	f.put(func(tx *state.Tx) { tx.DeleteRoute(ref("http")) })
	f.eventually("taken back", func() bool { return f.ingressAddrs("http") == "" })
}

// TestIngressThatGoesToAnotherController: what the one that serves it now has
// written is not taken back, whether before or while Fairway looks.
func TestIngressThatGoesToAnotherController(t *testing.T) {
	f := newFixture(t, ingress("early"), ingress("late"), ingress("nobody"))
	names := []string{"early", "late", "nobody"}
	f.put(func(tx *state.Tx) {
		for _, n := range names {
			tx.PutRoute(&model.Route{Ref: ref(n)})
		}
	})
	f.run(Options{Publish: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	for _, n := range names {
		f.eventually("ours", func() bool { return f.ingressAddrs(n) == "192.0.2.1" })
	}
	ingresses := schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "ingresses"}
	theirs := func(name string) { // not by the client, which is held while a reactor is at work
		if err := f.client.Tracker().Update(ingresses, ingress(name, "203.0.113.7"), "default"); err != nil {
			t.Error(err)
		}
	}
	theirs("early")
	var once sync.Once
	f.client.PrependReactor("patch", "ingresses", func(a k8stesting.Action) (conflict bool, _ runtime.Object, err error) {
		p := a.(k8stesting.PatchAction)
		if p.GetName() != "late" {
			return false, nil, nil
		}
		// As the API does: a patch of a version that another has followed is refused.
		once.Do(func() { conflict = strings.Contains(string(p.GetPatch()), "resourceVersion"); theirs("late") })
		return conflict, nil, apierrors.NewConflict(schema.GroupResource{Resource: "ingresses"}, "late", errors.New("the object has been modified"))
	})
	late := ingress("late", "192.0.2.1")
	late.ResourceVersion = "7" // a fake API gives none
	if err := f.client.Tracker().Update(ingresses, late, "default"); err != nil {
		t.Fatal(err)
	}
	f.put(func(tx *state.Tx) {
		for _, n := range names {
			tx.DeleteRoute(ref(n))
		}
	})
	f.eventually("the address of the one that nobody serves taken back", func() bool { return f.ingressAddrs("nobody") == "" })
	f.eventually("the version of the other's first write", func() bool { return f.ingressAddrs("late") == "203.0.113.7" })
	time.Sleep(300 * time.Millisecond) // longer than the first try again waits
	for _, n := range []string{"early", "late"} {
		if got := f.ingressAddrs(n); got != "203.0.113.7" {
			t.Errorf("%s of another controller has %q", n, got)
		}
	}
}

func TestIngressAddressesOfAService(t *testing.T) {
	f := newFixture(t, ingress("in"))
	gateway := service("gateway")
	f.put(func(tx *state.Tx) { tx.PutRoute(&model.Route{Ref: ref("in")}); tx.PutService(gateway) })
	f.run(Options{PublishService: gateway.Key})
	f.put(func(tx *state.Tx) {
		s := *gateway
		s.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: netip.MustParseAddr("192.0.2.5")}}
		tx.PutService(&s)
	})
	f.eventually("address", func() bool { return f.ingressAddrs("in") == "192.0.2.5" })
}

func problem(name, message string) model.Problem {
	return model.Problem{Object: model.Ref{Kind: "Service", Key: key(name), UID: "uid-" + name}, Reason: "InvalidValue", Field: "spec.x", Message: message}
}

func TestEvents(t *testing.T) {
	f := newFixture(t)
	row := model.Ref{Kind: "Service", Key: key("a")}
	set := func(p ...model.Problem) { f.put(func(tx *state.Tx) { tx.PutProblems(row, p) }) }
	set(problem("a", "first"))
	f.put(func(tx *state.Tx) {
		tx.PutRoute(&model.Route{Ref: ref("in"), Rules: []model.RouteRule{{Field: "spec.rules[0]", Backends: []model.WeightedBackend{{Backend: model.Backend{Service: key("gone"), Port: model.PortRef{Number: 80}}}}}}})
	})
	w, _ := f.run(Options{Events: true})
	f.eventually("two Events", func() bool { return len(f.events()) == 2 })
	var got []string
	for _, e := range f.events() {
		got = append(got, fmt.Sprintf("%s %s/%s %s %s: %s", e.Type, e.InvolvedObject.APIVersion, e.InvolvedObject.Kind, e.InvolvedObject.UID, e.Reason, e.Message))
	}
	want := []string{
		"Warning v1/Service uid-a InvalidValue: spec.x: first",
		"Warning networking.k8s.io/v1/Ingress uid-in ServiceMissing: spec.rules[0]: Service default/gone does not exist; create it, or correct the name. Requests for it are answered with 503 until then",
	}
	if diff := cmp.Diff(want, got, cmp.Transformer("sort", func(in []string) map[string]bool {
		out := map[string]bool{}
		for _, s := range in {
			out[s] = true
		}
		return out
	})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	creates := func() int {
		n := 0
		for _, a := range f.client.Actions() {
			if a.Matches("create", "events") || a.Matches("patch", "events") {
				n++
			}
		}
		return n
	}
	// A resync writes nothing.
	before := creates()
	for range 3 {
		if err := w.sync(ctx, f.store.Snapshot()); err != nil {
			t.Fatal(err)
		}
	}
	set(problem("a", "first"), problem("a", "second"))
	f.eventually("third Event", func() bool { return len(f.events()) == 3 })
	if n := creates(); n != before+1 {
		t.Errorf("%d writes for one new problem", n-before)
	}

	// Cured and back soon: the same Event, not another one.
	set()
	time.Sleep(500 * time.Millisecond) // longer than changes are collected
	set(problem("a", "first"))
	f.eventually("seen again", func() bool { return creates() > before+1 })
	if n := len(f.events()); n != 3 {
		t.Errorf("%d Events, want 3", n)
	}

	// A problem that lasts is renewed before its Event is dropped.
	f.clock.advance(renewAfter + time.Minute)
	if err := w.sync(ctx, f.store.Snapshot()); err != nil {
		t.Fatal(err)
	}
	f.eventually("renewed", func() bool {
		for _, e := range f.events() {
			if e.Message == "spec.x: first" && e.Count == 2 && e.LastTimestamp.Time.Equal(f.clock.now().Truncate(time.Second)) {
				return true
			}
		}
		return false
	})
}

// TestAdvice: what could be better is said once, and not as a warning.
func TestAdvice(t *testing.T) {
	f := newFixture(t)
	advice := problem("a", "could be better")
	advice.Severity = model.Advice
	f.put(func(tx *state.Tx) {
		tx.PutProblems(model.Ref{Kind: "Service", Key: key("a")}, model.Problems{advice, problem("a", "is wrong")})
	})
	w, _ := f.run(Options{Events: true})
	f.eventually("both are said", func() bool { return len(f.events()) == 2 })
	f.clock.advance(renewAfter + time.Minute)
	if err := w.sync(ctx, f.store.Snapshot()); err != nil {
		t.Fatal(err)
	}
	count := func(severity string) (n int32) {
		for _, e := range f.events() {
			if e.Type == severity {
				n += e.Count
			}
		}
		return n
	}
	f.eventually("the warning is renewed", func() bool { return count("Warning") == 2 })
	if n := count("Normal"); n != 1 {
		t.Errorf("the advice was given %d times", n)
	}
}

// TestEventsSettle: what comes in one apply is no problem for being there one
// after the other.
func TestEventsSettle(t *testing.T) {
	f := newFixture(t)
	e := newEvents(f.client, slog.New(slog.DiscardHandler), time.Now, time.Hour)
	passing, lasting := problem("a", "passing"), problem("a", "lasting")
	write := func(p ...model.Problem) time.Duration {
		t.Helper()
		again, err := e.write(ctx, map[model.Ref]model.Problems{passing.Object: p})
		if err != nil {
			t.Fatal(err)
		}
		return again
	}
	if again := write(passing, lasting); again <= 0 || again > time.Hour || len(f.events()) > 0 {
		t.Errorf("again in %v, Events %v", again, f.events())
	}
	e.since[lasting] = e.since[lasting].Add(-2 * time.Hour)
	if again := write(lasting); again != 0 || len(f.events()) != 1 || f.events()[0].Message != "spec.x: lasting" {
		t.Errorf("again in %v, Events %v", again, f.events())
	}
	if again := write(passing, lasting); again <= 0 || len(f.events()) != 1 {
		t.Errorf("one that has come back: again in %v, Events %v", again, f.events())
	}
}

func TestEventsThatFail(t *testing.T) {
	f := newFixture(t)
	var calls atomic.Int32
	f.client.PrependReactor("create", "events", func(a k8stesting.Action) (bool, runtime.Object, error) {
		switch {
		case a.GetNamespace() == "doomed":
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "x", errors.New("namespace is being terminated"))
		case calls.Add(1) == 1:
			return true, nil, errors.New("no connection")
		}
		return false, nil, nil
	})
	doomed := model.Problem{Object: model.Ref{Kind: "Service", Key: model.Key{Namespace: "doomed", Name: "x"}}, Reason: "R", Message: "m"}
	f.put(func(tx *state.Tx) {
		tx.PutProblems(doomed.Object, model.Problems{doomed})
		tx.PutProblems(problem("a", "").Object, model.Problems{problem("a", "m")})
	})
	f.run(Options{Events: true})
	f.eventually("the Event that can be written", func() bool { return len(f.events()) == 1 })
}

// TestEventsThatAreNeverTaken: the webhook of one namespace keeps the Events of no
// other back, however many of its own it refuses.
func TestEventsThatAreNeverTaken(t *testing.T) {
	f := newFixture(t)
	var refuse atomic.Bool
	refuse.Store(true)
	f.client.PrependReactor("create", "events", func(a k8stesting.Action) (bool, runtime.Object, error) {
		return a.GetNamespace() == "awkward" && refuse.Load(), nil, apierrors.NewInternalError(errors.New("failed calling webhook"))
	})
	e := newEvents(f.client, slog.New(slog.DiscardHandler), time.Now, 0)
	problems := map[model.Ref]model.Problems{}
	put := func(p model.Problem) { problems[p.Object] = model.Problems{p} }
	for i := range 2*failuresInARow + 1 {
		put(model.Problem{Object: model.Ref{Kind: "Service", Key: model.Key{Namespace: "awkward", Name: fmt.Sprint("s", i)}}, Reason: "R", Message: "m"})
	}
	put(problem("z", "m"))
	rounds := func(n int) {
		t.Helper()
		for range n {
			if _, err := e.write(ctx, problems); err == nil {
				t.Fatal("no error of the Events that are refused")
			}
		}
	}
	rounds(3)
	if got := len(f.events()); got != 1 {
		t.Fatalf("%d Events, want that of the other namespace", got)
	}
	rounds(3)
	refuse.Store(false)
	if _, err := e.write(ctx, problems); err != nil {
		t.Error(err)
	}
	if got, want := len(f.events()), len(problems); got != want {
		t.Errorf("%d Events of %d once they are taken", got, want)
	}
}

func TestEventOf(t *testing.T) {
	long := model.Problem{Object: model.Ref{Kind: "Node", Key: model.Key{Name: strings.Repeat("n", 250)}}, Reason: "R", Message: strings.Repeat("ü", 1000)}
	e := eventOf(long, time.Now())
	if e.Namespace != "default" || len(e.Name) > 253 || len(e.Message) > maxMessage || !strings.HasSuffix(e.Message, "ü...") {
		t.Errorf("namespace %q, %d bytes of name, %d of message", e.Namespace, len(e.Name), len(e.Message))
	}
	other := long
	other.Field = "spec"
	if eventName(long) == eventName(other) {
		t.Error("two problems have one Event")
	}
	for kind, want := range map[string]string{"Ingress": "networking.k8s.io/v1", "EndpointSlice": "discovery.k8s.io/v1", "IPAddressPool": "metallb.io/v1beta1", "Secret": "v1"} {
		if got := apiVersion(kind); got != want {
			t.Errorf("apiVersion(%s) = %s", kind, got)
		}
	}
}

// TestOneLeader: of two writers one writes, and the other takes over.
func TestOneLeader(t *testing.T) {
	f := newFixture(t, apiService("a"), apiService("b"))
	f.put(func(tx *state.Tx) { tx.PutService(service("a")) })
	first, stop := f.run(Options{Identity: "first", Addresses: pool(t, "192.0.2.0/30")})
	f.eventually("leads", func() bool { return first.Leading() && f.serviceAddrs("a") != "" })
	second, _ := f.run(Options{Identity: "second", Addresses: pool(t, "192.0.2.0/30")})
	time.Sleep(300 * time.Millisecond)
	if second.Leading() {
		t.Fatal("two leaders")
	}
	stop()
	if first.Leading() {
		t.Error("leads after Run has returned")
	}
	f.put(func(tx *state.Tx) { tx.PutService(service("b")) })
	f.eventually("the second took over", func() bool { return second.Leading() && f.serviceAddrs("b") == "192.0.2.2 VIP" })
	if got := f.serviceAddrs("a"); got != "192.0.2.1 VIP" {
		t.Errorf("a has %s after the change of leaders", got)
	}
}

func TestUnsyncedWritesNothing(t *testing.T) {
	f := newFixture(t, apiService("a", "192.0.2.1"))
	f.store.Update(func(tx *state.Tx) { tx.PutService(service("a")) })
	w, _ := f.run(Options{Addresses: pool(t, "198.51.100.0/30"), Events: true, Publish: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	f.eventually("leads", w.Leading)
	time.Sleep(100 * time.Millisecond)
	for _, a := range f.client.Actions() {
		if a.GetVerb() == "patch" || a.Matches("create", "events") {
			t.Errorf("%s %s from a snapshot that is not complete", a.GetVerb(), a.GetResource().Resource)
		}
	}
}

func TestEndpointsConcernNobody(t *testing.T) {
	store := state.New()
	store.Update(func(tx *state.Tx) { tx.SetSynced() })
	prev := store.Snapshot()
	store.Update(func(tx *state.Tx) {
		tx.PutSlice(&model.EndpointSlice{Key: key("s"), Service: key("a"), Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("10.0.0.1")}}})
	})
	if (&Writer{}).concerns(prev, store.Snapshot()) {
		t.Error("a change of endpoints starts a sync")
	}
	if !(&Writer{Options: Options{Addresses: &ipam.Options{Mode: ipam.FromNodes}}}).concerns(prev, store.Snapshot()) {
		t.Error("addresses of nodes follow endpoints")
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := Options{Client: fake.NewClientset(), Store: state.New(), Logger: slog.New(slog.DiscardHandler), Lease: key("l"), Identity: "a"}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
	for name, breakIt := range map[string]func(*Options){
		"store": func(o *Options) { o.Store = nil }, "logger": func(o *Options) { o.Logger = nil },
		"lease": func(o *Options) { o.Lease = model.Key{} }, "identity": func(o *Options) { o.Identity = "" },
		"client": func(o *Options) { o.Client = nil },
	} {
		o := good
		breakIt(&o)
		if _, err := New(o); err == nil {
			t.Errorf("no error without %s", name)
		}
	}
}
