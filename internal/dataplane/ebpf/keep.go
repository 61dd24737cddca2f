package ebpf

import (
	"fmt"
	"slices"
	"time"

	"fairway.dev/fairway/internal/model"
)

// keep has a Service that there is no room for after a restart go on as the
// process before left it, until it can be applied: what the kernel has at its
// frontends is what it wants for now. Else Prune would take it for one that has
// gone, and have its clients refused.
func (d *Dataplane) keep(key model.Key, created time.Time, want *service) error {
	if d.pruned || d.owners[key] != nil {
		return nil
	}
	ranges, err := d.readRanges()
	if err != nil {
		return err
	}
	o := &owner{key: key, created: created}
	for i := range want.frontends {
		f := want.frontends[i]
		had, ok := d.have.frontends[f.key]
		if !ok || len(d.claims[f.key]) > 0 {
			continue // it was not served there, or another one is now
		}
		if had.Guard != 0 {
			d.guards[had.Guard] = inOrderOf(ranges[had.Guard], f.sourceKeys(had.Guard))
		}
		for class, p := range had.Pools {
			if p.Count == 0 || d.inheritedRows[p.Base] != p {
				continue
			}
			delete(d.inheritedRows, p.Base)
			r := row{pool: p, backends: slices.Clone(rowOf(d.inheritedBackends, p))}
			if f.actions[class] == actionForward {
				r.name = want.pools[f.pools[class]].name
			}
			o.rows = append(o.rows, r)
		}
		delete(d.inheritedIDs, had.ID)
		f.value = had
		o.want.frontends = append(o.want.frontends, f)
		if slices.Contains(want.clusterIPs, f.key.Addr) && !slices.Contains(o.want.clusterIPs, f.key.Addr) {
			o.want.clusterIPs = append(o.want.clusterIPs, f.key.Addr)
			d.use(f.key.Addr, 1, 0)
		}
	}
	if len(o.want.frontends) == 0 {
		return nil
	}
	for i := range o.want.frontends {
		d.claim(o.want.frontends[i].key, o)
	}
	d.owners[key] = o
	return nil
}

// readRanges reads the source ranges that the kernel has, by their number.
func (d *Dataplane) readRanges() (map[uint32][]sourceKey, error) {
	all, err := readTrie[sourceKey, uint8](d.maps[socketMapSources])
	if err != nil {
		return nil, fmt.Errorf("read map %s: %w", socketMapSources, err)
	}
	out := map[uint32][]sourceKey{}
	for k := range all {
		out[k.Guard] = append(out[k.Guard], k)
	}
	return out, nil
}

// inOrderOf returns the keys in the order of others, and behind those what is not among them.
func inOrderOf(keys, order []sourceKey) []sourceKey {
	out := make([]sourceKey, 0, len(keys))
	for _, k := range order {
		if slices.Contains(keys, k) {
			out = append(out, k)
		}
	}
	for _, k := range keys {
		if !slices.Contains(order, k) {
			out = append(out, k)
		}
	}
	return out
}
