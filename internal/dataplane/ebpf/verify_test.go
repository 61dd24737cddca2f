package ebpf

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"fairway.dev/fairway/internal/dataplane/cases"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// TestChangesDuringVerify makes changes whenever Verify lets others go on. Each
// goes through at once, is there afterwards, and is not taken for damage; what
// is damage is repaired all the same.
func TestChangesDuringVerify(t *testing.T) {
	m := newMachine(t)
	n := cases.NewNetwork(t)
	var said bytes.Buffer
	o := m.options(t, n)
	o.Logger = slog.New(slog.NewTextHandler(&said, nil))
	d := start(t, o)
	at := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)}), 80)
	}
	service := func(i, generation int) plan.Service {
		return planOf(fmt.Sprint("svc-", i), model.TCP, at(i), fmt.Sprintf("10.244.%d.%d:8080", generation, i%250+1), "10.244.0.3:8080")
	}
	const services = 3 * verifyPiece
	want := map[model.Key]plan.Service{}
	put := func(i, generation int) {
		t.Helper()
		s := service(i, generation)
		want[s.Key] = s
		for key, err := range d.Apply(t.Context(), []reconcile.Change[model.Key, plan.Service]{change(s)}) {
			t.Errorf("%s: %v", key, err)
		}
	}
	var all []reconcile.Change[model.Key, plan.Service]
	for i := range services {
		s := service(i, 0)
		want[s.Key] = s
		all = append(all, change(s))
	}
	for key, err := range d.Apply(t.Context(), all) {
		t.Fatalf("%s: %v", key, err)
	}
	prune(t, d, n)
	times, next := 0, 0
	d.breathe = func() {
		times++
		if !d.mu.TryLock() {
			t.Fatal("the lock is not free between two pieces")
		}
		d.mu.Unlock()
		for range 5 {
			next++
			put(next*97%services, next) // another endpoint: a new row
			put(services+next%7, next)  // a new Service, later with other endpoints
			gone := service(next*31%services, 0).Key
			delete(want, gone)
			for key, err := range d.Apply(t.Context(), []reconcile.Change[model.Key, plan.Service]{{Key: gone}}) {
				t.Errorf("removing %s: %v", key, err)
			}
		}
	}
	verify := func() {
		t.Helper()
		if err := d.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(when string) {
		t.Helper()
		is, err := readMaps(d.maps)
		if err != nil {
			t.Fatal(err)
		}
		backends, err := readBackends(d.maps, is.frontends)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range want {
			f := &s.Frontends[0]
			var got []netip.AddrPort
			for _, b := range rowOf(backends, is.frontends[frontendKeyOf(f)].Pools[inside]) {
				got = append(got, b.addrPort())
			}
			slices.SortFunc(got, netip.AddrPort.Compare)
			var planned []netip.AddrPort
			for _, b := range f.Internal.Backends {
				planned = append(planned, b.AddrPort)
			}
			if !slices.Equal(got, planned) {
				t.Errorf("%s: %s leads to %v, want %v", when, s.Key, got, planned)
			}
			if is.addresses[addressOf(f.Addr)]&addressCluster == 0 {
				t.Errorf("%s: %s is not taken for a cluster IP", when, f.Addr)
			}
		}
		if len(is.frontends) != len(want) {
			t.Errorf("%s: the kernel has %d frontends, want %d", when, len(is.frontends), len(want))
		}
	}
	verify()
	if pieces := 3 * services / verifyPiece; times < pieces {
		t.Errorf("others could go on %d times, want %d", times, pieces)
	}
	holds("with changes")
	if bytes.Contains(said.Bytes(), []byte("somebody else")) {
		t.Errorf("a change was taken for damage: %s", said.String())
	}
	var victims []frontendKey
	for _, s := range want {
		victims = append(victims, frontendKeyOf(&s.Frontends[0]))
	}
	for i, key := range victims {
		var err error
		switch i % 3 {
		case 0:
			err = d.maps[socketMapFrontends].Delete(key)
		case 1:
			err = d.maps[socketMapBackends].Put(d.have.frontends[key].Pools[inside].Base, backend{})
		case 2:
			err = d.maps[socketMapAddresses].Delete(key.Addr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	verify()
	holds("with damage and changes")
}
