package cases

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/testenv"
)

// Start starts the data path to be tested in the network namespace of node-1.
type Start func(t *testing.T, n *Network) dataplane.Dataplane

const (
	// silence is how long a client waits before it counts as unanswered; an
	// answer takes far less than a millisecond here.
	silence = 400 * time.Millisecond
	// patience bounds a client that must get an answer, on a busy machine.
	patience = 5 * time.Second
	// tries is the number of connections in which every endpoint of a few must
	// have had its turn: with two, it fails once in 2^39.
	tries = 40
)

// Run runs every case against a data path.
//
// What differs by the data path are exceptions, see [Exceptions]: Run fails if
// it makes others than those that are listed for it, or fewer.
func Run(t *testing.T, start Start, kind Kind) {
	n := NewNetwork(t)
	made := map[Exception]bool{}
	dp := start(t, n)
	if err := dp.SetNode(t.Context(), n.Settings); err != nil {
		t.Fatal(err)
	}
	if err := dp.Prune(t.Context(), func(func(model.Key, plan.Service) bool) {}); err != nil {
		t.Fatal(err)
	}
	for i := range table {
		c := &table[i]
		t.Run(c.name, func(t *testing.T) {
			for family, suffix := range []string{"4", "6"} {
				for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
					if protocol == model.UDP && c.tcpOnly {
						continue
					}
					t.Run(strings.ToLower(protocol.String())+suffix, func(t *testing.T) {
						r := &run{n: n, dp: dp, c: c, family: family, protocol: protocol, kind: kind, made: made}
						r.run(t)
					})
				}
			}
		})
	}
	t.Run("the node's own server", func(t *testing.T) { runOwnServer(t, run{n: n, dp: dp, kind: kind, made: made}) })
	for _, e := range Exceptions {
		if listed := slices.Contains(e.Kinds, kind); listed && !made[e.Name] && all(t) {
			t.Errorf("exception %q is listed for %s, which does not make it: take it off the list, and off docs/features/services.md", e.Name, kind)
		} else if !listed && made[e.Name] {
			t.Errorf("exception %q is made by %s, for which it is not listed", e.Name, kind)
		}
	}
}

// all reports whether every case was run, and none failed.
func all(t *testing.T) bool {
	return !t.Failed() && !strings.Contains(flag.Lookup("test.run").Value.String(), "/")
}

// run is one case in one family with one protocol.
type run struct {
	n        *Network
	dp       dataplane.Dataplane
	c        *testCase
	family   int
	protocol model.Protocol
	kind     Kind
	made     map[Exception]bool // by the data path, until now
}

func (r *run) addr(name string) netip.Addr {
	a, ok := names[r.family][name]
	if !ok {
		panic("cases: unknown address " + name)
	}
	return a
}

func (r *run) run(t *testing.T) {
	var keys []model.Key
	defer func() {
		var changes []reconcile.Change[model.Key, plan.Service]
		for _, k := range keys {
			changes = append(changes, reconcile.Change[model.Key, plan.Service]{Key: k})
		}
		if errs := r.dp.Apply(context.Background(), changes); len(errs) > 0 {
			t.Errorf("removing: %v", errs)
		}
	}()
	settings := r.n.Settings
	if r.c.node != nil {
		r.c.node(r, &settings)
		defer func() {
			if err := r.dp.SetNode(context.Background(), r.n.Settings); err != nil {
				t.Error(err)
			}
		}()
		if err := r.dp.SetNode(t.Context(), settings); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range r.c.services {
		p := r.plan(i, s, settings)
		keys = append(keys, p.Key)
		r.apply(t, p)
	}
	for _, p := range r.c.probes {
		if p.change != nil {
			r.apply(t, r.plan(0, *p.change, settings))
			continue
		}
		t.Run(p.from+" to "+p.to, func(t *testing.T) { r.probe(t, p) })
	}
}

func (r *run) apply(t *testing.T, p plan.Service) {
	t.Helper()
	// A client port that comes again must not find the flow of an earlier case:
	// datagrams have no end that conntrack could see.
	r.n.Hosts["node-1"].ForgetConnections()
	errs := r.dp.Apply(t.Context(), []reconcile.Change[model.Key, plan.Service]{{Key: p.Key, New: p, HasNew: true}})
	if err := errs[p.Key]; err != nil {
		t.Fatal(err)
	}
}

// plan makes a model Service of a case's and compiles it.
func (r *run) plan(i int, s service, settings dataplane.Node) plan.Service {
	key := model.Key{Namespace: "cases", Name: "svc-" + strconv.Itoa(i)}
	vip := s.vip
	if vip == "" {
		vip = "vip"
	}
	svc := &model.Service{
		Key: key, Type: model.LoadBalancer, ClusterIPs: []netip.Addr{r.addr(vip)}, IPv4: r.family == 0, IPv6: r.family == 1,
		Ports:         []model.ServicePort{{Name: "web", Protocol: r.protocol, Port: 80, NodePort: s.nodePort}},
		ExternalLocal: s.externalLocal, InternalLocal: s.internalLocal, AffinityTimeout: s.affinity,
	}
	if s.lb {
		svc.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: r.addr("lb"), Proxy: s.lbProxy}}
	}
	for _, name := range s.from {
		svc.LoadBalancer.SourceRanges = append(svc.LoadBalancer.SourceRanges, netip.PrefixFrom(r.addr(name), r.addr(name).BitLen()))
	}
	if s.ext {
		svc.ExternalIPs = []netip.Addr{r.addr("ext")}
	}
	if s.tls {
		svc.TLS = &model.ServiceTLS{}
	}
	return plan.Compile(plan.Input{
		Service: svc, Endpoints: r.endpoints(key, s.endpoints), Node: r.n.Node1, CertificateReady: s.certificate,
		Options: plan.Options{ExternalIPs: true, TLSProxy: settings.TLSProxy},
	})
}

