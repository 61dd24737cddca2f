package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/model"
)

// endpoints reads endpoints in short form, one per line: an address, then any
// of ready, serving, terminating, local, zones=a,b and nodes=x,y. Each has TCP
// port 80, unnamed.
func endpoints(t *testing.T, lines ...string) *model.EndpointSet {
	t.Helper()
	set := &model.EndpointSet{Key: model.Key{Namespace: "ns", Name: "svc"}}
	for _, line := range lines {
		words := strings.Fields(line)
		e := model.Endpoint{Addr: netip.MustParseAddr(words[0]), Node: "other", Ports: []model.EndpointPort{{Protocol: model.TCP, Port: 80}}}
		for _, w := range words[1:] {
			name, value, _ := strings.Cut(w, "=")
			if e.Hints == nil && value != "" {
				e.Hints = &model.Hints{}
			}
			switch name {
			case "ready":
				e.Ready, e.Serving = true, true
			case "serving":
				e.Serving = true
			case "terminating":
				e.Terminating = true
			case "local":
				e.Node = "node-1"
			case "zones":
				e.Hints.Zones = strings.Split(value, ",")
			case "nodes":
				e.Hints.Nodes = strings.Split(value, ",")
			default:
				t.Fatalf("unknown word %q", w)
			}
		}
		set.Endpoints = append(set.Endpoints, e)
	}
	return set
}

// service has one TCP port 80, and a NodePort so that every policy counts.
func service() *model.Service {
	return &model.Service{
		Key: model.Key{Namespace: "ns", Name: "svc"}, Type: model.NodePort,
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, IPv4: true,
		Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80, NodePort: 30080}},
	}
}

func addrs(p Pool) string {
	if p.Action != Forward && p.Action != Redirect {
		return p.Action.String()
	}
	var out []string
	for _, b := range p.Backends {
		out = append(out, b.Addr().String())
	}
	return strings.Join(out, " ")
}

