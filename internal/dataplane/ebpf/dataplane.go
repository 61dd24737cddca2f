package ebpf

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// Options configure a [Dataplane].
type Options struct {
	// Logger gets what happens besides errors returned. Required.
	Logger *slog.Logger
	// NetNS is a file descriptor of the node's network namespace; 0 means the
	// one of the calling thread.
	NetNS int
	// Cgroup is a directory of cgroup v2 below which every socket is balanced:
	// the root, or where this node's Pods are. It or HostCgroup is required.
	Cgroup string
	// HostCgroup is a directory of cgroup v2 below which sockets in the node's
	// network namespace are balanced, and in Namespaces, but no others. Optional.
	HostCgroup string
	// Namespaces are file descriptors of further network namespaces. Optional.
	Namespaces []int
	// Ingress also serves packets that arrive at the node's interfaces, by tcx
	// programs that have connection tracking translate (see ProbeIngress). What
	// is left to another packet path then are the node's own packets to what no
	// socket program can decide.
	Ingress bool
	// Covered are prefixes of the names of interfaces that get no ingress program,
	// since the socket programs see all clients behind them. Optional.
	Covered []string
	// ServerPort is the port of a UDP server in the node's network namespace that
	// only answers, and never asks a Service: its datagrams are passed by. Optional.
	ServerPort uint16
	// Pins is a directory on a BPF file system; each network namespace gets one
	// in it. Default DefaultPins, where a file system is mounted if there is none.
	Pins string
	// MaxFrontends and MaxBackends bound the maps; defaults DefaultMaxFrontends and
	// DefaultMaxBackends, both at most Largest. MaxBackends is rounded up to a power of two, and takes 24 bytes for each.
	MaxFrontends, MaxBackends uint32
	// Types are the kernel's types as far as they have been read, for programs that
	// are loaded one after the other: reading them takes some 10 ms. Optional.
	Types *btf.Cache
	// Repairs counts what was put back. Optional.
	Repairs *dataplane.RepairCounter
}

// How much maps have room for by default, and at most. The defaults stand in
// bpf/maps.h as well.
const (
	DefaultMaxFrontends = 262144
	DefaultMaxBackends  = 524288
	Largest             = 1 << 26
)

// Dataplane implements dataplane.Dataplane by eBPF.
type Dataplane struct {
	log         *slog.Logger
	o           Options
	cookie      uint64
	pins        pins
	layout      string
	maps        map[string]*ebpf.Map
	attachments []*attachment
	ingress     *ingress  // nil without Options.Ingress
	sign        link.Link // that the network namespace is there; nil before programs are attached, and where the kernel has none
	stop        func()    // of following addresses
	sweeper     *sweeper
	// listAddresses lists the node's addresses.
	listAddresses func() ([]netip.Addr, error)
	closing       sync.Once
	fresh         bool // see Fresh
	pulse         pulse

	verifying sync.Mutex // held by Verify as a whole
	// breathe is called in Verify between two pieces, when the lock is free.
	breathe func()

	mu sync.Mutex
	// written are the frontends written since Verify began to read; nil else.
	written map[frontendKey]struct{}
	// claims are the owners that want a frontend, the one that gets it first.
	claims map[frontendKey][]*owner
	owners map[model.Key]*owner
	// have is what the kernel holds.
	have mapped
	rows *rows
	// unwritten are places of backends and what shall stand there, in order.
	unwritten struct {
		places   []uint32
		backends []backend
	}
	// inherited are rows, by their first place, and numbers, that an earlier
	// process left and no Service has taken over yet. inheritedBackends are all
	// that stood in the map then.
	inheritedRows     map[uint32]pool
	inheritedIDs      map[uint32]struct{}
	inheritedBackends []backend
	// guards are the numbers whose source ranges are in use.
	guards            map[uint32][]sourceKey
	lastID, lastGuard uint32
	// dirty are frontends that could not be brought in line.
	dirty map[frontendKey]struct{}

	node      dataplane.Node
	nodeAddrs []netip.Addr
	nodeKnown bool
	// uses counts what has an address.
	uses map[address]use
	// live is true while programs are attached; they are with the first Prune at the latest.
	live, pruned bool
	// attaching is closed when attachEarly is done; nil where it has not begun.
	attaching chan struct{}
}

