package nft

import (
	"cmp"
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

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane"
	"fairway.dev/fairway/internal/model"
	"fairway.dev/fairway/internal/plan"
	"fairway.dev/fairway/internal/reconcile"
)

// Options configure a [Dataplane].
type Options struct {
	// Logger gets what happens besides errors returned. Required.
	Logger *slog.Logger
	// NetNS is a file descriptor of the network namespace to work in; 0 means
	// the one of the calling thread.
	NetNS int
	// OwnPackets says that only the packets of the node itself are to be served:
	// another packet path has those that arrive, and drops the invalid ones. What
	// passes the node then costs nothing here but for the first packet of a
	// connection, where it leaves.
	OwnPackets bool
	// Repairs counts what was put back. Optional.
	Repairs *dataplane.RepairCounter
}

// Dataplane implements dataplane.Dataplane by nftables.
type Dataplane struct {
	log     *slog.Logger
	repairs *dataplane.RepairCounter
	kernel  kernel
	pulse   *pulse

	mu sync.Mutex
	// have is what the kernel holds, claims what is wanted: a subject may be
	// wanted by several owners, see wanted. Where both are the same they share
	// memory.
	have   holding
	claims claims
	tables [2]tableState
	// own is what have has in the map ownServer, by frontend.
	own    map[element]string
	owners map[model.Key]*owner
	// node claims the settings; nodeKnown is true once there are any.
	node      *owner
	nodeKnown bool
	// staged is true while tables of another layout are still at work: nothing
	// is written until everything is known and Prune replaces them.
	staged bool
	// pruned is true once everything is known: what nobody claims has to go.
	pruned bool
	// remembered is true while clients may be remembered with endpoints that
	// have left.
	remembered bool
	// generation is the kernel's up to which nobody else has changed anything
	// that we have not looked at; changes counts ours.
	generation uint32
	changes    uint64
	tidied     uint64 // the number of changes when chains went that nothing led to
	glanced    uint32 // the kernel's generation when all rules were there last
	// compiler, and spare of what transactions add, are memory to use again until
	// everything is known: there is much to do with it at first only.
	compiler serviceCompiler
	spare    []*batch
	// betweenReadAndRepair is for tests: Verify calls it, if set, without the lock.
	betweenReadAndRepair func()
}

// owner is a Service, or the node, that wants elements.
type owner struct {
	key     model.Key
	created time.Time
	kinds   map[string]plan.Kind // by frontend key, where it is not ClusterIP
	wants   wishes
	pools   []pooled // where in wants
	// unsettled are subjects that could not be brought in line.
	unsettled []element
}

var _ dataplane.Dataplane = (*Dataplane)(nil)

// New reads what the kernel holds and returns a data path that goes on from
// there. It changes nothing.
func New(o Options) (*Dataplane, error) {
	if o.Logger == nil {
		return nil, fmt.Errorf("nftables: Logger is required")
	}
	d := &Dataplane{
		log: o.Logger, repairs: o.Repairs, kernel: kernel{netns: o.NetNS, families: families(o.OwnPackets)},
		pulse: newPulse(o.NetNS), claims: newClaims(), owners: map[model.Key]*owner{}, node: &owner{},
	}
	var err error
	if d.generation, err = d.seen(); err != nil {
		return nil, err
	}
	if err := d.read(); err != nil {
		return nil, err
	}
	for i, t := range d.tables {
		if t.present && !t.current {
			d.staged = true
			d.log.Info("nftables: tables of another layout stay at work until everything is known", "table", d.kernel.families[i].label())
		}
	}
	return d, nil
}

// Present reports whether there are tables of ours: with those of an earlier
// process, clients are served before this one has done anything.
func (d *Dataplane) Present() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tables[v4].present || d.tables[v6].present
}

// ErrRuns is why [Cleanup] has changed nothing.
var ErrRuns = errors.New("they belong to a fairway node that runs in this network namespace; stop it first (this needs root, too)")

