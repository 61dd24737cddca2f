package nft

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/dataplane/cases"
)

// TestInvalidPackets sends a client a packet that belongs to no connection,
// as a server does whose packets conntrack lost: the client must not see it.
func TestInvalidPackets(t *testing.T) {
	net := cases.NewNetwork(t)
	d, err := New(Options{Logger: logger(t), NetNS: int(net.Hosts["node-1"].Handle)})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SetNode(t.Context(), net.Settings); err != nil {
		t.Fatal(err)
	}
	server, client := netip.MustParseAddr("10.244.0.3"), netip.MustParseAddr("10.244.0.2")
	raw := func(host string) (fd int) {
		t.Helper()
		err := net.Hosts[host].Do(func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	out, in := raw("pod-b"), raw("pod-a")
	if err := unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300000}); err != nil {
		t.Fatal(err)
	}
	const syn, synAck = 0x02, 0x12
	arrives := func(flags byte, port uint16) bool {
		t.Helper()
		if err := unix.Sendto(out, segment(server, client, port, flags), 0, &unix.SockaddrInet4{Addr: client.As4()}); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 200)
		for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
			n, _, err := unix.Recvfrom(in, buf, 0)
			if err != nil {
				return false
			}
			if n >= 40 && binary.BigEndian.Uint16(buf[22:]) == port && buf[33] == flags {
				return true
			}
		}
		return false
	}
	if !arrives(syn, 7001) {
		t.Error("the first packet of a connection does not arrive")
	}
	if arrives(synAck, 7002) {
		t.Error("an answer to nothing arrives")
	}
}

// segment is a TCP header from port 80.
func segment(src, dst netip.Addr, port uint16, flags byte) []byte {
	s := make([]byte, 20)
	binary.BigEndian.PutUint16(s[0:], 80)
	binary.BigEndian.PutUint16(s[2:], port)
	binary.BigEndian.PutUint32(s[4:], 1)
	s[12], s[13] = 5<<4, flags
	binary.BigEndian.PutUint16(s[14:], 1024)
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, unix.IPPROTO_TCP, 0, byte(len(s)))
	sum := uint32(0)
	for _, b := range [][]byte{pseudo, s} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(s[16:], ^uint16(sum))
	return s
}
