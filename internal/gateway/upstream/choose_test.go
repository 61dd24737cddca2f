package upstream

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// fleet is a pool of endpoints 10.0.0.1 and on. A minus before a number means
// that the endpoint drains, a plus that another zone has it.
type fleet struct {
	t     *testing.T
	store *state.Store
	set   *Set
	pool  *Pool
	uid   string
	// health is how the endpoints are checked; nil for not.
	health *model.HealthCheck
	// slowStart is how long new endpoints warm up.
	slowStart time.Duration
}

func newFleet(t *testing.T, uid string, numbers ...int) *fleet {
	f := &fleet{t: t, store: state.New(), set: NewSet(Options{NodeName: "here"}), uid: uid}
	f.change(numbers, nil, nil)
	f.pool = f.set.Pool(webKey)
	return f
}

func (f *fleet) change(ready, draining, elsewhere []int) {
	f.t.Helper()
	f.store.Update(func(tx *state.Tx) {
		tx.PutNode(&model.Node{Name: "here", Zone: "a"})
		svc := &model.Service{Key: webKey.Service, UID: f.uid, Ports: httpPort}
		if f.health != nil || f.slowStart > 0 {
			svc.Upstream = &model.ServiceUpstream{Health: f.health, SlowStart: f.slowStart}
		}
		tx.PutService(svc)
		var list []model.Endpoint
		add := func(numbers []int, e model.Endpoint) {
			for _, n := range numbers {
				e.Addr = netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})
				e.Ports = []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}
				list = append(list, e)
			}
		}
		add(ready, model.Endpoint{Ready: true, Serving: true, Hints: &model.Hints{Zones: []string{"a"}}})
		add(elsewhere, model.Endpoint{Ready: true, Serving: true, Hints: &model.Hints{Zones: []string{"b"}}})
		add(draining, model.Endpoint{Serving: true, Terminating: true})
		tx.PutSlice(&model.EndpointSlice{Key: webKey.Service, Service: webKey.Service, Endpoints: list})
	})
	f.set.Sync(map[Key]struct{}{webKey: {}}, f.store.Snapshot())
}

func numbers(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i + 1
	}
	return list
}

// ask sends a request of a client with that cookie, and returns what serves it
// and the cookie that the client then has.
func (f *fleet) ask(cookie string, persistent, change bool, tried ...*endpoint) (*endpoint, string) {
	f.t.Helper()
	s := NewSession(cookie, persistent, change, netip.Addr{})
	e, err := f.pool.pick(&Choice{Session: &s}, tried, time.Now())
	if err != nil || e == nil {
		f.t.Fatalf("no endpoint: %v", err)
	}
	if renewed, ok := s.Renewed(); ok {
		cookie = renewed
	}
	return e, cookie
}

// begin makes n sessions and returns where their cookies lead to.
func (f *fleet) begin(n int, persistent bool) map[string]string {
	f.t.Helper()
	sessions := map[string]string{}
	for len(sessions) < n {
		e, cookie := f.ask("", persistent, false)
		if cookie == "" {
			f.t.Fatal("a client got no cookie")
		}
		sessions[cookie] = e.addr
		if persistent && len(sessions) == len(f.pool.members.Load().endpoints) {
			break // there is one cookie for each endpoint
		}
	}
	return sessions
}

// moved counts the sessions that are not where they were.
func (f *fleet) moved(sessions map[string]string, persistent bool) (moved, renewed int) {
	f.t.Helper()
	for cookie, addr := range sessions {
		for range 3 {
			e, after := f.ask(cookie, persistent, false)
			if after != cookie {
				renewed++
				break
			}
			if e.addr != addr {
				moved++
				break
			}
		}
	}
	return moved, renewed
}

