package nft

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/testenv"
)

type change = reconcile.Change[model.Key, plan.Service]

// manyServices returns n Services with k endpoints each.
func manyServices(n, k int) []change {
	out := make([]change, n)
	for i := range out {
		out[i] = change{Key: model.Key{Namespace: "bench", Name: fmt.Sprint("svc-", i)}, New: oneService(i, k), HasNew: true}
	}
	return out
}

func oneService(i, k int) plan.Service {
	svc := &model.Service{
		Key: model.Key{Namespace: "bench", Name: fmt.Sprint("svc-", i)}, IPv4: true,
		ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
		Ports:      []model.ServicePort{{Name: "http", Protocol: model.TCP, Port: 80}},
	}
	eps := &model.EndpointSet{Key: svc.Key}
	for j := range k {
		e := i*k + j
		eps.Endpoints = append(eps.Endpoints, model.Endpoint{
			Addr: netip.AddrFrom4([4]byte{10, 128 + byte(e>>16), byte(e >> 8), byte(e)}), Ready: true, Serving: true, Node: "other",
			Ports: []model.EndpointPort{{Name: "http", Protocol: model.TCP, Port: 8080}},
		})
	}
	return plan.Compile(plan.Input{Service: svc, Endpoints: eps, Node: &model.Node{Name: "node-1"}})
}

// BenchmarkLoad prints what loading 10,000 Services with 10 endpoints costs,
// what one more Service and one more endpoint cost then, and a restart; and how
// much memory is kept besides the plans.
func BenchmarkLoad(b *testing.B) {
	const services, endpoints = 10000, 10
	changes := manyServices(services, endpoints)
	apply := func(d *Dataplane, list []change) {
		if failed := d.Apply(b.Context(), list); len(failed) > 0 {
			b.Fatal(failed)
		}
	}
	var cold, more, endpoint, restart time.Duration
	var kept uint64
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		ns := testenv.NewLab(b).Netns("node")
		start := func() *Dataplane {
			d, err := New(Options{Logger: logger(b), NetNS: int(ns.Handle)})
			if err != nil {
				b.Fatal(err)
			}
			if err := d.SetNode(b.Context(), dataplane.Node{}); err != nil {
				b.Fatal(err)
			}
			return d
		}
		load := func(d *Dataplane) {
			for i := 0; i < services; i += 1000 {
				apply(d, changes[i:i+1000])
			}
		}
		d := start()
		before := heap()
		from := time.Now()
		load(d)
		cold += time.Since(from)
		kept += heap() - before
		from = time.Now()
		apply(d, []change{{Key: model.Key{Name: "new"}, New: oneService(services, endpoints), HasNew: true}})
		more += time.Since(from)
		from = time.Now()
		apply(d, []change{{Key: changes[5].Key, New: oneService(5, endpoints+1), HasNew: true}})
		endpoint += time.Since(from)
		from = time.Now()
		load(start())
		restart += time.Since(from)
	}
	report := func(d time.Duration, unit string) {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), unit)
	}
	report(cold, "ms/cold-load")
	report(more, "ms/one-more-service")
	report(endpoint, "ms/one-more-endpoint")
	report(restart, "ms/restart")
	b.ReportMetric(float64(kept)/(1<<20)/float64(b.N), "MiB-kept")
	b.ReportMetric(0, "ns/op")
}
