package h2client

import (
	"hash/maphash"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// tableSize is the size of HPACK's dynamic table, in both directions.
const tableSize = 4096

// encoder writes header blocks (RFC 7541). It spends little on finding what is
// short: strings are not compressed, and only what is sent twice goes to the
// table, so that IDs and the like do not push out what is the same in every
// request.
type encoder struct {
	seed maphash.Seed
	// entries are the table, a ring; first to next are those in it.
	entries     [tableSize/32 + 1]entry
	first, next uint32
	size, max   uint32
	// resized tells that the peer is to be told max, and least, which it was in between.
	resized bool
	least   uint32
	// found leads from a hash to an entry, seen to what was sent once. Both
	// forget: a collision costs some bytes.
	found [256]uint32 // number of the entry, and 1
	seen  [512]uint32
}

type entry struct{ name, value string }

func (e entry) size() uint32 { return uint32(len(e.name)+len(e.value)) + 32 }

func newEncoder() *encoder {
	return &encoder{seed: maphash.MakeSeed(), max: tableSize, least: tableSize}
}

// limit takes the peer's limit on the table's size.
func (e *encoder) limit(size uint32) {
	size = min(size, tableSize)
	if size == e.max && !e.resized {
		return
	}
	e.least = min(e.least, size)
	e.max, e.resized = size, true
	for e.size > size {
		e.evict()
	}
}

func (e *encoder) evict() {
	old := &e.entries[e.first%uint32(len(e.entries))]
	e.size -= old.size()
	*old = entry{}
	e.first++
}

// begin begins a block.
func (e *encoder) begin(out []byte) []byte {
	if !e.resized {
		return out
	}
	if e.least < e.max {
		// It was smaller in between. Go's decoder takes a second update only if
		// the first has emptied the table.
		for e.size > 0 {
			e.evict()
		}
		out = appendInt(out, 0x20, 5, 0)
	}
	out = appendInt(out, 0x20, 5, e.max)
	e.resized, e.least = false, e.max
	return out
}

// field adds one field. The name may have capitals; the strings are not kept.
func (e *encoder) field(out []byte, name, value string) []byte {
	static := staticNames[name]
	if static.secret {
		return appendLiteral(out, 0x10, 4, static.index, name, value)
	}
	if size := uint32(len(name)+len(value)) + 32; size > e.max/4 {
		return appendLiteral(out, 0, 4, static.index, name, value)
	}
	sum := maphash.String(e.seed, name)*31 ^ maphash.String(e.seed, value)
	slot := &e.found[sum>>8%uint64(len(e.found))]
	if at := *slot - 1; *slot != 0 && at-e.first < e.next-e.first {
		if f := &e.entries[at%uint32(len(e.entries))]; f.name == name && f.value == value {
			return appendInt(out, 0x80, 7, 61+e.next-at)
		}
	}
	if before := &e.seen[sum>>16%uint64(len(e.seen))]; *before != uint32(sum>>32) {
		*before = uint32(sum >> 32)
		return appendLiteral(out, 0, 4, static.index, name, value)
	}
	out = appendLiteral(out, 0x40, 6, static.index, name, value)
	f := entry{strings.Clone(name), strings.Clone(value)}
	for e.size+f.size() > e.max {
		e.evict()
	}
	e.size += f.size()
	e.entries[e.next%uint32(len(e.entries))] = f
	e.next++
	*slot = e.next
	return out
}

// static adds a field by its number in the static table.
func (e *encoder) static(out []byte, index uint32) []byte { return appendInt(out, 0x80, 7, index) }

func appendLiteral(out []byte, pattern byte, bits uint, index uint32, name, value string) []byte {
	out = appendInt(out, pattern, bits, index)
	if index == 0 {
		out = appendInt(out, 0, 7, uint32(len(name)))
		for i := range len(name) {
			c := name[i]
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			out = append(out, c)
		}
	}
	out = appendInt(out, 0, 7, uint32(len(value)))
	return append(out, value...)
}

// appendInt writes a number with a prefix of some bits (RFC 7541, 5.1).
func appendInt(out []byte, pattern byte, bits uint, n uint32) []byte {
	most := uint32(1)<<bits - 1
	if n < most {
		return append(out, pattern|byte(n))
	}
	out = append(out, pattern|byte(most))
	for n -= most; n >= 0x80; n >>= 7 {
		out = append(out, byte(n)|0x80)
	}
	return append(out, byte(n))
}

type staticName struct {
	index  uint32
	secret bool // kept out of tables on the whole way
}

// Entries of the static table (RFC 7541, appendix A).
const (
	indexAuthority = 1
	indexGET       = 2
	indexPOST      = 3
	indexPath      = 4
	indexSlash     = 4
	indexHTTP      = 6
	indexHTTPS     = 7
)

// staticNames finds the first entry of the static table by a name, as it stands
// there and in canonical form.
var staticNames = func() map[string]staticName {
	names := map[string]staticName{}
	// The package offers no list of them.
	d := hpack.NewDecoder(0, nil)
	for i := uint32(1); i <= 61; i++ {
		list, err := d.DecodeFull(appendInt(nil, 0x80, 7, i))
		if err != nil {
			panic(err) // the table is in the RFC
		}
		name := list[0].Name
		if _, ok := names[name]; ok {
			continue
		}
		n := staticName{index: i}
		switch name {
		case "authorization", "cookie", "proxy-authorization", "set-cookie":
			n.secret = true
		}
		names[name], names[Canonical(name)] = n, n
	}
	return names
}()