// owner is a Service with what it has of the maps.
type owner struct {
	key     model.Key
	created time.Time
	want    service
	rows    []row
	// old are rows and guards to give up once no frontend has them.
	oldRows   []pool
	oldGuards []uint32
}

// row is a row with what stands in it.
type row struct {
	name poolKey
	pool
	backends []backend
}

// row returns the row of that name; the zero row if there is none.
func (o *owner) row(name poolKey) row {
	if i := slices.IndexFunc(o.rows, func(r row) bool { return r.name == name }); i >= 0 {
		return o.rows[i]
	}
	return row{}
}

// id returns the number of a port; 0 if it has none.
func (o *owner) id(name portKey) uint32 {
	for i := range o.want.frontends {
		if f := &o.want.frontends[i]; f.port == name {
			return f.value.ID
		}
	}
	return 0
}

// guard returns the number of the source ranges of a frontend; 0 if it has none.
func (o *owner) guard(key frontendKey) uint32 {
	if f := o.want.frontend(key); f != nil {
		return f.value.Guard
	}
	return 0
}

// claim is the owner's wish for a frontend that it wants.
func (o *owner) claim(key frontendKey) plan.Claim {
	return plan.Claim{Kind: o.want.frontend(key).kind, Created: o.created, Key: o.key}
}

var _ dataplane.Dataplane = (*Dataplane)(nil)

// New opens the maps, or makes them, and loads the programs. Programs that are
// attached already, by an earlier process, are replaced at once; others are
// attached once everything is known, with the first Prune, or where there was
// nothing of an earlier process once the node's settings are.
func New(o Options) (*Dataplane, error) {
	if o.Logger == nil || o.Cgroup == "" && o.HostCgroup == "" {
		return nil, errors.New("eBPF: Logger and Cgroup or HostCgroup are required")
	}
	d := &Dataplane{
		log: o.Logger, o: o, claims: map[frontendKey][]*owner{}, owners: map[model.Key]*owner{},
		inheritedRows: map[uint32]pool{}, inheritedIDs: map[uint32]struct{}{}, guards: map[uint32][]sourceKey{},
		dirty: map[frontendKey]struct{}{}, uses: map[address]use{}, stop: func() {},
		breathe: yieldLock,
	}
	err := d.open()
	d.o.Types = nil // they are large, and no program is loaded later
	if err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("eBPF: %w", err)
	}
	return d, nil
}

func (d *Dataplane) open() error {
	var err error
	if d.cookie, err = netnsCookie(d.o.NetNS); err != nil {
		return err
	}
	d.pins = pinsOf(d.o.Pins, d.cookie)
	if err := d.pins.prepare(); err != nil {
		return err
	}
	specs, err := d.mapSpecs()
	if err != nil {
		return err
	}
	d.layout = layoutOf(specs)
	if d.maps, err = d.pins.openMaps(specs); err != nil {
		return err
	}
	if err := d.inherit(); err != nil {
		return err
	}
	if d.fresh, err = d.findsNothing(); err != nil {
		return err
	}
	d.flagInherited()
	if err := d.setNamespaces(nil); err != nil {
		return err
	}
	for _, a := range []struct {
		name, cgroup string
		only         bool
	}{{"all", d.o.Cgroup, false}, {"host", d.o.HostCgroup, true}} {
		if a.cgroup == "" {
			continue
		}
		programs, types, err := loadSockets(d.maps, d.cookie, a.only, d.o.ServerPort, d.o.Types)
		if err != nil {
			return err
		}
		d.attachments = append(d.attachments, &attachment{name: a.name, cgroup: a.cgroup, programs: programs, types: types})
	}
	for _, a := range d.attachments {
		live, err := a.adopt(d.pins, d.maps[socketMapFrontends])
		if err != nil {
			return err
		}
		d.live = d.live || live
	}
	if d.o.Ingress {
		d.ingress, err = newIngress(ingressOptions{log: d.log, netns: d.o.NetNS, pins: d.pins, covered: d.o.Covered, types: d.o.Types}, d.maps)
		if err != nil {
			return err
		}
	}
	d.sweeper = newSweeper(d)
	if d.listAddresses, d.stop, err = followAddresses(d.o.NetNS, d.log, d.setAddresses); err != nil {
		return fmt.Errorf("addresses of the node: %w", err)
	}
	// Under the lock, lest what setAddresses is told meanwhile be undone.
	d.locked(func() { d.nodeAddrs, err = d.listAddresses() })
	if err != nil {
		return fmt.Errorf("addresses of the node: %w", err)
	}
	return nil
}

