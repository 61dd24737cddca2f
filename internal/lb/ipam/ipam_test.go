package ipam

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// svc is a Service in few words; edit changes it.
func svc(name string, edit ...func(*model.Service)) *model.Service {
	s := &model.Service{
		Key: model.Key{Namespace: "default", Name: name}, UID: "uid-" + name, Created: epoch,
		Type: model.LoadBalancer, IPv4: true, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}},
	}
	for _, e := range edit {
		e(s)
	}
	return s
}

func has(addrs ...string) func(*model.Service) {
	return func(s *model.Service) {
		for _, a := range addrs {
			s.LoadBalancer.Ingress = append(s.LoadBalancer.Ingress, model.LoadBalancerIngress{Addr: netip.MustParseAddr(a)})
		}
	}
}

func wants(addrs ...string) func(*model.Service) {
	return func(s *model.Service) {
		for _, a := range addrs {
			s.LoadBalancer.Requested = append(s.LoadBalancer.Requested, netip.MustParseAddr(a))
		}
	}
}

func inPoolNamed(name string) func(*model.Service) {
	return func(s *model.Service) { s.LoadBalancer.Pool = name }
}

func sharing(key string) func(*model.Service) {
	return func(s *model.Service) { s.LoadBalancer.SharingKey = key }
}

func port(p uint16) func(*model.Service) {
	return func(s *model.Service) { s.Ports[0].Port = p }
}

func namespace(n string) func(*model.Service) { return func(s *model.Service) { s.Namespace = n } }
func dual(s *model.Service)                   { s.IPv6 = true }
func v6only(s *model.Service)                 { s.IPv4, s.IPv6 = false, true }
func local(s *model.Service)                  { s.ExternalLocal = true }
func young(s *model.Service)                  { s.Created = epoch.Add(time.Hour) }
func clusterIP(s *model.Service)              { s.Type = model.ClusterIP }
func foreign(s *model.Service)                { s.LoadBalancer.Class = "example.com/other" }
func ours(s *model.Service)                   { s.LoadBalancer.Class = Class }

func pool(name, ranges string, edit ...func(*model.Pool)) *model.Pool {
	p := &model.Pool{Key: model.Key{Name: name}, AutoAssign: true}
	for part := range strings.SplitSeq(ranges, ",") {
		r, err := parseRange(part)
		if err != nil {
			panic(err)
		}
		p.Ranges = append(p.Ranges, r)
	}
	for _, e := range edit {
		e(p)
	}
	return p
}

// snapshot holds Services, Pools, Nodes, EndpointSlices and Problems.
func snapshot(rows ...any) *state.Snapshot {
	store := state.New()
	store.Update(func(tx *state.Tx) {
		for _, row := range rows {
			switch v := row.(type) {
			case *model.Service:
				tx.PutService(v)
			case *model.Pool:
				tx.PutPool(v)
			case *model.Node:
				tx.PutNode(v)
			case *model.EndpointSlice:
				tx.PutSlice(v)
			case model.Problem:
				tx.PutProblems(v.Object, model.Problems{v})
			}
		}
		tx.SetSynced()
	})
	return store.Snapshot()
}

// text renders a result: "name: addresses" and "! reason name: message".
func text(r Result) []string {
	var out []string
	for key, addrs := range r.Addrs {
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s: %s", key.Name, strings.Trim(fmt.Sprint(addrs), "[]"))))
	}
	for _, problems := range r.Problems {
		for _, p := range problems {
			out = append(out, fmt.Sprintf("! %s %s: %s", p.Reason, p.Object.Name, p.Message))
		}
	}
	slices.Sort(out)
	return out
}

