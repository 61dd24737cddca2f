package state

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"fairway.dev/fairway/internal/model"
)

func key(i int) model.Key { return model.Key{Namespace: "default", Name: fmt.Sprint("svc-", i)} }

func addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}) }

func TestTableAgainstMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var table Table[int, int]
	want := map[int]int{}
	type version struct {
		table Table[int, int]
		want  map[int]int
	}
	var history []version
	for range 200 {
		e := &edit{}
		for range rng.IntN(50) {
			k, v := rng.IntN(500), rng.Int()
			if rng.IntN(3) == 0 {
				table = table.delete(e, k)
				delete(want, k)
			} else {
				table = table.set(e, k, v)
				want[k] = v
			}
		}
		history = append(history, version{table, maps.Clone(want)})
	}
	for i, v := range history {
		if got := maps.Collect(v.table.All()); !maps.Equal(got, v.want) || v.table.Len() != len(v.want) {
			t.Fatalf("version %d changed after it was made: %d rows (Len %d), want %d", i, len(got), v.table.Len(), len(v.want))
		}
	}
	for range 300 {
		a, b := history[rng.IntN(len(history))], history[rng.IntN(len(history))]
		got := maps.Clone(a.want)
		for d := range Diff(a.table, b.table) {
			if old, ok := a.want[d.Key]; ok != d.HadOld || old != d.Old {
				t.Fatalf("key %d: old %d,%v, want %d,%v", d.Key, d.Old, d.HadOld, old, ok)
			}
			if d.HasNew {
				got[d.Key] = d.New
			} else {
				delete(got, d.Key)
			}
		}
		if !maps.Equal(got, b.want) {
			t.Fatal("diff applied to the old version does not give the new one")
		}
	}
}

func TestDiffOfUnrelatedTables(t *testing.T) {
	var a, b Table[int, string]
	for i := range 10 {
		a = a.set(&edit{}, i, "x")
	}
	for i := 5; i < 12; i++ {
		b = b.set(&edit{}, i, "y")
	}
	var added, removed, changed int
	for d := range Diff(a, b) {
		switch {
		case !d.HadOld:
			added++
		case !d.HasNew:
			removed++
		default:
			changed++
		}
	}
	if added != 2 || removed != 5 || changed != 5 {
		t.Errorf("added %d removed %d changed %d, want 2 5 5", added, removed, changed)
	}
	for range Diff(a, b) {
		break // stopping early must not panic
	}
	for range Diff(Table[int, string]{}, b) {
		break
	}
}

func TestUpdateEqualValueChangesNothing(t *testing.T) {
	s := New()
	put := func() {
		s.Update(func(tx *Tx) {
			tx.PutService(&model.Service{Key: key(1), Ports: []model.ServicePort{{Port: 80}}})
			tx.PutSlice(&model.EndpointSlice{Key: key(1), Service: key(1), Endpoints: []model.Endpoint{{Addr: addr(1)}}})
		})
	}
	put()
	first := s.Snapshot()
	put()
	if s.Snapshot() != first {
		t.Error("an equal value made a new snapshot")
	}
	if first.Revision != 1 {
		t.Errorf("revision %d, want 1", first.Revision)
	}
}

func TestSubscription(t *testing.T) {
	s := New()
	sub := s.Subscribe()
	fired := func() bool {
		select {
		case <-sub.C():
			return true
		default:
			return false
		}
	}
	if !fired() {
		t.Error("does not fire at the start")
	}
	if fired() {
		t.Error("fires without a change")
	}
	for i := range 3 {
		s.Update(func(tx *Tx) { tx.PutNamespace(&model.Namespace{Name: fmt.Sprint(i)}) })
	}
	if !fired() || fired() {
		t.Error("three commits must fire once")
	}
	sub.Close()
	s.Update(func(tx *Tx) { tx.SetSynced() })
	if fired() {
		t.Error("fires after Close")
	}
}

