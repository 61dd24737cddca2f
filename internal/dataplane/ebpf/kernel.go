package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane"
)

// batch is how many elements one system call reads or writes.
const batch = 4096

// readAll reads a hash map.
func readAll[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	out := map[K]V{}
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			out[keys[i]] = values[i]
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// readTrie reads a map of prefixes, which the kernel does not read in batches.
func readTrie[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	out := map[K]V{}
	var k K
	var v V
	all := m.Iterate()
	for all.Next(&k, &v) {
		out[k] = v
	}
	return out, all.Err()
}

// readArray reads the first n elements of an array and calls visit with one
// stretch of them after another, and the place of its first; what visit is given
// is overwritten afterwards.
func readArray[V any](m *ebpf.Map, n uint32, visit func(from uint32, list []V)) error {
	keys, values := make([]uint32, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for from := uint32(0); from < n; {
		got, err := m.BatchLookup(&cursor, keys, values, nil)
		visit(from, values[:min(uint32(got), n-from)])
		from += uint32(got)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			break
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mapped is what the maps have that a process keeps in line.
type mapped struct {
	frontends map[frontendKey]frontend
	addresses map[address]uint32
	ranges    map[rangeKey]uint32
	proxies   [2]backend
}

// readMaps reads what the kernel holds.
func readMaps(m map[string]*ebpf.Map) (out mapped, err error) {
	if out.frontends, err = readAll[frontendKey, frontend](m[socketMapFrontends]); err != nil {
		return out, fmt.Errorf("read map %s: %w", socketMapFrontends, err)
	}
	if out.addresses, err = readAll[address, uint32](m[socketMapAddresses]); err != nil {
		return out, fmt.Errorf("read map %s: %w", socketMapAddresses, err)
	}
	return out, out.readSettings(m)
}

// readSettings reads the node's settings that are no addresses.
func (h *mapped) readSettings(m map[string]*ebpf.Map) (err error) {
	if h.ranges, err = readTrie[rangeKey, uint32](m[socketMapRanges]); err != nil {
		return fmt.Errorf("read map %s: %w", socketMapRanges, err)
	}
	for i := range h.proxies {
		if err := m[socketMapProxies].Lookup(uint32(i), &h.proxies[i]); err != nil {
			return fmt.Errorf("read map %s: %w", socketMapProxies, err)
		}
	}
	return nil
}

// readBackends reads the backends up to the last one that a frontend leads to.
func readBackends(m map[string]*ebpf.Map, frontends map[frontendKey]frontend) ([]backend, error) {
	end, size := uint64(0), uint64(m[socketMapBackends].MaxEntries())
	for _, f := range frontends {
		for _, p := range f.Pools {
			end = min(max(end, uint64(p.Base)+uint64(p.Count)), size)
		}
	}
	out := make([]backend, 0, end)
	err := readArray(m[socketMapBackends], uint32(end), func(_ uint32, list []backend) { out = append(out, list...) })
	if err != nil {
		return nil, fmt.Errorf("read map %s: %w", socketMapBackends, err)
	}
	return out, nil
}

// rowOf returns the row in a map of backends; nil where it is beyond the end.
func rowOf(all []backend, p pool) []backend {
	if from, to := uint64(p.Base), uint64(p.Base)+uint64(p.Count); to <= uint64(len(all)) {
		return all[from:to]
	}
	return nil
}

// readRow reads what stands in a row now.
func (d *Dataplane) readRow(p pool) ([]backend, error) {
	out := make([]backend, p.Count)
	for i := range out {
		if err := d.maps[socketMapBackends].Lookup(p.Base+uint32(i), &out[i]); err != nil {
			return nil, fmt.Errorf("read map %s: %w", socketMapBackends, err)
		}
	}
	return out, nil
}

// toWrite has a row written with the next commit.
func (d *Dataplane) toWrite(r row) {
	for i, b := range r.backends {
		d.unwritten.places = append(d.unwritten.places, r.Base+uint32(i))
		d.unwritten.backends = append(d.unwritten.backends, b)
	}
}

// writeRows writes what is unwritten, in batches. After an error it is still
// to be written.
func (d *Dataplane) writeRows() error {
	places, backends := d.unwritten.places, d.unwritten.backends
	for len(places) > 0 {
		n := min(len(places), batch)
		if _, err := d.maps[socketMapBackends].BatchUpdate(places[:n], backends[:n], nil); err != nil {
			return fmt.Errorf("write map %s: %w", socketMapBackends, err)
		}
		places, backends = places[n:], backends[n:]
	}
	if cap(d.unwritten.places) > 4*batch {
		d.unwritten.places, d.unwritten.backends = nil, nil // more than is needed again
	}
	d.unwritten.places, d.unwritten.backends = d.unwritten.places[:0], d.unwritten.backends[:0]
	return nil
}

// read makes have what the kernel holds.
func (d *Dataplane) read() (err error) {
	d.have, err = readMaps(d.maps)
	return err
}

// explain says what to do about an error of a map.
func (d *Dataplane) explain(err error, name string) error {
	if errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("the kernel has no memory for the map of %s: %w; maps count for the memory limit of the cgroup of fairway node (its container's): raise that, or free memory", name, err)
	}
	if !errors.Is(err, unix.E2BIG) && !errors.Is(err, unix.ENOSPC) {
		return err
	}
	return fmt.Errorf("the map of %s is full with %d: raise --bpf-max-frontends, or remove Services", name, d.maps[name].MaxEntries())
}

// noteWritten remembers for Verify, if it is at work, that a frontend is not as
// it was when the kernel was read.
func (d *Dataplane) noteWritten(key frontendKey) {
	if d.written != nil {
		d.written[key] = struct{}{}
	}
}

// putFrontends writes frontends in batches; of a batch that fails, each by
// itself. It returns those that the kernel refused.
func (d *Dataplane) putFrontends(keys []frontendKey, values []frontend) map[frontendKey]error {
	refused := map[frontendKey]error{}
	m := d.maps[socketMapFrontends]
	for len(keys) > 0 {
		n := min(len(keys), batch)
		if _, err := m.BatchUpdate(keys[:n], values[:n], nil); err != nil {
			for i, k := range keys[:n] {
				if err := m.Put(k, values[i]); err != nil {
					refused[k] = d.explain(err, socketMapFrontends)
				}
			}
		}
		for i, k := range keys[:n] {
			if refused[k] == nil {
				d.noteWritten(k)
				d.have.frontends[k] = values[i]
			}
		}
		keys, values = keys[n:], values[n:]
	}
	return refused
}

func (d *Dataplane) removeFrontends(keys []frontendKey) map[frontendKey]error {
	refused := map[frontendKey]error{}
	for _, k := range keys {
		if err := d.maps[socketMapFrontends].Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			refused[k] = err
			continue
		}
		d.noteWritten(k)
		delete(d.have.frontends, k)
	}
	return refused
}

// wantedAddress returns the flags that an address shall have, besides flags that
// it has as the node's.
func (d *Dataplane) wantedAddress(a address, flags uint32) uint32 {
	use, had := d.uses[a], d.have.addresses[a]
	if use.clusterIPs > 0 || !d.pruned && had&addressCluster != 0 {
		flags |= addressCluster
	}
	if (use.frontends > 0 || !d.pruned && had&addressFrontend != 0) && dialled(a) {
		flags |= addressFrontend
	}
	if !d.nodeKnown {
		flags |= had &^ (addressCluster | addressFrontend)
	}
	return flags
}

// dialled reports whether a packet may be to an address: NodePorts stand in the map
// under one that none is to.
func dialled(a address) bool { return !a.addr().IsUnspecified() }

// commitAddresses brings addresses in line, which are Services', new ones in
// batches; of a batch that fails, each by itself. It adds those that the kernel
// refused.
func (d *Dataplane) commitAddresses(all map[address]struct{}, refused map[frontendKey]error) {
	var put []address
	var values []uint32
	one := func(a address, flags uint32) {
		if err := d.writeAddress(a, flags); err != nil {
			refused[frontendKey{Addr: a}] = err
		}
	}
	for a := range all {
		had := d.have.addresses[a]
		flags := d.wantedAddress(a, had&^(addressCluster|addressFrontend))
		if flags == had || flags == 0 {
			one(a, flags)
			continue
		}
		put, values = append(put, a), append(values, flags)
	}
	for len(put) > 0 {
		n := min(len(put), batch)
		_, err := d.maps[socketMapAddresses].BatchUpdate(put[:n], values[:n], nil)
		for i, a := range put[:n] {
			if err != nil {
				one(a, values[i])
				continue
			}
			d.have.addresses[a] = values[i]
		}
		put, values = put[n:], values[n:]
	}
}

func (d *Dataplane) writeAddress(a address, flags uint32) error {
	switch had := d.have.addresses[a]; {
	case had == flags:
		return nil
	case flags == 0:
		if err := d.maps[socketMapAddresses].Delete(a); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		delete(d.have.addresses, a)
		return nil
	}
	if err := d.maps[socketMapAddresses].Put(a, flags); err != nil {
		return d.explain(err, socketMapAddresses)
	}
	d.have.addresses[a] = flags
	return nil
}

// commitNode brings the node's settings in line, and all addresses.
func (d *Dataplane) commitNode() error {
	var errs []error
	var want nodeSettings
	if d.nodeKnown {
		want = d.settings()
	}
	all := maps.Clone(d.have.addresses)
	maps.Copy(all, want.addresses)
	for a := range d.uses {
		all[a] = 0
	}
	for a := range all {
		errs = append(errs, d.writeAddress(a, d.wantedAddress(a, want.addresses[a])))
		if d.uses[a] == (use{}) {
			delete(d.uses, a)
		}
	}
	if d.nodeKnown {
		errs = append(errs, d.commitSettings(want, nil))
	}
	return errors.Join(errs...)
}

// commitSettings brings the node's settings in line that are no addresses, and
// notes which were not.
func (d *Dataplane) commitSettings(want nodeSettings, fixed dataplane.Repairs) error {
	var errs []error
	for k, flags := range want.ranges {
		if had, ok := d.have.ranges[k]; !ok || had != flags {
			if err := d.maps[socketMapRanges].Put(k, flags); err != nil {
				errs = append(errs, fmt.Errorf("range %s/%d: %w", k.Addr.addr(), k.Prefix, err))
				continue
			}
			d.have.ranges[k] = flags
			fixed.Add(repairedSettings, 1)
		}
	}
	for k := range d.have.ranges {
		if _, ok := want.ranges[k]; ok {
			continue
		}
		if err := d.maps[socketMapRanges].Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
			continue
		}
		delete(d.have.ranges, k)
		fixed.Add(repairedSettings, 1)
	}
	for i, b := range want.proxies {
		if d.have.proxies[i] != b {
			if err := d.maps[socketMapProxies].Put(uint32(i), b); err != nil {
				errs = append(errs, err)
				continue
			}
			d.have.proxies[i] = b
			fixed.Add(repairedSettings, 1)
		}
	}
	return errors.Join(errs...)
}

// pruneSources removes source ranges that belong to nobody.
func (d *Dataplane) pruneSources() error {
	have, err := readTrie[sourceKey, uint8](d.maps[socketMapSources])
	if err != nil {
		return fmt.Errorf("read map %s: %w", socketMapSources, err)
	}
	var errs []error
	for k := range have {
		if slices.Contains(d.guards[k.Guard], k) {
			continue
		}
		if err := d.maps[socketMapSources].Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