func TestSync(t *testing.T) {
	small := pool("small", "192.0.2.1-192.0.2.2")
	both := pool("both", "192.0.2.0/28,2001:db8::/124")
	tests := []struct {
		name string
		rows []any
		want []string // problems by their beginning
	}{
		{"the older one first", []any{small, svc("a", young), svc("b")}, []string{"a: 192.0.2.2", "b: 192.0.2.1"}},
		{"kept from status", []any{small, svc("a", has("192.0.2.2")), svc("b")}, []string{"a: 192.0.2.2", "b: 192.0.2.1"}},
		{"class", []any{small, svc("a", ours), svc("b", foreign), svc("c", clusterIP)}, []string{"a: 192.0.2.1"}},
		{"exhausted", []any{small, svc("a"), svc("b"), svc("c"), svc("d")}, []string{
			`! PoolExhausted c: no IPv4 address is free in pool "small"; add addresses`,
			`! PoolExhausted d: no IPv4 address is free in pool "small"; add addresses`,
			"a: 192.0.2.1", "b: 192.0.2.2", "c:", "d:"}},
		{"no pool", []any{svc("a")}, []string{"! PoolMissing a: there is no pool of addresses for namespace default; start the controller with --lb-pool", "a:"}},
		{"dual stack", []any{both, svc("a", dual), svc("b", v6only)}, []string{"a: 192.0.2.0 2001:db8::1", "b: 2001:db8::2"}},
		{"the anycast address of routers is given to nobody unasked", []any{pool("p", "2001:db8::/126"), svc("a", v6only), svc("b", v6only), svc("c", v6only), svc("d", v6only)},
			[]string{"! PoolExhausted d", "a: 2001:db8::1", "b: 2001:db8::2", "c: 2001:db8::3", "d:"}},
		{"and of no smaller network", []any{pool("p", "2001:db8:0:1::1:0/112"), svc("a", v6only)}, []string{"a: 2001:db8:0:1::1:0"}},
		{"who names it gets it", []any{pool("p", "2001:db8::/64"), svc("a", v6only, wants("2001:db8::"))}, []string{"a: 2001:db8::"}},
		{"who has it keeps it", []any{pool("p", "2001:db8::/64"), svc("a", v6only, has("2001:db8::"))}, []string{"a: 2001:db8::"}},
		{"a range names it", []any{pool("p", "2001:db8::-2001:db8::9"), svc("a", v6only)}, []string{"a: 2001:db8::"}},
		{"alone it is named as well", []any{pool("p", "2001:db8::/128"), svc("a", v6only)}, []string{"a: 2001:db8::"}},
		{"a network of two has none", []any{pool("p", "2001:db8::/127"), svc("a", v6only)}, []string{"a: 2001:db8::"}},
		{"dual stack with one family in the pool", []any{small, svc("a", dual)}, []string{"a: 192.0.2.1"}},
		{"no family in the pool", []any{small, svc("a", v6only)}, []string{`! PoolExhausted a: pool "small" has no IPv6 addresses; add some`, "a:"}},
		{"buggy ones avoided", []any{pool("p", "192.0.2.255-192.0.3.1", func(p *model.Pool) { p.AvoidBuggy = true }), svc("a")}, []string{"a: 192.0.3.1"}},
		{"requested", []any{small, svc("a", wants("192.0.2.2"))}, []string{"a: 192.0.2.2"}},
		{"requested instead of the one in status", []any{small, svc("a", wants("192.0.2.2"), has("192.0.2.1"))}, []string{"a: 192.0.2.2"}},
		{"requested and taken", []any{small, svc("a", young, wants("192.0.2.1")), svc("b", has("192.0.2.1"))}, []string{
			"! AddressConflict a: address 192.0.2.1 belongs to Service default/b; ask for another address", "a:", "b: 192.0.2.1"}},
		{"requested by the older, held by the younger", []any{small, svc("a", wants("192.0.2.1")), svc("b", young, has("192.0.2.1"))}, []string{
			"! AddressConflict a: address 192.0.2.1 belongs to Service default/b", "a:", "b: 192.0.2.1"}},
		{"requested outside", []any{small, svc("a", wants("203.0.113.1"))}, []string{
			`! AddressNotInPool a: address 203.0.113.1 is in no pool that the Service may use; ask for one of: pool "small" (192.0.2.1-192.0.2.2)`, "a:"}},
		{"requested outside of the pool named", []any{small, both, svc("a", wants("192.0.2.9"), inPoolNamed("small"))}, []string{
			`! AddressNotInPool a: address 192.0.2.9 is in no pool "small" that the Service may use`,
			"! PoolOverlap small: 192.0.2.1-192.0.2.2 overlaps", "a:"}},
		{"requested of another family", []any{both, svc("a", wants("2001:db8::1"))}, []string{"! AddressNotInPool a: address 2001:db8::1 is of a family", "a:"}},
		{"named pool", []any{small, pool("other", "198.51.100.0/30"), svc("a", inPoolNamed("other"))}, []string{"a: 198.51.100.0"}},
		{"named pool without auto-assign", []any{pool("manual", "198.51.100.0/30", func(p *model.Pool) { p.AutoAssign = false }), svc("a", inPoolNamed("manual")), svc("b", has("198.51.100.3"))}, []string{
			"! PoolMissing b: there is no pool of addresses for namespace default", "a: 198.51.100.0", "b:"}},
		{"unknown pool", []any{small, svc("a", inPoolNamed("gone"))}, []string{`! PoolMissing a: pool "gone" does not exist; use one of: pool "small" (192.0.2.1-192.0.2.2)`, "a:"}},
		{"pool of another namespace", []any{pool("team", "198.51.100.0/30", func(p *model.Pool) { p.Namespaces = []string{"team"} }), svc("a", inPoolNamed("team")), svc("b", namespace("team")), svc("c")}, []string{
			`! PoolMissing c: there is no pool of addresses for namespace default`, `! PoolRefused a: pool "team" is not for namespace default`, "a:", "b: 198.51.100.0", "c:"}},
		{"own namespace's pool first, then priority", []any{
			pool("z-first", "198.51.100.0/32", func(p *model.Pool) { p.Priority = 1 }), pool("a-second", "198.51.100.1/32", func(p *model.Pool) { p.Priority = 2 }),
			pool("team", "198.51.100.9/32", func(p *model.Pool) { p.Namespaces, p.Priority = []string{"team"}, 3 }),
			svc("a"), svc("b"), svc("t", namespace("team"))}, []string{"a: 198.51.100.0", "b: 198.51.100.1", "t: 198.51.100.9"}},
		{"named pool changed", []any{small, pool("other", "198.51.100.0/30"), svc("a", inPoolNamed("other"), has("192.0.2.1"))}, []string{"a: 198.51.100.0"}},
		{"shared", []any{small, svc("a", sharing("k")), svc("b", sharing("k"), port(81)), svc("c", sharing("other"), port(82)), svc("d", sharing("k"), port(83))}, []string{
			"a: 192.0.2.1", "b: 192.0.2.1", "c: 192.0.2.2", "d: 192.0.2.1"}},
		{"shared with the same port", []any{small, svc("a", sharing("k"), wants("192.0.2.1")), svc("b", sharing("k"), wants("192.0.2.1"))}, []string{
			"! AddressConflict b: address 192.0.2.1 has port 80/TCP taken by Service default/a; use another port", "a: 192.0.2.1", "b:"}},
		{"shared with another policy", []any{small, svc("a", sharing("k"), wants("192.0.2.1")), svc("b", sharing("k"), wants("192.0.2.1"), port(81), local)}, []string{
			"! AddressConflict b: address 192.0.2.1 cannot be shared with Service default/a because of externalTrafficPolicy: Local", "a: 192.0.2.1", "b:"}},
		{"the same address in two statuses", []any{small, svc("a", has("192.0.2.1")), svc("b", has("192.0.2.1"))}, []string{"a: 192.0.2.1", "b: 192.0.2.2"}},
		{"status from another pool of before", []any{small, svc("a", has("203.0.113.1"))}, []string{"a: 192.0.2.1"}},
		{"status outside while a pool is damaged", []any{small, model.Problem{Object: model.Ref{Kind: "IPAddressPool", Key: small.Key}}, svc("a", has("203.0.113.1")), svc("b", wants("203.0.113.2"), has("203.0.113.2"))}, []string{"a: 203.0.113.1", "b: 203.0.113.2"}},
		{"family gone", []any{both, svc("a", has("192.0.2.1", "2001:db8::5"))}, []string{"a: 192.0.2.1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := New(Options{})
			snap := snapshot(tt.rows...)
			got := text(a.Sync(snap))
			check(t, tt.want, got)
			check(t, tt.want, text(a.Sync(snap))) // nothing moves without a change
		})
	}
}

