package nft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/testenv"
)

// node is a namespace with a data path and what it shall hold.
type node struct {
	*testing.T
	ns   *testenv.Netns
	dp   *Dataplane
	want map[model.Key]plan.Service
}

func newNode(t *testing.T) *node {
	n := &node{T: t, ns: testenv.NewLab(t).Netns("node"), want: map[model.Key]plan.Service{}}
	n.start()
	return n
}

// start starts the data path anew, as after a crash.
func (n *node) start() {
	n.Helper()
	d, err := New(Options{Logger: logger(n.T), NetNS: int(n.ns.Handle)})
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { _ = d.Close() })
	n.dp = d
}

// service makes a Service with these endpoints: addresses in short form.
func (n *node) service(name string, edit func(*model.Service), endpoints ...string) plan.Service {
	svc := &model.Service{
		Key: model.Key{Namespace: "ns", Name: name}, IPv4: true, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}},
	}
	if edit != nil {
		edit(svc)
	}
	eps := &model.EndpointSet{Key: svc.Key}
	for _, e := range endpoints {
		eps.Endpoints = append(eps.Endpoints, model.Endpoint{
			Addr: netip.MustParseAddr(e), Ready: true, Serving: true, Node: "other", Ports: []model.EndpointPort{{Protocol: model.TCP, Port: 8080}},
		})
	}
	return plan.Compile(plan.Input{Service: svc, Endpoints: eps, Node: &model.Node{Name: "node-1"}, Options: plan.Options{ExternalIPs: true}})
}

// put applies Services and expects them to succeed.
func (n *node) put(services ...plan.Service) {
	n.Helper()
	if failed := n.try(services...); len(failed) > 0 {
		n.Fatal(failed)
	}
}

func (n *node) try(services ...plan.Service) map[model.Key]error {
	var changes []change
	for _, s := range services {
		n.want[s.Key] = s
		changes = append(changes, change{Key: s.Key, New: s, HasNew: true})
	}
	return n.dp.Apply(n.Context(), changes)
}

func (n *node) remove(name string) {
	n.Helper()
	key := model.Key{Namespace: "ns", Name: name}
	delete(n.want, key)
	if failed := n.dp.Apply(n.Context(), []change{{Key: key}}); len(failed) > 0 {
		n.Fatal(failed)
	}
}

func (n *node) prune() {
	n.Helper()
	wanted := func(yield func(model.Key, plan.Service) bool) {
		for k, s := range n.want {
			if !yield(k, s) {
				return
			}
		}
	}
	if err := n.dp.Prune(n.Context(), wanted); err != nil {
		n.Fatal(err)
	}
}

// kernel reads what the kernel has.
func (n *node) kernel() elements {
	n.Helper()
	_, have, err := n.dp.kernel.read()
	if err != nil {
		n.Fatal(err)
	}
	return have
}

func (n *node) generation() uint32 {
	n.Helper()
	g, err := n.dp.kernel.generation()
	if err != nil {
		n.Fatal(err)
	}
	return g
}

// serves reads from the kernel's elements what each frontend does.
func serves(have elements) map[string]string {
	out := map[string]string{}
	for e, verdict := range have {
		if !e.set.verdicts() || e.set == memories {
			continue
		}
		name := fmt.Sprintf("%s %x", e.set, e.key)
		p, ok := parsePick(verdict)
		if !ok {
			out[name] = verdict
			continue
		}
		candidates := endpoints
		if e.set == frontendsExternal {
			candidates = endpointsExternal
		}
		var backends []string
		for slot := range p.n {
			b, _ := parseAddrPort(have[element{fam: e.fam, set: candidates, key: e.key + slotWord(slot)}])
			backends = append(backends, b.String())
		}
		slices.Sort(backends)
		out[name] = strings.Join(backends, " ")
	}
	return out
}

