package state

import (
	"hash/maphash"
	"iter"
)

// fanout is the number of branches of a table and of leaves of a branch: 4096
// leaves keep a leaf at about 25 rows with 100,000 rows, while a change copies
// 64 pointers, 64 heads of leaves and one leaf.
const fanout = 64

// Table is an immutable map. The zero Table is empty. Copying it is cheap and
// gives the same table.
type Table[K comparable, V any] struct {
	root *root[K, V]
}

type root[K comparable, V any] struct {
	seed     maphash.Seed
	owner    *edit
	size     int
	branches [fanout]*branch[K, V]
}

type branch[K comparable, V any] struct {
	owner  *edit
	leaves [fanout]leaf[K, V]
}

// leaf is changed by its owner alone: two with the same owner are the same.
type leaf[K comparable, V any] struct {
	owner *edit
	rows  []slot[K, V]
}

// slot is the place of a row. The hash beside it saves a look at the rows, and
// at the memory of their keys, that are not the one: with 10,000 rows in a table
// those are most of what it takes to find one.
type slot[K comparable, V any] struct {
	hash uint64
	*row[K, V]
}

type row[K comparable, V any] struct {
	key   K
	value V
}

// edit is the identity of one transaction: nodes that it owns are not yet
// visible to anybody else and are changed in place.
type edit struct{ _ byte }

func (r *root[K, V]) hash(key K) uint64 { return maphash.Comparable(r.seed, key) }

// place is the branch and the leaf of a hash.
func place(hash uint64) (int, int) { return int(hash % fanout), int(hash / fanout % fanout) }

// Len returns the number of rows.
func (t Table[K, V]) Len() int {
	if t.root == nil {
		return 0
	}
	return t.root.size
}

// Get returns the row of key.
func (t Table[K, V]) Get(key K) (V, bool) {
	if r := t.find(key); r != nil {
		return r.value, true
	}
	var none V
	return none, false
}

func (t Table[K, V]) find(key K) *row[K, V] {
	if t.root == nil {
		return nil
	}
	h := t.root.hash(key)
	i, j := place(h)
	if b := t.root.branches[i]; b != nil {
		return b.leaves[j].find(h, key)
	}
	return nil
}

func (l *leaf[K, V]) find(hash uint64, key K) *row[K, V] {
	for i := range l.rows {
		if s := &l.rows[i]; s.hash == hash && s.key == key {
			return s.row
		}
	}
	return nil
}

// All yields every row, in no particular order.
func (t Table[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if t.root == nil {
			return
		}
		for _, b := range t.root.branches {
			if b == nil {
				continue
			}
			for j := range b.leaves {
				if !b.leaves[j].each(yield) {
					return
				}
			}
		}
	}
}

func (l *leaf[K, V]) each(yield func(K, V) bool) bool {
	for _, r := range l.rows {
		if !yield(r.key, r.value) {
			return false
		}
	}
	return true
}

// set returns the table with the row set, changing nodes owned by e in place.
func (t Table[K, V]) set(e *edit, key K, value V) Table[K, V] {
	l := t.own(e, key)
	r := slot[K, V]{l.hash, &row[K, V]{key, value}}
	for i := range l.leaf.rows {
		if s := &l.leaf.rows[i]; s.hash == l.hash && s.key == key {
			*s = r
			return l.table
		}
	}
	l.leaf.rows = append(l.leaf.rows, r)
	l.table.root.size++
	return l.table
}

// delete returns the table without the row.
func (t Table[K, V]) delete(e *edit, key K) Table[K, V] {
	if t.find(key) == nil {
		return t
	}
	l := t.own(e, key)
	rows := l.leaf.rows
	for i := range rows {
		if rows[i].hash == l.hash && rows[i].key == key {
			rows[i] = rows[len(rows)-1]
			rows[len(rows)-1] = slot[K, V]{}
			l.leaf.rows = rows[:len(rows)-1]
			break
		}
	}
	l.table.root.size--
	return l.table
}

type owned[K comparable, V any] struct {
	table Table[K, V]
	leaf  *leaf[K, V]
	hash  uint64
}

// own returns the table with the path to key's leaf owned by e.
func (t Table[K, V]) own(e *edit, key K) owned[K, V] {
	switch {
	case t.root == nil:
		t.root = &root[K, V]{seed: maphash.MakeSeed(), owner: e}
	case t.root.owner != e:
		c := *t.root
		c.owner = e
		t.root = &c
	}
	h := t.root.hash(key)
	i, j := place(h)
	b := t.root.branches[i]
	switch {
	case b == nil:
		b = &branch[K, V]{owner: e}
	case b.owner != e:
		c := *b
		c.owner = e
		b = &c
	}
	t.root.branches[i] = b
	l := &b.leaves[j]
	if l.owner != e {
		*l = leaf[K, V]{owner: e, rows: append(make([]slot[K, V], 0, len(l.rows)+1), l.rows...)}
	}
	return owned[K, V]{t, l, h}
}

// Difference is one row that two tables disagree about.
type Difference[K comparable, V any] struct {
	Key K
	// Old and New are the values; HadOld and HasNew tell whether there is one.
	Old, New       V
	HadOld, HasNew bool
}

// Diff yields the rows in which next differs from prev: added, removed, or set
// again since. A row set to an equal value counts as different; writers avoid
// that (see [Tx]). The order is not defined.
func Diff[K comparable, V any](prev, next Table[K, V]) iter.Seq[Difference[K, V]] {
	return func(yield func(Difference[K, V]) bool) {
		if prev.root == next.root {
			return
		}
		if prev.root == nil || next.root == nil || prev.root.seed != next.root.seed {
			diffRows(prev, next, yield)
			return
		}
		for i := range next.root.branches {
			p, n := prev.root.branches[i], next.root.branches[i]
			if p != n && !diffBranch(p, n, yield) {
				return
			}
		}
	}
}

func diffBranch[K comparable, V any](prev, next *branch[K, V], yield func(Difference[K, V]) bool) bool {
	var none branch[K, V]
	if prev == nil {
		prev = &none
	}
	if next == nil {
		next = &none
	}
	for j := range next.leaves {
		if p, n := &prev.leaves[j], &next.leaves[j]; p.owner != n.owner && !diffLeaf(p, n, yield) {
			return false
		}
	}
	return true
}

func diffLeaf[K comparable, V any](prev, next *leaf[K, V], yield func(Difference[K, V]) bool) bool {
	for _, n := range next.rows {
		if p := prev.find(n.hash, n.key); p != n.row && !yield(difference(p, n.row)) {
			return false
		}
	}
	for _, p := range prev.rows {
		if next.find(p.hash, p.key) == nil && !yield(difference(p.row, nil)) {
			return false
		}
	}
	return true
}

// diffRows compares tables that have no history in common.
func diffRows[K comparable, V any](prev, next Table[K, V], yield func(Difference[K, V]) bool) {
	for key, value := range next.All() {
		p := prev.find(key)
		if !yield(difference(p, &row[K, V]{key, value})) {
			return
		}
	}
	for key, value := range prev.All() {
		if next.find(key) == nil && !yield(difference(&row[K, V]{key, value}, nil)) {
			return
		}
	}
}

func difference[K comparable, V any](prev, next *row[K, V]) Difference[K, V] {
	var d Difference[K, V]
	if prev != nil {
		d.Key, d.Old, d.HadOld = prev.key, prev.value, true
	}
	if next != nil {
		d.Key, d.New, d.HasNew = next.key, next.value, true
	}
	return d
}