// check compares line by line; wanted problems are beginnings.
func check(t *testing.T, want, got []string) {
	t.Helper()
	for i, line := range got {
		if i < len(want) && strings.HasPrefix(want[i], "! ") && strings.HasPrefix(line, want[i]) {
			got[i] = want[i]
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAddressesComeFreeAndAreTaken(t *testing.T) {
	a := New(Options{Pool: pool(FlagPool, "192.0.2.1/32")})
	check(t, []string{"a: 192.0.2.1"}, text(a.Sync(snapshot(svc("a")))))
	waiting := text(a.Sync(snapshot(svc("a"), svc("0"))))
	check(t, []string{`! PoolExhausted 0: no IPv4 address is free in pool "default"`, "0:", "a: 192.0.2.1"}, waiting)
	check(t, []string{"0: 192.0.2.1"}, text(a.Sync(snapshot(svc("0"), svc("a", clusterIP)))))
	// An object made again under the same name has no claim.
	reborn := func(s *model.Service) { s.UID = "other"; s.Created = epoch.Add(time.Hour) }
	check(t, []string{`! PoolExhausted 0: no IPv4 address`, "0:", "b: 192.0.2.1"}, text(a.Sync(snapshot(svc("0", reborn), svc("b")))))
}

func TestRememberedBeforeStatus(t *testing.T) {
	a := New(Options{Pool: pool(FlagPool, "192.0.2.0/29")})
	a.Remember(model.Key{Namespace: "default", Name: "b"}, "uid-b", []netip.Addr{netip.MustParseAddr("192.0.2.0")})
	a.Remember(model.Key{Namespace: "default", Name: "c"}, "uid of another", []netip.Addr{netip.MustParseAddr("192.0.2.1")})
	check(t, []string{"a: 192.0.2.1", "b: 192.0.2.0", "c: 192.0.2.2"}, text(a.Sync(snapshot(svc("a"), svc("b"), svc("c", young)))))
}

func TestUnsyncedAndOff(t *testing.T) {
	store := state.New()
	store.Update(func(tx *state.Tx) { tx.PutService(svc("a")); tx.PutPool(pool("p", "192.0.2.0/24")) })
	if r := New(Options{}).Sync(store.Snapshot()); len(r.Addrs) != 0 {
		t.Errorf("addresses from an unsynced snapshot: %v", r.Addrs)
	}
	if r := New(Options{Mode: Off}).Sync(snapshot(svc("a"), pool("p", "192.0.2.0/24"))); len(r.Addrs) != 0 {
		t.Errorf("addresses while off: %v", r.Addrs)
	}
}

func node(name string, ready, leaving bool, addrs ...string) *model.Node {
	n := &model.Node{Name: name, Ready: ready, Leaving: leaving}
	for _, a := range addrs {
		n.Addrs = append(n.Addrs, netip.MustParseAddr(a))
	}
	return n
}

func TestNodeMode(t *testing.T) {
	nodes := []any{
		node("n1", true, false, "10.0.0.1", "fd00::1", "10.0.9.1"), node("n2", true, false, "10.0.0.2"),
		node("down", false, false, "10.0.0.3"), node("leaving", true, true, "10.0.0.4"),
	}
	slice := func(endpoints ...model.Endpoint) *model.EndpointSlice {
		for i := range endpoints {
			endpoints[i].Addr = netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)})
		}
		return &model.EndpointSlice{Key: model.Key{Namespace: "default", Name: "l-1"}, Service: model.Key{Namespace: "default", Name: "l"}, Endpoints: endpoints}
	}
	ready, unready := model.Endpoint{Ready: true, Serving: true, Node: "n2"}, model.Endpoint{Node: "n1"}
	ending, ended := model.Endpoint{Serving: true, Terminating: true, Node: "n1"}, model.Endpoint{Terminating: true, Node: "n2"}
	o := Options{Mode: FromNodes, Reserved: map[PortKey]string{{model.TCP, 443}: "the gateway"}}
	tests := []struct {
		name string
		rows []any
		want []string
	}{
		{"all that are ready", []any{svc("a")}, []string{"a: 10.0.0.1 10.0.0.2"}},
		{"dual stack", []any{svc("a", dual)}, []string{"a: 10.0.0.1 10.0.0.2 fd00::1"}},
		{"by the nodes' names", []any{svc("a", dual), node("n0", true, false, "10.0.0.7", "fd00::7")}, []string{"a: 10.0.0.7 10.0.0.1 10.0.0.2 fd00::7 fd00::1"}},
		{"local", []any{svc("l", local), slice(ready, unready)}, []string{"l: 10.0.0.2"}},
		{"local, one terminates", []any{svc("l", local), slice(ready, ending)}, []string{"l: 10.0.0.2"}},
		{"local, all terminate", []any{svc("l", local), slice(ending, ended)}, []string{"l: 10.0.0.1"}},
		{"local, none serves", []any{svc("l", local), slice(unready, ended)}, []string{"l:"}},
		{"ports", []any{svc("a"), svc("b", port(81)), svc("c", young)}, []string{"! PortConflict c: port 80/TCP of the nodes is taken by Service default/a", "a: 10.0.0.1 10.0.0.2", "b: 10.0.0.1 10.0.0.2", "c:"}},
		{"who has it keeps it", []any{svc("a"), svc("c", young, has("10.0.0.1"))}, []string{"! PortConflict a: port 80/TCP of the nodes is taken by Service default/c", "a:", "c: 10.0.0.1 10.0.0.2"}},
		{"reserved", []any{svc("a", port(443))}, []string{"! PortConflict a: port 443/TCP of the nodes is taken by the gateway; use another port", "a:"}},
		{"a pool by name", []any{svc("a", inPoolNamed("p")), pool("p", "192.0.2.1/32"), svc("b", port(81))}, []string{"a: 192.0.2.1", "b: 10.0.0.1 10.0.0.2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			check(t, tt.want, text(New(o).Sync(snapshot(append(tt.rows, nodes...)...))))
		})
	}
}