// wanted is what serves must return for the Services.
func wanted(services map[model.Key]plan.Service) map[string]string {
	out := map[string]string{}
	for _, s := range services {
		for i := range s.Frontends {
			f := &s.Frontends[i]
			show := func(set setID, p plan.Pool) {
				var backends []string
				for _, b := range p.Backends {
					backends = append(backends, b.AddrPort.String())
				}
				slices.Sort(backends)
				text := strings.Join(backends, " ")
				if p.Action != plan.Forward {
					text = map[plan.Action]string{plan.Reject: chainReject, plan.Drop: verdictDrop, plan.Redirect: chainTLS}[p.Action]
				}
				out[fmt.Sprintf("%s %x", set, frontendKey(f.Addr, f.Protocol, f.Port))] = text
			}
			show(frontends, f.Internal)
			if f.Split() {
				show(frontendsExternal, f.External)
			}
		}
	}
	return out
}

func (n *node) check() {
	n.Helper()
	if diff := cmp.Diff(wanted(n.want), serves(n.kernel())); diff != "" {
		n.Fatal(diff)
	}
}

func TestRestart(t *testing.T) {
	n := newNode(t)
	settings := dataplane.Node{Services: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, PodInterfaces: []string{"cali", "cali0", ""}}
	setNode := func() {
		t.Helper()
		if err := n.dp.SetNode(t.Context(), settings); err != nil {
			t.Fatal(err)
		}
	}
	setNode()
	ranges := func(s *model.Service) {
		s.ClusterIPs[0] = netip.MustParseAddr("10.96.0.3")
		s.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: netip.MustParseAddr("192.0.2.1")}}
		s.LoadBalancer.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24")}
	}
	sticky := func(s *model.Service) {
		s.AffinityTimeout, s.ClusterIPs[0] = time.Minute, netip.MustParseAddr("10.96.0.2")
	}
	a, b := n.service("a", nil, "10.0.0.1", "10.0.0.2"), n.service("b", sticky, "10.0.0.3", "10.0.0.4", "10.0.0.5")
	n.put(a, b)
	n.prune()
	n.check()

	t.Run("nothing is written", func(t *testing.T) {
		before := n.generation()
		n.start()
		setNode()
		n.put(a, b)
		n.prune()
		if err := n.dp.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := n.generation(); after != before {
			t.Errorf("the kernel saw %d transactions", after-before)
		}
	})
	t.Run("what went meanwhile is served until everything is known", func(t *testing.T) {
		n.put(n.service("c", ranges, "10.0.0.6"))
		n.start()
		delete(n.want, model.Key{Namespace: "ns", Name: "c"})
		n.put(n.service("a", nil, "10.0.0.2"), b)
		if got := serves(n.kernel())["frontends "+fmt.Sprintf("%x", frontendKey(netip.MustParseAddr("10.96.0.3"), model.TCP, 80))]; got != "10.0.0.6:8080" {
			t.Errorf("the Service not known yet is served by %q", got)
		}
		n.prune()
		n.check()
		for e := range n.kernel() {
			if e.set == sourceRanges || e.set == guarded {
				t.Errorf("left over: %v", e)
			}
		}
	})
	t.Run("settings stay until they are set again", func(t *testing.T) {
		n.start()
		before := n.kernel()
		n.put(n.want[model.Key{Namespace: "ns", Name: "a"}], b)
		n.prune()
		if diff := cmp.Diff(before, n.kernel(), cmp.AllowUnexported(element{})); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("settings that went", func(t *testing.T) {
		n.start()
		settings = dataplane.Node{}
		setNode()
		for e := range n.kernel() {
			if e.set == serviceCIDRs || e.set == podInterfaces {
				t.Errorf("left over: %v", e)
			}
		}
	})
}

// TestIncrementalEqualsFresh changes Services at random, with restarts, and
// compares the kernel with what a plan from nothing asks for.
func TestIncrementalEqualsFresh(t *testing.T) {
	n := newNode(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	random := func(i int) plan.Service {
		var eps []string
		for e := range 8 {
			if r.IntN(2) == 0 {
				eps = append(eps, fmt.Sprintf("10.0.%d.%d", i, e+1), fmt.Sprintf("fd00::%d:%d", i+1, e+1))
			}
		}
		if r.IntN(6) == 0 {
			eps = nil
		}
		return n.service(fmt.Sprint("svc-", i), func(s *model.Service) {
			s.Created = time.Unix(int64(i), 0)
			s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(i + 1)})}
			if r.IntN(2) == 0 {
				s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(fmt.Sprintf("fd00:96::%d", i+1)))
			}
			if r.IntN(2) == 0 {
				s.Ports[0].NodePort = uint16(30000 + i)
			}
			s.ExternalLocal = r.IntN(2) == 0
			if r.IntN(3) == 0 {
				s.AffinityTimeout = time.Duration(1+r.IntN(2)) * time.Hour
			}
			if r.IntN(3) == 0 {
				s.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}}
				s.LoadBalancer.SourceRanges = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), 0, 0}), 8+r.IntN(16))}
			}
		}, eps...)
	}
	for step := range 120 {
		switch i := r.IntN(12); {
		case step%40 == 39:
			n.start()
			for _, s := range n.want {
				n.put(s)
			}
			n.prune()
		case r.IntN(4) == 0:
			n.remove(fmt.Sprint("svc-", i))
		default:
			n.put(random(i), random((i+1)%12))
		}
		n.check()
	}
	n.prune()
	have := n.kernel()
	if diff := cmp.Diff(have, n.dp.have.elements(), cmp.AllowUnexported(element{})); diff != "" {
		t.Errorf("the kernel holds other than is remembered: %s", diff)
	}
	for key := range n.want {
		n.remove(key.Name)
	}
	if left := n.kernel(); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// TestChangesDuringVerify makes changes while Verify has read and not repaired
