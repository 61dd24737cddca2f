package wire

import (
	"strings"
	"unsafe"
)

const (
	maxName   = 255 // RFC 1035 section 2.3.4, the final zero included
	maxLabel  = 63
	maxLabels = 127
)

// Name is a domain name in lower case. The zero Name is not one: set it first.
type Name struct {
	wire [maxName]byte // labels with their lengths, and the final zero
	size int
	at   [maxLabels]uint8 // offset of each label's length
	n    int
}

// Labels returns the number of labels; the root has none.
func (n *Name) Labels() int { return n.n }

// Label returns the label at i, the left-most being 0. The string shares
// memory with the Name: it must not be kept once that is set anew.
func (n *Name) Label(i int) string {
	at := int(n.at[i])
	return unsafe.String(&n.wire[at+1], int(n.wire[at]))
}

// Offset returns where in the packed name the label at i begins; i may be
// Labels(), for the root.
func (n *Name) Offset(i int) int {
	if i == n.n {
		return n.size - 1
	}
	return int(n.at[i])
}

// Packed returns the name as it stands in messages, in lower case and whole.
// It shares memory with the Name.
func (n *Name) Packed() []byte { return n.wire[:n.size] }

// PackedString is Packed for whoever needs a string, under the same condition.
func (n *Name) PackedString() string { return unsafe.String(&n.wire[0], n.size) }

// EndsWith reports whether n is suffix or below it.
func (n *Name) EndsWith(suffix *Name) bool {
	skip := n.n - suffix.n
	return skip >= 0 && string(n.wire[n.Offset(skip):n.size]) == string(suffix.wire[:suffix.size])
}

// SetText sets the name from text without escapes, with or without a final
// dot. It reports whether that is a domain name.
func (n *Name) SetText(s string) bool {
	s = strings.TrimSuffix(s, ".")
	n.size, n.n = 0, 0
	for s != "" {
		label, rest, more := strings.Cut(s, ".")
		if more && rest == "" || !n.add(label) {
			return false
		}
		s = rest
	}
	n.wire[n.size] = 0
	n.size++
	return true
}

func (n *Name) add(label string) bool {
	if len(label) == 0 || len(label) > maxLabel || n.size+1+len(label)+1 > maxName {
		return false
	}
	n.at[n.n] = uint8(n.size)
	n.n++
	n.wire[n.size] = byte(len(label))
	for i := range len(label) {
		n.wire[n.size+1+i] = lower(label[i])
	}
	n.size += 1 + len(label)
	return true
}

// parse sets the name from a packet and returns the offset behind it. The name
// must be whole: the first name of a message has nothing before it to point at.
func (n *Name) parse(packet []byte, off int) (int, bool) {
	n.size, n.n = 0, 0
	for {
		if off >= len(packet) {
			return 0, false
		}
		length := int(packet[off])
		if length == 0 {
			n.wire[n.size] = 0
			n.size++
			return off + 1, true
		}
		if length > maxLabel || off+1+length > len(packet) || n.size+1+length+1 > maxName {
			return 0, false
		}
		n.at[n.n] = uint8(n.size)
		n.n++
		n.wire[n.size] = byte(length)
		to := n.wire[n.size+1 : n.size+1+length]
		for i, c := range packet[off+1 : off+1+length] {
			to[i] = lower(c)
		}
		n.size += 1 + length
		off += 1 + length
	}
}

// skipName returns the offset behind a name that may end in a pointer.
func skipName(packet []byte, off int) (int, bool) {
	for size := 0; off < len(packet); {
		length := int(packet[off])
		switch {
		case length == 0:
			return off + 1, true
		case length >= 0xc0:
			if off+2 > len(packet) || (length&0x3f)<<8|int(packet[off+1]) >= off {
				return 0, false // pointers lead back
			}
			return off + 2, true
		case length > maxLabel:
			return 0, false // RFC 6891 section 5: other kinds of labels are gone
		}
		off += 1 + length
		if size += 1 + length; size >= maxName {
			return 0, false
		}
	}
	return 0, false
}

// String returns the name as people write it, with a final dot.
func (n *Name) String() string { return string(n.Append(nil)) }

// Append appends the name, as String has it, to b.
func (n *Name) Append(b []byte) []byte {
	if n.n == 0 {
		return append(b, '.')
	}
	for i := range n.n {
		label := n.Label(i)
		for j := range len(label) {
			switch c := label[j]; {
			case c < '!' || c > '~':
				b = append(b, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
			case strings.IndexByte(` .'@;()"\`, c) >= 0:
				b = append(b, '\\', c)
			default:
				b = append(b, c)
			}
		}
		b = append(b, '.')
	}
	return b
}

func lower(c byte) byte {
	if c-'A' < 26 {
		c |= 0x20
	}
	return c
}
