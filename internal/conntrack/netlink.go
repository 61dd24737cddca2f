package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The parts of linux/netfilter/nfnetlink_conntrack.h that are used here.
const (
	msgGet    = 1 // IPCTNL_MSG_CT_GET
	msgDelete = 2 // IPCTNL_MSG_CT_DELETE

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaID         = 12
	ctaZone       = 18
	ctaFilter     = 25

	tupleIP    = 1
	tupleProto = 2

	ip4Src, ip4Dst, ip6Src, ip6Dst   = 1, 2, 3, 4
	protoNum, protoSrcPort, protoDst = 1, 2, 3

	filterOrigFlags = 1
	flagIPDst       = 1 << 1
	flagProtoNum    = 1 << 3
	flagDstPort     = 1 << 5
)

// flow is one entry of the kernel.
type flow struct {
	family   byte
	protocol byte
	// to is where the client sent, answers where the answer comes from: the
	// endpoint, when the flow was translated.
	to, answers netip.AddrPort
	// name is the attributes that name the entry, as the kernel wrote them.
	name []netlink.Attribute
}

func header(message uint16, flags netlink.HeaderFlags) netlink.Header {
	return netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | message), Flags: netlink.Request | flags}
}

func body(family byte, attrs []netlink.Attribute) ([]byte, error) {
	b, err := netlink.MarshalAttributes(attrs)
	return append([]byte{family, unix.NFNETLINK_V0, 0, 0}, b...), err
}

// list returns the flows that the kernel selects for a question. Kernels
// before 5.8 select by family only, so the flows have to be looked at again.
func list(conn *netlink.Conn, q question) ([]flow, error) {
	family := byte(unix.AF_INET)
	if q.ipv6 {
		family = unix.AF_INET6
	}
	attrs, err := q.attributes()
	if err != nil {
		return nil, err
	}
	data, err := body(family, attrs)
	if err != nil {
		return nil, err
	}
	reply, err := conn.Execute(netlink.Message{Header: header(msgGet, netlink.Dump), Data: data})
	if err != nil {
		return nil, fmt.Errorf("conntrack: listing flows: %w", err)
	}
	var flows []flow
	for _, m := range reply {
		f, err := parse(m.Data)
		if err != nil {
			return nil, fmt.Errorf("conntrack: %w", err)
		}
		flows = append(flows, f)
	}
	return flows, nil
}

// attributes is the question in the kernel's words.
func (q question) attributes() ([]netlink.Attribute, error) {
	e := netlink.NewAttributeEncoder()
	flags := uint32(flagProtoNum)
	e.Nested(ctaTupleOrig, func(t *netlink.AttributeEncoder) error {
		// By IPv6 address the kernel selects the flows that do not have it
		// (ctnetlink_filter_match_tuple, as of 6.18): the port has to do.
		if q.of.port != 0 && !q.ipv6 && !q.of.addr.IsUnspecified() {
			flags |= flagIPDst
			t.Nested(tupleIP, func(ip *netlink.AttributeEncoder) error {
				// Both have to be there; only the one in flags counts.
				ip.Bytes(ip4Src, make([]byte, 4))
				ip.Bytes(ip4Dst, q.of.addr.AsSlice())
				return nil
			})
		}
		t.Nested(tupleProto, func(p *netlink.AttributeEncoder) error {
			p.Uint8(protoNum, unix.IPPROTO_UDP)
			if q.of.port != 0 {
				flags |= flagDstPort
				p.Bytes(protoSrcPort, []byte{0, 0})
				p.Bytes(protoDst, binary.BigEndian.AppendUint16(nil, q.of.port))
			}
			return nil
		})
		return nil
	})
	e.Nested(ctaFilter, func(f *netlink.AttributeEncoder) error {
		f.Uint32(filterOrigFlags, flags)
		return nil
	})
	raw, err := e.Encode()
	if err != nil {
		return nil, err
	}
	return netlink.UnmarshalAttributes(raw)
}

// parse reads one entry.
func parse(data []byte) (flow, error) {
	var f flow
	if len(data) < 4 {
		return f, errors.New("short entry")
	}
	f.family = data[0]
	attrs, err := netlink.UnmarshalAttributes(data[4:])
	if err != nil {
		return f, err
	}
	for _, a := range attrs {
		switch a.Type & attrType {
		case ctaTupleOrig:
			f.name = append(f.name, a)
			_, f.to, f.protocol, err = tuple(a.Data)
		case ctaTupleReply:
			f.answers, _, _, err = tuple(a.Data)
		case ctaID, ctaZone:
			f.name = append(f.name, a)
		}
		if err != nil {
			return f, err
		}
	}
	return f, nil
}

// attrType masks the flags off an attribute's type.
const attrType = 0x3fff

// tuple reads the two ends of one direction.
func tuple(data []byte) (src, dst netip.AddrPort, protocol byte, err error) {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return src, dst, 0, err
	}
	var from, to netip.Addr
	var fromPort, toPort uint16
	for ad.Next() {
		switch ad.Type() {
		case tupleIP:
			ad.Nested(func(ip *netlink.AttributeDecoder) error {
				for ip.Next() {
					addr, _ := netip.AddrFromSlice(ip.Bytes())
					switch ip.Type() {
					case ip4Src, ip6Src:
						from = addr
					case ip4Dst, ip6Dst:
						to = addr
					}
				}
				return nil
			})
		case tupleProto:
			ad.Nested(func(p *netlink.AttributeDecoder) error {
				p.ByteOrder = binary.BigEndian
				for p.Next() {
					switch p.Type() {
					case protoNum:
						protocol = p.Uint8()
					case protoSrcPort:
						fromPort = p.Uint16()
					case protoDst:
						toPort = p.Uint16()
					}
				}
				return nil
			})
		}
	}
	return netip.AddrPortFrom(from, fromPort), netip.AddrPortFrom(to, toPort), protocol, ad.Err()
}

// remove removes the flow; that it has gone meanwhile is no error.
func (f *flow) remove(conn *netlink.Conn) error {
	data, err := body(f.family, f.name)
	if err != nil {
		return err
	}
	_, err = conn.Execute(netlink.Message{Header: header(msgDelete, netlink.Acknowledge), Data: data})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("conntrack: removing the flow to %s answered by %s: %w", f.to, f.answers, err)
	}
	return nil
}