// mapSpecs returns the maps in the wanted sizes.
func (d *Dataplane) mapSpecs() (map[string]*ebpf.MapSpec, error) {
	spec, err := loadSocket()
	if err != nil {
		return nil, err
	}
	specs := map[string]*ebpf.MapSpec{}
	for name, m := range spec.Maps {
		if name[0] != '.' { // not the programs' constants
			specs[name] = m
		}
	}
	if n := d.o.MaxFrontends; n != 0 {
		for _, name := range []string{socketMapFrontends, socketMapAddresses, socketMapTraffic, socketMapSources} {
			specs[name].MaxEntries = n
		}
	}
	if n := d.o.MaxBackends; n != 0 {
		specs[socketMapBackends].MaxEntries = 1 << order(n)
	}
	return specs, nil
}

// setNamespaces notes which were missing.
func (d *Dataplane) setNamespaces(fixed dataplane.Repairs) error {
	for _, fd := range append([]int{d.o.NetNS}, d.o.Namespaces...) {
		cookie, err := netnsCookie(fd)
		if err != nil {
			return err
		}
		var is uint8
		if err := d.maps[socketMapNamespaces].Lookup(cookie, &is); err == nil && is == 1 {
			continue
		}
		fixed.Add(repairedSettings, 1)
		if err := d.maps[socketMapNamespaces].Put(cookie, uint8(1)); err != nil {
			return fmt.Errorf("map %s: %w", socketMapNamespaces, err)
		}
	}
	return nil
}

// Close closes what the process has open and ends following the node's
// addresses. What is pinned goes on working.
func (d *Dataplane) Close() error {
	d.closing.Do(d.close)
	return nil
}

func (d *Dataplane) close() {
	d.locked(d.awaitEarly)
	d.stop()
	if d.ingress != nil {
		d.ingress.close()
	}
	if d.sweeper != nil {
		d.sweeper.close()
	}
	d.verifying.Lock() // it reads without the other lock
	defer d.verifying.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range d.attachments {
		a.close()
	}
	if d.sign != nil {
		_ = d.sign.Close()
	}
	closeAll(d.maps)
}

// inherit reads what the kernel holds and learns what an earlier process has
// handed out.
func (d *Dataplane) inherit() error {
	if err := d.read(); err != nil {
		return err
	}
	d.rows = newRows(d.maps[socketMapBackends].MaxEntries())
	var err error
	if d.inheritedBackends, err = readBackends(d.maps, d.have.frontends); err != nil {
		return err
	}
	for key, f := range d.have.frontends {
		d.inheritedIDs[f.ID] = struct{}{}
		d.lastID, d.lastGuard = max(d.lastID, f.ID), max(d.lastGuard, f.Guard)
		for _, p := range f.Pools {
			if p.Count == 0 {
				continue
			}
			if had, ok := d.inheritedRows[p.Base]; ok && had == p {
				continue
			}
			if !d.rows.reserve(p) {
				d.log.Warn("eBPF: a frontend's backends cannot be; it is made again", "address", key.Addr.addr(), "port", key.Port.number())
				continue
			}
			d.inheritedRows[p.Base] = p
		}
	}
	return nil
}