func TestEveryRowKind(t *testing.T) {
	s := New()
	ref := model.Ref{Kind: "Ingress", Key: key(1), UID: "u1"}
	s.Update(func(tx *Tx) {
		tx.PutService(&model.Service{Key: key(1)})
		tx.PutNode(&model.Node{Name: "n"})
		tx.PutNamespace(&model.Namespace{Name: "ns"})
		tx.PutRoute(&model.Route{Ref: ref})
		tx.PutStreams(ref, []model.StreamRoute{{Ref: ref}})
		tx.PutCertificate(&model.Certificate{Key: key(1)})
		tx.PutPool(&model.Pool{Key: key(1)})
		tx.SetDNS(&model.DNSConfig{TTL: time.Second})
		tx.PutProblems(ref, model.Problems{{Object: ref}})
		if got := tx.Snapshot().Services.Len(); got != 1 {
			t.Errorf("inside the transaction: %d services", got)
		}
		tx.PutService(&model.Service{Key: key(2)})
		tx.SetSynced()
	})
	got := s.Snapshot()
	lens := []int{got.Services.Len(), got.Nodes.Len(), got.Namespaces.Len(), got.Routes.Len(), got.Streams.Len(), got.Certificates.Len(), got.Pools.Len(), got.Problems.Len()}
	if want := []int{2, 1, 1, 1, 1, 1, 1, 1}; !cmp.Equal(lens, want) || !got.Synced || got.DNS == nil {
		t.Errorf("rows %v synced %v, want %v true", lens, got.Synced, want)
	}
	s.Update(func(tx *Tx) { tx.SetDNS(&model.DNSConfig{TTL: time.Second}) })
	if s.Snapshot() != got {
		t.Error("the same configuration of DNS is a change")
	}
	ref.UID = "made again"
	s.Update(func(tx *Tx) {
		tx.SetDNS(nil)
		tx.DeleteService(key(1))
		tx.DeleteService(key(2))
		tx.DeleteNode("n")
		tx.DeleteNamespace("ns")
		tx.DeleteRoute(ref)
		tx.PutStreams(ref, nil)
		tx.DeleteCertificate(key(1))
		tx.DeletePool(key(1))
		tx.PutProblems(ref, nil)
	})
	got = s.Snapshot()
	if got.DNS != nil {
		t.Error("a configuration of DNS is left")
	}
	if n := got.Services.Len() + got.Nodes.Len() + got.Namespaces.Len() + got.Routes.Len() + got.Streams.Len() + got.Certificates.Len() + got.Pools.Len() + got.Problems.Len(); n != 0 {
		t.Errorf("%d rows left", n)
	}
}

func TestMerge(t *testing.T) {
	http := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 80}}
	alt := []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 81}}
	a := &model.EndpointSlice{Key: key(1), Service: key(0), Endpoints: []model.Endpoint{
		{Addr: addr(2), Ports: http, Ready: true, Serving: true},
		{Addr: addr(1), Ports: http, Serving: true, Terminating: true},
	}}
	b := &model.EndpointSlice{Key: key(2), Service: key(0), Endpoints: []model.Endpoint{
		{Addr: addr(1), Ports: []model.EndpointPort{http[0]}, Ready: true, Serving: true},
		{Addr: addr(2), Ports: alt, Ready: true, Serving: true},
		{Addr: addr(2), Ports: http},
		{Addr: addr(3), Ports: http, Serving: true},
	}}
	headless := &model.EndpointSlice{Key: key(3), Service: key(0), Endpoints: []model.Endpoint{{Addr: addr(3), Ports: http, Ready: true, NotProxied: true}}}
	want := &model.EndpointSet{Key: key(0), Endpoints: []model.Endpoint{
		{Addr: addr(1), Ports: http, Ready: true, Serving: true},
		{Addr: addr(2), Ports: http, Ready: true, Serving: true},
		{Addr: addr(2), Ports: alt, Ready: true, Serving: true},
		{Addr: addr(3), Ports: http, Serving: true},
		{Addr: addr(3), Ports: http, Ready: true, NotProxied: true},
	}}
	for _, list := range [][]*model.EndpointSlice{{a, b, headless}, {b, a, headless}} {
		if diff := cmp.Diff(want, Merge(key(0), list), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("want -, got +\n%s", diff)
		}
	}
}