// yet: they neither wait nor get lost, and damage is repaired all the same.
func TestChangesDuringVerify(t *testing.T) {
	for _, every := range []bool{false, true} { // also with changes each time it reads
		n := newNode(t)
		n.put(n.service("a", nil, "10.0.0.1", "10.0.0.2"))
		n.prune()
		conn, err := nftables.New(nftables.WithNetNSFd(int(n.ns.Handle)))
		if err != nil {
			t.Fatal(err)
		}
		conn.FlushSet(&nftables.Set{Table: n.dp.kernel.families[v4].table, Name: endpoints.String()})
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		times := 0
		n.dp.betweenReadAndRepair = func() {
			if times++; times > 1 && !every {
				return
			}
			n.put(n.service(fmt.Sprint("new-", times), func(s *model.Service) {
				s.ClusterIPs[0] = netip.AddrFrom4([4]byte{10, 96, 2, byte(times)})
			}, "10.0.0.7"))
		}
		if err := n.dp.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int{false: 2, true: verifyTries}[every]; times != want {
			t.Errorf("the kernel was read %d times without the lock, want %d", times, want)
		}
		n.check()
	}
}

// TestChainsGo has chains go with the check that nothing leads to any more.
func TestChainsGo(t *testing.T) {
	n := newNode(t)
	chains := func() string {
		t.Helper()
		if err := n.dp.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		var out []string
		for line := range strings.Lines(n.ns.Run("nft", "list", "chains", "ip")) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "chain "); ok {
				if name, _, _ = strings.Cut(name, " "); strings.HasPrefix(name, pickPrefix) {
					out = append(out, name)
				}
			}
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	n.put(n.service("a", nil, "10.0.0.1", "10.0.0.2", "10.0.0.3"))
	n.prune()
	if got := chains(); got != "to-3" {
		t.Errorf("with three endpoints: %s", got)
	}
	n.put(n.service("a", nil, "10.0.0.1"))
	if got := chains(); got != "to-1" {
		t.Errorf("with one endpoint: %s", got)
	}
	n.put(n.service("a", nil, "10.0.0.1", "10.0.0.2", "10.0.0.3"))
	if got := chains(); got != "to-3" {
		t.Errorf("with three endpoints again: %s", got)
	}
	n.check()
}