// flagInherited flags the addresses of frontends as such, before our programs
// take the place of others, for they do not look for frontends at addresses that
// are none. Earlier versions had no such flag.
func (d *Dataplane) flagInherited() {
	var failed error
	for key := range d.have.frontends {
		if !dialled(key.Addr) {
			continue
		}
		if err := d.writeAddress(key.Addr, d.have.addresses[key.Addr]|addressFrontend); err != nil {
			failed = err
		}
	}
	if failed != nil {
		d.log.Warn("eBPF: clients elsewhere are not served at all addresses until they are known", "error", failed)
	}
}

// Apply implements reconcile.Target.
func (d *Dataplane) Apply(ctx context.Context, changes []reconcile.Change[model.Key, plan.Service]) map[model.Key]error {
	d.mu.Lock()
	defer d.mu.Unlock()
	failed := map[model.Key]error{}
	touched := map[frontendKey]struct{}{}
	lost := false
	for _, c := range changes {
		some, err := d.stage(c, touched)
		if err != nil {
			failed[c.Key] = fmt.Errorf("service %s: %w", c.Key, err)
			continue
		}
		lost = lost || some
	}
	refused, err := d.commit(touched)
	if err != nil {
		for _, c := range changes {
			failed[c.Key] = err
		}
		return failed
	}
	for _, c := range changes {
		o := d.owners[c.Key]
		if o == nil || failed[c.Key] != nil {
			continue
		}
		if err := d.settle(o, refused); err != nil {
			failed[c.Key] = err
		}
		if !c.HasNew && failed[c.Key] == nil {
			delete(d.owners, c.Key)
		}
	}
	if lost && d.pruned {
		d.sweeper.wake()
	}
	return failed
}

// settle gives up what a Service had, if all of its frontends are in line, and
// says what is wrong with them otherwise.
func (d *Dataplane) settle(o *owner, refused map[frontendKey]error) error {
	// Always the same one of several, for a message that changes is told again.
	for _, key := range slices.SortedFunc(maps.Keys(refused), frontendKey.compare) {
		mine := slices.Contains(d.claims[key], o) ||
			key == frontendKey{Addr: key.Addr} && slices.ContainsFunc(o.want.frontends, func(f wantedFrontend) bool { return f.key.Addr == key.Addr })
		if mine || d.hasRow(o, d.have.frontends[key]) {
			return fmt.Errorf("service %s: %s: %w", o.key, key, refused[key])
		}
	}
	for _, p := range o.oldRows {
		d.rows.leave(p)
	}
	o.oldRows = nil
	var errs []error
	for _, g := range o.oldGuards {
		errs = append(errs, d.removeGuard(g))
	}
	o.oldGuards = nil
	for i := range o.want.frontends {
		key := o.want.frontends[i].key
		if first := d.claims[key][0]; first != o {
			errs = append(errs, &dataplane.TakenError{Service: o.key, At: netip.AddrPortFrom(key.Addr.addr(), key.Port.number()), By: first.key})
			break
		}
	}
	return errors.Join(errs...)
}

// hasRow reports whether a frontend still has a row that its owner wants to give up.
func (d *Dataplane) hasRow(o *owner, f frontend) bool {
	return slices.ContainsFunc(o.oldRows, func(p pool) bool { return p.Count > 0 && (f.Pools[0] == p || f.Pools[1] == p) })
}

