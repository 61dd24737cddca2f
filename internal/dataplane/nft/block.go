package nft

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// There are a million elements with 100,000 endpoints of 10 frontends each, so
// what is remembered is packed: all elements of a frontend are one string. They
// belong together in any case, to the Service that has the frontend.

// block has the elements of one frontend, each once and in order: for each a
// byte for set and end, the lengths of key and value, key, value.
type block string

// part is an element of a frontend.
type part struct {
	set setID
	end bool
	// key is what follows the frontend's key. The end of a range, which may lie
	// beyond the frontend's keys, has its whole key.
	key, value string
}

const (
	endFlag    = 0x80
	partHeader = 3 // bytes
)

func (p part) tag() byte {
	if p.end {
		return byte(p.set) | endFlag
	}
	return byte(p.set)
}

func (p part) compare(o part) int {
	if c := cmp.Compare(p.tag(), o.tag()); c != 0 {
		return c
	}
	return strings.Compare(p.key, o.key)
}

// of returns the element that p is of a frontend.
func (p part) of(front element) element {
	e := element{fam: front.fam, set: p.set, end: p.end, key: p.key}
	if !p.end {
		e.key = front.key + p.key
	}
	return e
}

// part is the inverse of part.of; e is of the frontend.
func (e element) part(front element, value string) part {
	p := part{set: e.set, end: e.end, key: e.key, value: value}
	if !p.end {
		p.key = p.key[len(front.key):]
	}
	return p
}

// pack makes a block of parts, which it puts in order. One that is there twice
// counts once.
func pack(parts []part) block {
	slices.SortFunc(parts, part.compare)
	parts = slices.CompactFunc(parts, func(a, b part) bool { return a.compare(b) == 0 })
	n := 0
	for _, p := range parts {
		n += partHeader + len(p.key) + len(p.value)
	}
	var b strings.Builder
	b.Grow(n)
	for _, p := range parts {
		// Keys have at most 48 bytes, names of chains fewer than 128.
		b.WriteByte(p.tag())
		b.WriteByte(byte(len(p.key)))
		b.WriteByte(byte(len(p.value)))
		b.WriteString(p.key)
		b.WriteString(p.value)
	}
	return block(b.String())
}

// next returns the first part and the rest.
func (b block) next() (part, block) {
	key, end := partHeader+int(b[1]), partHeader+int(b[1])+int(b[2])
	return part{set: setID(b[0] &^ endFlag), end: b[0]&endFlag != 0, key: string(b[partHeader:key]), value: string(b[key:end])}, b[end:]
}

// parts returns all parts in order.
func (b block) parts() iter.Seq[part] {
	return func(yield func(part) bool) {
		for len(b) > 0 {
			var p part
			if p, b = b.next(); !yield(p) {
				return
			}
		}
	}
}

// value returns the value of an element that is not the end of a range.
func (b block) value(set setID, key string) (string, bool) {
	for p := range b.parts() {
		if p.set == set && !p.end && p.key == key {
			return p.value, true
		}
	}
	return "", false
}

// ownServer returns the value of the element in ownServer, whose set is the first.
func (b block) ownServer() (string, bool) {
	if len(b) == 0 || b[0] != byte(ownServer) {
		return "", false
	}
	p, _ := b.next()
	return p.value, true
}

// slots returns the backends in the places of a map of endpoints.
func (b block) slots(set setID) []netip.AddrPort {
	if b == "" {
		return nil
	}
	found := map[string]netip.AddrPort{}
	for p := range b.parts() {
		if p.set != set {
			continue
		}
		if backend, ok := parseAddrPort(p.value); ok {
			found[p.key] = backend
		}
	}
	var out []netip.AddrPort
	for {
		backend, ok := found[slotWord(len(out))]
		if !ok {
			return out
		}
		out = append(out, backend)
	}
}

// differ calls remove and add with what makes one block another. A value
// changes by removing and adding.
func differ(from, to block, remove, add func(part)) {
	for len(from) > 0 || len(to) > 0 {
		order := 0
		var f, t part
		var afterF, afterT block
		switch {
		case len(from) == 0:
			order = 1
		case len(to) == 0:
			order = -1
		}
		if len(from) > 0 {
			f, afterF = from.next()
		}
		if len(to) > 0 {
			t, afterT = to.next()
		}
		if order == 0 {
			order = f.compare(t)
		}
		switch {
		case order < 0:
			remove(f)
		case order > 0:
			add(t)
		case f.value != t.value:
			remove(f)
			add(t)
		}
		if order <= 0 {
			from = afterF
		}
		if order >= 0 {
			to = afterT
		}
	}
}

// holding is what there is or shall be, by subject: a frontend, which is named
// by its element in frontends and has all its elements as a block, or an element
// of no frontend.
type holding map[element]string

// group makes a holding of elements.
func group(m elements) holding {
	out := holding{}
	parts := map[element][]part{}
	for e, value := range m {
		if front, ok := e.frontend(); ok {
			parts[front] = append(parts[front], e.part(front, value))
		} else {
			out[e] = value
		}
	}
	for front, list := range parts {
		out[front] = string(pack(list))
	}
	return out
}

// elements is the inverse of group.
func (h holding) elements() elements {
	out := elements{}
	for subject, value := range h {
		if subject.set != frontends {
			out[subject] = value
			continue
		}
		for p := range block(value).parts() {
			out[p.of(subject)] = p.value
		}
	}
	return out
}