func TestMergeSharesOneSliceInOrder(t *testing.T) {
	list := []model.Endpoint{{Addr: addr(1)}, {Addr: addr(2)}}
	shared := Merge(key(0), []*model.EndpointSlice{{Key: key(1), Service: key(0), Endpoints: list}})
	if len(shared.Endpoints) != 2 || &shared.Endpoints[0] != &list[0] {
		t.Error("the endpoints of one slice in order are copied: with 100,000 that is 14 MB")
	}
	unordered := []model.Endpoint{{Addr: addr(2)}, {Addr: addr(1)}}
	sorted := Merge(key(0), []*model.EndpointSlice{{Key: key(1), Service: key(0), Endpoints: unordered}})
	if sorted.Endpoints[0].Addr != addr(1) || unordered[0].Addr != addr(2) {
		t.Error("endpoints out of order are not put in order, or in place")
	}
}

// TestIncrementalEqualsFresh applies random changes one by one and compares
// with a store that gets only the outcome.
func TestIncrementalEqualsFresh(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 7))
		inc := New()
		slicesNow := map[model.Key]*model.EndpointSlice{}
		services := map[model.Key]*model.Service{}
		for range 300 {
			inc.Update(func(tx *Tx) {
				for range 1 + rng.IntN(3) {
					k := key(rng.IntN(12))
					switch rng.IntN(5) {
					case 0:
						delete(services, k)
						tx.DeleteService(k)
					case 1:
						s := &model.Service{Key: k, AffinityTimeout: time.Duration(rng.IntN(3))}
						services[k] = s
						tx.PutService(s)
					case 2:
						delete(slicesNow, k)
						tx.DeleteSlice(k)
					default:
						s := &model.EndpointSlice{Key: k, Service: key(rng.IntN(4))}
						for range rng.IntN(4) {
							s.Endpoints = append(s.Endpoints, model.Endpoint{Addr: addr(rng.IntN(8)), Ready: rng.IntN(2) == 0, Serving: rng.IntN(2) == 0})
						}
						slicesNow[k] = s
						tx.PutSlice(s)
					}
				}
			})
		}
		fresh := New()
		fresh.Update(func(tx *Tx) {
			for _, s := range services {
				tx.PutService(s)
			}
			for _, s := range slicesNow {
				tx.PutSlice(s)
			}
		})
		a, b := inc.Snapshot(), fresh.Snapshot()
		equate := cmpopts.EquateComparable(netip.Addr{})
		if diff := cmp.Diff(maps.Collect(b.Services.All()), maps.Collect(a.Services.All()), equate); diff != "" {
			t.Fatalf("seed %d: services, fresh -, incremental +\n%s", seed, diff)
		}
		if diff := cmp.Diff(maps.Collect(b.Endpoints.All()), maps.Collect(a.Endpoints.All()), equate); diff != "" {
			t.Fatalf("seed %d: endpoints, fresh -, incremental +\n%s", seed, diff)
		}
	}
}

func BenchmarkOneChangeOf10kServices(b *testing.B) {
	s := New()
	eps := func(i, r int) *model.EndpointSlice {
		sl := &model.EndpointSlice{Key: key(i), Service: key(i)}
		for j := range 10 {
			sl.Endpoints = append(sl.Endpoints, model.Endpoint{Addr: addr(i*10 + j + r), Ready: true})
		}
		return sl
	}
	s.Update(func(tx *Tx) {
		for i := range 10000 {
			tx.PutService(&model.Service{Key: key(i)})
			tx.PutSlice(eps(i, 0))
		}
	})
	b.ReportAllocs()
	b.ResetTimer()
	prev := s.Snapshot()
	for n := range b.N {
		s.Update(func(tx *Tx) { tx.PutSlice(eps(n%10000, n+1)) })
		next := s.Snapshot()
		changes := 0
		for range Diff(prev.Endpoints, next.Endpoints) {
			changes++
		}
		if changes != 1 {
			b.Fatal("changes", changes)
		}
		prev = next
	}
}