func TestParseFlag(t *testing.T) {
	tests := []struct {
		in   string
		want Options
		bad  bool
	}{
		{"", Options{}, false},
		{"node", Options{Mode: FromNodes}, false},
		{"none", Options{Mode: Off}, false},
		{"192.0.2.0/30, 2001:db8::1-2001:db8::2,198.51.100.7", Options{Pool: pool(FlagPool, "192.0.2.0/30,2001:db8::1-2001:db8::2,198.51.100.7", func(p *model.Pool) { p.AvoidBuggy = true })}, false},
		{"192.0.2.0/33", Options{}, true},
		{"192.0.2.9-192.0.2.1", Options{}, true},
		{"192.0.2.1-2001:db8::1", Options{}, true},
		{"nodes", Options{}, true},
		{"192.0.2.0/30,127.0.0.0/24", Options{}, true},
		{"::ffff:192.0.2.0/120", Options{}, true},
		{"0.0.0.0/0", Options{Pool: pool(FlagPool, "0.0.0.0/0", func(p *model.Pool) { p.AvoidBuggy = true })}, false},
	}
	for _, tt := range tests {
		got, err := ParseFlag(tt.in)
		if (err != nil) != tt.bad {
			t.Errorf("ParseFlag(%q): error %v", tt.in, err)
		}
		if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("ParseFlag(%q) -want +got:\n%s", tt.in, diff)
		}
	}
}