// Cleanup removes Fairway's tables from the kernel. It changes nothing where a
// process that runs owns one of them, which is [ErrRuns].
func Cleanup(o Options) error {
	k := kernel{netns: o.NetNS, families: families(false)}
	// Those that a process may own come first: they tell whether it runs.
	if err := k.removeTables(pulseTable); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%w: %w", err, ErrRuns)
		}
		return err
	}
	return k.removeTables(tableName)
}

// Close closes the sockets to the kernel. What the kernel holds stays, but that
// the node's own server answers; d may be used again.
func (d *Dataplane) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.pulse.close(), d.kernel.close())
}

// read makes have what the kernel has.
func (d *Dataplane) read() error {
	tables, have, err := d.kernel.read()
	if err != nil {
		return err
	}
	d.tables, d.have = tables, group(have)
	d.readOwn()
	return nil
}

// readOwn makes own what have has.
func (d *Dataplane) readOwn() {
	d.own = map[element]string{}
	for e, value := range d.have {
		if own, ok := block(value).ownServer(); ok && e.set == frontends {
			d.own[e] = own
		}
	}
	d.setPulse()
}

// setPulse tells which frontends have the node's own server. Where that fails,
// their clients go to other nodes until the next pulse.
func (d *Dataplane) setPulse() {
	if err := d.pulse.set(d.own); err != nil {
		d.log.Warn("nftables: clients of this node's own server go to those of other nodes for a moment", "error", err)
	}
}

// seen is the kernel's number of changes that all rules of the network namespace
// have seen, but for those of the pulse.
func (d *Dataplane) seen() (uint32, error) {
	d.pulse.mu.Lock()
	defer d.pulse.mu.Unlock()
	g, err := d.kernel.generation()
	return g - d.pulse.changes, err
}

// Pulse implements dataplane.Dataplane. The kernel sees to it when the process ends.
func (d *Dataplane) Pulse(valid time.Duration, _ []uint64, direct []netip.AddrPort) error {
	return d.pulse.beat(valid, direct)
}

// unsettle remembers subjects to look at again with the next try.
func (d *Dataplane) unsettle(key model.Key, touched []element) {
	if o := d.owners[key]; o != nil {
		o.unsettled = touched
	}
}

// stage makes the claims of a Service what they shall be and returns the
// subjects that may have to change.
func (d *Dataplane) stage(c reconcile.Change[model.Key, plan.Service]) []element {
	o := d.owners[c.Key]
	if o == nil {
		o = &owner{key: c.Key}
		d.owners[c.Key] = o
	}
	old := o.wants
	touched := append(o.unsettled, d.rivals(o)...)
	for _, w := range old {
		d.claims.remove(w.element, o)
		touched = append(touched, w.element)
	}
	pools := o.pools
	o.wants, o.pools = nil, nil
	if c.HasNew {
		o.created, o.kinds = c.New.Created, kindsOf(c.New)
		compiler := &d.compiler
		if d.pruned {
			compiler = &serviceCompiler{}
		}
		o.wants, o.pools = compiler.compile(c.New, func(k poolKey, at element) []netip.AddrPort { return d.places(old, pools, k, at) })
	}
	for _, w := range o.wants {
		d.claims.add(w.element, o)
		if _, again := old.value(w.element); !again {
			touched = append(touched, w.element)
		}
	}
	return append(touched, d.rivals(o)...)
}

// rivals returns the frontends that other Services want as well.
func (d *Dataplane) rivals(o *owner) []element {
	var out []element
	for _, w := range o.wants {
		if len(d.claims.contested[w.element]) > 0 {
			out = append(out, w.element)
		}
	}
	return out
}

// wanted returns the value that a subject shall have; false if there shall be
// none. A frontend that several Services claim is altogether the first one's.
func (d *Dataplane) wanted(e element) (string, bool) {
	first := d.claims.first[e]
	if first == nil {
		return "", false
	}
	return first.wants.value(e)
}

