package l2

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/net/bpf"
)

// Neighbour discovery (RFC 4861) is read and written as whole frames by a
// packet socket, because the kernel gives a raw ICMPv6 socket only what is
// meant for its own addresses, and the unicast probes by which a neighbour
// confirms an entry are not.
const (
	ipv6Header = 40
	nsLength   = etherHeader + ipv6Header + 24

	icmpv6                = 58
	neighborSolicitation  = 135
	neighborAdvertisement = 136

	flagSolicited = 0x40
	flagOverride  = 0x20
	optionTarget  = 2 // target link-layer address
)

var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

// solicitationFilter lets only neighbour solicitations through.
func solicitationFilter() ([]bpf.RawInstruction, error) {
	return bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: etherHeader + 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: icmpv6, SkipTrue: 3},
		bpf.LoadAbsolute{Off: etherHeader + ipv6Header, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: neighborSolicitation, SkipTrue: 1},
		bpf.RetConstant{Val: 0xffff},
		bpf.RetConstant{Val: 0},
	})
}

// solicitation is what matters of a neighbour solicitation.
type solicitation struct {
	senderMAC      net.HardwareAddr
	source, target netip.Addr
}

// parseSolicitation reads a frame; ok is false for anything but a valid
// solicitation. A hop limit other than 255 came over a router (RFC 4861, 7.1.1).
func parseSolicitation(frame []byte) (s solicitation, ok bool) {
	if len(frame) < nsLength || binary.BigEndian.Uint16(frame[12:]) != etherTypeIPv6 {
		return s, false
	}
	ip := frame[etherHeader:]
	body := ip[ipv6Header:]
	if ip[6] != icmpv6 || ip[7] != 255 || body[0] != neighborSolicitation || body[1] != 0 {
		return s, false
	}
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if length < 24 || length > len(body) {
		return s, false
	}
	s = solicitation{
		senderMAC: net.HardwareAddr(frame[6:12]),
		source:    netip.AddrFrom16([16]byte(ip[8:24])),
		target:    netip.AddrFrom16([16]byte(body[8:24])),
	}
	destination := netip.AddrFrom16([16]byte(ip[24:40]))
	return s, !s.target.IsMulticast() && checksum(s.source, destination, body[:length]) == 0
}

// advertisementFrame tells destination that addr is at mac. The answer to a
// solicitation without source, a duplicate address detection, goes to all.
func advertisementFrame(mac net.HardwareAddr, addr netip.Addr, flags byte, dstMAC net.HardwareAddr, destination netip.Addr) []byte {
	body := make([]byte, 32)
	body[0], body[4] = neighborAdvertisement, flags
	copy(body[8:], addr.AsSlice())
	body[24], body[25] = optionTarget, 1
	copy(body[26:], mac)
	// The address itself is the source: like a host that has it would do.
	binary.BigEndian.PutUint16(body[2:], checksum(addr, destination, body))

	f := make([]byte, 0, etherHeader+ipv6Header+len(body))
	f = append(f, dstMAC...)
	f = append(f, mac...)
	f = binary.BigEndian.AppendUint16(f, etherTypeIPv6)
	f = append(f, 0x60, 0, 0, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(len(body)))
	f = append(f, icmpv6, 255)
	f = append(f, addr.AsSlice()...)
	f = append(f, destination.AsSlice()...)
	return append(f, body...)
}

// answer is the frame that answers a solicitation.
func (s solicitation) answer(mac net.HardwareAddr) []byte {
	if s.source.IsUnspecified() {
		return advertisementFrame(mac, s.target, flagOverride, allNodesMAC, allNodes)
	}
	return advertisementFrame(mac, s.target, flagSolicited|flagOverride, s.senderMAC, s.source)
}

// unsolicited is the frame that tells everybody that addr is at mac now.
func unsolicited(mac net.HardwareAddr, addr netip.Addr) []byte {
	return advertisementFrame(mac, addr, flagOverride, allNodesMAC, allNodes)
}

// checksum is that of ICMPv6 with its pseudo-header (RFC 4443, 2.3); 0 for a
// message that carries the right one.
func checksum(source, destination netip.Addr, body []byte) uint16 {
	var sum uint32
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	add(source.AsSlice())
	add(destination.AsSlice())
	add(body)
	sum += uint32(len(body)) + icmpv6
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// solicitedNode is the multicast group in which solicitations for addr are
// sent (RFC 4291, 2.7.1).
func solicitedNode(addr netip.Addr) netip.Addr {
	a := addr.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]})
}
