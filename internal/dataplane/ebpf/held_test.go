package ebpf

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/explain"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/state"
)

// shapes is a state whose Services have frontends of every kind.
func shapes() *state.Snapshot {
	addr := netip.MustParseAddr
	store := state.New()
	store.Update(func(tx *state.Tx) {
		tx.PutNode(&model.Node{Name: "node-1"})
		for i, edit := range []func(*model.Service){
			func(*model.Service) {},
			func(s *model.Service) { s.ExternalLocal, s.InternalLocal = true, true },
			func(s *model.Service) { s.AffinityTimeout = 3 * time.Hour; s.ExternalLocal = true },
			func(s *model.Service) {
				s.LoadBalancer.SourceRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/48")}
			},
			func(s *model.Service) { s.TLS = &model.ServiceTLS{} },
		} {
			n := byte(i + 1)
			s := &model.Service{
				Key: model.Key{Namespace: "ns", Name: string('a' + rune(i))}, Type: model.LoadBalancer, IPv4: true, IPv6: true,
				ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, n}), addr("fd00:10:96::" + string('0'+rune(n)))},
				Ports: []model.ServicePort{
					{Name: "web", Protocol: model.TCP, Port: 80, NodePort: 30000 + uint16(n)},
					{Name: "dns", Protocol: model.UDP, Port: 53, NodePort: 30100 + uint16(n)},
					{Name: "nobody", Protocol: model.TCP, Port: 81},
				},
			}
			s.LoadBalancer.Ingress = []model.LoadBalancerIngress{{Addr: netip.AddrFrom4([4]byte{198, 51, 100, n})}}
			edit(s)
			tx.PutService(s)
			slice := &model.EndpointSlice{Key: s.Key, Service: s.Key}
			for _, e := range []struct{ addr, node string }{
				{"10.244.0.2", "node-1"}, {"10.244.0.3", "node-1"}, {"10.244.1.2", "node-2"}, {"fd00:10:244::2", "node-1"}, {"fd00:10:244:1::2", "node-2"},
			} {
				slice.Endpoints = append(slice.Endpoints, model.Endpoint{
					Addr: addr(e.addr), Ready: true, Serving: true, Node: e.node,
					Ports: []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 8080}, {Name: "dns", Protocol: model.UDP, Port: 53}},
				})
			}
			tx.PutSlice(slice)
		}
		tx.SetSynced()
	})
	return store.Snapshot()
}