// TestRandom changes Services and pools at random. After every step: no
// address has two owners that may not share it, every address is from a pool
// that the Service may use, who had an address and may keep it still has it,
// nobody waits while an address is free, and a new allocator that reads the
// statuses decides the same.
func TestRandom(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomRun(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

// ownedByNode lies in the flag's pool of the random tests.
var ownedByNode = netip.MustParseAddr("192.0.2.3")

func randomRun(t *testing.T, rng *rand.Rand) {
	a := New(Options{Pool: pool(FlagPool, "192.0.2.0/29,2001:db8::/126", func(p *model.Pool) { p.AvoidBuggy = true })})
	services := map[string]*model.Service{}
	pools := map[string]*model.Pool{}
	before := map[model.Key][]netip.Addr{}
	for step := range 120 {
		changed := mutate(rng, step, services, pools)
		rows := make([]any, 0, 1+len(services)+len(pools))
		rows = append(rows, node("n", true, false, ownedByNode.String()))
		for _, p := range pools {
			rows = append(rows, p)
		}
		for _, s := range services {
			rows = append(rows, s)
		}
		result := a.Sync(snapshot(rows...))
		verify(t, a.options.Pool, services, pools, result)
		for key, had := range before {
			for _, addr := range had {
				if changed != "" && key.Name != changed && !slices.Contains(result.Addrs[key], addr) {
					t.Fatalf("step %d changed %s, and %s lost %s", step, changed, key, addr)
				}
			}
		}
		before = result.Addrs

		rows = rows[:1+len(pools)]
		for _, s := range services {
			withStatus := *s
			withStatus.LoadBalancer.Ingress = nil
			for _, addr := range result.Addrs[s.Key] {
				withStatus.LoadBalancer.Ingress = append(withStatus.LoadBalancer.Ingress, model.LoadBalancerIngress{Addr: addr})
			}
			rows = append(rows, &withStatus)
		}
		fresh := New(a.options).Sync(snapshot(rows...))
		if diff := cmp.Diff(text(result), text(fresh)); diff != "" {
			t.Fatalf("step %d: incremental- fresh+:\n%s", step, diff)
		}
	}
}

// mutate makes one change and names the Service that it changed; empty for a pool.
func mutate(rng *rand.Rand, step int, services map[string]*model.Service, pools map[string]*model.Pool) string {
	name := fmt.Sprintf("s%d", rng.IntN(14))
	switch rng.IntN(10) {
	case 0:
		delete(services, name)
	case 1:
		p := fmt.Sprintf("p%d", rng.IntN(2))
		if rng.IntN(2) == 0 {
			delete(pools, p)
			return ""
		}
		pools[p] = pool(p, fmt.Sprintf("198.51.100.%d/30", rng.IntN(3)*4), func(p *model.Pool) {
			p.AutoAssign = rng.IntN(3) > 0
			p.Priority = rng.IntN(3)
			if rng.IntN(3) == 0 {
				p.Namespaces = []string{"team"}
			}
		})
		return ""
	default:
		s := svc(name, func(s *model.Service) { s.Created = epoch.Add(time.Duration(step) * time.Second) })
		if old := services[name]; old != nil {
			s.Created = old.Created
			if rng.IntN(8) == 0 {
				s.UID = fmt.Sprint(step)
			} else {
				s.UID = old.UID
			}
		}
		s.Ports[0].Port = uint16(80 + rng.IntN(3))
		s.IPv6 = rng.IntN(3) == 0
		s.IPv4 = !s.IPv6 || rng.IntN(2) == 0
		s.ExternalLocal = rng.IntN(4) == 0
		if rng.IntN(3) == 0 {
			s.LoadBalancer.SharingKey = fmt.Sprintf("k%d", rng.IntN(2))
		}
		switch rng.IntN(6) {
		case 0:
			s.LoadBalancer.Requested = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(rng.IntN(9))})}
		case 1:
			s.LoadBalancer.Pool = fmt.Sprintf("p%d", rng.IntN(2))
		case 2:
			s.Type = model.NodePort
		}
		services[name] = s
	}
	return name
}

