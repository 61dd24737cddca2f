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

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/dataplane"
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
	said.Reset()
	verify()
	holds("with damage and changes")
	if told := said.String(); strings.Count(told, "\n") != 1 || !strings.Contains(told, " addresses, ") || !strings.Contains(told, " endpoint lists, ") || !strings.Contains(told, " frontends") {
		t.Errorf("of the damage the log says:\n%s", told)
	}
}

// TestLongRows compares rows that are read in several stretches.
func TestLongRows(t *testing.T) {
	m := newMachine(t)
	o := m.options(t, cases.NewNetwork(t))
	o.MaxBackends = 1 << 16
	d := start(t, o)
	var many []string
	for i := range 10000 {
		many = append(many, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 250, byte(i >> 8), byte(i)}), 80).String())
	}
	long, short := planOf("long", model.TCP, vip, many...), planOf("short", model.TCP, netip.MustParseAddrPort("10.96.0.11:80"), many[:3]...)
	apply(t, d, long, short)
	check := func(want int) {
		t.Helper()
		fixed := dataplane.Repairs{}
		if errs := d.verifyRows(fixed); len(errs) > 0 {
			t.Fatal(errs)
		}
		if fixed[repairedEndpoints] != want {
			t.Errorf("%d rows differ, want %d", fixed[repairedEndpoints], want)
		}
		if err := d.writeRows(); err != nil {
			t.Fatal(err)
		}
	}
	check(0)
	base := func(s plan.Service) uint32 { return d.have.frontends[frontendKeyOf(&s.Frontends[0])].Pools[0].Base }
	for _, places := range [][]uint32{
		{base(long)}, {base(long) + 4096}, {base(long) + 9999}, {base(short) + 2}, {base(long) + 1, base(long) + 9000}, {base(long) + 9999, base(short)},
	} {
		for _, at := range places {
			if err := d.maps[socketMapBackends].Put(at, backend{}); err != nil {
				t.Fatal(err)
			}
		}
		want := 1
		if len(places) == 2 && places[1] == base(short) {
			want = 2
		}
		check(want)
		check(0)
	}
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
	if lines := strings.Count(said.String(), "\n"); lines != 1 || !strings.Contains(said.String(), "level=WARN") || !strings.Contains(said.String(), fmt.Sprintf(`dataplane=ebpf what="%d pins"`, len(all))) {
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

// TestRepairsTold damages one thing of each kind: the log tells of all of them
// in one line, they are counted, and the check after that has nothing to tell.
func TestRepairsTold(t *testing.T) {
	e := newEdge(t)
	var said bytes.Buffer
	reg := prometheus.NewRegistry()
	repairs, err := dataplane.NewRepairCounter(reg, nil)
	if err != nil {
		t.Fatal(err)
	}
	e.o.Logger, e.o.Repairs = slog.New(slog.NewTextHandler(&said, nil)), repairs
	web, bank := balanced("web", vip4, model.TCP, podB(vip4, 8080)), balanced("bank", vip6, model.TCP, podB(vip6, 8080))
	bank.Frontends[0].Restricted, bank.Frontends[0].SourceRanges = true, []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}
	e.restart(t, web, bank)
	settled := func() {
		t.Helper()
		said.Reset()
		if err := e.d.Verify(t.Context()); err != nil || said.Len() > 0 {
			t.Errorf("with nothing to repair: %v\n%s", err, &said)
		}
	}
	settled()
	key, other := frontendKeyOf(&web.Frontends[0]), frontendKeyOf(&bank.Frontends[0])
	guard := e.d.have.frontends[other].Guard
	link, err := e.Hosts["node-1"].Netlink.LinkByName("wan")
	if err != nil {
		t.Fatal(err)
	}
	var addr address
	for addr = range e.d.have.addresses {
	}
	for i, err := range []error{
		e.d.maps[socketMapFrontends].Delete(key),
		e.d.maps[socketMapBackends].Put(e.d.have.frontends[other].Pools[outside].Base, backend{}),
		e.d.maps[socketMapAddresses].Delete(addr),
		e.d.maps[socketMapSources].Delete(e.d.guards[guard][0]),
		e.d.maps[socketMapNamespaces].Delete(e.d.cookie),
		os.Remove(filepath.Join(string(e.d.pins), linksDir, pinPrefix+fmt.Sprint(link.Attrs().Index))),
	} {
		if err != nil {
			t.Fatalf("damage %d: %v", i, err)
		}
	}
	e.Hosts["node-1"].Run("nft", "delete", "table", "inet", netfilterTable)
	said.Reset()
	if err := e.d.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	want := `level=WARN msg="data path: somebody else had removed or changed what it has in the kernel; it is put back" dataplane=ebpf ` +
		`what="1 addresses, 1 endpoint lists, 1 frontends, 1 pins, 1 settings, 1 source ranges, 1 tables"` + "\n"
	if _, told, _ := strings.Cut(said.String(), " "); told != want {
		t.Errorf("the log says\n%s, want\n%s", told, want)
	}
	families, err := reg.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "fairway_dataplane_repairs_total" || len(families[0].GetMetric()) != 7 {
		t.Errorf("counted are %v, %v", families, err)
	}
	settled()
}
