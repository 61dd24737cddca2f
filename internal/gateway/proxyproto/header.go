package proxyproto

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Version is that of a header; the zero Version is none.
type Version uint8

// The versions: 1 is a line of text, 2 is binary.
const (
	V1 Version = 1
	V2 Version = 2
)

// signature begins every header of version 2.
const signature = "\r\n\r\n\x00\r\nQUIT\n"

// What stands in a header of version 2.
const (
	commandLocal, commandProxy = 0x20, 0x21
	familyIPv4, familyIPv6     = 0x10, 0x20
	overTCP, overUDP           = 0x1, 0x2
)

// Append appends the header for a connection from client to the proxy's address
// local. Where these are not known, or of two families, it says nothing of them.
func (v Version) Append(b []byte, client, local netip.AddrPort) []byte {
	client, local, ok := ends(client, local)
	if v == V2 {
		return appendV2(b, client, local, ok, overTCP)
	}
	switch {
	case !ok:
		return append(b, "PROXY UNKNOWN\r\n"...)
	case client.Addr().Is4():
		return fmt.Appendf(b, "PROXY TCP4 %s %s %d %d\r\n", client.Addr(), local.Addr(), client.Port(), local.Port())
	}
	return fmt.Appendf(b, "PROXY TCP6 %s %s %d %d\r\n", client.Addr(), local.Addr(), client.Port(), local.Port())
}

// AppendDatagram appends the header that goes in front of a datagram. It is of
// version 2, which alone knows UDP.
func AppendDatagram(b []byte, client, local netip.AddrPort) []byte {
	client, local, ok := ends(client, local)
	return appendV2(b, client, local, ok, overUDP)
}

// Own appends the header for a connection of the proxy's own, from its address
// to the backend's: a health check.
func (v Version) Own(b []byte, from, to netip.AddrPort) []byte {
	if v == V2 {
		return append(append(b, signature...), commandLocal, 0, 0, 0)
	}
	return v.Append(b, from, to)
}

// ends brings addresses into the form that a header has, and tells whether it can have them.
func ends(client, local netip.AddrPort) (netip.AddrPort, netip.AddrPort, bool) {
	a, b := client.Addr().Unmap().WithZone(""), local.Addr().Unmap().WithZone("")
	if !a.IsValid() || !b.IsValid() || a.Is4() != b.Is4() {
		return client, local, false
	}
	return netip.AddrPortFrom(a, client.Port()), netip.AddrPortFrom(b, local.Port()), true
}

func appendV2(b []byte, client, local netip.AddrPort, ok bool, transport byte) []byte {
	b = append(b, signature...)
	if !ok {
		// PROXY of an unspecified family: the connection is a client's all the same.
		return append(b, commandProxy, 0, 0, 0)
	}
	family := byte(familyIPv4)
	if client.Addr().Is6() {
		family = familyIPv6
	}
	b = append(b, commandProxy, family|transport)
	b = binary.BigEndian.AppendUint16(b, uint16(2*client.Addr().BitLen()/8+4))
	b = append(b, client.Addr().AsSlice()...)
	b = append(b, local.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, client.Port())
	return binary.BigEndian.AppendUint16(b, local.Port())
}
