package wire

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// MaxSize is that of a message by TCP.
const MaxSize = 65535

// Slack is how much more than the largest answer a buffer should have room
// for: a record is written before it is known whether it fits.
const Slack = 768

// Section is a part of a message with records.
type Section uint8

// The sections, in the order in which they are written.
const (
	Answer Section = iota
	Authority
	Additional
)

const (
	optSize    = 11
	classINET  = 1
	pointer    = 0xc000
	maxPointer = 0x3fff
)

// Builder writes one answer, and then the next. Records that no longer fit are
// left out, and all after them.
//
// A record is written by Open, its owner's name, Head, its data, and Close. The
// names may be pointers to where a name stands in the message already.
type Builder struct {
	// Rcode is the result; bits beyond the header's four need EDNS.
	Rcode int
	// Authoritative is the AA bit, Authentic the AD bit.
	Authoritative, Authentic bool
	// UDPSize is what this server takes by UDP, for EDNS.
	UDPSize uint16
	// Origin tells where the answer is from, for clients that ask with
	// [OptionExplain]; it is left out where it does not fit.
	Origin string
	// Alias is room for the name that a CNAME led to.
	Alias Name
	// Places is room for places of names in the message.
	Places []int

	q         *Query
	buf       []byte
	start     int // where in buf the message begins
	limit     int // size of the message without OPT
	section   Section
	counts    [3]uint16
	full      bool
	truncated bool

	// Of the open record: where it begins, and the length of its data stands;
	// the size of labels of a name so far; and whether one of its names is none.
	mark, len int
	labels    int
	spoilt    bool
}

// Reset begins an answer to q behind what buf holds, of at most limit bytes. A
// query that could not be parsed is answered without its question.
func (b *Builder) Reset(buf []byte, q *Query, limit int) {
	b.Rcode, b.Authoritative, b.Authentic, b.Origin = 0, false, false, ""
	b.q, b.start, b.limit = q, len(buf), limit
	b.section, b.counts, b.full, b.truncated = Answer, [3]uint16{}, false, false
	if q.EDNS.Present {
		b.limit -= optSize
	}
	b.buf = append(append(buf, make([]byte, HeaderSize)...), q.question...)
}

// Undo takes back the open record.
func (b *Builder) Undo() { b.buf = b.buf[:b.mark] }

// Drop takes back all records.
func (b *Builder) Drop() {
	b.buf = b.buf[:b.start+HeaderSize+len(b.q.question)]
	b.section, b.counts, b.full, b.truncated = Answer, [3]uint16{}, false, false
}

// Finish writes header and OPT, and returns the buffer with the whole message.
func (b *Builder) Finish() []byte {
	b.Message()
	if b.q.EDNS.Present {
		binary.BigEndian.PutUint16(b.buf[b.start+10:], b.counts[Additional]+1)
		b.buf = append(b.buf, 0, 0, typeOPT, byte(b.UDPSize>>8), byte(b.UDPSize),
			byte(b.Rcode>>4), 0, bit(b.q.EDNS.DO, 0x80), 0, 0, 0) // RFC 3225 section 3: DO is repeated
		if size := 4 + len(b.Origin); b.q.EDNS.Explain && b.Origin != "" && b.Len()-optSize+size <= b.limit {
			binary.BigEndian.PutUint16(b.buf[len(b.buf)-2:], uint16(size))
			b.Uint16(OptionExplain)
			b.Uint16(uint16(len(b.Origin)))
			b.buf = append(b.buf, b.Origin...)
		}
	}
	return b.buf
}

// Message writes the header, and returns the message so far, without OPT.
func (b *Builder) Message() []byte {
	h := b.buf[b.start : b.start+HeaderSize]
	binary.BigEndian.PutUint16(h, b.q.ID)
	h[2] = 0x80 | b.q.Opcode<<3 | bit(b.Authoritative, 4) | bit(b.truncated, 2) | bit(b.q.RD, 1)
	h[3] = 0x80 | bit(b.Authentic, 0x20) | bit(b.q.CD, 0x10) | byte(b.Rcode&0xf)
	binary.BigEndian.PutUint16(h[4:], uint16(bit(b.q.question != nil, 1)))
	for i, n := range b.counts {
		binary.BigEndian.PutUint16(h[6+2*i:], n)
	}
	return b.buf[b.start:]
}

func bit(set bool, mask byte) byte {
	if set {
		return mask
	}
	return 0
}

// Count returns the number of records in a section so far.
func (b *Builder) Count(s Section) int { return int(b.counts[s]) }

// Truncated reports whether records of the answer did not fit.
func (b *Builder) Truncated() bool { return b.truncated }

