package explain

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/state"
)

// kernel is what a kernel holds, by address in text.
type kernel map[string]dataplane.Held

func (kernel) Mode() string { return "nftables" }

func (k kernel) Held(f *plan.Frontend) (dataplane.Held, bool) {
	h, ok := k[netip.AddrPortFrom(f.Addr, f.Port).String()]
	return h, ok
}

func (kernel) Differences(f *plan.Frontend) []string {
	if f.Port == 30080 {
		return []string{"everybody may connect"}
	}
	return nil
}

// read are data paths that serve everything.
func read(list ...dataplane.Holdings) (out []dataplane.HeldPart) {
	for _, h := range list {
		out = append(out, dataplane.HeldPart{Holdings: h})
	}
	return out
}

func forward(list ...string) dataplane.HeldPool {
	p := dataplane.HeldPool{Action: plan.Forward}
	for _, s := range list {
		p.Backends = append(p.Backends, netip.MustParseAddrPort(s))
	}
	return p
}

func both(p dataplane.HeldPool) dataplane.Held { return dataplane.Held{Internal: p, External: p} }

var web = model.Key{Namespace: "shop", Name: "web"}

// cluster has Service web: one endpoint here, one elsewhere, one that is not
// ready and one on loopback.
func cluster(edit func(s *model.Service, tx *state.Tx)) *state.Snapshot {
	addr := netip.MustParseAddr
	store := state.New()
	store.Update(func(tx *state.Tx) {
		tx.PutNode(&model.Node{Name: "node-1", Zone: "a", Addrs: []netip.Addr{addr("192.0.2.1")}})
		s := &model.Service{
			Key: web, UID: "u", Type: model.LoadBalancer, ClusterIPs: []netip.Addr{addr("10.96.0.7")}, HasSelector: true, ExternalLocal: true,
			Ports: []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080}, {Name: "dns", Protocol: model.UDP, Port: 53}},
		}
		ports := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}
		pod := func(name, zone string) *model.EndpointAbout {
			return &model.EndpointAbout{Zone: zone, Pod: model.Key{Namespace: "shop", Name: name}}
		}
		tx.PutSlice(&model.EndpointSlice{Key: web, Service: web, Endpoints: []model.Endpoint{
			{Addr: addr("10.244.0.2"), Ready: true, Serving: true, Node: "node-1", About: pod("web-1", "a"), Ports: ports},
			{Addr: addr("10.244.1.3"), Ready: true, Serving: true, Node: "node-2", About: pod("web-2", "b"), Ports: ports},
			{Addr: addr("10.244.1.4"), Node: "node-2", About: pod("web-3", "b"), Ports: ports},
			{Addr: addr("127.0.0.1"), Ready: true, Serving: true, Ports: ports},
		}})
		if edit != nil {
			edit(s, tx)
		}
		tx.PutService(s)
		tx.SetSynced()
	})
	return store.Snapshot()
}