func kindsOf(s plan.Service) map[string]plan.Kind {
	var kinds map[string]plan.Kind
	for i := range s.Frontends {
		if f := &s.Frontends[i]; f.Kind != plan.ClusterIP {
			if kinds == nil {
				kinds = map[string]plan.Kind{}
			}
			key := frontendKey(f.Addr, f.Protocol, f.Port)
			if _, twice := kinds[key]; !twice { // of an address that it has twice, the first counts
				kinds[key] = f.Kind
			}
		}
	}
	return kinds
}

// conflict says which frontend of a Service another one has.
func (d *Dataplane) conflict(o *owner) error {
	for _, w := range o.wants {
		if w.set != frontends {
			continue
		}
		if first := d.claims.first[w.element]; first != o {
			e := w.element
			addr, _ := netip.AddrFromSlice([]byte(e.key[:len(e.key)-8]))
			port := uint16(e.key[len(e.key)-4])<<8 | uint16(e.key[len(e.key)-3])
			return &dataplane.TakenError{Service: o.key, At: netip.AddrPortFrom(addr, port), By: first.key}
		}
	}
	return nil
}

// places returns the places of a pool that a Service has had; at first those
// that the kernel already has for a frontend, so that a restart changes nothing.
func (d *Dataplane) places(old wishes, pools []pooled, k poolKey, at element) []netip.AddrPort {
	value := func(at element) string { return d.have[at.subject()] }
	if i := slices.IndexFunc(pools, func(p pooled) bool { return p.poolKey == k }); i >= 0 {
		at = pools[i].at
		value = func(at element) string { v, _ := old.value(at.subject()); return v }
	}
	return block(value(at)).slots(at.set)
}

// commit brings subjects in line with the claims on them.
func (d *Dataplane) commit(touched []element) error {
	if d.staged {
		return nil
	}
	return d.write(d.changing(touched, nil))
}

// changing returns the transaction that brings subjects in line with the claims on
// them, once what is under way has been carried out; nil for nothing.
func (d *Dataplane) changing(touched []element, underWay *transaction) *transaction {
	t := &transaction{becomes: make(map[element]string, len(touched))}
	if n := len(d.spare); n > 0 {
		t.add, d.spare = *d.spare[n-1], d.spare[:n-1]
	}
	seen := make(map[element]struct{}, len(touched))
	for _, e := range touched {
		if _, ok := seen[e]; ok {
			continue
		}
		seen[e] = struct{}{}
		value, had := underWay.leaves(e, d.have)
		want, wanted := d.wanted(e)
		switch {
		case had && wanted && value == want:
			if d.have[e] == want {
				d.have[e] = want // one string in place of two
			}
			continue
		case !had && !wanted:
			continue
		case wanted:
			t.becomes[e] = want
		default:
			t.gone = append(t.gone, e)
		}
		t.change(e, value, had, want, wanted)
	}
	return t
}

// leaves returns the value that a subject has after the transaction, and whether it
// has any, given what there was before; a nil transaction changes nothing.
func (t *transaction) leaves(e element, before holding) (value string, has bool) {
	if t != nil {
		if value, has = t.becomes[e]; has {
			return value, true
		}
		if slices.Contains(t.gone, e) {
			return "", false
		}
	}
	value, has = before[e]
	return value, has
}

// complete adds the tables and chains to a transaction that it needs, once what is
// under way has been carried out; nil for nothing.
func (d *Dataplane) complete(t, underWay *transaction) {
	if t.empty() {
		return
	}
	for i := range d.tables {
		before := map[string]bool{} // by what is under way
		present := d.tables[i].present
		if underWay != nil {
			present = present || underWay.create[i]
			for _, name := range underWay.chains[i] {
				before[name] = true
			}
		}
		t.create[i] = t.drop[i] || !present
		added := map[string]bool{}
		for set, list := range t.add[i] {
			for _, a := range list {
				if !setID(set).verdicts() || added[a.value] || !made(a.value) {
					continue
				}
				added[a.value] = true
				if exists := (d.tables[i].chains[a.value] || before[a.value]) && !t.drop[i]; !exists {
					t.chains[i] = append(t.chains[i], a.value)
				}
			}
		}
	}
}