func TestSessionsStay(t *testing.T) {
	for _, persistent := range []bool{false, true} {
		t.Run(fmt.Sprintf("persistent %t", persistent), func(t *testing.T) {
			f := newFleet(t, "uid", numbers(10)...)
			sessions := f.begin(400, persistent)
			if moved, renewed := f.moved(sessions, persistent); moved+renewed > 0 {
				t.Errorf("%d of %d sessions moved, %d were renewed, and nothing had changed", moved, len(sessions), renewed)
			}
			// Another gateway, or this one after a restart, knows them all.
			other := newFleet(t, "uid", numbers(10)...)
			if moved, renewed := other.moved(sessions, persistent); moved+renewed > 0 {
				t.Errorf("%d of %d sessions moved at another gateway, %d were renewed", moved, len(sessions), renewed)
			}
			// It may see other endpoints as its own by topology hints.
			other.change(numbers(3), nil, []int{4, 5, 6, 7, 8, 9, 10})
			if moved, renewed := other.moved(sessions, persistent); moved+renewed > 0 {
				t.Errorf("%d of %d sessions moved in another zone, %d were renewed", moved, len(sessions), renewed)
			}
			for cookie := range other.begin(50, persistent) {
				if e, _ := other.ask(cookie, persistent, false); e.addr > "10.0.0.3:8080" || strings.HasPrefix(e.addr, "10.0.0.10:") {
					t.Fatalf("a new session began at %s, in another zone", e.addr)
				}
			}
			// One that drains keeps its sessions and gets no new ones.
			f.change(numbers(9), []int{10}, nil)
			if moved, renewed := f.moved(sessions, persistent); moved+renewed > 0 {
				t.Errorf("%d of %d sessions left an endpoint that drains, %d were renewed", moved, len(sessions), renewed)
			}
			for range 100 {
				if e, _ := f.ask("", persistent, false); e.addr == "10.0.0.10:8080" {
					t.Fatal("a new session began at an endpoint that drains")
				}
			}
			// Once it is gone its sessions go on elsewhere, and no others.
			f.change(numbers(9), nil, nil)
			lost := map[string]string{}
			for cookie, addr := range sessions {
				e, after := f.ask(cookie, persistent, false)
				if addr != "10.0.0.10:8080" {
					if e.addr != addr || after != cookie {
						t.Fatalf("a session moved from %s to %s", addr, e.addr)
					}
					continue
				}
				if persistent && after == cookie {
					t.Error("a session whose endpoint is gone was not renewed")
				}
				lost[after] = e.addr
			}
			if moved, renewed := f.moved(lost, persistent); len(lost) == 0 || moved+renewed > 0 {
				t.Errorf("of %d sessions without endpoint %d moved again, %d were renewed again", len(lost), moved, renewed)
			}
		})
	}
}

// TestSessionsOfNewEndpoints: balanced sessions give a new endpoint its share,
// persistent ones nothing.
func TestSessionsOfNewEndpoints(t *testing.T) {
	f := newFleet(t, "uid", numbers(4)...)
	balanced, persistent := f.begin(1000, false), f.begin(4, true)
	f.change(numbers(5), nil, nil)
	if moved, renewed := f.moved(balanced, false); moved < 130 || moved > 270 || renewed > 0 {
		t.Errorf("%d of 1000 balanced sessions moved, want about 200; %d renewed", moved, renewed)
	}
	if moved, renewed := f.moved(persistent, true); moved+renewed > 0 {
		t.Errorf("%d of 4 persistent sessions moved, %d renewed", moved, renewed)
	}
}

func TestSessionsAreShared(t *testing.T) {
	f := newFleet(t, "uid", numbers(5)...)
	counts := map[string]int{}
	for range 2000 {
		e, _ := f.ask("", false, false)
		counts[e.addr]++
	}
	for addr, n := range counts {
		if n < 250 || n > 550 || len(counts) != 5 {
			t.Errorf("%s got %d of 2000 new sessions: %v", addr, n, counts)
		}
	}
	// A busy endpoint gets fewer.
	busy := f.pool.members.Load().endpoints[2]
	busy.inflight.Store(100)
	n := 0
	for range 1000 {
		if e, _ := f.ask("", false, false); e == busy {
			n++
		}
	}
	if n > 20 {
		t.Errorf("a busy endpoint got %d of 1000 new sessions", n)
	}
}

