package wire

import (
	"encoding/binary"
	"errors"
)

// HeaderSize is the size of a message's header: where the question begins.
const HeaderSize = 12

// Why a packet is no query that can be answered as asked.
var (
	// ErrNoQuery: no header, or that of an answer. No answer is due, as
	// answering answers makes loops.
	ErrNoQuery = errors.New("not a query")
	// ErrOpcode: another operation than QUERY.
	ErrOpcode = errors.New("opcode other than QUERY")
	// ErrFormat: the packet does not hold what its header says.
	ErrFormat = errors.New("malformed query")
)

// Query is one query. It is meant to be used again for the next one.
type Query struct {
	ID     uint16
	Opcode uint8
	// RD, AD and CD are bits of the header.
	RD, AD, CD bool
	// Name is the name asked for in lower case; answers repeat it as it was asked.
	Name Name
	// Type and Class are those of the question.
	Type, Class uint16
	// EDNS is what the client says of itself in an OPT record (RFC 6891).
	EDNS EDNS

	question []byte // part of the packet; nil until it is known to be good
}

// Asks reports whether the question was read.
func (q *Query) Asks() bool { return q.question != nil }

// AskedInLowerCase reports whether the name, from the label at i on, was asked
// for in lower case: then names in the answer may point at it and look the same.
func (q *Query) AskedInLowerCase(i int) bool {
	from := q.Name.Offset(i)
	return string(q.question[from:q.Name.size]) == string(q.Name.wire[from:q.Name.size])
}

// OptionExplain is the EDNS option with which a client asks where the answer is
// from, and the one that tells it: text of [Builder.Origin]. It is for clients on
// the node itself, as it tells whom the server asks. The code is of the range for
// local use (RFC 6891 section 9).
const OptionExplain = 65153

// ExplainNone begins what the server says there where no server gave an answer:
// the zone whose servers were asked, a colon and the error follow.
const ExplainNone = "none of "

// ExplainRule begins what is said behind that of each rule of the configuration that
// had another name looked up: the name, the other one, and the rule, with
// ExplainName behind each name.
const (
	ExplainRule = "\n"
	ExplainName = "\t"
)

// EDNS is an OPT record. Options are checked for their form; all but
// [OptionExplain] are passed over: none that clients send needs to be
// understood (RFC 7873 section 5.2.1 for cookies).
type EDNS struct {
	Present bool
	Version uint8
	// UDPSize is what the client takes by UDP, as it says itself.
	UDPSize uint16
	// DO asks for DNSSEC's records (RFC 3225).
	DO bool
	// Explain asks where the answer is from.
	Explain bool
}

// Parse reads a packet, which must not change before the answer is written.
// Unless the error is ErrNoQuery, the header is known and an answer is due.
func (q *Query) Parse(packet []byte) error {
	q.question, q.EDNS = nil, EDNS{}
	if len(packet) < HeaderSize || packet[2]&0x80 != 0 {
		return ErrNoQuery
	}
	q.ID = binary.BigEndian.Uint16(packet)
	q.Opcode = packet[2] >> 3 & 0xf
	q.RD, q.AD, q.CD = packet[2]&1 != 0, packet[3]&0x20 != 0, packet[3]&0x10 != 0
	if q.Opcode != 0 {
		return ErrOpcode
	}
	if binary.BigEndian.Uint16(packet[4:]) != 1 {
		return ErrFormat
	}
	off, ok := q.Name.parse(packet, HeaderSize)
	if !ok || off+4 > len(packet) {
		return ErrFormat
	}
	q.Type, q.Class = binary.BigEndian.Uint16(packet[off:]), binary.BigEndian.Uint16(packet[off+2:])
	question := packet[HeaderSize : off+4]
	if off, ok = skipRecords(packet, off+4, int(binary.BigEndian.Uint16(packet[6:]))+int(binary.BigEndian.Uint16(packet[8:]))); !ok {
		return ErrFormat
	}
	if !q.parseAdditional(packet, off, int(binary.BigEndian.Uint16(packet[10:]))) {
		return ErrFormat
	}
	q.question = question
	return nil
}

const typeOPT = 41

// parseAdditional reads the OPT record, of which there may be one.
func (q *Query) parseAdditional(packet []byte, off, count int) bool {
	for range count {
		start := off
		rtype, data, end, ok := record(packet, off)
		if !ok {
			return false
		}
		off = end
		if rtype != typeOPT {
			continue
		}
		if q.EDNS.Present || packet[start] != 0 { // RFC 6891 section 6.1.1
			return false
		}
		explain, ok := options(packet[data:end])
		if !ok {
			return false
		}
		q.EDNS = EDNS{
			Present: true, UDPSize: binary.BigEndian.Uint16(packet[start+3:]),
			Version: packet[start+6], DO: packet[start+7]&0x80 != 0, Explain: explain,
		}
	}
	return true
}

// options checks the form of EDNS options, and says whether OptionExplain is there.
func options(b []byte) (explain, ok bool) {
	for len(b) > 0 {
		if len(b) < 4 {
			return false, false
		}
		length := int(binary.BigEndian.Uint16(b[2:]))
		if len(b) < 4+length {
			return false, false
		}
		explain = explain || binary.BigEndian.Uint16(b) == OptionExplain
		b = b[4+length:]
	}
	return explain, true
}

func skipRecords(packet []byte, off, count int) (int, bool) {
	for range count {
		_, _, end, ok := record(packet, off)
		if !ok {
			return 0, false
		}
		off = end
	}
	return off, true
}

// record returns the type of the record at off, and where its data begins and ends.
func record(packet []byte, off int) (rtype uint16, data, end int, ok bool) {
	off, ok = skipName(packet, off)
	if !ok || off+10 > len(packet) {
		return 0, 0, 0, false
	}
	data = off + 10
	end = data + int(binary.BigEndian.Uint16(packet[off+8:]))
	return binary.BigEndian.Uint16(packet[off:]), data, end, end <= len(packet)
}
