package zone

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/dns/wire"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/state"
)

// labels make names that mean something in cluster(), and others.
var labels = []string{
	"web", "db", "dual", "six", "plain", "asleep", "out", "in", "twice", "snake", "home", "dangling", "pending", "kube-dns",
	"default", "kube-system", "empty", "svc", "pod", "dns", "ns", "dns-version", "cluster", "local", "localhost",
	"_http", "_tcp", "_udp", "_dns", "_admin", "_", "db-0", "DB-1", "db-2", "10-244-1-20", "10-244-0-5", "10-244-0-6", "fd00-244--20",
	"10-244-0-5-", "1-2-3", "--1", "a--b--c", "300-1-1-1", "*", "xn--e1afmkfd", "in-addr", "ip6", "arpa", "10", "96", "0", "20", "244", "d", "f",
	"20.0.96.10.in-addr.arpa", "10.0.244.10.in-addr.arpa", "96.10.in-addr.arpa",
	"default.svc.cluster.local", "web.default.svc.cluster.local", "db.default.svc.cluster.local", "svc.cluster.local", "pod.cluster.local", "cluster.local",
}

var qtypes = []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeCNAME, dns.TypeTXT, dns.TypeNS, dns.TypeSOA, dns.TypeANY, dns.TypeMX}

func randomName(rng *rand.Rand) string {
	var parts []string
	for range 1 + rng.IntN(4) {
		parts = append(parts, labels[rng.IntN(len(labels))])
	}
	switch rng.IntN(4) {
	case 0:
		parts = append(parts, "cluster.local")
	case 1, 2:
		svc := []string{"web", "db", "dual", "plain", "kube-dns", "in", "out"}[rng.IntN(7)]
		ns := []string{"default", "default", "default", "kube-system"}[rng.IntN(4)]
		parts = append(parts[:rng.IntN(min(3, len(parts)+1))], svc, ns, "svc.cluster.local")
	}
	name := strings.Join(parts, ".") + "."
	if rng.IntN(8) == 0 {
		name = strings.ToUpper(name)
	}
	return name
}

func compare(t *testing.T, z *Zone, o *oracle, q dns.Question) (found bool) {
	t.Helper()
	got, gotOK := z.Answer(q)
	want, wantOK := o.Answer(q)
	if gotOK != wantOK {
		t.Fatalf("%v: ours %v, want %v", q, gotOK, wantOK)
	}
	if diff := cmp.Diff(strings.ToLower(render(want)), strings.ToLower(render(got))); diff != "" {
		t.Fatalf("%s %s (-want +got):\n%s", q.Name, dns.TypeToString[q.Qtype], diff)
	}
	return len(got.Answer) > 0
}

func TestSameAsTheOracle(t *testing.T) {
	s := cluster()
	z := newZone(t, s)
	o := newOracle(z, s.Snapshot())
	rng := rand.New(rand.NewPCG(3, 4))
	found := 0
	for _, tt := range specification {
		compare(t, z, o, dns.Question{Name: tt.qname, Qtype: dns.StringToType[tt.qtype], Qclass: dns.ClassINET})
	}
	for range 20000 {
		name := randomName(rng)
		if _, ok := dns.IsDomainName(name); !ok {
			continue
		}
		if compare(t, z, o, dns.Question{Name: name, Qtype: qtypes[rng.IntN(len(qtypes))], Qclass: dns.ClassINET}) {
			found++
		}
	}
	if found < 500 {
		t.Errorf("only %d names were found: the test asks the wrong ones", found)
	}
}

// The world of TestIncrementalEqualsFresh, asked after each step.
func TestSameAsTheOracleWhileItChanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	s := state.New()
	s.Update(func(tx *state.Tx) { tx.SetSynced() })
	z := newZone(t, s)
	found := 0
	for range 300 {
		s.Update(func(tx *state.Tx) {
			for range 1 + rng.IntN(4) {
				change(rng, tx)
			}
		})
		z.Update(s.Snapshot())
		o := newOracle(z, s.Snapshot())
		for range 40 {
			svc := fmt.Sprintf("svc%d.ns%d.svc.cluster.local.", rng.IntN(5), rng.IntN(3))
			i := rng.IntN(20)
			name := []string{svc, "a." + svc, "b." + svc, fmt.Sprintf("10-0-0-%d.%s", i, svc), fmt.Sprintf("%d.0.0.10.in-addr.arpa.", i), "_http._tcp." + svc, "_tcp." + svc}[rng.IntN(7)]
			if compare(t, z, o, dns.Question{Name: name, Qtype: qtypes[rng.IntN(len(qtypes))], Qclass: dns.ClassINET}) {
				found++
			}
		}
	}
	if found < 500 {
		t.Errorf("only %d names were found", found)
	}
}