// Full reports whether no more records fit.
func (b *Builder) Full() bool { return b.full }

// Len is the size of the message so far, which is also the place of what is
// written next.
func (b *Builder) Len() int { return len(b.buf) - b.start }

// Begin goes on to another section.
func (b *Builder) Begin(s Section) { b.section = s }

// Open begins a record.
func (b *Builder) Open() { b.mark, b.labels, b.spoilt = len(b.buf), 0, false }

// Head writes what stands between a record's owner and its data.
func (b *Builder) Head(rtype uint16, ttl uint32) {
	b.buf = append(b.buf, byte(rtype>>8), byte(rtype), 0, classINET, byte(ttl>>24), byte(ttl>>16), byte(ttl>>8), byte(ttl), 0, 0)
	b.len = len(b.buf) - 2
}

// Close ends a record. It reports false, and takes the record back, where it
// does not fit or one of its names is none. TC is set for what does not fit,
// unless that is only additional (RFC 2181 section 9).
func (b *Builder) Close() bool {
	if b.spoilt {
		b.Undo()
		return false
	}
	if b.full || b.Len() > b.limit {
		b.buf = b.buf[:b.mark]
		b.full = true
		b.truncated = b.truncated || b.section != Additional
		return false
	}
	binary.BigEndian.PutUint16(b.buf[b.len:], uint16(len(b.buf)-b.len-2))
	b.counts[b.section]++
	return true
}

// Pointer ends a name with what stands at place, which must be at most MaxPointer.
func (b *Builder) Pointer(place int) { b.Uint16(uint16(pointer | place)) }

// CanPoint reports whether pointers reach place.
func CanPoint(place int) bool { return place <= maxPointer }

// Label writes a label of a name, in lower case.
func (b *Builder) Label(s string) {
	b.buf = append(append(b.buf, byte(len(s))), s...)
	for i, c := range b.buf[len(b.buf)-len(s):] {
		b.buf[len(b.buf)-len(s)+i] = lower(c)
	}
	b.count(len(s))
}

// LabelBytes writes a label that is in lower case.
func (b *Builder) LabelBytes(l []byte) {
	b.buf = append(append(b.buf, byte(len(l))), l...)
	b.count(len(l))
}

// count takes a label's length into account; a name that is none, for a label
// of it is too long, spoils its record.
func (b *Builder) count(length int) {
	b.spoilt = b.spoilt || length == 0 || length > maxLabel
	b.labels += 1 + length
}

// Name ends a name with a whole one.
func (b *Builder) Name(n *Name) {
	b.end(n)
	b.buf = append(b.buf, n.wire[:n.size]...)
}

// NameAt ends a name with one that stands at place.
func (b *Builder) NameAt(place int, n *Name) {
	b.end(n)
	b.Pointer(place)
}

func (b *Builder) end(n *Name) {
	b.spoilt = b.spoilt || b.labels+n.size > maxName
	b.labels = 0
}

// Text writes a whole name given without escapes, with or without a final dot,
// and in its case. It reports false, and the record is to be undone, where
// that is not a domain name.
func (b *Builder) Text(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if len(s) > maxName-2 {
		return false
	}
	for s != "" {
		label, rest, more := strings.Cut(s, ".")
		if label == "" || len(label) > maxLabel || more && rest == "" {
			return false
		}
		b.buf = append(append(b.buf, byte(len(label))), label...)
		s = rest
	}
	b.buf = append(b.buf, 0)
	return true
}

// String writes a character string of TXT or HINFO.
func (b *Builder) String(s string) { b.buf = append(append(b.buf, byte(len(s))), s...) }

// Uint16 writes a number.
func (b *Builder) Uint16(v uint16) { b.buf = append(b.buf, byte(v>>8), byte(v)) }

// Uint32 writes a number.
func (b *Builder) Uint32(v uint32) {
	b.buf = append(b.buf, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

// The types of addresses.
const (
	typeA    = 1
	typeAAAA = 28
)

// Address writes the A or AAAA record of an address; the owner's name stands at
// place. It reports whether the record fits.
func (b *Builder) Address(place int, ttl uint32, a netip.Addr) bool {
	b.Open()
	b.Pointer(place)
	b.AddressData(ttl, a)
	return b.Close()
}

// AddressData writes all of an A or AAAA record but its owner.
func (b *Builder) AddressData(ttl uint32, a netip.Addr) {
	if a.Is4() {
		b.Head(typeA, ttl)
		v := a.As4()
		b.buf = append(b.buf, v[:]...)
		return
	}
	b.Head(typeAAAA, ttl)
	v := a.As16()
	b.buf = append(b.buf, v[:]...)
}
