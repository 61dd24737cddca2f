package listener

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A process that starts beside another at the same ports gets its share of
// connections from the moment that it listens. So it does not before it can
// serve them: one that never comes that far, since it cannot reach the API,
// would take them from one that serves.

// beside binds a socket to an address at which another process listens, and
// does not listen yet. It returns nil if nobody listens there.
func beside(addr *net.TCPAddr) (*os.File, error) {
	if other, err := listens(addr); err != nil || !other {
		return nil, err
	}
	var fd int
	var err error
	var at unix.Sockaddr
	if addr.IP.To4() == nil {
		at6 := &unix.SockaddrInet6{Port: addr.Port}
		copy(at6.Addr[:], addr.IP)
		at = at6
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	}
	if at == nil || errors.Is(err, unix.EAFNOSUPPORT) && wildcard(addr) {
		at4 := &unix.SockaddrInet4{Port: addr.Port}
		copy(at4.Addr[:], addr.IP.To4())
		at = at4
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), addr.String())
	err = setOptions(fd, true)
	if err == nil {
		err = os.NewSyscallError("setsockopt SO_REUSEADDR", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)) // as Go's listeners
	}
	if _, ipv6 := at.(*unix.SockaddrInet6); ipv6 && wildcard(addr) && err == nil {
		err = os.NewSyscallError("setsockopt IPV6_V6ONLY", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0))
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, at))
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func wildcard(addr *net.TCPAddr) bool { return addr.IP == nil || addr.IP.IsUnspecified() }

// listenNow makes a socket that beside has bound listen, and closes it: the
// listener has another file.
func listenNow(f *os.File) (net.Listener, error) {
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	if ctlErr := raw.Control(func(fd uintptr) {
		err = os.NewSyscallError("listen", unix.Listen(int(fd), math.MaxInt32)) // as many as net.core.somaxconn lets it
	}); ctlErr != nil {
		return nil, ctlErr
	}
	if err != nil {
		return nil, err
	}
	return net.FileListener(f)
}

// listens reports whether a socket listens where one at addr would get a share
// of its connections.
func listens(addr *net.TCPAddr) (bool, error) {
	if addr.Port == 0 {
		return false, nil // the kernel chooses one that is free
	}
	list := []netip.Addr{addr.AddrPort().Addr().Unmap()}
	if wildcard(addr) {
		list = []netip.Addr{netip.IPv6Unspecified(), netip.IPv4Unspecified()}
	}
	for _, a := range list {
		if n, err := sockets("tcp", netip.AddrPortFrom(a, uint16(addr.Port))); err != nil || n > 0 {
			return n > 0, err
		}
	}
	return false, nil
}

// sockets counts the sockets at an address, for "tcp" those that listen.
func sockets(network string, addr netip.AddrPort) (int, error) {
	file := "/proc/self/net/" + network
	if !addr.Addr().Is4() {
		file += "6"
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // a machine without IPv6
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// The kernel prints addresses in words of its own byte order.
	var want strings.Builder
	for word := range slices.Chunk(addr.Addr().AsSlice(), 4) {
		fmt.Fprintf(&want, "%08X", binary.NativeEndian.Uint32(word))
	}
	fmt.Fprintf(&want, ":%04X", addr.Port())
	const local, state, listening = 1, 3, "0A"
	n := 0
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) <= state || fields[local] == "local_address" {
			continue
		}
		if network == "tcp" && fields[state] != listening {
			break // those that listen come first, and connections may be many
		}
		if fields[local] == want.String() {
			n++
		}
	}
	return n, scanner.Err()
}