// stage makes the rows, numbers and claims of a Service what they shall be. It
// adds the frontends that may have to change to touched, and tells whether a
// UDP endpoint has ceased to serve. After an error everything is as it was, in an
// earlier process too.
func (d *Dataplane) stage(c reconcile.Change[model.Key, plan.Service], touched map[frontendKey]struct{}) (lost bool, err error) {
	o := d.owners[c.Key]
	if o == nil {
		o = &owner{key: c.Key}
	}
	var want service
	if c.HasNew {
		want = compile(c.New)
	}
	rows, err := d.provide(o, &want)
	if err != nil {
		return false, errors.Join(err, d.keep(c.Key, c.New.Created, &want))
	}
	lost = losesServing(o.want, want)
	before := o.want.frontends
	for i := range before {
		d.unclaim(before[i].key, o)
		touched[before[i].key] = struct{}{}
	}
	for _, a := range o.want.clusterIPs {
		d.use(a, -1, 0)
	}
	for _, r := range o.rows {
		if !slices.ContainsFunc(rows, func(kept row) bool { return kept.pool == r.pool }) {
			o.oldRows = append(o.oldRows, r.pool)
		}
	}
	o.created, o.want, o.rows = c.New.Created, want, rows
	o.want.pools = nil // rows has them
	for i := range before {
		f := &before[i]
		if g := f.value.Guard; g != 0 && o.guard(f.key) != g {
			o.oldGuards = append(o.oldGuards, g)
		}
		if o.id(f.port) != f.value.ID {
			_ = d.maps[socketMapTraffic].Delete(f.value.ID) // it may have had no traffic
		}
	}
	for _, a := range want.clusterIPs {
		d.use(a, 1, 0)
	}
	for i := range want.frontends {
		d.claim(want.frontends[i].key, o)
		touched[want.frontends[i].key] = struct{}{}
	}
	d.owners[c.Key] = o
	return lost, nil
}

// provide decides the values of what an owner shall want, and returns the rows for it. Rows and numbers are those that
// it has where they fit.
func (d *Dataplane) provide(o *owner, want *service) ([]row, error) {
	var rows []row
	var fresh, adopted []pool
	var guards, ids []uint32
	fail := func(err error) ([]row, error) {
		for _, p := range fresh {
			d.rows.release(p)
		}
		for _, p := range adopted {
			d.inheritedRows[p.Base] = p
		}
		for _, id := range ids {
			d.inheritedIDs[id] = struct{}{}
		}
		for _, g := range guards {
			err = errors.Join(err, d.removeGuard(g))
		}
		return nil, err
	}
	if len(want.pools) > 0 {
		rows = make([]row, 0, len(want.pools))
	}
	for _, p := range want.pools {
		inherited := len(d.inheritedRows)
		r, isNew, err := d.row(o, want, p)
		switch {
		case err != nil:
			return fail(err)
		case isNew:
			fresh = append(fresh, r.pool)
		case len(d.inheritedRows) < inherited:
			adopted = append(adopted, r.pool)
		}
		rows = append(rows, r)
	}
	for i := range want.frontends {
		f := &want.frontends[i]
		inherited := len(d.inheritedIDs)
		id := d.id(o, want.frontends[:i], f)
		if len(d.inheritedIDs) < inherited {
			ids = append(ids, id)
		}
		var guard uint32
		if f.restricted {
			g, isNew, err := d.guard(o, f)
			if err != nil {
				return fail(err)
			}
			if guard = g; isNew {
				guards = append(guards, g)
			}
		}
		f.value = f.decide(id, guard, rows)
	}
	return rows, nil
}

// row returns the row for a pool: the one that there is, if nothing else shall
// stand in it, or a new one.
func (d *Dataplane) row(o *owner, want *service, p wantedPool) (r row, isNew bool, err error) {
	had := o.row(p.name)
	if had.Count == 0 {
		had = d.inheritedRow(want, p.name)
	}
	placed := place(had.backends, p.backends)
	if slices.Equal(placed, had.backends) {
		delete(d.inheritedRows, had.Base)
		return had, false, nil
	}
	base, ok := d.rows.take(uint32(len(placed)))
	if !ok {
		return row{}, false, fmt.Errorf("no room for %d endpoints: the map of backends holds %d; raise --bpf-max-backends, or remove Services", len(placed), d.maps[socketMapBackends].MaxEntries())
	}
	r = row{p.name, pool{base, uint32(len(placed))}, placed}
	d.toWrite(r)
	return r, true, nil
}