func explained(t *testing.T, o Options) *Report {
	t.Helper()
	o.Service, o.Node = web, "node-1"
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestText(t *testing.T) {
	r := explained(t, Options{Snapshot: cluster(nil), Kernel: read(kernel{
		"10.96.0.7:80":  both(forward("10.244.0.2:8080", "10.244.1.3:8080")),
		"0.0.0.0:30080": {Internal: forward("10.244.0.2:8080", "10.244.1.4:8080"), External: dataplane.HeldPool{Action: plan.Drop}},
	})})
	want := `Service shop/web (LoadBalancer), as node node-1 in zone a serves it
  problem: endpoints are left out: 127.0.0.1 is a loopback address; correct the addresses in the Service's EndpointSlices

port http 80/TCP
  ENDPOINT         POD    NODE    ZONE  CLUSTER  LOCAL  WHY
  10.244.0.2:8080  web-1  node-1  a     in       in     ready
  10.244.1.3:8080  web-2  node-2  b     in       out    ready; Local: it is not on this node
  10.244.1.4:8080  web-3  node-2  b     out      out    not ready; Local: it is not on this node
  127.0.0.1:8080                        out      out    its address is a loopback address

  ADDRESS                KIND       CLIENTS  POLICY   GET                               KERNEL
  10.96.0.7:80           ClusterIP  all      Cluster  10.244.0.2:8080, 10.244.1.3:8080  the same
  the node's IPv4:30080  NodePort   inside   Cluster  10.244.0.2:8080, 10.244.1.3:8080  DIFFERS: the kernel lacks 10.244.1.3:8080; the kernel still has 10.244.1.4:8080; everybody may connect
                                    outside  Local    10.244.0.2:8080                   DIFFERS: the kernel does drop

port dns 53/UDP
  ENDPOINT    POD    NODE    ZONE    WHY
  10.244.0.2  web-1  node-1  a  out  it has no port named "dns"
  10.244.1.3  web-2  node-2  b  out  it has no port named "dns"
  10.244.1.4  web-3  node-2  b  out  it has no port named "dns"
  127.0.0.1                     out  its address is a loopback address

  ADDRESS       KIND       CLIENTS  POLICY   GET                                       KERNEL
  10.96.0.7:53  ClusterIP  all      Cluster  refused: no endpoint serves the port      DIFFERS: the kernel does not have it

the kernel (nftables) differs where it is said above
`
	// Widths of columns are the table writer's business.
	if diff := cmp.Diff(squeeze(want), squeeze(r.Text())); diff != "" {
		t.Errorf("want-, got+:\n%s\n%s", diff, r.Text())
	}
}

// TestTextOfVeryMany lists some endpoints and counts the others by reason.
func TestTextOfVeryMany(t *testing.T) {
	const all, down = 5000, 7
	many := cluster(func(s *model.Service, tx *state.Tx) {
		slice := &model.EndpointSlice{Key: web, Service: web}
		for i := range all {
			up := i < all-down
			slice.Endpoints = append(slice.Endpoints, model.Endpoint{
				Addr: netip.AddrFrom4([4]byte{10, 250, byte(i >> 8), byte(i)}), Ready: up, Serving: up, Node: "node-2",
				Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}},
			})
		}
		tx.PutSlice(slice)
	})
	o := Options{Snapshot: many, Port: "http", Kernel: read(kernel{"10.96.0.7:80": both(forward())})}
	text := squeeze(explained(t, o).Text())
	for _, want := range []string{
		"and 4960 more (--all lists them):\n",
		"4953 Cluster in, Local out: ready; Local: it is not on this node\n",
		"7 Cluster out, Local out: not ready; Local: it is not on this node\n",
		"the kernel lacks 10.250.0.0:8080, 10.250.0.1:8080, 10.250.0.2:8080, 10.250.0.3:8080, 10.250.0.4:8080, 10.250.0.5:8080 and 4987 more\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it is not told: %q", want)
		}
	}
	if n := strings.Count(text, "\n"); n > 60 {
		t.Errorf("%d lines:\n%s", n, text)
	}
	o.All = true
	if text := explained(t, o).Text(); strings.Count(text, "\n") < all || strings.Contains(text, "--all") {
		t.Errorf("asked for all, there are %d lines", strings.Count(text, "\n"))
	}
}

// squeeze makes blanks between columns alike.
func squeeze(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
	}
	return b.String()
}

