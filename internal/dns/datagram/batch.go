package datagram

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Batch is room for the packets that one socket receives at a time, and for
// as many answers. It has one user.
type Batch struct {
	// Dropped is told why an answer did not leave. Required.
	Dropped func(error)

	socket *Socket

	received []mmsghdr
	packets  [][]byte
	iovIn    []unix.Iovec
	from     []unix.RawSockaddrAny

	queue   []mmsghdr
	answers [][]byte
	iovOut  []unix.Iovec
	queued  int
}

// mmsghdr is the struct of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	size   uint32
}

// NewBatch returns room, of the socket's only receiver, for n packets of at most packetSize bytes, and for
// answers that mostly have at most answerSize.
func (s *Socket) NewBatch(n, packetSize, answerSize int) *Batch {
	b := &Batch{
		socket:   s,
		received: make([]mmsghdr, n), packets: make([][]byte, n), iovIn: make([]unix.Iovec, n), from: make([]unix.RawSockaddrAny, n),
		queue: make([]mmsghdr, n), answers: make([][]byte, n), iovOut: make([]unix.Iovec, n),
	}
	for i := range n {
		b.packets[i] = make([]byte, packetSize)
		b.iovIn[i].Base = &b.packets[i][0]
		b.iovIn[i].SetLen(packetSize)
		b.received[i].header.Name = (*byte)(unsafe.Pointer(&b.from[i]))
		b.received[i].header.Iov = &b.iovIn[i]
		b.received[i].header.SetIovlen(1)

		b.answers[i] = make([]byte, 0, answerSize)
		b.queue[i].header.Iov = &b.iovOut[i]
		b.queue[i].header.SetIovlen(1)
	}
	return b
}

// Serve calls handle each time packets have arrived, with their number, and
// sends what it queued. It returns nil once the socket is closed.
//
// All of it is one read of the runtime's poller. Calls of recvmmsg that would
// only say that there is nothing more are saved: the poller is edge-triggered,
// so what arrives after the last call ends the wait that follows. To end the
// read after each call would forget that.
func (b *Batch) Serve(handle func(n int)) error {
	var failed, waited error
	err := b.socket.raw.Control(func(fd uintptr) {
		waited = b.socket.arrivals.Read(func(uintptr) bool {
			for {
				n, errno := b.receive(fd)
				switch {
				case errno == unix.EAGAIN:
					return false
				case errno == 0:
					b.queued = 0
					handle(n)
					b.flush(fd)
					if n < len(b.received) {
						return false
					}
				case !temporary(errno):
					failed = os.NewSyscallError("recvmmsg", errno)
					return true
				}
			}
		})
	})
	switch {
	case failed != nil:
		return failed
	case b.socket.closed.Load():
		return nil
	}
	return cmp.Or(err, waited)
}

func (b *Batch) receive(fd uintptr) (int, syscall.Errno) {
	for i := range b.received {
		b.received[i].header.Namelen = unix.SizeofSockaddrAny
	}
	// RawSyscall6, for the call does not block.
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVMMSG, fd,
		uintptr(unsafe.Pointer(&b.received[0])), uintptr(len(b.received)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// Packet returns the packet at i, whether it is whole, and who sent it.
func (b *Batch) Packet(i int) (packet []byte, whole bool, from netip.AddrPort) {
	m := &b.received[i]
	return b.packets[i][:m.size], m.header.Flags&unix.MSG_TRUNC == 0, addrPort(&b.from[i])
}

// Buffer returns an empty buffer for the next answer.
func (b *Batch) Buffer() []byte { return b.answers[b.queued][:0] }

// Reply queues the answer to the packet at i. It must not change before
// it is sent.
func (b *Batch) Reply(i int, answer []byte) {
	q := &b.queue[b.queued]
	q.header.Name, q.header.Namelen = b.received[i].header.Name, b.received[i].header.Namelen
	b.iovOut[b.queued].Base = unsafe.SliceData(answer)
	b.iovOut[b.queued].SetLen(len(answer))
	b.queued++
}

// flush sends what is queued. What the kernel does not take is dropped: that is
// what UDP means.
func (b *Batch) flush(fd uintptr) {
	for sent := 0; sent < b.queued; {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDMMSG, fd,
			uintptr(unsafe.Pointer(&b.queue[sent])), uintptr(b.queued-sent), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch {
		case errno == 0:
			sent += int(n)
		case errno != unix.EINTR: // the first one's matter
			sent++
			b.Dropped(errno)
		}
	}
}

// addrPort reads an address as the kernel writes it.
func addrPort(raw *unix.RawSockaddrAny) netip.AddrPort {
	switch raw.Addr.Family {
	case unix.AF_INET:
		a := (*unix.RawSockaddrInet4)(unsafe.Pointer(raw))
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), networkOrder(&a.Port))
	case unix.AF_INET6:
		a := (*unix.RawSockaddrInet6)(unsafe.Pointer(raw))
		addr := netip.AddrFrom16(a.Addr)
		if a.Scope_id != 0 {
			addr = addr.WithZone(strconv.FormatUint(uint64(a.Scope_id), 10))
		}
		return netip.AddrPortFrom(addr, networkOrder(&a.Port))
	}
	return netip.AddrPort{}
}

func networkOrder(port *uint16) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(port))[:])
}
