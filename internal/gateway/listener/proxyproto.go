package listener

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// The PROXY protocol of HAProxy, versions 1 and 2
// (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).
var (
	proxyV1 = []byte("PROXY ")
	proxyV2 = []byte("\r\n\r\n\x00\r\nQUIT\n")
)

const (
	maxProxyV1 = 107
	// maxProxyV2 bounds the addresses and TLVs of version 2.
	maxProxyV2 = 4096
)

var errProxyHeader = errors.New("no valid PROXY protocol header")

// proxyConn is a connection whose true ends were told by a PROXY header.
type proxyConn struct {
	net.Conn
	once          sync.Once
	err           error
	rest          []byte // read after the header
	remote, local net.Addr
}

func (c *proxyConn) header() error {
	c.once.Do(func() {
		_ = c.Conn.SetReadDeadline(time.Now().Add(proxyHeaderTimeout))
		var src, dst netip.AddrPort
		src, dst, c.rest, c.err = readProxyHeader(c.Conn)
		_ = c.Conn.SetReadDeadline(time.Time{})
		if c.err != nil {
			_ = c.Conn.Close()
			return
		}
		if src.IsValid() {
			c.remote, c.local = net.TCPAddrFromAddrPort(src), net.TCPAddrFromAddrPort(dst)
		}
	})
	return c.err
}

func (c *proxyConn) Read(p []byte) (int, error) {
	if err := c.header(); err != nil {
		return 0, err
	}
	if len(c.rest) > 0 {
		n := copy(p, c.rest)
		c.rest = c.rest[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// NetConn is the connection to the proxy.
func (c *proxyConn) NetConn() net.Conn { return c.Conn }

// RemoteAddr is the client's address.
func (c *proxyConn) RemoteAddr() net.Addr {
	if c.header() == nil && c.remote != nil {
		return c.remote
	}
	return c.Conn.RemoteAddr()
}

// LocalAddr is the address that the client connected to.
func (c *proxyConn) LocalAddr() net.Addr {
	if c.header() == nil && c.local != nil {
		return c.local
	}
	return c.Conn.LocalAddr()
}

// readProxyHeader reads a header of either version. Addresses are zero for
// connections of the proxy itself (LOCAL, UNKNOWN).
func readProxyHeader(r net.Conn) (src, dst netip.AddrPort, rest []byte, err error) {
	buf := make([]byte, 0, 512)
	for {
		src, dst, n, err := parseProxyHeader(buf)
		if err != nil {
			return src, dst, nil, err
		}
		if n > 0 {
			return src, dst, buf[n:], nil
		}
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
		}
		m, err := r.Read(buf[len(buf):cap(buf)])
		if err != nil {
			return src, dst, nil, fmt.Errorf("%w: %w", errProxyHeader, err)
		}
		buf = buf[:len(buf)+m]
	}
}

// parseProxyHeader returns the length of the header in b; 0 means that more
// bytes are needed.
func parseProxyHeader(b []byte) (src, dst netip.AddrPort, n int, err error) {
	switch {
	case bytes.HasPrefix(b, proxyV2):
		return parseProxyV2(b)
	case bytes.HasPrefix(b, proxyV1):
		end := bytes.Index(b[:min(len(b), maxProxyV1)], []byte("\r\n"))
		if end < 0 {
			if len(b) >= maxProxyV1 {
				err = errProxyHeader
			}
			return src, dst, 0, err
		}
		src, dst, err = parseProxyV1(string(b[:end]))
		return src, dst, end + 2, err
	case bytes.HasPrefix(proxyV1, b), bytes.HasPrefix(proxyV2, b):
		return src, dst, 0, nil
	}
	return src, dst, 0, errProxyHeader
}

func parseProxyV1(line string) (src, dst netip.AddrPort, err error) {
	f := strings.Split(line, " ")
	if f[1] == "UNKNOWN" {
		return src, dst, nil
	}
	if len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6" {
		return src, dst, errProxyHeader
	}
	if src, err = parseEnd(f[2], f[4]); err == nil {
		dst, err = parseEnd(f[3], f[5])
	}
	if err != nil || src.Addr().Is4() != (f[1] == "TCP4") || dst.Addr().Is4() != src.Addr().Is4() {
		return src, dst, errProxyHeader
	}
	return src, dst, nil
}

func parseEnd(addr, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(net.JoinHostPort(a.String(), port))
}

func parseProxyV2(b []byte) (src, dst netip.AddrPort, n int, err error) {
	if len(b) < 16 {
		return src, dst, 0, nil
	}
	size := int(binary.BigEndian.Uint16(b[14:16]))
	command := b[12] & 0xf
	if b[12]>>4 != 2 || command > 1 || size > maxProxyV2 {
		return src, dst, 0, errProxyHeader
	}
	n = 16 + size
	if len(b) < n {
		return src, dst, 0, nil
	}
	body := b[16:n]
	switch family := b[13] >> 4; {
	case command == 0: // LOCAL: the proxy speaks for itself
	case family == 1 && size >= 12:
		src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[0:4])), binary.BigEndian.Uint16(body[8:]))
		dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[4:8])), binary.BigEndian.Uint16(body[10:]))
	case family == 2 && size >= 36:
		src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[0:16])), binary.BigEndian.Uint16(body[32:]))
		dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[16:32])), binary.BigEndian.Uint16(body[34:]))
	case family == 1 || family == 2:
		return src, dst, 0, errProxyHeader
	}
	return src, dst, n, nil
}