// TestSessionsOfOneThatFails: all others share its persistent sessions, which
// have one cookie; each client stays where it has got.
func TestSessionsOfOneThatFails(t *testing.T) {
	f := newFleet(t, "uid", numbers(5)...)
	home, cookie := f.ask("", true, false)
	later := time.Now().Add(time.Minute)
	home.unreachable(later, later)
	at := func(client netip.Addr) string {
		s := NewSession(cookie, true, false, client)
		e, err := f.pool.pick(&Choice{Session: &s}, nil, later)
		if err != nil {
			t.Fatal(err)
		}
		return e.addr
	}
	counts := map[string]int{}
	for i := range 400 {
		client := netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
		if i%2 == 1 {
			client = netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%x::1", i))
		}
		addr := at(client)
		if addr != at(client) {
			t.Fatalf("client %s does not stay", client)
		}
		counts[addr]++
	}
	for addr, n := range counts {
		if n < 50 || n > 150 || len(counts) != 4 || addr == home.addr {
			t.Errorf("%s got %d of 400 sessions: %v", addr, n, counts)
		}
	}
}

// TestCookieSaysNothing: no address can be read from a cookie, also by trying
// all of them with what is public; one Service's cookie is none of another's;
// and what a client makes up leads to an endpoint of the Service.
func TestCookieSaysNothing(t *testing.T) {
	a, b := newFleet(t, "uid", 1, 2, 3), newFleet(t, "other uid", 1, 2, 3)
	of := map[string]string{}
	for cookie, addr := range a.begin(3, true) {
		of[addr] = cookie
	}
	for cookie, addr := range b.begin(3, true) {
		if of[addr] == cookie || of[addr][11:] == cookie[11:] {
			t.Errorf("%s has the same cookie without the Service's UID", addr)
		}
		if e, renewed := a.ask(cookie, true, false); renewed == cookie {
			t.Errorf("the cookie of another Service was taken for %s", e.addr)
		}
	}
	for _, cookie := range []string{"10.0.0.1:8080", "AAAAAAAAAAAAAAAA", "%00%00%00%00%00%", strings.Repeat("A", 5000), "\x80\xff", "1700000000.1.2.3|abcdef"} {
		for _, persistent := range []bool{false, true} {
			e, renewed := a.ask(cookie, persistent, false)
			if of[e.addr] == "" || renewed == cookie {
				t.Errorf("%q led to %s and was kept", cookie, e.addr)
			}
		}
	}
}

func TestSessionWhenItsEndpointFails(t *testing.T) {
	for _, persistent := range []bool{false, true} {
		for _, change := range []bool{false, true} {
			t.Run(fmt.Sprintf("persistent %t, change %t", persistent, change), func(t *testing.T) {
				f := newFleet(t, "uid", numbers(6)...)
				home, cookie := f.ask("", persistent, change)
				// The attempt fails, and the next one of the same request goes elsewhere.
				s := NewSession(cookie, persistent, change, netip.Addr{})
				c := &Choice{Session: &s}
				if e, _ := f.pool.pick(c, nil, time.Now()); e != home {
					t.Fatal("the session is not at its endpoint")
				}
				home.unreachable(time.Now().Add(time.Hour), time.Now().Add(time.Hour))
				second, err := f.pool.pick(c, []*endpoint{home}, time.Now())
				if err != nil || second == nil || second == home {
					t.Fatalf("no other endpoint: %v", err)
				}
				renewed, ok := s.Renewed()
				if ok != change {
					t.Fatalf("renewed: %t", ok)
				}
				if ok {
					cookie = renewed
				}
				for range 5 {
					if e, after := f.ask(cookie, persistent, change); e != second || after != cookie {
						t.Fatalf("while its endpoint fails the session wanders from %s to %s", second.addr, e.addr)
					}
				}
				home.reinstate()
				want := home
				if change {
					want = second
				}
				if e, after := f.ask(cookie, persistent, change); e != want || after != cookie {
					t.Errorf("then it is at %s, want %s", e.addr, want.addr)
				}
				// With all of them out it is served all the same, and stays as it is.
				for _, e := range f.pool.members.Load().endpoints {
					e.unreachable(time.Now().Add(time.Hour), time.Now().Add(time.Hour))
				}
				if _, after := f.ask(cookie, persistent, change); after != cookie {
					t.Error("renewed while no endpoint is sound")
				}
			})
		}
	}
}

// TestEjectedEndpointIsTried: one without sessions has its trial by a new one.
func TestEjectedEndpointIsTried(t *testing.T) {
	f := newFleet(t, "uid", 1, 2)
	e := f.pool.members.Load().endpoints[0]
	e.unreachable(time.Now().Add(-time.Minute), time.Now().Add(-time.Minute))
	for range 200 {
		if got, _ := f.ask("", false, false); got == e {
			return
		}
	}
	t.Error("an endpoint stays out for ever")
}

