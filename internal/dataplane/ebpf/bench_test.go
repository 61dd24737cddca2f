package ebpf

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
	"fairway.dev/fairway/internal/testenv"
)

// oneOfMany is Service i, with k endpoints.
func oneOfMany(i, k int) plan.Service {
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80)
	var endpoints []string
	for j := range k {
		e := i*k + j
		endpoints = append(endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 128 + byte(e>>16), byte(e >> 8), byte(e)}), 8080).String())
	}
	return planOf(fmt.Sprint("svc-", i), model.TCP, at, endpoints...)
}

// BenchmarkLoad prints what loading 10,000 Services with 10 endpoints costs,
// what one more Service and one more endpoint cost then, a look whether the
// kernel has it all and how long a change would wait for that, and a restart.
func BenchmarkLoad(b *testing.B) {
	const services, endpoints = 10000, 10
	m := newMachine(b)
	var changes []reconcile.Change[model.Key, plan.Service]
	for i := range services {
		changes = append(changes, change(oneOfMany(i, endpoints)))
	}
	apply := func(d *Dataplane, list []reconcile.Change[model.Key, plan.Service]) {
		for key, err := range d.Apply(b.Context(), list) {
			b.Fatalf("%s: %v", key, err)
		}
	}
	var cold, more, endpoint, verify, held, restart time.Duration
	for b.Loop() {
		ns := testenv.NewLab(b).Netns("node")
		o := Options{Logger: logger(b), NetNS: int(ns.Handle), HostCgroup: m.cgroup, Pins: m.pins}
		load := func() *Dataplane {
			d, err := New(o)
			if err != nil {
				b.Fatal(err)
			}
			for i := 0; i < services; i += 1000 {
				apply(d, changes[i:i+1000])
			}
			prune(b, d, nil)
			return d
		}
		timed := func(sum *time.Duration, fn func()) {
			from := time.Now()
			fn()
			*sum += time.Since(from)
		}
		var d *Dataplane
		timed(&cold, func() { d = load() })
		timed(&more, func() { apply(d, []reconcile.Change[model.Key, plan.Service]{change(oneOfMany(services, endpoints))}) })
		timed(&endpoint, func() { apply(d, []reconcile.Change[model.Key, plan.Service]{change(oneOfMany(5, endpoints+1))}) })
		var longest time.Duration
		timed(&verify, func() {
			done := make(chan error, 1)
			go func() { done <- d.Verify(b.Context()) }()
			for verifying := true; verifying; {
				select {
				case err := <-done:
					if err != nil {
						b.Fatal(err)
					}
					verifying = false
				case <-time.After(100 * time.Microsecond):
					from := time.Now()
					d.mu.Lock()
					longest = max(longest, time.Since(from))
					d.mu.Unlock()
				}
			}
		})
		held += longest
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		timed(&restart, func() { d = load() })
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		if err := Cleanup(o); err != nil {
			b.Fatal(err)
		}
	}
	report := func(d time.Duration, unit string) {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), unit)
	}
	report(cold, "ms/cold-start")
	report(more, "ms/one-more-service")
	report(endpoint, "ms/one-more-endpoint")
	report(verify, "ms/verify")
	report(held, "ms/longest-wait")
	report(restart, "ms/restart")
	b.ReportMetric(0, "ns/op")
}
