package ebpf

import (
	"bytes"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

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

// TestPinsRepaired has somebody remove the directory of what is pinned, with its
// parent. The next check pins the same maps and links again, while clients are
// served on, and a process that comes after a crash goes on with them.
func TestPinsRepaired(t *testing.T) {
	e := newEdge(t)
	var said bytes.Buffer
	e.o.Logger = slog.New(slog.NewTextHandler(&said, nil))
	web := balanced("web", vip4, model.TCP, podB(vip4, 8080))
	e.restart(t, web)
	pinned := func() (out []string) {
		t.Helper()
		err := filepath.WalkDir(filepath.Join(e.o.Pins), func(path string, f fs.DirEntry, err error) error {
			if err == nil && !f.IsDir() {
				out = append(out, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	serves := func(when string) {
		t.Helper()
		if _, err := e.ask("tcp", vip4, netip.AddrPort{}); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if _, err := e.Hosts["node-1"].Ask("tcp", netip.AddrPort{}, netip.AddrPortFrom(vip4, 80), 5*time.Second); err != nil {
			t.Errorf("%s, from the node: %v", when, err)
		}
	}
	serves("before")
	all, links := pinned(), e.links(t)
	if err := os.RemoveAll(e.o.Pins); err != nil {
		t.Fatal(err)
	}
	serves("with nothing pinned")
	said.Reset()
	if err := e.d.Verify(t.Context()); err != nil {
		t.Errorf("the check says %v", err)
	}
	if now := pinned(); !slices.Equal(now, all) {
		t.Errorf("after the check there are pinned\n%q, want\n%q", now, all)
	}
	if now := e.links(t); !maps.Equal(now, links) {
		t.Errorf("the links are other ones: %v, want %v", now, links)
	}
	if lines := strings.Count(said.String(), "\n"); lines != 1 || !strings.Contains(said.String(), "level=WARN") || !strings.Contains(said.String(), fmt.Sprintf("%d pins", len(all))) {
		t.Errorf("the log says of %d pins:\n%s", len(all), &said)
	}
	said.Reset()
	if err := e.d.Verify(t.Context()); err != nil || said.Len() > 0 {
		t.Errorf("with nothing to repair: %v\n%s", err, &said)
	}
	before := e.d.have.frontends
	if err := e.d.Close(); err != nil { // as a crash has it: what is pinned stays
		t.Fatal(err)
	}
	serves("without a process")
	var err error
	if e.d, err = New(e.o); err != nil {
		t.Fatal(err)
	}
	if !e.d.live || !maps.Equal(e.d.have.frontends, before) {
		t.Errorf("the next process finds programs: %t, and frontends %v, want %v", e.d.live, e.d.have.frontends, before)
	}
	serves("with another process that knows nothing yet")
}