// inheritedRow returns the row that the kernel has for a pool, from an earlier
// process, so that a restart changes nothing.
func (d *Dataplane) inheritedRow(want *service, name poolKey) row {
	for i := range want.frontends {
		f := &want.frontends[i]
		had, ok := d.have.frontends[f.key]
		if !ok {
			continue
		}
		for class := range f.pools {
			p := had.Pools[class]
			if f.actions[class] != actionForward || want.pools[f.pools[class]].name != name || p.Count == 0 || d.inheritedRows[p.Base] != p {
				continue
			}
			return row{name, p, slices.Clone(rowOf(d.inheritedBackends, p))}
		}
	}
	return row{name: name}
}

// id returns the number of a frontend's port; earlier are the frontends that have theirs already.
func (d *Dataplane) id(o *owner, earlier []wantedFrontend, f *wantedFrontend) uint32 {
	for i := range earlier {
		if earlier[i].port == f.port {
			return earlier[i].value.ID
		}
	}
	if id := o.id(f.port); id != 0 {
		return id
	}
	if had, ok := d.have.frontends[f.key]; ok {
		if _, ok := d.inheritedIDs[had.ID]; ok {
			delete(d.inheritedIDs, had.ID)
			return had.ID
		}
	}
	d.lastID++
	return d.lastID
}

// guard returns the number of a restricted frontend's source ranges, and whether it is a new one.
func (d *Dataplane) guard(o *owner, f *wantedFrontend) (g uint32, isNew bool, err error) {
	if g := o.guard(f.key); g != 0 && slices.Equal(d.guards[g], f.sourceKeys(g)) {
		return g, false, nil
	}
	d.lastGuard++
	g = d.lastGuard
	d.guards[g] = f.sourceKeys(g)
	for _, k := range d.guards[g] {
		if err := d.maps[socketMapSources].Put(k, uint8(1)); err != nil {
			return 0, false, errors.Join(fmt.Errorf("source ranges: %w", d.explain(err, socketMapSources)), d.removeGuard(g))
		}
	}
	return g, true, nil
}

func (d *Dataplane) removeGuard(g uint32) error {
	var errs []error
	for _, k := range d.guards[g] {
		if err := d.maps[socketMapSources].Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("source ranges: %w", err))
		}
	}
	delete(d.guards, g)
	return errors.Join(errs...)
}

func (d *Dataplane) claim(key frontendKey, o *owner) {
	list := append(d.claims[key], o)
	if len(list) == 1 {
		d.use(key.Addr, 0, 1)
	} else {
		slices.SortFunc(list, func(a, b *owner) int { return a.claim(key).Compare(b.claim(key)) })
	}
	d.claims[key] = list
}

func (d *Dataplane) unclaim(key frontendKey, o *owner) {
	list := slices.DeleteFunc(d.claims[key], func(c *owner) bool { return c == o })
	if len(list) == 0 {
		delete(d.claims, key)
		d.use(key.Addr, 0, -1)
		return
	}
	d.claims[key] = list
}

// use is how many Services have an address as their cluster IP, and how many
// frontends have it that anybody claims.
type use struct{ clusterIPs, frontends int32 }

func (d *Dataplane) use(a address, clusterIPs, frontends int32) {
	u := d.uses[a]
	d.uses[a] = use{u.clusterIPs + clusterIPs, u.frontends + frontends}
}

// wanted returns what a frontend shall be; false if there shall be none.
func (d *Dataplane) wanted(key frontendKey) (frontend, bool) {
	list := d.claims[key]
	if len(list) == 0 {
		return frontend{}, false
	}
	return list[0].want.frontend(key).value, true
}

// Prune implements reconcile.Target. With it everything is known: what nobody
// wants is removed, and programs that are not attached yet are.
func (d *Dataplane) Prune(ctx context.Context, _ iter.Seq2[model.Key, plan.Service]) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pruned = true
	touched := map[frontendKey]struct{}{}
	for key := range d.have.frontends {
		if len(d.claims[key]) == 0 {
			touched[key] = struct{}{}
		}
	}
	errs := append(d.commitAll(touched), d.commitNode())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("eBPF: %w", err)
	}
	for _, p := range d.inheritedRows {
		d.rows.leave(p)
	}
	for id := range d.inheritedIDs {
		_ = d.maps[socketMapTraffic].Delete(id) // it may have no traffic
	}
	clear(d.inheritedRows)
	clear(d.inheritedIDs)
	d.inheritedBackends = nil
	if err := d.pruneSources(); err != nil {
		return fmt.Errorf("eBPF: %w", err)
	}
	if err := d.attach(nil); err != nil {
		return fmt.Errorf("eBPF: %w", err)
	}
	d.sweeper.wake() // an earlier process may have stopped before it did
	return nil
}