func TestDrainingEndpoint(t *testing.T) {
	f := newFleet(t, "uid", 1, 2)
	m := f.pool.members.Load()
	f.change([]int{2}, []int{1}, nil)
	if !m.endpoints[0].removed.Load() || m.endpoints[1].removed.Load() {
		t.Error("connections to an endpoint that drains are kept, or those to the others are not")
	}
	if got := f.pool.members.Load(); len(got.others) != 1 || got.others[0] != m.endpoints[0] {
		t.Error("an endpoint that drains is not the one that it was")
	}
	// When no other is left it serves everybody, with kept connections.
	f.change(nil, []int{1}, nil)
	if got := f.pool.members.Load(); len(got.endpoints) != 1 || len(got.others) != 0 || got.endpoints[0].removed.Load() {
		t.Error("the last endpoint is treated as one that leaves")
	}
}

// TestEndpointsAreKept: endpoints that stay are the same ones, wherever they
// stand, unless they drained or the Service is another one.
func TestEndpointsAreKept(t *testing.T) {
	f := newFleet(t, "uid", 1, 2, 3)
	find := func(addr string) *endpoint {
		for e := range f.pool.members.Load().all() {
			if e.addr == addr {
				return e
			}
		}
		t.Fatalf("%s is not there", addr)
		return nil
	}
	const addr = "10.0.0.3:8080"
	first := find(addr)
	f.change([]int{1, 2}, nil, []int{3})
	if find(addr) != first || first.removed.Load() {
		t.Error("an endpoint that another zone got is not the one that it was, or keeps no connections")
	}
	f.change(numbers(3), nil, nil)
	if find(addr) != first {
		t.Error("an endpoint that is back from another zone is not the one that it was")
	}
	f.change([]int{1, 2}, []int{3, 4}, nil)
	if find(addr) != first || !first.removed.Load() || !find("10.0.0.4:8080").removed.Load() {
		t.Error("endpoints that drain keep connections, or are other ones")
	}
	f.change([]int{1, 2}, []int{3}, nil)
	if find(addr) != first {
		t.Error("an endpoint that goes on draining is not the one that it was")
	}
	f.change([]int{1, 2}, nil, []int{3})
	if find(addr) == first || find(addr).removed.Load() {
		t.Error("an endpoint that serves again keeps no connections")
	}
	cookies := f.begin(2, true)
	f.uid = "another Service of that name"
	before := find("10.0.0.1:8080")
	f.change(numbers(3), nil, nil)
	if find("10.0.0.1:8080") == before || !before.removed.Load() {
		t.Error("a Service that was made again has the endpoints of the old one")
	}
	for cookie := range cookies {
		if _, after := f.ask(cookie, true, false); after == cookie {
			t.Error("a Service that was made again knows the cookies of the old one")
		}
	}
}

// TestNoCookieByChance: where no endpoint is sound, one that serves by chance
// does not get the session.
func TestNoCookieByChance(t *testing.T) {
	f := newFleet(t, "uid", 1, 2)
	s := NewSession("", false, false, netip.Addr{})
	c := &Choice{Session: &s}
	first, _ := f.pool.pick(c, nil, time.Now())
	for _, e := range f.pool.members.Load().endpoints {
		e.unreachable(time.Now().Add(time.Hour), time.Now().Add(time.Hour))
	}
	second, _ := f.pool.pick(c, []*endpoint{first}, time.Now())
	if cookie, ok := s.Renewed(); second == nil || second == first || ok {
		t.Errorf("the client got %q", cookie)
	}
}