func TestParseDashedSameAsTheLibrary(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	check := func(label string) {
		want, wantOK := oracleParseDashed(label)
		if got, ok := parseDashed(label); ok != wantOK || got != want {
			t.Fatalf("%q: %v, %v; want %v, %v", label, got, ok, want, wantOK)
		}
	}
	good := 0
	for range 200000 {
		var b []byte
		for range 1 + rng.IntN(30) {
			b = append(b, "---01f9a25"[rng.IntN(10)])
		}
		check(string(b))
		a := netip.AddrFrom16([16]byte{0: byte(rng.Uint32()) >> rng.IntN(8), 1: byte(rng.Uint32()), 5: byte(rng.Uint32()) * byte(rng.IntN(2)), 15: byte(rng.Uint32())})
		label := string(appendDashed(nil, a))
		check(label)
		if got, ok := parseDashed(label); ok && got == a {
			good++
		}
		check(strings.ReplaceAll(a.StringExpanded(), ":", "-"))
	}
	if good != 200000 {
		t.Errorf("%d of 200000 addresses are read as they were written", good)
	}
}

// hotQuestions are questions that the zone answers itself, each in its own way.
var hotQuestions = []struct {
	name  string
	qtype uint16
}{
	{web, dns.TypeA}, {web, dns.TypeAAAA}, {"_http._tcp." + web, dns.TypeSRV}, {web, dns.TypeSRV}, {db, dns.TypeA}, {"_http._tcp." + db, dns.TypeSRV},
	{"db-0." + db, dns.TypeA}, {"10-244-1-20." + db, dns.TypeA}, {"fd00-244--20." + db, dns.TypeAAAA}, {"no-host." + db, dns.TypeA},
	{"10-244-0-5.default.pod.cluster.local.", dns.TypeA}, {"a-b-c.default.pod.cluster.local.", dns.TypeA},
	{"20.0.96.10.in-addr.arpa.", dns.TypePTR}, {"20.1.244.10.in-addr.arpa.", dns.TypePTR}, {"99.0.96.10.in-addr.arpa.", dns.TypePTR},
	{"1.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR},
	{"in.default.svc.cluster.local.", dns.TypeA}, {"out.default.svc.cluster.local.", dns.TypeCNAME}, {"dns-version.cluster.local.", dns.TypeTXT},
	{"cluster.local.", dns.TypeNS}, {"cluster.local.", dns.TypeSOA}, {web, dns.TypeANY}, {"nothing.default.svc.cluster.local.", dns.TypeA},
	{"example.com.default.svc.cluster.local.", dns.TypeA}, {"WEB.Default.svc.cluster.LOCAL.", dns.TypeA}, {"localhost.", dns.TypeA}, {"example.com.", dns.TypeA},
}

func TestNothingIsAllocated(t *testing.T) {
	z := newZone(t, cluster())
	var q wire.Query
	var b wire.Builder
	buf := make([]byte, 0, 4096)
	for _, h := range hotQuestions {
		packed, err := new(dns.Msg).SetQuestion(h.name, h.qtype).SetEdns0(1232, false).Pack()
		if err != nil {
			t.Fatal(err)
		}
		n := testing.AllocsPerRun(200, func() {
			if err := q.Parse(packed); err != nil {
				t.Fatal(err)
			}
			b.Reset(buf, &q, 1232)
			z.Write(&q, &b)
			b.Finish()
		})
		if n != 0 {
			t.Errorf("%s %s: %v allocations", h.name, dns.TypeToString[h.qtype], n)
		}
	}
}

// large is a cluster of that many Services with two endpoints each, of which
// every tenth is headless.
func large(services int) *state.Store {
	s := state.New()
	ports := []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}}
	endpointPorts := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}
	s.Update(func(tx *state.Tx) {
		for i := range services {
			k := model.Key{Namespace: fmt.Sprintf("ns-%d", i%50), Name: fmt.Sprintf("svc-%d", i)}
			svc := &model.Service{Key: k, Ports: ports, Headless: i%10 == 0}
			if !svc.Headless {
				svc.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}
			}
			tx.PutService(svc)
			tx.PutSlice(largeSlice(k, i, 0, endpointPorts))
		}
		tx.SetSynced()
	})
	return s
}