// attach attaches the programs and removes what is pinned and not wanted any
// more. It notes what was not attached or pinned.
func (d *Dataplane) attach(fixed dataplane.Repairs) error {
	d.awaitEarly()
	if err := d.attachPrograms(fixed); err != nil {
		return err
	}
	if d.ingress == nil {
		// An earlier process may have served packets; another packet path does now.
		if err := removeIngress(d.o.NetNS, d.pins); err != nil {
			return err
		}
	}
	if !d.live {
		d.live = true
		d.log.Info("eBPF: sockets are balanced", "cgroup", d.o.Cgroup, "hostCgroup", d.o.HostCgroup)
	}
	return errors.Join(d.pins.removeOtherLinks(d.attachments), d.pins.removeOtherMaps(d.layout), d.pins.removeStale(d.log))
}

// attachPrograms attaches the programs, and notes what was not attached or pinned.
func (d *Dataplane) attachPrograms(fixed dataplane.Repairs) error {
	if err := d.hangSign(fixed); err != nil {
		return err
	}
	for _, a := range d.attachments {
		if err := a.attach(d.pins, fixed); err != nil {
			return err
		}
	}
	if d.ingress == nil {
		return nil
	}
	return d.ingress.start(fixed)
}

// SetNode implements dataplane.Dataplane.
func (d *Dataplane) SetNode(ctx context.Context, n dataplane.Node) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	first := !d.nodeKnown
	d.node, d.nodeKnown = n, true
	err := d.commitNode()
	if d.ingress != nil {
		err = errors.Join(err, d.ingress.setPods(n.PodInterfaces))
	}
	if first && !d.pruned {
		d.attachEarly()
	}
	if err != nil {
		return fmt.Errorf("eBPF: node settings: %w", err)
	}
	return nil
}

// setAddresses is called with the node's addresses when they have changed.
func (d *Dataplane) setAddresses(addrs []netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nodeAddrs = addrs
	if !d.nodeKnown {
		return
	}
	if err := d.commitNode(); err != nil {
		d.log.Warn("eBPF: the node's addresses could not be programmed", "error", err)
	}
}

// commitAll commits and says what went wrong.
func (d *Dataplane) commitAll(touched map[frontendKey]struct{}) []error {
	refused, err := d.commit(touched)
	errs := []error{err}
	for key, err := range refused {
		errs = append(errs, fmt.Errorf("%s: %w", key, err))
	}
	return errs
}

// commit brings frontends in line with the claims on them, and the cluster
// addresses with them, once the rows are written that they lead to. It returns
// those that the kernel refused; after an error none of them has changed.
func (d *Dataplane) commit(touched map[frontendKey]struct{}) (map[frontendKey]error, error) {
	for key := range d.dirty {
		touched[key] = struct{}{}
	}
	if err := d.writeRows(); err != nil {
		maps.Copy(d.dirty, touched)
		return nil, err
	}
	var put, remove []frontendKey
	var values []frontend
	addresses := map[address]struct{}{}
	for key := range touched {
		addresses[key.Addr] = struct{}{}
		want, ok := d.wanted(key)
		had, has := d.have.frontends[key]
		switch {
		case ok && (!has || had != want):
			put, values = append(put, key), append(values, want)
		case !ok && has:
			remove = append(remove, key)
		}
	}
	refused := d.putFrontends(put, values)
	d.commitAddresses(addresses, refused)
	maps.Copy(refused, d.removeFrontends(remove))
	clear(d.dirty)
	for key := range refused {
		d.dirty[key] = struct{}{}
	}
	return refused, nil
}