// TestPolicies has the scenarios of kube-proxy's TestCategorizeEndpoints and
// TestTerminatingEndpointsTrafficPolicy tables.
func TestPolicies(t *testing.T) {
	tests := []struct {
		name      string
		zone      string
		node      string // default node-1
		endpoints []string
		cluster   string
		local     string
	}{{
		name: "zone hints on all, some for this zone", zone: "a",
		endpoints: []string{"10.1.2.3 ready zones=a", "10.1.2.4 ready zones=b", "10.1.2.5 ready zones=c", "10.1.2.6 ready zones=a"},
		cluster:   "10.1.2.3 10.1.2.6", local: "drop",
	}, {
		name: "hints do not bind Local", zone: "a",
		endpoints: []string{"10.1.2.3 ready local zones=a", "10.1.2.4 ready local zones=b", "10.1.2.5 ready zones=c", "10.1.2.6 ready zones=a"},
		cluster:   "10.1.2.3 10.1.2.6", local: "10.1.2.3 10.1.2.4",
	}, {
		name:      "node without a zone",
		endpoints: []string{"10.1.2.3 ready zones=a"},
		cluster:   "10.1.2.3", local: "drop",
	}, {
		name: "no hint for this zone", zone: "b",
		endpoints: []string{"10.1.2.3 ready zones=a"},
		cluster:   "10.1.2.3", local: "drop",
	}, {
		name: "unready endpoint of the zone", zone: "a",
		endpoints: []string{"10.1.2.3 ready zones=a", "10.1.2.4 ready zones=b", "10.1.2.6 zones=a"},
		cluster:   "10.1.2.3", local: "drop",
	}, {
		name: "only unready endpoints in the zone", zone: "a",
		endpoints: []string{"10.1.2.3 zones=a", "10.1.2.4 ready zones=b", "10.1.2.5 ready zones=c", "10.1.2.6 zones=a"},
		cluster:   "10.1.2.4 10.1.2.5", local: "drop",
	}, {
		name: "one ready endpoint without a hint", zone: "a",
		endpoints: []string{"10.1.2.3 ready zones=a", "10.1.2.4 ready zones=b", "10.1.2.5 ready"},
		cluster:   "10.1.2.3 10.1.2.4 10.1.2.5", local: "drop",
	}, {
		name: "an unready endpoint needs no hint", zone: "a",
		endpoints: []string{"10.1.2.3 ready zones=a", "10.1.2.4 ready zones=b", "10.1.2.5"},
		cluster:   "10.1.2.3", local: "drop",
	}, {
		name: "several zones per hint", zone: "c",
		endpoints: []string{"10.1.2.3 ready zones=a,b,c", "10.1.2.4 ready zones=b,c", "10.1.2.5 ready zones=b,d", "10.1.2.6 ready zones=c"},
		cluster:   "10.1.2.3 10.1.2.4 10.1.2.6", local: "drop",
	}, {
		name: "node hints go first", zone: "a",
		endpoints: []string{"10.1.2.3 ready zones=a nodes=node-1", "10.1.2.4 ready zones=b nodes=node-2", "10.1.2.6 ready zones=a nodes=node-4"},
		cluster:   "10.1.2.3", local: "drop",
	}, {
		name: "node hints missing on one", zone: "a",
		endpoints: []string{"10.1.2.3 ready zones=a nodes=node-1", "10.1.2.4 ready", "10.1.2.6 ready zones=a nodes=node-4"},
		cluster:   "10.1.2.3 10.1.2.4 10.1.2.6", local: "drop",
	}, {
		name: "node hints for others, then zone", zone: "a", node: "node-0",
		endpoints: []string{"10.1.2.3 ready zones=a nodes=node-1", "10.1.2.4 ready zones=b nodes=node-2", "10.1.2.6 ready zones=a nodes=node-4"},
		cluster:   "10.1.2.3 10.1.2.6", local: "drop",
	}, {
		name: "topology and locality differ", zone: "a",
		endpoints: []string{"10.0.0.1 ready local zones=a", "10.0.0.2 ready local zones=b", "10.0.0.3 ready zones=a", "10.0.0.4 ready zones=b"},
		cluster:   "10.0.0.1 10.0.0.3", local: "10.0.0.1 10.0.0.2",
	}, {
		name:    "no endpoints",
		cluster: "reject", local: "reject",
	}, {
		name:      "all remote",
		endpoints: []string{"10.0.0.1 ready", "10.0.0.2 ready"},
		cluster:   "10.0.0.1 10.0.0.2", local: "drop",
	}, {
		name:      "all local",
		endpoints: []string{"10.0.0.1 ready local", "10.0.0.2 ready local"},
		cluster:   "10.0.0.1 10.0.0.2", local: "10.0.0.1 10.0.0.2",
	}, {
		name:      "some local, in any order",
		endpoints: []string{"10.0.0.2 ready", "10.0.0.1 ready local"},
		cluster:   "10.0.0.1 10.0.0.2", local: "10.0.0.1",
	}, {
		name:      "none ready",
		endpoints: []string{"10.0.0.1", "10.0.0.2 local"},
		cluster:   "reject", local: "reject",
	}, {
		name:      "some ready",
		endpoints: []string{"10.0.0.1", "10.0.0.2 ready"},
		cluster:   "10.0.0.2", local: "drop",
	}, {
		name:      "all terminating but serving",
		endpoints: []string{"10.0.0.1 serving terminating local", "10.0.0.2 serving terminating", "10.0.0.3 terminating local"},
		cluster:   "10.0.0.1 10.0.0.2", local: "10.0.0.1",
	}, {
		name:      "serving and terminating, all remote",
		endpoints: []string{"10.0.0.1 serving terminating", "10.0.0.2 serving terminating"},
		cluster:   "10.0.0.1 10.0.0.2", local: "drop",
	}, {
		name:      "Local falls back on its own",
		endpoints: []string{"10.0.0.1 ready", "10.0.0.2 local", "10.0.0.3 serving terminating local", "10.0.0.4 serving terminating"},
		cluster:   "10.0.0.1", local: "10.0.0.3",
	}, {
		name:      "a ready local endpoint bars the terminating one",
		endpoints: []string{"10.0.0.1 ready local", "10.0.0.2 serving terminating local"},
		cluster:   "10.0.0.1", local: "10.0.0.1",
	}, {
		name: "terminating fallback ignores hints", zone: "a",
		endpoints: []string{"10.0.0.1 serving terminating zones=b", "10.0.0.2 serving terminating zones=a"},
		cluster:   "10.0.0.1 10.0.0.2", local: "drop",
	}, {
		name:      "publishNotReadyAddresses keeps a terminating Pod ready",
		endpoints: []string{"10.0.0.1 ready terminating", "10.0.0.2 ready"},
		cluster:   "10.0.0.1 10.0.0.2", local: "drop",
	}, {
		name:      "serving without terminating is not ready",
		endpoints: []string{"10.0.0.1 serving"},
		cluster:   "reject", local: "reject",
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			svc, eps := service(), endpoints(t, tt.endpoints...)
			svc.ExternalLocal = true
			node := &model.Node{Name: "node-1", Zone: tt.zone}
			if tt.node != "" {
				node.Name = tt.node
			}
			got := Compile(Input{Service: svc, Endpoints: eps, Node: node})
			if len(got.Frontends) != 2 {
				t.Fatalf("got %d frontends", len(got.Frontends))
			}
			clusterIP, nodePort := got.Frontends[0], got.Frontends[1]
			if got := addrs(clusterIP.Internal); got != tt.cluster {
				t.Errorf("cluster policy: got %q, want %q", got, tt.cluster)
			}
			if clusterIP.Split() {
				t.Error("externalTrafficPolicy binds the cluster IP")
			}
			if got := addrs(nodePort.Internal); got != tt.cluster {
				t.Errorf("node port from inside: got %q, want %q", got, tt.cluster)
			}
			if got := addrs(nodePort.External); got != tt.local {
				t.Errorf("node port from outside: got %q, want %q", got, tt.local)
			}
			svc.InternalLocal, svc.ExternalLocal = true, false
			got = Compile(Input{Service: svc, Endpoints: eps, Node: node})
			if got := addrs(got.Frontends[0].Internal); got != tt.local {
				t.Errorf("internalTrafficPolicy Local: got %q, want %q", got, tt.local)
			}
			if got := addrs(got.Frontends[1].Internal); got != tt.cluster {
				t.Errorf("internalTrafficPolicy binds the node port: got %q, want %q", got, tt.cluster)
			}
			var up []string
			for _, a := range Upstreams(svc, svc.Ports[0], eps, node) {
				up = append(up, a.Addr().String())
			}
			if got, want := strings.Join(up, " "), strings.TrimPrefix(tt.cluster, "reject"); got != want {
				t.Errorf("upstreams: got %q, want %q", got, want)
			}
		})
	}
}