func TestOnlyWhatWasAskedFor(t *testing.T) {
	addr := netip.MustParseAddr
	vip := func(s *model.Service, _ *state.Tx) {
		s.LoadBalancer = model.ServiceLoadBalancer{
			Ingress: []model.LoadBalancerIngress{{Addr: addr("198.51.100.1")}}, SourceRanges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")},
		}
		s.AffinityTimeout = time.Hour
	}
	for _, test := range []struct {
		name       string
		edit       func(*model.Service, *state.Tx)
		o          Options
		has, hasNo []string
	}{
		{"one port by name", nil, Options{Port: "dns"}, []string{"port dns"}, []string{"port http"}},
		{"one port by number", nil, Options{Port: "80"}, []string{"port http"}, []string{"port dns"}},
		{"from a Pod that is admitted", vip, Options{From: Pod, FromName: "Pod shop/cart", FromAddr: addr("10.244.0.9"), Port: "http"},
			[]string{"to Pod shop/cart", "198.51.100.1:80 LoadBalancer inside Cluster 10.244.0.2:8080, 10.244.1.3:8080 (only from 10.244.0.0/24) (the same one for 1h0m0s)"}, []string{"outside"}},
		{"from a Pod that is not", vip, Options{From: Pod, FromAddr: addr("10.244.1.9"), Port: "http"},
			[]string{"198.51.100.1:80 LoadBalancer inside Cluster no answer: the source ranges do not admit the client"}, nil},
		{"ranges of the other family only", func(s *model.Service, tx *state.Tx) {
			vip(s, tx)
			s.LoadBalancer.SourceRanges = []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}
		}, Options{Port: "http"}, []string{"198.51.100.1:80 LoadBalancer inside Cluster no answer: no range of loadBalancerSourceRanges is of the address's family"}, []string{"only from"}},
		{"from outside", nil, Options{From: Outside, Port: "http"}, []string{"NodePort outside Local 10.244.0.2:8080"}, []string{"inside"}},
		{"nobody here", func(s *model.Service, tx *state.Tx) {
			tx.PutNode(&model.Node{Name: "node-1", Zone: "z"})
			s.InternalLocal = true
			s.Ports = s.Ports[:1]
			tx.DeleteSlice(web)
			tx.PutSlice(&model.EndpointSlice{Key: web, Service: web, Endpoints: []model.Endpoint{
				{Addr: addr("10.244.1.3"), Ready: true, Serving: true, Node: "node-2", Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 1}}}}})
		}, Options{}, []string{"ClusterIP all Local no answer: no endpoint on this node serves the port, but others do"}, nil},
		{"the node's own server", func(s *model.Service, tx *state.Tx) {
			s.Ports = s.Ports[:1]
			tx.DeleteSlice(web)
			var both []model.Endpoint
			for a, node := range map[string]string{"10.244.0.2": "node-1", "10.244.1.3": "node-2"} {
				both = append(both, model.Endpoint{
					Addr: addr(a), Ready: true, Serving: true, Node: node, Hints: &model.Hints{Nodes: []string{node}},
					Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 10053}},
				})
			}
			tx.PutSlice(&model.EndpointSlice{Key: web, Service: web, Endpoints: both})
		}, Options{
			Plan:   plan.Options{OwnServer: []netip.AddrPort{netip.MustParseAddrPort("10.244.0.2:10053")}},
			Kernel: read(kernel{"10.96.0.7:80": {Internal: forward("10.244.0.2:10053"), External: forward("10.244.0.2:10053"), Untracked: true}}),
		}, []string{"ClusterIP all Cluster 10.244.0.2:10053 (without connection tracking) (while it does not answer, 10.244.1.3:10053)"}, nil},
		{"headless", func(s *model.Service, _ *state.Tx) { s.Headless, s.ClusterIPs = true, nil }, Options{}, []string{"is headless"}, []string{"ClusterIP all"}},
		{"another proxy's", func(s *model.Service, _ *state.Tx) { s.NotProxied = true }, Options{}, []string{"leaves the Service to another proxy"}, []string{"ClusterIP all"}},
		{"ExternalName", func(s *model.Service, tx *state.Tx) {
			s.Type, s.ExternalName, s.ClusterIPs = model.ExternalName, "www.example.com", nil
			tx.DeleteSlice(web)
		}, Options{}, []string{"the name www.example.com"}, []string{"there are no endpoints"}},
		{"no endpoints", func(_ *model.Service, tx *state.Tx) { tx.DeleteSlice(web) }, Options{}, []string{"no Pod that its selector finds has an address", "refused: no endpoint serves the port"}, nil},
		{"no certificate", func(s *model.Service, _ *state.Tx) { s.TLS = &model.ServiceTLS{} }, Options{Port: "http"}, []string{"refused: TLS is to be ended, and there is no usable certificate"}, nil},
		{"an address that is another's", func(s *model.Service, tx *state.Tx) {
			s.ExternalIPs, s.Created = []netip.Addr{addr("198.51.100.9")}, time.Unix(9, 0)
			tx.PutService(&model.Service{Key: model.Key{Namespace: "old", Name: "web"}, Created: time.Unix(1, 0), ClusterIPs: []netip.Addr{addr("10.96.0.8")},
				ExternalIPs: s.ExternalIPs, Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}})
		}, Options{Port: "http", Plan: plan.Options{ExternalIPs: true}}, []string{"198.51.100.9:80 ExternalIP inside Cluster nothing: Service old/web has the address"}, nil},
		{"not read", nil, Options{Unread: "it is far away"}, []string{"the kernel was not read: it is far away"}, []string{"KERNEL"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.o.Snapshot = cluster(test.edit)
			text := squeeze(explained(t, test.o).Text())
			for _, s := range test.has {
				if !strings.Contains(text, s) {
					t.Errorf("no %q in:\n%s", s, text)
				}
			}
			for _, s := range test.hasNo {
				if strings.Contains(text, s) {
					t.Errorf("%q in:\n%s", s, text)
				}
			}
		})
	}
}

