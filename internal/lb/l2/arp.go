package l2

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// Frames of ARP for IPv4 on Ethernet (RFC 826), written by hand: they have one
// fixed layout of 42 bytes.
const (
	etherTypeARP  = 0x0806
	etherTypeIPv6 = 0x86dd
	etherHeader   = 14
	arpLength     = etherHeader + 28

	arpRequest = 1
	arpReply   = 2
)

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// arpPacket is what matters of an ARP packet.
type arpPacket struct {
	operation          uint16
	senderMAC          net.HardwareAddr
	senderIP, targetIP netip.Addr
}

// parseARP reads a frame; ok is false for anything but ARP for IPv4 on Ethernet.
func parseARP(frame []byte) (p arpPacket, ok bool) {
	if len(frame) < arpLength || binary.BigEndian.Uint16(frame[12:]) != etherTypeARP {
		return p, false
	}
	b := frame[etherHeader:]
	if binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != 0x0800 || b[4] != 6 || b[5] != 4 {
		return p, false
	}
	return arpPacket{
		operation: binary.BigEndian.Uint16(b[6:]),
		senderMAC: net.HardwareAddr(b[8:14]),
		senderIP:  netip.AddrFrom4([4]byte(b[14:18])),
		targetIP:  netip.AddrFrom4([4]byte(b[24:28])),
	}, true
}

// arpFrame is a frame to dst that tells targetMAC and targetIP that addr is at mac.
func arpFrame(operation uint16, dst, mac net.HardwareAddr, addr netip.Addr, targetMAC net.HardwareAddr, targetIP netip.Addr) []byte {
	f := make([]byte, 0, arpLength)
	f = append(f, dst...)
	f = append(f, mac...)
	f = binary.BigEndian.AppendUint16(f, etherTypeARP)
	f = append(f, 0, 1, 8, 0, 6, 4)
	f = binary.BigEndian.AppendUint16(f, operation)
	f = append(f, mac...)
	f = append(f, addr.AsSlice()...)
	f = append(f, targetMAC...)
	return append(f, targetIP.AsSlice()...)
}

// gratuitousARP are the frames that tell everybody that addr is at mac now:
// both kinds, for some hosts heed the one and some the other (RFC 5227, 3).
func gratuitousARP(mac net.HardwareAddr, addr netip.Addr) [][]byte {
	return [][]byte{
		arpFrame(arpRequest, broadcast, mac, addr, net.HardwareAddr{0, 0, 0, 0, 0, 0}, addr),
		arpFrame(arpReply, broadcast, mac, addr, broadcast, addr),
	}
}