func TestDamage(t *testing.T) {
	addr := netip.MustParseAddr("10.96.0.1")
	front := element{fam: v4, set: frontends, key: frontendKey(addr, model.TCP, 80)}
	tests := []struct {
		name   string
		damage func(n *node, c *nftables.Conn, table *nftables.Table)
	}{
		{"table removed", func(n *node, c *nftables.Conn, table *nftables.Table) { c.DelTable(table) }},
		{"rules flushed", func(n *node, c *nftables.Conn, table *nftables.Table) { c.FlushTable(table) }},
		{"map flushed", func(n *node, c *nftables.Conn, table *nftables.Table) {
			c.FlushSet(&nftables.Set{Table: table, Name: endpoints.String()})
		}},
		{"element changed", func(n *node, c *nftables.Conn, table *nftables.Table) {
			set := n.dp.kernel.families[v4].set(frontends)
			_ = c.SetDeleteElements(set, []nftables.SetElement{{Key: []byte(front.key)}})
			_ = c.SetAddElements(set, []nftables.SetElement{{Key: []byte(front.key), VerdictData: &expr.Verdict{Kind: expr.VerdictDrop}}})
		}},
		{"element added", func(n *node, c *nftables.Conn, table *nftables.Table) {
			key := frontendKey(netip.MustParseAddr("10.96.0.2"), model.TCP, 80) // of Service b
			_ = c.SetAddElements(n.dp.kernel.families[v4].set(frontends), []nftables.SetElement{{Key: []byte(key), VerdictData: &expr.Verdict{Kind: expr.VerdictDrop}}})
		}},
	}
	for _, tt := range tests {
		for _, cure := range []string{"Verify", "Apply"} {
			if cure == "Apply" && tt.name == "rules flushed" {
				continue // nothing that a change touches is wrong
			}
			t.Run(tt.name+" then "+cure, func(t *testing.T) {
				n := newNode(t)
				b := func(s *model.Service) { s.ClusterIPs[0] = netip.MustParseAddr("10.96.0.2") }
				n.put(n.service("a", nil, "10.0.0.1", "10.0.0.2"))
				n.prune()
				conn, err := n.dp.kernel.open()
				if err != nil {
					t.Fatal(err)
				}
				tt.damage(n, conn, n.dp.kernel.families[v4].table)
				if err := conn.Flush(); err != nil {
					t.Fatal(err)
				}
				if cure == "Verify" {
					if err := n.dp.Verify(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				n.put(n.service("a", nil, "10.0.0.3"), n.service("b", b, "10.0.0.4"))
				n.check()
				if ok, err := n.dp.kernel.intact(n.dp.kernel.families[v4], n.dp.tables[v4].chains); err != nil || !ok {
					t.Errorf("rules are intact: %v, %v", ok, err)
				}
			})
		}
	}
}

// TestRepairsTold damages what is there: the log says in one line what was put
// back, which is counted, and the check after that has nothing to tell.
func TestRepairsTold(t *testing.T) {
	n := newNode(t)
	n.put(n.service("a", nil, "10.0.0.1", "10.0.0.2"), n.service("b", func(s *model.Service) { s.ClusterIPs[0] = netip.MustParseAddr("10.96.0.2") }, "10.0.0.4"))
	if err := n.dp.SetNode(t.Context(), dataplane.Node{Cluster: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}); err != nil {
		t.Fatal(err)
	}
	n.prune()
	var said bytes.Buffer
	reg := prometheus.NewRegistry()
	repairs, err := dataplane.NewRepairCounter(reg, nil)
	if err != nil {
		t.Fatal(err)
	}
	n.dp.log, n.dp.repairs = slog.New(slog.NewTextHandler(&said, nil)), repairs
	conn, err := n.dp.kernel.open()
	if err != nil {
		t.Fatal(err)
	}
	table := n.dp.kernel.families[v4].table
	for _, tt := range []struct {
		damage func()
		want   string
	}{
		{func() { conn.DelTable(table) }, "2 addresses, 2 frontends, 5 settings, 1 tables"},
		{func() { conn.FlushSet(&nftables.Set{Table: table, Name: endpoints.String()}) }, "2 frontends"},
		{func() {
			conn.AddChain(&nftables.Chain{Name: "of-others", Table: conn.AddTable(&nftables.Table{Name: "others", Family: nftables.TableFamilyIPv4})})
		}, ""},
	} {
		tt.damage()
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{tt.want, ""} {
			said.Reset()
			if err := n.dp.Verify(t.Context()); err != nil {
				t.Fatal(err)
			}
			if told := said.String(); want == "" && told != "" || want != "" && (strings.Count(told, "\n") != 1 || !strings.Contains(told, "level=WARN") || !strings.Contains(told, `dataplane=nftables what="`+want+`"`)) {
				t.Errorf("the log says\n%s, want %q", told, want)
			}
		}
		n.check()
	}
	families, err := reg.Gather()
	if err != nil || len(families) != 1 || len(families[0].GetMetric()) != 4 || families[0].GetMetric()[1].GetCounter().GetValue() != 4 {
		t.Errorf("counted are %v, %v", families, err)
	}
}

// TestOtherLayout starts on tables of another version: they stay until
// everything is known, then go in one transaction. Others' tables stay.
func TestOtherLayout(t *testing.T) {
	n := newNode(t)
	conn, err := n.dp.kernel.open()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tableName, "somebody-elses"} {
		table := conn.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
		conn.AddChain(&nftables.Chain{Name: "layout-0", Table: table})
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	chains := func(table string) (names []string) {
		list, err := conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if c.Table.Name == table {
				names = append(names, c.Name)
			}
		}
		return names
	}
	n.start()
	before := n.generation()
	if err := n.dp.SetNode(t.Context(), dataplane.Node{}); err != nil {
		t.Fatal(err)
	}
	n.put(n.service("a", nil, "10.0.0.1"))
	if err := n.dp.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := chains(tableName); len(got) != 1 || n.generation() != before {
		t.Fatalf("before everything is known: chains %v", got)
	}
	n.prune()
	if n.generation() != before+1 {
		t.Errorf("replacing took %d transactions", n.generation()-before)
	}
	n.check()
	if got := chains(tableName); slices.Contains(got, "layout-0") || !slices.Contains(got, layoutChain) {
		t.Errorf("after replacing: chains %v", got)
	}
	n.put(n.service("a", nil, "10.0.0.1", "10.0.0.2"))
	n.check()
	if err := Cleanup(Options{NetNS: int(n.ns.Handle)}); err != nil {
		t.Fatal(err)
	}
	if got := chains("somebody-elses"); len(got) != 1 {
		t.Errorf("somebody else's table has chains %v", got)
	}
	if got := chains(tableName); len(got) != 0 {
		t.Errorf("after Cleanup: chains %v", got)
	}
	if err := Cleanup(Options{NetNS: int(n.ns.Handle)}); err != nil {
		t.Errorf("Cleanup of nothing: %v", err)
	}
}

// TestOneBadService has a Service that the kernel refuses: others are served.
func TestOneBadService(t *testing.T) {
	n := newNode(t)
	n.put(n.service("bad", nil, "10.0.0.1"))
	bad := n.service("bad", nil, "10.0.0.1")
	bad.Frontends[0].Internal.Backends = []plan.Backend{{AddrPort: netip.MustParseAddrPort("[fd00::1]:80")}}
	good := n.service("good", func(s *model.Service) { s.ClusterIPs[0] = netip.MustParseAddr("10.96.0.2") }, "10.0.0.2")
	failed := n.try(bad, good)
	if len(failed) != 1 || failed[bad.Key] == nil || !strings.Contains(failed[bad.Key].Error(), "ns/bad") {
		t.Fatalf("failed: %v", failed)
	}
	n.want[bad.Key] = n.service("bad", nil, "10.0.0.1") // as it was
	n.check()
	n.put(n.service("bad", nil, "10.0.0.9"))
	n.prune()
	n.check()
}

func TestConflict(t *testing.T) {
	n := newNode(t)
	claim := func(name string, created int64, vip string, ep string) plan.Service {
		return n.service(name, func(s *model.Service) {
			s.Created, s.ClusterIPs[0] = time.Unix(created, 0), netip.MustParseAddr(vip)
			s.ExternalIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		}, ep)
	}
	at := "frontends " + fmt.Sprintf("%x", frontendKey(netip.MustParseAddr("192.0.2.1"), model.TCP, 80))
	young, old := claim("a-young", 9, "10.96.0.1", "10.0.0.1"), claim("b-old", 1, "10.96.0.2", "10.0.0.2")
	n.put(young)
	n.put(old)
	if got := serves(n.kernel())[at]; got != "10.0.0.2:8080" {
		t.Errorf("served by %q, want the older Service's endpoint", got)
	}
	if err := n.try(young)[young.Key]; err == nil || !strings.Contains(err.Error(), "192.0.2.1 port 80 is served for Service ns/b-old") {
		t.Errorf("the younger Service is told: %v", err)
	} else if why := dataplane.Refusal(err); why != nil {
		t.Errorf("the kernel is blamed for it: %v", why)
	}
	n.remove("b-old")
	if got := serves(n.kernel())[at]; got != "10.0.0.1:8080" {
		t.Errorf("after the older went: served by %q", got)
	}
	n.put(young)
}

// TestConflictWhole has two Services claim an address by different rules: all
// of it is the older one's, also what only the younger one has.
func TestConflictWhole(t *testing.T) {
	n := newNode(t)
	claim := func(name string, created int64, vip, ep string, edit func(*model.Service)) plan.Service {
		return n.service(name, func(s *model.Service) {
			s.Created, s.ClusterIPs[0] = time.Unix(created, 0), netip.MustParseAddr(vip)
			s.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: netip.MustParseAddr("192.0.2.1")}}
			edit(s)
		}, ep, "10.0.9.9")
	}
	younger := claim("a-younger", 9, "10.96.0.1", "10.0.0.1", func(s *model.Service) {
		s.ExternalLocal, s.AffinityTimeout = true, time.Hour
		s.LoadBalancer.SourceRanges = prefixes("0.0.0.0/1", "10.0.0.0/8", "255.0.0.0/8")
	})
	older := claim("b-older", 1, "10.96.0.2", "10.0.0.2", func(s *model.Service) {
		s.LoadBalancer.SourceRanges = prefixes("10.0.0.0/16", "203.0.113.0/24")
	})
	front := element{fam: v4, set: frontends, key: frontendKey(netip.MustParseAddr("192.0.2.1"), model.TCP, 80)}
	only := func(s plan.Service) {
		t.Helper()
		want, got := elements{}, elements{}
		concerns := func(e element) bool {
			f, ok := e.frontend()
			return ok && f == front || e.set == sourceRanges
		}
		wishes, _ := compile(s, func(poolKey, element) []netip.AddrPort { return nil })
		compiled := holding{}
		for _, w := range wishes {
			compiled[w.element] = w.value
		}
		for e, v := range compiled.elements() {
			if concerns(e) {
				want[e] = v
			}
		}
		for e, v := range n.kernel() {
			if concerns(e) {
				got[e] = v
			}
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(element{})); diff != "" {
			t.Errorf("of Service %s: %s", s.Key, diff)
		}
	}
	n.put(younger)
	only(younger)
	n.put(older)
	only(older)
	n.prune()
	only(older)
	if err := n.try(younger)[younger.Key]; err == nil {
		t.Error("the younger Service is not told")
	}
	only(older)
	n.remove("b-older")
	only(younger)
	n.try(younger, older)
	only(older)
	n.start()
	n.try(younger)
	n.try(older)
	n.prune()
	only(older)
	n.remove("a-younger")
	only(older)
}