// packets is a data path beside another one.
type packets struct{ kernel }

func (packets) Mode() string { return "packets" }

// TestSeveral reads data paths that serve together.
func TestSeveral(t *testing.T) {
	one, two := forward("10.244.0.2:8080"), forward("10.244.0.2:8080", "10.244.1.3:8080")
	for want, behind := range map[string]dataplane.HeldPart{
		"10.244.1.3:8080 DIFFERS: nftables: the kernel lacks 10.244.1.3:8080\n": {Holdings: packets{kernel{"10.96.0.7:80": both(two)}}},
		"DIFFERS: nftables: the kernel lacks 10.244.1.3:8080; packets: the kernel lacks 10.244.1.3:8080\n": {
			Holdings: packets{kernel{"10.96.0.7:80": both(one)}}},
		"the kernel lacks 10.244.1.3:8080; packets: the kernel does not have it\n": {Holdings: packets{}},
		"10.244.1.3:8080 DIFFERS: nftables: the kernel lacks 10.244.1.3:8080 \n":   {Holdings: packets{}, Takes: func(*plan.Frontend) bool { return false }},
	} {
		r := explained(t, Options{Snapshot: cluster(nil), Port: "http", Kernel: append(read(kernel{"10.96.0.7:80": both(one)}), behind)})
		text := squeeze(r.Text())
		if !strings.Contains(text, strings.ReplaceAll(want, " \n", "\n")) || !strings.Contains(text, "the kernel (nftables and packets) differs") {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
}

// TestTwice has an address that one Service has as two kinds: only what the
// first of them wants is to be found.
func TestTwice(t *testing.T) {
	snap := cluster(func(s *model.Service, _ *state.Tx) {
		s.Ports = []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 30080}}
		s.ExternalLocal = false
		s.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: netip.MustParseAddr("198.51.100.1")}}
		s.ExternalIPs = []netip.Addr{netip.MustParseAddr("198.51.100.1")}
	})
	all := both(forward("10.244.0.2:8080", "10.244.1.3:8080"))
	r := explained(t, Options{Snapshot: snap, Plan: plan.Options{ExternalIPs: true}, Kernel: read(kernel{"10.96.0.7:30080": all, "198.51.100.1:30080": all})})
	f := r.Ports[0].Frontends
	if len(f) != 3 || f[0].Clients[0].Differs == "" || f[1].Clients[0].Differs == "" || f[2].Clients[0].Differs != "" {
		t.Errorf("%+v", f)
	}
}

// TestJSONOfRanges tells an address that nobody may connect to from one that
// anybody may.
func TestJSONOfRanges(t *testing.T) {
	for want, ranges := range map[string][]string{`"sourceRanges":[]`: {}, `"sourceRanges":["10.0.0.0/8"]`: {"10.0.0.0/8"}, "": nil} {
		data, err := json.Marshal(Frontend{SourceRanges: ranges})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(data), want) || want == "" && strings.Contains(string(data), "sourceRanges") {
			t.Errorf("%v: %s", ranges, data)
		}
	}
}

func TestJSON(t *testing.T) {
	r := explained(t, Options{Snapshot: cluster(nil), Port: "http", Kernel: read(kernel{"10.96.0.7:80": both(forward("10.244.0.2:8080", "10.244.1.3:8080"))})})
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		`"service":"shop/web"`, `"kernel":{"mode":"nftables","differs":true}`, `"cluster":{"in":true,"why":"ready"}`,
		`"held":{"action":"forward","backends":["10.244.0.2:8080","10.244.1.3:8080"]}`, `"differs":"the kernel does not have it"`,
	} {
		if !strings.Contains(string(data), s) {
			t.Errorf("no %s in %s", s, data)
		}
	}
}

func TestWhatDoesNotExist(t *testing.T) {
	snap := cluster(nil)
	for name, o := range map[string]Options{
		"no Service shop/nope": {Snapshot: snap, Service: model.Key{Namespace: "shop", Name: "nope"}, Node: "node-1"},
		"no Node node-9":       {Snapshot: snap, Service: web, Node: "node-9"},
		`no port "https"; its ports are http (80/TCP), dns (53/UDP)`: {Snapshot: snap, Service: web, Node: "node-1", Port: "https"},
		"are required": {},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want %q", err, name)
		}
	}
}