func verify(t *testing.T, flag *model.Pool, services map[string]*model.Service, pools map[string]*model.Pool, result Result) {
	t.Helper()
	all := []*model.Pool{flag}
	for _, p := range pools {
		all = append(all, p)
	}
	owners := map[netip.Addr][]*model.Service{}
	for _, s := range services {
		addrs, present := result.Addrs[s.Key]
		if present != (s.Type == model.LoadBalancer) {
			t.Fatalf("%s of type %s is in the result: %t", s.Key, s.Type, present)
		}
		for _, addr := range addrs {
			ok := slices.ContainsFunc(all, func(p *model.Pool) bool {
				return inPool(p, addr) && mayUse(p, s.Namespace) && (s.LoadBalancer.Pool == "" || s.LoadBalancer.Pool == p.Name)
			})
			if !ok || !hasFamily(s, addr.Is4()) || addr == ownedByNode {
				t.Fatalf("%s got %s, which it may not use", s.Key, addr)
			}
			for _, o := range owners[addr] {
				if _, same := commonPort(s, o); same || o.LoadBalancer.SharingKey == "" || o.LoadBalancer.SharingKey != s.LoadBalancer.SharingKey || o.ExternalLocal || s.ExternalLocal {
					t.Fatalf("%s is given to both %s and %s", addr, o.Key, s.Key)
				}
			}
			owners[addr] = append(owners[addr], s)
		}
		if s.Type == model.LoadBalancer && len(addrs) == 0 && len(result.Problems[model.Ref{Kind: "Service", Key: s.Key}]) == 0 {
			t.Fatalf("%s got nothing, in silence", s.Key)
		}
	}
	for ref, problems := range result.Problems {
		for _, p := range problems {
			if p.Reason == ReasonPoolExhausted && strings.HasPrefix(p.Message, "no IPv4") && strings.Contains(p.Message, `pool "default";`) {
				for last := byte(1); last < 8; last++ {
					if addr := netip.AddrFrom4([4]byte{192, 0, 2, last}); addr != ownedByNode && len(owners[addr]) == 0 {
						t.Fatalf("%s waits while 192.0.2.%d is free", ref, last)
					}
				}
			}
		}
	}
}