func largeSlice(k model.Key, i, shift int, ports []model.EndpointPort) *model.EndpointSlice {
	sl := &model.EndpointSlice{Key: model.Key{Namespace: k.Namespace, Name: k.Name + "-1"}, Service: k}
	for e := range 2 {
		n := 2*i + e + shift
		sl.Endpoints = append(sl.Endpoints, model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 128 + byte(n>>16), byte(n >> 8), byte(n)}), Ready: true, Ports: ports})
	}
	return sl
}

func BenchmarkWrite(b *testing.B) {
	z := newZone(b, cluster())
	for _, h := range hotQuestions {
		b.Run(dns.TypeToString[h.qtype]+" "+h.name, func(b *testing.B) {
			packed, err := new(dns.Msg).SetQuestion(h.name, h.qtype).SetEdns0(1232, false).Pack()
			if err != nil {
				b.Fatal(err)
			}
			var q wire.Query
			var a wire.Builder
			buf := make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				_ = q.Parse(packed)
				a.Reset(buf, &q, 1232)
				z.Write(&q, &a)
				a.Finish()
			}
		})
	}
}

// Any of many Services is asked for, or a name beside them: what is not in the
// processor's caches costs more than all else.
func BenchmarkWriteAmong(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		z := newZone(b, large(n))
		for _, form := range []string{"svc-%d", "missing-%d"} {
			b.Run(fmt.Sprintf("%d/"+form, n, n), func(b *testing.B) {
				rng := rand.New(rand.NewPCG(1, 2))
				packed := make([][]byte, 20000)
				for i := range packed {
					k := rng.IntN(n)
					var err error
					packed[i], err = new(dns.Msg).SetQuestion(fmt.Sprintf(form+".ns-%d.svc.cluster.local.", k, k%50), dns.TypeA).Pack()
					if err != nil {
						b.Fatal(err)
					}
				}
				var q wire.Query
				var a wire.Builder
				buf := make([]byte, 0, 4096)
				for i := 0; b.Loop(); i++ {
					_ = q.Parse(packed[i%len(packed)])
					a.Reset(buf, &q, 1232)
					z.Write(&q, &a)
					a.Finish()
				}
			})
		}
	}
}

// One endpoint changes among many Services.
func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := large(n)
			z := newZone(b, s)
			k := model.Key{Namespace: "ns-7", Name: "svc-7"}
			ports := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}}
			var snaps []*state.Snapshot
			for i := range 64 {
				s.Update(func(tx *state.Tx) { tx.PutSlice(largeSlice(k, 7, 1+i%2, ports)) })
				snaps = append(snaps, s.Snapshot())
			}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				z.Update(snaps[i%len(snaps)])
				i++
			}
		})
	}
}

// What the index costs beside the snapshot, by Service of two endpoints.
func BenchmarkMemory(b *testing.B) {
	const services = 10000
	snap := large(services).Snapshot()
	var ix *Index
	for b.Loop() {
		ix = nil
		before := heap()
		ix = NewIndex().Next(snap)
		b.ReportMetric(float64(heap()-before)/services, "B/service")
	}
	runtime.KeepAlive(ix)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// FuzzZone asks whatever for whatever, and holds the answer against the oracle's.
func FuzzZone(f *testing.F) {
	for _, tt := range specification {
		f.Add(tt.qname, dns.StringToType[tt.qtype])
	}
	s := cluster()
	z := newZone(f, s)
	o := newOracle(z, s.Snapshot())
	f.Fuzz(func(t *testing.T, name string, qtype uint16) {
		if _, ok := dns.IsDomainName(name); !ok {
			return
		}
		// As it comes out of a packet: the oracle knows names in that form only.
		packed := make([]byte, 300)
		n, err := dns.PackDomainName(dns.Fqdn(name), packed, 0, nil, false)
		if err != nil {
			return
		}
		if name, _, err = dns.UnpackDomainName(packed[:n], 0); err != nil || strings.Contains(name, `\.`) {
			return // the oracle takes a dot in a label for one between labels
		}
		compare(t, z, o, dns.Question{Name: name, Qtype: qtype, Qclass: dns.ClassINET})
	})
}