// write completes a transaction with the tables and chains that it needs,
// carries it out, and notes the outcome.
func (d *Dataplane) write(t *transaction) error {
	d.complete(t, nil)
	if err := d.kernel.write(t); err != nil {
		return err
	}
	return d.written(t)
}

// written notes a transaction that has been carried out, and does what follows it.
func (d *Dataplane) written(t *transaction) error {
	if !t.empty() {
		d.note(t)
		d.noteOwn(t)
	}
	return d.forget()
}

// forget makes clients choose anew whose endpoint has left.
func (d *Dataplane) forget() error {
	if !d.remembered {
		return nil
	}
	changed, err := d.kernel.forget(func(frontend element, endpoint string) bool {
		_, ok := block(d.have[frontend.subject()]).value(frontend.set, endpoint)
		return ok
	})
	if err != nil {
		return err
	}
	d.remembered = false
	if changed {
		d.noteGeneration()
	}
	return nil
}

// noteGeneration is called after each change of ours. When others have changed
// something as well, the generation stays behind and Verify looks what it was.
func (d *Dataplane) noteGeneration() {
	d.changes++
	if g, err := d.seen(); err == nil && g == d.generation+1 {
		d.generation = g
	}
}

// note books a transaction that has been carried out.
func (d *Dataplane) note(t *transaction) {
	for i := range d.tables {
		if t.create[i] {
			d.tables[i] = tableState{present: true, current: true, chains: map[string]bool{}}
		}
		for _, name := range t.chains[i] {
			d.tables[i].chains[name] = true
		}
		for _, name := range t.oldChains[i] {
			delete(d.tables[i].chains, name)
		}
	}
	for i := range t.remove {
		d.remembered = d.remembered || len(t.remove[i][sticky])+len(t.remove[i][stickyExternal]) > 0
	}
	for _, e := range t.gone {
		delete(d.have, e)
	}
	maps.Copy(d.have, t.becomes)
	d.noteGeneration()
}

// noteOwn has the clients of the node's own server led there, or no longer.
func (d *Dataplane) noteOwn(t *transaction) {
	changed := false
	for _, e := range t.gone {
		if _, had := d.own[e]; had {
			delete(d.own, e)
			changed = true
		}
	}
	for e, value := range t.becomes {
		own, has := block(value).ownServer()
		has = has && e.set == frontends
		had, ok := d.own[e]
		switch {
		case has && own != had:
			d.own[e], changed = own, true
		case !has && ok:
			delete(d.own, e)
			changed = true
		}
	}
	if changed {
		d.setPulse()
	}
}

// compare orders elements by family and set, so that a set's are sent
// together, and ranges by their keys, an end before a beginning.
func (e element) compare(o element) int {
	if c := cmp.Compare(e.fam, o.fam); c != 0 {
		return c
	}
	if c := cmp.Compare(e.set, o.set); c != 0 {
		return c
	}
	if c := cmp.Compare(e.key, o.key); c != 0 {
		return c
	}
	switch {
	case e.end == o.end:
		return 0
	case e.end:
		return -1
	}
	return 1
}

// recover reads the kernel again after an error; what somebody else has removed
// or damaged is made again.
func (d *Dataplane) recover() error {
	before := d.tables
	if err := d.read(); err != nil {
		return err
	}
	for i, t := range d.tables {
		if before[i].present && !(t.present && t.current) {
			return d.repair(before)
		}
	}
	return nil
}

// repairBatch is the number of subjects in one transaction when much is to do.
const repairBatch = 1000

