package state

// Editor makes a new table from an old one outside a [Store], for the indexes
// that consumers derive from a snapshot: readers keep the old table while one
// writer makes the next.
type Editor[K comparable, V any] struct {
	table Table[K, V]
	edit  *edit
}

// Edit returns an editor that starts with the rows of t; t itself stays as it is.
func (t Table[K, V]) Edit() *Editor[K, V] {
	return &Editor[K, V]{table: t, edit: &edit{}}
}

// Get returns the row of key as of now.
func (e *Editor[K, V]) Get(key K) (V, bool) { return e.table.Get(key) }

// Set adds or replaces a row. Unlike a transaction it does not compare values.
func (e *Editor[K, V]) Set(key K, value V) { e.table = e.table.set(e.edit, key, value) }

// Delete removes a row.
func (e *Editor[K, V]) Delete(key K) { e.table = e.table.delete(e.edit, key) }

// Table returns the rows as of now; later edits do not change it.
func (e *Editor[K, V]) Table() Table[K, V] {
	e.edit = &edit{}
	return e.table
}