func TestHash(t *testing.T) {
	f, other := newFleet(t, "uid", numbers(10)...), newFleet(t, "uid", numbers(10)...)
	at := func(f *fleet, key uint64, tried ...*endpoint) *endpoint {
		e, err := f.pool.pick(&Choice{Hashed: true, Hash: key}, tried, time.Now())
		if err != nil || e == nil {
			t.Fatalf("no endpoint: %v", err)
		}
		return e
	}
	const keys = 5000
	before, counts := map[uint64]string{}, map[string]int{}
	for range keys {
		key := rand.Uint64()
		before[key] = at(f, key).addr
		counts[before[key]]++
		if got := at(other, key).addr; got != before[key] {
			t.Fatalf("gateways disagree: %s and %s", before[key], got)
		}
	}
	for addr, n := range counts {
		if n < keys/10*3/4 || n > keys/10*5/4 {
			t.Errorf("%s got %d of %d", addr, n, keys)
		}
	}
	// What the endpoint that leaves had is shared by the others; nothing else moves.
	f.change(numbers(9), nil, nil)
	heirs := map[string]bool{}
	for key, addr := range before {
		got := at(f, key).addr
		if addr == "10.0.0.10:8080" {
			heirs[got] = true
		} else if got != addr {
			t.Fatalf("a request moved from %s to %s", addr, got)
		}
	}
	if len(heirs) != 9 {
		t.Errorf("what it had went to %d of 9", len(heirs))
	}
	// One that fails is left out, for the same next one each time.
	for key := range before {
		first := at(f, key)
		second := at(f, key, first)
		first.ejected.Store(time.Now().Add(time.Hour).UnixNano())
		if got := at(f, key); second == first || got != second {
			t.Fatalf("after %s it is first %s, then %s", first.addr, second.addr, got.addr)
		}
		first.ejected.Store(0)
		break
	}
	for _, e := range f.pool.members.Load().endpoints {
		e.unreachable(time.Now().Add(time.Hour), time.Now().Add(time.Hour))
	}
	at(f, 1)
}

func TestEWMA(t *testing.T) {
	f := newFleet(t, "uid", 1, 2, 3)
	c := &Choice{Balance: model.BalanceEWMA}
	all := f.pool.members.Load().endpoints
	now := time.Now()
	count := func(at time.Time) map[*endpoint]int {
		counts := map[*endpoint]int{}
		for range 900 {
			e, err := f.pool.pick(c, nil, at)
			if err != nil {
				t.Fatal(err)
			}
			counts[e]++
		}
		return counts
	}
	for _, e := range all[:2] {
		e.latency.add(time.Millisecond, now)
	}
	if n := count(now)[all[2]]; n < 200 || n > 400 {
		t.Errorf("an endpoint that was not measured got %d of 900, want its share", n)
	}
	all[2].latency.add(50*time.Millisecond, now)
	if n := count(now)[all[2]]; n > 0 {
		t.Errorf("a slow endpoint got %d of 900", n)
	}
	// It is believed at once that an endpoint has become slow, and slowly that it
	// is fast again.
	all[0].latency.add(time.Second, now)
	if mean, _ := all[0].latency.get(now); mean != 1 {
		t.Errorf("after a peak of 1 s: %v", mean)
	}
	all[0].latency.add(time.Millisecond, now.Add(time.Millisecond))
	if mean, _ := all[0].latency.get(now.Add(time.Millisecond)); mean < 0.9 {
		t.Errorf("one fast answer made it forget the peak: %v", mean)
	}
	// What was long ago fades, so that it is tried again.
	if mean, _ := all[0].latency.get(now.Add(10 * latencyDecay)); mean > 0.001 {
		t.Errorf("after a long time: %v", mean)
	}
	// Requests under way count as well.
	for _, e := range all {
		e.latency = latency{}
		e.latency.add(time.Millisecond, now)
	}
	all[1].inflight.Store(20)
	if n := count(now)[all[1]]; n > 0 {
		t.Errorf("a busy endpoint got %d of 900", n)
	}
	// Of two as well.
	two := newFleet(t, "uid", 1, 2)
	slow := two.pool.members.Load().endpoints[0]
	slow.latency.add(time.Second, now)
	two.pool.members.Load().endpoints[1].latency.add(time.Millisecond, now)
	n := 0
	for range 400 {
		if e, _ := two.pool.pick(c, nil, now); e == slow {
			n++
		}
	}
	if n > 0 {
		t.Errorf("the slow one of two got %d of 400", n)
	}
}

func BenchmarkByHash(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := &members{}
			for i := range n {
				m.endpoints = append(m.endpoints, &endpoint{mark: markOf("uid", fmt.Sprint(i))})
			}
			now := time.Now()
			b.ReportAllocs()
			for i := range b.N {
				m.byHash(uint64(i), false, &Choice{}, nil, now)
			}
		})
	}
}