// repair brings everything in line, and tells what was not; before is what
// tables there were.
func (d *Dataplane) repair(before [2]tableState) error {
	if d.staged {
		return nil
	}
	fixed := dataplane.Repairs{}
	note := func(e element) {
		switch {
		case e.set == frontends: // with all that belongs to it
			fixed.Add("frontends", 1)
		case e.set.settings():
			fixed.Add("settings", 1)
		default:
			fixed.Add("addresses", 1)
		}
	}
	replace := false
	for i, t := range d.tables {
		if before[i].present && !(t.present && t.current) {
			fixed.Add("tables", 1)
		}
		replace = replace || t.present && !t.current
	}
	var wrong, gone []element
	for e := range d.claims.first {
		want, wanted := d.wanted(e)
		if value, had := d.have[e]; had != wanted || value != want {
			wrong = append(wrong, e)
			note(e)
		} else {
			d.have[e] = want // one string in place of two
		}
	}
	if d.pruned {
		gone = d.unclaimed()
		for _, e := range gone {
			note(e)
		}
	}
	var err error
	if replace {
		err = d.replace()
	} else if err = d.commitBatches(wrong); err == nil {
		err = d.commitBatches(gone)
	}
	if err != nil {
		return err
	}
	d.repairs.Report(d.log, "nftables", fixed)
	return nil
}

// removeUnclaimed removes what nobody claims.
func (d *Dataplane) removeUnclaimed() error { return d.commitBatches(d.unclaimed()) }

// unclaimed returns what nobody claims.
func (d *Dataplane) unclaimed() (gone []element) {
	for e := range d.have {
		if d.claims.first[e] == nil && (d.nodeKnown || !e.set.settings()) {
			gone = append(gone, e)
		}
	}
	return gone
}

// commitBatches commits many subjects, ranges together, since half a range is
// another range.
func (d *Dataplane) commitBatches(list []element) error {
	var ranges, single []element
	for _, e := range list {
		if e.set.intervals() {
			ranges = append(ranges, e)
		} else {
			single = append(single, e)
		}
	}
	slices.SortFunc(single, element.compare)
	if err := d.commit(ranges); err != nil {
		return err
	}
	for batch := range slices.Chunk(single, repairBatch) {
		if err := d.commit(batch); err != nil {
			return err
		}
	}
	return nil
}

// Prune implements reconcile.Target. It removes elements that no Service and
// not the node wants, and chains that no element leads to. Tables of another
// layout are replaced.
func (d *Dataplane) Prune(ctx context.Context, wanted iter.Seq2[model.Key, plan.Service]) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	keep := map[model.Key]bool{}
	for key := range wanted {
		keep[key] = true
	}
	for key, o := range d.owners {
		if !keep[key] && len(o.unsettled) == 0 && o.wants == nil {
			delete(d.owners, key)
		}
	}
	// An earlier process may have stopped before it had clients forget.
	d.remembered = d.remembered || !d.pruned && !d.staged
	d.pruned = true
	d.compiler, d.spare = serviceCompiler{}, nil
	var err error
	if d.staged {
		err = d.replace()
	} else if err = d.removeUnclaimed(); err == nil {
		err = d.pruneChains()
	}
	if err != nil {
		return d.afterError(err)
	}
	return nil
}

func (d *Dataplane) afterError(err error) error {
	if again := d.recover(); again != nil {
		d.log.Warn("nftables: reading the kernel after an error", "error", again)
	}
	return err
}

// pruneChains removes chains that nothing leads to.
func (d *Dataplane) pruneChains() error {
	used := [2]map[string]bool{{}, {}}
	for e, value := range d.have {
		if e.set != frontends {
			continue
		}
		for p := range block(value).parts() {
			if p.set.verdicts() {
				used[e.fam][p.value] = true
			}
		}
	}
	t := &transaction{}
	for i := range d.tables {
		for name := range d.tables[i].chains {
			if !used[i][name] {
				t.oldChains[i] = append(t.oldChains[i], name)
			}
		}
		slices.Sort(t.oldChains[i])
	}
	if len(t.oldChains[v4])+len(t.oldChains[v6]) == 0 {
		return nil
	}
	return d.write(t)
}

// replace puts our tables in the place of tables of another layout, in one
// transaction.
func (d *Dataplane) replace() error {
	t := &transaction{drop: [2]bool{true, true}, becomes: map[element]string{}}
	for e := range d.claims.first {
		if value, ok := d.wanted(e); ok {
			t.becomes[e] = value
			t.change(e, "", false, value, true)
		}
	}
	have := d.have
	d.have = holding{}
	if err := d.write(t); err != nil {
		d.have = have
		return err
	}
	d.staged = false
	d.log.Info("nftables: replaced tables of another layout")
	return nil
}