// endpoints reads "pod-b pod-c/terminating": ready unless said otherwise.
func (r *run) endpoints(key model.Key, list string) *model.EndpointSet {
	set := &model.EndpointSet{Key: key}
	for word := range strings.FieldsSeq(list) {
		name, condition, _ := strings.Cut(word, "/")
		e := model.Endpoint{Addr: r.addr(name), Ready: true, Serving: true, Node: "node-1"}
		e.Ports = []model.EndpointPort{{Name: "web", Protocol: r.protocol, Port: serverPort}}
		if name == "pod-c" { // the others are on node-1
			e.Node = "node-2"
		}
		switch condition {
		case "":
		case "terminating":
			e.Ready, e.Terminating = false, true
		case "unready":
			e.Ready, e.Serving = false, false
		default:
			panic("cases: unknown condition " + condition)
		}
		set.Endpoints = append(set.Endpoints, e)
	}
	return set
}

func (r *run) probe(t *testing.T, p probe) {
	name, port, _ := strings.Cut(p.to, ":")
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(r.addr(name), uint16(number))
	switch {
	case p.sockets != "" && r.sockets(p):
		p.want = p.sockets
	case p.sockets != "":
		r.made[p.exception] = true
	}
	switch p.want {
	case refused:
		if _, err := r.ask(p, to, patience); !errors.Is(err, syscall.ECONNREFUSED) && !r.notSent(p, err) {
			t.Errorf("want connection refused, got %v", err)
		}
	case silent:
		if a, err := r.ask(p, to, silence); !isTimeout(err) && !r.notSent(p, err) {
			t.Errorf("want no answer, got %v, %v", a, err)
		}
	default:
		r.answers(t, p, to)
	}
}

// sockets reports whether the client's sockets are balanced.
func (r *run) sockets(p probe) bool {
	return r.kind == Sockets || p.from == "node-1" && r.kind == NodeSockets
}

// notSent reports whether a datagram of the node itself was not sent: a filter
// that rejects or drops it tells so to its sender.
func (r *run) notSent(p probe, err error) bool {
	if p.from != "node-1" || r.protocol != model.UDP || !errors.Is(err, syscall.EPERM) {
		return false
	}
	r.made[NotSent] = true
	return true
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func (r *run) ask(p probe, to netip.AddrPort, limit time.Duration) (testenv.Answer, error) {
	var local netip.AddrPort
	if p.as != "" {
		local = netip.AddrPortFrom(r.addr(p.as), 0)
	}
	return r.n.Hosts[p.from].Ask(strings.ToLower(r.protocol.String()), local, to, limit)
}

// answers checks that exactly the wanted endpoints answer, and see the right client.
func (r *run) answers(t *testing.T, p probe, to netip.AddrPort) {
	want := strings.Fields(p.want)
	seen := map[string]int{}
	for i := range tries {
		if len(seen) == len(want) && i >= tries/4 && !p.sticky {
			break
		}
		a, err := r.ask(p, to, patience)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if !slices.Contains(want, a.Name) {
			t.Fatalf("%s answered, want one of %v", a.Name, want)
		}
		seen[a.Name]++
		if err := r.client(p, a); err != nil {
			t.Fatal(err)
		}
	}
	switch {
	case p.sticky && len(seen) != 1:
		t.Errorf("the client was spread over %v", seen)
	case !p.sticky && len(seen) != len(want):
		t.Errorf("only %v answered, want all of %v", seen, want)
	}
}

// client checks whom an endpoint saw.
func (r *run) client(p probe, a testenv.Answer) error {
	own := r.addr(cmpOr(p.as, p.from))
	nodes := []netip.Addr{r.addr("node-1"), r.addr("wan"), r.addr("own")}
	saw := a.Client.Addr().Unmap()
	switch client := p.sees[a.Name]; {
	case client == "itself" && !r.sockets(p) && slices.Contains(nodes, saw):
		r.made[HairpinHidden] = true
	case client == "" && p.from == "node-1", client == "node", client == "itself" && !r.sockets(p):
		if !slices.Contains(nodes, saw) {
			return fmt.Errorf("%s saw %s, want an address of the node", a.Name, saw)
		}
	case saw != own:
		return fmt.Errorf("%s saw %s, want the client's own address %s", a.Name, saw, own)
	}
	return nil
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