// TestForget checks that clients are remembered no longer than their endpoint
// is one of the Service's, others as long as before, and that what a process
// left undone is done after a restart.
func TestForget(t *testing.T) {
	n := newNode(t)
	sticky := func(s *model.Service) { s.AffinityTimeout = time.Hour }
	front := frontendKey(netip.MustParseAddr("10.96.0.1"), model.TCP, 80)
	remember := func(known setID, client, endpoint string) {
		t.Helper()
		conn, err := n.dp.kernel.open()
		if err != nil {
			t.Fatal(err)
		}
		err = conn.SetAddElements(n.dp.kernel.families[v4].set(known), []nftables.SetElement{{
			Key: []byte(front + addrBytes(netip.MustParseAddr(client))), Val: []byte(addrPort(netip.MustParseAddrPort(endpoint))), Timeout: time.Hour,
		}})
		if err = errors.Join(err, conn.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	remembered := func(known setID) string {
		t.Helper()
		conn, err := n.dp.kernel.open()
		if err != nil {
			t.Fatal(err)
		}
		list, err := conn.GetSetElements(&nftables.Set{Table: n.dp.kernel.families[v4].table, Name: known.String()})
		if err != nil {
			t.Fatal(err)
		}
		var clients []string
		for _, e := range list {
			a, _ := netip.AddrFromSlice(e.Key[len(front):])
			clients = append(clients, a.String())
		}
		slices.Sort(clients)
		return strings.Join(clients, " ")
	}
	n.put(n.service("a", sticky, "10.0.0.1", "10.0.0.2", "10.0.0.3"))
	n.prune()
	for i := range 3 {
		remember(affinity, fmt.Sprintf("10.9.0.%d", i+1), fmt.Sprintf("10.0.0.%d:8080", i+1))
	}
	remember(affinityExternal, "203.0.113.1", "10.0.0.1:8080") // external clients have no endpoints of their own
	n.put(n.service("a", sticky, "10.0.0.2", "10.0.0.3", "10.0.0.4"))
	if got := remembered(affinity); got != "10.9.0.2 10.9.0.3" {
		t.Errorf("after an endpoint left, remembered are %s", got)
	}
	if got := remembered(affinityExternal); got != "" {
		t.Errorf("remembered are external clients %s", got)
	}
	remember(affinity, "10.9.0.9", "10.0.0.9:8080")
	n.start()
	n.put(n.service("a", sticky, "10.0.0.2", "10.0.0.3", "10.0.0.4"))
	if got := remembered(affinity); got != "10.9.0.2 10.9.0.3 10.9.0.9" {
		t.Errorf("before everything is known, remembered are %s", got)
	}
	n.prune()
	if got := remembered(affinity); got != "10.9.0.2 10.9.0.3" {
		t.Errorf("after a restart, remembered are %s", got)
	}
	n.remove("a")
	if got := remembered(affinity); got != "" {
		t.Errorf("after the Service went, remembered are %s", got)
	}
}

// TestConnectionsLast checks what a restart and a change of endpoints leave
// alone: connections that are open, and whom a client is stuck to.
func TestConnectionsLast(t *testing.T) {
	net := cases.NewNetwork(t)
	n := &node{T: t, ns: net.Hosts["node-1"], want: map[model.Key]plan.Service{}}
	n.start()
	if err := n.dp.SetNode(t.Context(), net.Settings); err != nil {
		t.Fatal(err)
	}
	echo := net.Hosts["pod-c"].Listen(netip.MustParseAddrPort("10.244.1.2:9000"))
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				buf := make([]byte, 16)
				for {
					k, err := c.Read(buf)
					if err != nil {
						return
					}
					_, _ = c.Write(buf[:k])
				}
			}()
		}
	}()
	service := func(affinity time.Duration, port uint16, eps ...string) plan.Service {
		s := n.service("long", func(s *model.Service) { s.AffinityTimeout = affinity }, eps...)
		for i := range s.Frontends {
			for j, b := range s.Frontends[i].Internal.Backends {
				s.Frontends[i].Internal.Backends[j].AddrPort = netip.AddrPortFrom(b.Addr(), port)
			}
		}
		return s
	}
	n.put(service(0, 9000, "10.244.1.2"))
	vip := netip.MustParseAddrPort("10.96.0.1:80")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := net.Hosts["pod-a"].Dial(ctx, "tcp", netip.AddrPort{}, vip)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	ping := func(when string) {
		t.Helper()
		if _, err := conn.Write([]byte("ping")); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		buf := make([]byte, 16)
		if k, err := conn.Read(buf); err != nil || string(buf[:k]) != "ping" {
			t.Fatalf("%s: %q, %v", when, buf[:k], err)
		}
	}
	ping("at first")
	n.start()
	n.put(service(0, 9000, "10.244.1.2"))
	ping("after a restart")
	n.put(service(0, 9000))
	n.prune()
	ping("after its endpoint left the Service")
	n.remove("long")
	ping("after the Service went")

	ask := func() string {
		t.Helper()
		a, err := net.Hosts["pod-a"].Ask("tcp", netip.AddrPort{}, vip, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return a.Name
	}
	both := []string{"10.244.0.3", "10.244.1.2"}
	n.put(service(2*time.Second, 8080, both...))
	last := ask()
	n.start()
	n.put(service(2*time.Second, 8080, both...))
	n.prune()
	for range 20 {
		if got := ask(); got != last {
			t.Fatalf("after a restart the client went from %s to %s", last, got)
		}
	}
	// Every new connection starts the timeout again, and its end frees the client.
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if got := ask(); got != last {
			t.Fatalf("the timeout was not started again: %s, then %s", last, got)
		}
	}
	n.put(service(time.Second, 8080, both...))
	first, moved := ask(), false
	for range 12 {
		time.Sleep(1200 * time.Millisecond)
		if moved = ask() != first; moved {
			break
		}
	}
	if !moved {
		t.Error("the client is still bound after the timeout")
	}
}