// SetNode implements dataplane.Dataplane.
func (d *Dataplane) SetNode(ctx context.Context, n dataplane.Node) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var touched []element
	for _, w := range d.node.wants {
		d.claims.remove(w.element, d.node)
		touched = append(touched, w.element)
	}
	d.node.wants, d.nodeKnown = wishesOf(group(compileNode(n))), true
	for _, w := range d.node.wants {
		d.claims.add(w.element, d.node)
		touched = append(touched, w.element)
	}
	// What an earlier process set and is not set any more.
	for e := range d.have {
		if e.set.settings() && d.claims.first[e] == nil {
			touched = append(touched, e)
		}
	}
	err := d.commit(touched)
	if err == nil {
		return nil
	}
	if again := d.recover(); again != nil {
		return again
	}
	if err := d.commit(touched); err != nil {
		return fmt.Errorf("node settings: %w", err)
	}
	return nil
}

// verifyTries is how often Verify reads the kernel while changes go on.
const verifyTries = 3

// Verify implements dataplane.Dataplane. As long as nobody has changed any
// rules in the network namespace it costs one question to the kernel. Changes
// go on while it reads; when there were some it reads again, at last with the
// changes waiting. Then chains go that nothing leads to any more.
func (d *Dataplane) Verify(ctx context.Context) error {
	if err := d.compare(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.pruned || d.staged || d.changes == d.tidied {
		return nil
	}
	if err := d.pruneChains(); err != nil {
		return d.afterError(err)
	}
	d.tidied = d.changes
	return nil
}

// Glance tells whether somebody else has changed any rules in the network
// namespace since the last Verify and the last Glance, and whether ours are not all there
// since. Where nobody has, it costs one question to the kernel; else the rules are
// counted, but what the maps hold is left to Verify, for that may be much.
func (d *Dataplane) Glance() (changed, disturbed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.staged {
		return false, false, nil
	}
	now, err := d.seen()
	if err != nil || now == d.generation || now == d.glanced {
		return false, false, err
	}
	for i, f := range d.kernel.families {
		if !d.tables[i].present {
			continue
		}
		intact, err := d.kernel.intact(f, d.tables[i].chains)
		if err != nil {
			return true, false, fmt.Errorf("nftables: reading table %s: %w", f.label(), err)
		}
		if !intact {
			return true, true, nil
		}
	}
	d.glanced = now
	return true, false, nil
}

// compare compares what the kernel has with what it should.
func (d *Dataplane) compare() error {
	reader := kernel{netns: d.kernel.netns, families: d.kernel.families}
	for range verifyTries {
		changes, now, due, err := d.verifyDue()
		if err != nil || !due {
			return err
		}
		tables, all, err := reader.read()
		if err = errors.Join(err, reader.close()); err != nil {
			return err
		}
		have := group(all)
		if d.betweenReadAndRepair != nil {
			d.betweenReadAndRepair()
		}
		if done, err := d.adopt(tables, have, changes, now); done {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now, err := d.seen()
	if err != nil {
		return err
	}
	before := d.tables
	if err := d.read(); err != nil {
		return err
	}
	d.generation = now
	return d.repair(before)
}

// verifyDue tells whether somebody else has changed rules, the number of our
// changes, and the kernel's generation.
func (d *Dataplane) verifyDue() (changes uint64, now uint32, due bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.staged {
		return 0, 0, false, nil
	}
	now, err = d.seen()
	return d.changes, now, now != d.generation, err
}

// adopt takes what has been read since generation now for what the kernel has,
// and repairs it; it does nothing when there were changes of ours meanwhile.
func (d *Dataplane) adopt(tables [2]tableState, have holding, changes uint64, now uint32) (done bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changes != changes || d.staged {
		return d.staged, nil
	}
	before := d.tables
	d.tables, d.have, d.generation = tables, have, now
	d.readOwn()
	return true, d.repair(before)
}
