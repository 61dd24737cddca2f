package nft

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// attributes are netlink attributes, encoded.
type attributes []byte

// add appends an attribute.
func (a *attributes) add(kind uint16, parts ...string) {
	end := a.nest(kind)
	for _, p := range parts {
		*a = append(*a, p...)
	}
	end()
}

// nest begins an attribute; what is added until end is its content.
func (a *attributes) nest(kind uint16) (end func()) {
	from := len(*a)
	*a = binary.NativeEndian.AppendUint16(*a, 0) // the length, once it is known
	*a = binary.NativeEndian.AppendUint16(*a, kind)
	return func() {
		binary.NativeEndian.PutUint16((*a)[from:], uint16(len(*a)-from))
		for len(*a)%4 != 0 {
			*a = append(*a, 0)
		}
	}
}

// encodeElements returns the message that adds elements to their set.
func encodeElements(set *nftables.Set, list []addition) []byte {
	size := 64 + len(set.Name) + len(set.Table.Name)
	for i := range list {
		size += 48 + len(list[i].key) + len(list[i].value)
	}
	a := append(make(attributes, 0, size), byte(set.Table.Family), unix.NFNETLINK_V0, 0, 0)
	a.add(unix.NFTA_SET_ELEM_LIST_SET, set.Name, "\x00")
	a.add(unix.NFTA_SET_ELEM_LIST_SET_ID, uint32String(set.ID))
	a.add(unix.NFTA_SET_ELEM_LIST_TABLE, set.Table.Name, "\x00")
	end := a.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS | unix.NLA_F_NESTED)
	for i := range list {
		one := a.nest(uint16(i+1) | unix.NLA_F_NESTED)
		list[i].encode(&a)
		one()
	}
	end()
	return a
}

// encode appends the attributes of an element.
func (e *addition) encode(a *attributes) {
	if e.end {
		a.add(unix.NFTA_SET_ELEM_FLAGS|unix.NLA_F_NESTED, uint32String(unix.NFT_SET_ELEM_INTERVAL_END))
	}
	end := a.nest(unix.NFTA_SET_ELEM_KEY | unix.NLA_F_NESTED)
	a.add(unix.NFTA_DATA_VALUE, e.key)
	end()
	if e.value == "" {
		return
	}
	end = a.nest(unix.NFTA_SET_ELEM_DATA | unix.NLA_F_NESTED)
	defer func() { end() }()
	if !e.set.verdicts() {
		a.add(unix.NFTA_DATA_VALUE, e.value)
		return
	}
	verdict := a.nest(unix.NFTA_DATA_VERDICT | unix.NLA_F_NESTED)
	defer verdict()
	switch {
	case e.value == verdictDrop:
		a.add(unix.NFTA_VERDICT_CODE, uint32String(uint32(expr.VerdictDrop)))
		return
	case e.set == memories:
		a.add(unix.NFTA_VERDICT_CODE, verdictString(expr.VerdictJump))
	default:
		a.add(unix.NFTA_VERDICT_CODE, verdictString(expr.VerdictGoto))
	}
	a.add(unix.NFTA_VERDICT_CHAIN, e.value, "\x00")
}

// uint32String is a number as attributes have it.
func uint32String(n uint32) string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return string(b[:])
}

func verdictString(k expr.VerdictKind) string { return uint32String(uint32(k)) }