// TestRead reads back what every shape of Service has put into the kernel, and
// names what somebody else has changed there.
func TestRead(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	o := m.options(t, n)
	here := Options{NetNS: o.NetNS, Pins: filepath.Join(filepath.Dir(m.pins), "f*")}
	if _, err := Read(here); !errors.Is(err, ErrAbsent) {
		t.Fatalf("reading nothing: %v", err)
	}
	d := start(t, o)
	snap := shapes()
	view := plan.View{Node: "node-1"}
	var services []plan.Service
	for key := range snap.Services.All() {
		s, _ := view.Compile(snap, key)
		services = append(services, s)
	}
	apply(t, d, services...)
	// explained is what is wrong, by address, in the words for people.
	explained := func(service string) map[string]string {
		t.Helper()
		held, err := Read(here)
		if err != nil {
			t.Fatal(err)
		}
		r, err := explain.New(explain.Options{
			Snapshot: snap, Service: model.Key{Namespace: "ns", Name: service}, Node: "node-1",
			Kernel: []dataplane.HeldPart{{Holdings: held, Takes: Takes}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if r.Kernel.Mode != "ebpf" {
			t.Errorf("mode %q", r.Kernel.Mode)
		}
		out := map[string]string{}
		for _, p := range r.Ports {
			for _, f := range p.Frontends {
				for _, c := range f.Clients {
					if c.Differs != "" {
						out[f.Address+"/"+p.Protocol] += c.Differs
					}
				}
			}
		}
		return out
	}
	if got := explained("a"); len(got) != 13 || got["10.96.0.1:80/TCP"] != "the kernel does not have it" {
		t.Errorf("before a program is attached: %q", got)
	}
	prune(t, d, n)
	for _, service := range []string{"a", "b", "c", "d", "e"} {
		if got := explained(service); len(got) > 0 {
			t.Errorf("%s: %q", service, got)
		}
	}
	if held, err := Read(here); err != nil || held.Ingress() {
		t.Errorf("packets are served, or %v", err)
	}

	at := func(s string, protocol uint8) frontendKey {
		a := netip.MustParseAddrPort(s)
		return frontendKey{Addr: addressOf(a.Addr()), Port: portOf(a.Port()), Protocol: protocol}
	}
	const tcp, udp = 6, 17
	web := at("10.96.0.1:80", tcp)
	frontends, backends := d.maps[socketMapFrontends], d.maps[socketMapBackends]
	change := func(key frontendKey, edit func(*frontend)) func() error {
		return func() error {
			var v frontend
			if err := frontends.Lookup(key, &v); err != nil {
				return err
			}
			edit(&v)
			return frontends.Put(key, v)
		}
	}
	pools := d.have.frontends[web].Pools
	backendAt := func(i uint32, edit func(*backend)) func() error {
		return func() error {
			var b backend
			if err := backends.Lookup(pools[inside].Base+i, &b); err != nil {
				return err
			}
			edit(&b)
			return backends.Put(pools[inside].Base+i, b)
		}
	}
	for name, c := range map[string]struct {
		service string
		damage  func() error
		want    map[string]string
	}{
		"a frontend was removed": {"a", func() error { return frontends.Delete(web) }, map[string]string{"10.96.0.1:80/TCP": "the kernel does not have it"}},
		"an action was changed": {"a", change(web, func(v *frontend) { v.Actions = [2]uint8{actionReject, actionReject} }),
			map[string]string{"10.96.0.1:80/TCP": "the kernel does reject"}},
		"a row was cut": {"a", change(web, func(v *frontend) { v.Pools[inside].Count = 2; v.Pools[outside].Count = 2 }),
			map[string]string{"10.96.0.1:80/TCP": "the kernel lacks 10.244.1.2:8080"}},
		"a row is beyond the map": {"a", change(web, func(v *frontend) { v.Pools = [2]pool{{1 << 31, 1 << 31}, {1 << 31, 1 << 31}} }),
			map[string]string{"10.96.0.1:80/TCP": "the kernel lacks 10.244.0.2:8080, 10.244.0.3:8080, 10.244.1.2:8080"}},
		"a backend is another": {"a", backendAt(0, func(b *backend) { b.Port = portOf(9) }), map[string]string{
			"10.96.0.1:80/TCP":    "the kernel lacks 10.244.0.2:8080; the kernel still has 10.244.0.2:9",
			"0.0.0.0:30001/TCP":   "the kernel lacks 10.244.0.2:8080; the kernel still has 10.244.0.2:9",
			"198.51.100.1:80/TCP": "the kernel lacks 10.244.0.2:8080; the kernel still has 10.244.0.2:9",
		}},
		"a backend is elsewhere": {"a", backendAt(0, func(b *backend) { b.Flags = 0 }), map[string]string{
			"10.96.0.1:80/TCP":    "10.244.0.2:8080 is taken for an endpoint on another node (flags 0x0, planned 0x1)",
			"0.0.0.0:30001/TCP":   "10.244.0.2:8080 is taken for an endpoint on another node (flags 0x0, planned 0x1)",
			"198.51.100.1:80/TCP": "10.244.0.2:8080 is taken for an endpoint on another node (flags 0x0, planned 0x1)",
		}},
		"an address was removed": {"a", func() error { return d.maps[socketMapAddresses].Delete(web.Addr) }, map[string]string{
			"10.96.0.1:80/TCP": "10.96.0.1 is not taken for a cluster IP: other ports of it are not refused",
			"10.96.0.1:53/UDP": "10.96.0.1 is not taken for a cluster IP: other ports of it are not refused",
			"10.96.0.1:81/TCP": "10.96.0.1 is not taken for a cluster IP: other ports of it are not refused",
		}},
		"affinity ends sooner": {"c", change(at("10.96.0.3:53", udp), func(v *frontend) { v.Affinity = 60 }),
			map[string]string{"10.96.0.3:53/UDP": "clients stay with their endpoint for 1m0s, planned is 3h0m0s"}},
		"a source range was removed": {"d", func() error {
			return d.maps[socketMapSources].Delete(sourceKeyOf(d.have.frontends[at("198.51.100.4:80", tcp)].Guard, netip.MustParsePrefix("203.0.113.0/24")))
		}, map[string]string{"198.51.100.4:80/TCP": "only [] may connect"}},
		"a guard was removed": {"d", change(at("198.51.100.4:80", tcp), func(v *frontend) { v.Guard = 0 }),
			map[string]string{"198.51.100.4:80/TCP": "everybody may connect"}},
		"the kind was changed": {"a", change(web, func(v *frontend) { v.Kind = uint8(plan.NodePort) }),
			map[string]string{"10.96.0.1:80/TCP": "it is not taken for an address of kind ClusterIP"}},
	} {
		if err := c.damage(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := explained(c.service)
		for at, want := range c.want {
			if got[at] != want {
				t.Errorf("%s: %s: %q, want %q", name, at, got[at], want)
			}
			delete(got, at)
		}
		if len(got) > 0 {
			t.Errorf("%s: besides %q", name, got)
		}
		if err := d.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := explained(c.service); len(got) > 0 {
			t.Errorf("%s: after the repair %q", name, got)
		}
	}
}

// TestNodePortStandsUnderNoAddress checks that what no packet is to is not missed
// where packets are served.
func TestNodePortStandsUnderNoAddress(t *testing.T) {
	for _, addr := range []string{"0.0.0.0", "::", "192.0.2.1"} {
		f := plan.Frontend{Addr: netip.MustParseAddr(addr), Port: 30001, Protocol: model.TCP, Kind: plan.NodePort}
		h := &Holdings{
			ingress: true, sockets: true, translates: true,
			frontends: map[frontendKey]frontend{frontendKeyOf(&f): {Kind: uint8(plan.NodePort)}},
		}
		missed := slices.ContainsFunc(h.Differences(&f), func(s string) bool { return strings.Contains(s, "is not taken for an address that is served") })
		if want := addr == "192.0.2.1"; missed != want {
			t.Errorf("%s: missed %t, want %t", addr, missed, want)
		}
	}
}

// TestReadWritesNothing checks that the kernel would not let it.
func TestReadWritesNothing(t *testing.T) {
	m := newMachine(t)
	d := start(t, m.options(t, cases.NewNetwork(t)))
	maps, err := openForReading(filepath.Join(string(d.pins), d.layout))
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(maps)
	for name, m := range maps {
		if m.Update(make([]byte, m.KeySize()), make([]byte, m.ValueSize()), ebpf.UpdateAny) == nil {
			t.Errorf("map %s could be written", name)
		}
	}
}

// TestReadOfAnotherVersion tells maps that it cannot understand.
func TestReadOfAnotherVersion(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	o := m.options(t, n)
	d := start(t, o)
	dir := filepath.Join(string(d.pins), d.layout)
	other := filepath.Join(string(d.pins), mapsPrefix+"0123456789ab")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(dir, e.Name()), filepath.Join(other, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(o); err == nil || errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), "another version") {
		t.Errorf("error %v", err)
	}
}
