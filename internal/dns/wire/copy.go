package wire

import "encoding/binary"

// Copy takes over all records of a packed answer to the same question, which
// has no OPT record, and its rcode. The question keeps the case in which it was
// asked, and so do names that point at it. It reports false, and leaves the
// answer as it was, where the records do not all fit.
func (b *Builder) Copy(message []byte) bool {
	at := HeaderSize + len(b.q.question)
	if len(b.q.question) == 0 || len(message) < at || b.Len() != at || len(message) > b.limit {
		return false
	}
	b.Rcode = int(message[3] & 0xf)
	for i := range b.counts {
		b.counts[i] = binary.BigEndian.Uint16(message[6+2*i:])
	}
	b.buf = append(b.buf, message[at:]...)
	return true
}

// EachTTL calls f with the place of each record's TTL in a packed message with
// one question. It reports whether all of the message could be read.
func EachTTL(message []byte, f func(at int)) bool {
	if len(message) < HeaderSize {
		return false
	}
	off, ok := skipName(message, HeaderSize)
	if off += 4; !ok || off > len(message) {
		return false
	}
	count := 0
	for i := 6; i < HeaderSize; i += 2 {
		count += int(binary.BigEndian.Uint16(message[i:]))
	}
	for range count {
		_, data, end, ok := record(message, off)
		if !ok {
			return false
		}
		f(data - 6)
		off = end
	}
	return off == len(message)
}