func TestUpstreams(t *testing.T) {
	svc := service()
	eps := endpoints(t, "10.0.0.2 ready zones=a", "10.0.0.1 ready zones=b", "fd00::1 ready zones=b", "10.0.0.9")
	named := model.ServicePort{Name: "web", Protocol: model.TCP, Port: 80}
	for i, number := range []uint16{8080, 9090, 8080} {
		eps.Endpoints[i].Ports = []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: number}, {Name: "web", Protocol: model.UDP, Port: 1}}
	}
	parse := func(list ...string) (out []netip.AddrPort) {
		for _, s := range list {
			out = append(out, netip.MustParseAddrPort(s))
		}
		return out
	}
	tests := []struct {
		name string
		svc  *model.Service
		port model.ServicePort
		eps  *model.EndpointSet
		node *model.Node
		want []netip.AddrPort
	}{
		{"named port that differs per Pod, both families", svc, named, eps, nil, parse("10.0.0.1:9090", "10.0.0.2:8080", "[fd00::1]:8080")},
		{"by zone", svc, named, eps, &model.Node{Name: "n", Zone: "a"}, parse("10.0.0.2:8080")},
		{"port that no endpoint has", svc, model.ServicePort{Name: "other", Protocol: model.TCP}, eps, nil, nil},
		{"other protocol", svc, model.ServicePort{Name: "web", Protocol: model.SCTP}, eps, nil, nil},
		{"no endpoints", svc, named, nil, nil, nil},
		{"no Service", nil, named, eps, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Upstreams(tt.svc, tt.port, tt.eps, tt.node)
			if len(got) == 0 && len(tt.want) == 0 {
				return
			}
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// FuzzPolicies checks what must hold for any set of endpoints: nobody is sent
// to an endpoint that does not serve, Local stays on the node, and a Service
// with somebody serving is never rejected.
func FuzzPolicies(f *testing.F) {
	f.Add([]byte{0x03, 0x1f, 0x2a})
	f.Add([]byte{0x06, 0x0e, 0xff, 0x80})
	f.Fuzz(func(t *testing.T, bits []byte) {
		set := &model.EndpointSet{}
		anybody := false
		for i, b := range bits {
			e := model.Endpoint{
				Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Ports: []model.EndpointPort{{Protocol: model.TCP, Port: 80}},
				Ready: b&1 != 0, Serving: b&2 != 0, Terminating: b&4 != 0, Node: "other",
			}
			if b&8 != 0 {
				e.Node = "node-1"
			}
			if b&16 != 0 {
				e.Hints = &model.Hints{Zones: []string{string('a' + rune(b>>6))}}
			}
			if b&32 != 0 {
				e.Hints = &model.Hints{Nodes: []string{"node-" + string('0'+rune(b>>6))}}
			}
			anybody = anybody || e.Ready || e.Serving && e.Terminating
			set.Endpoints = append(set.Endpoints, e)
		}
		svc := service()
		svc.ExternalLocal = true
		got := Compile(Input{Service: svc, Endpoints: set, Node: &model.Node{Name: "node-1", Zone: "a"}})
		at := func(b Backend) model.Endpoint {
			a := b.Addr().As4()
			return set.Endpoints[int(a[2])<<8|int(a[3])]
		}
		for _, fe := range got.Frontends {
			for _, p := range []Pool{fe.Internal, fe.External} {
				if anybody == (p.Action == Reject) {
					t.Errorf("%s: %v although somebody serves is %v", fe.Kind, p.Action, anybody)
				}
				if (p.Action == Forward) != (len(p.Backends) > 0) {
					t.Errorf("%s: %v with %d backends", fe.Kind, p.Action, len(p.Backends))
				}
				for _, b := range p.Backends {
					e := at(b)
					if !e.Ready && !(e.Serving && e.Terminating) {
						t.Errorf("%s: %v does not serve", fe.Kind, b)
					}
					if p.Policy == Local && !b.Local || b.Local != (e.Node == "node-1") {
						t.Errorf("%s: %v is on %s", fe.Kind, b, e.Node)
					}
				}
			}
		}
	})
}

// TestPlace tells endpoints on the node from others.
func TestPlace(t *testing.T) {
	node := &model.Node{Name: "a", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}}
	for _, c := range []struct {
		name     string
		node     *model.Node
		endpoint string
		addr     string
		want     bool
	}{
		{"by name", node, "a", "203.0.113.1", true},
		{"another name, whatever the address", node, "b", "10.244.0.7", false},
		{"no name, a Pod of the node", node, "", "10.244.0.7", true},
		{"no name, the node itself", node, "", "192.0.2.1", true},
		{"no name, elsewhere", node, "", "10.244.1.7", false},
		{"no node", nil, "", "10.244.0.7", false},
	} {
		if got := isOn(c.node, c.endpoint, netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestOthers(t *testing.T) {
	eps := endpoints(t, "10.0.0.3 ready zones=a", "10.0.0.1 ready zones=b", "10.0.0.4 serving terminating", "10.0.0.5", "10.0.0.6 terminating", "127.0.0.1 ready", "10.0.0.3 serving terminating")
	svc := service()
	for _, tt := range []struct {
		node *model.Node
		want []string
	}{
		{nil, []string{"10.0.0.4 true"}},
		{&model.Node{Name: "n", Zone: "a"}, []string{"10.0.0.1 false", "10.0.0.4 true"}},
		{&model.Node{Name: "n", Zone: "b"}, []string{"10.0.0.3 false", "10.0.0.4 true"}},
	} {
		var got []string
		for _, s := range Others(svc.Ports[0], eps, Upstreams(svc, svc.Ports[0], eps, tt.node)) {
			got = append(got, fmt.Sprintf("%s %t", s.Addr(), s.Draining))
		}
		slices.Sort(got)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Error(diff)
		}
	}
	if Others(svc.Ports[0], nil, nil) != nil {
		t.Error("endpoints out of nothing")
	}
}

// TestStandby checks where clients of the node's own server go when it does not answer.
func TestStandby(t *testing.T) {
	own := netip.MustParseAddrPort("192.0.2.1:80")
	for _, tt := range []struct {
		name      string
		endpoints []string
		edit      func(*model.Service)
		want      string
	}{
		{"others, each for its node", []string{"192.0.2.1 ready local nodes=node-1", "192.0.2.2 ready nodes=node-2", "192.0.2.3 ready nodes=node-3"}, nil, "192.0.2.2 192.0.2.3"},
		{"others that are not ready", []string{"192.0.2.1 ready local nodes=node-1", "192.0.2.2 serving terminating nodes=node-2", "192.0.2.3 nodes=node-3"}, nil, "192.0.2.2"},
		{"nobody else", []string{"192.0.2.1 ready local nodes=node-1"}, nil, ""},
		{"it is about to end, and others have its clients", []string{"192.0.2.1 serving terminating local nodes=node-1", "192.0.2.2 ready nodes=node-2"}, nil, ""},
		{"one that is somebody else's", []string{"192.0.2.9 ready local nodes=node-1", "192.0.2.2 ready nodes=node-2"}, nil, ""},
		{"one of several", []string{"192.0.2.1 ready local", "192.0.2.2 ready"}, nil, ""},
		{"to stay on the node", []string{"192.0.2.1 ready local nodes=node-1", "192.0.2.2 ready nodes=node-2"}, func(s *model.Service) { s.InternalLocal = true }, ""},
		{"with affinity", []string{"192.0.2.1 ready local nodes=node-1", "192.0.2.2 ready nodes=node-2"}, func(s *model.Service) { s.AffinityTimeout = 1 }, ""},
	} {
		svc := service()
		if tt.edit != nil {
			tt.edit(svc)
		}
		got := Compile(Input{Service: svc, Endpoints: endpoints(t, tt.endpoints...), Node: &model.Node{Name: "node-1"}, Options: Options{OwnServer: []netip.AddrPort{own}}})
		for i := range got.Frontends {
			f := &got.Frontends[i]
			want := tt.want
			if f.Kind != ClusterIP {
				want = ""
			}
			if addrs := addrs(f.Standby); addrs != want || f.StandsBy() != (want != "") || (f.StandsBy() && !f.OwnServer) {
				t.Errorf("%s: %s stands by with %q, want %q", tt.name, f.Kind, addrs, want)
			}
		}
	}
}
