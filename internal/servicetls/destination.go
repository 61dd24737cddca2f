package servicetls

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// originalDestination returns the address that the client dialled before the
// kernel redirected the connection (SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST).
func originalDestination(conn *net.TCPConn) (netip.AddrPort, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	v4 := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().Is4()
	var dst netip.AddrPort
	var failed error
	err = raw.Control(func(fd uintptr) {
		if v4 {
			dst, failed = originalDestination4(int(fd))
		} else {
			dst, failed = originalDestination6(int(fd))
		}
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask the kernel for the original destination: %w", err)
	}
	return dst, nil
}

// originalDestination4 reads a sockaddr_in into a structure of the unix
// package that is large enough: family, port and address in its first 8 bytes.
func originalDestination4(fd int) (netip.AddrPort, error) {
	m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, err
	}
	b := m.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4])), nil
}

// originalDestination6 reads a sockaddr_in6, with which IPv6MTUInfo begins.
func originalDestination6(fd int) (netip.AddrPort, error) {
	m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var port [2]byte // in network byte order in memory
	binary.NativeEndian.PutUint16(port[:], m.Addr.Port)
	return netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), binary.BigEndian.Uint16(port[:])), nil
}
