package listener

import (
	"crypto/rand"
	"encoding/binary"
	"net"
	"os"
	"syscall"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// connectionIDs begin with a tag of this process, so that packets of a
// connection can be told from those of another process at the same port.
type connectionIDs struct{ tag uint16 }

const connectionIDLength = 10

// GenerateConnectionID implements quic.ConnectionIDGenerator.
func (c connectionIDs) GenerateConnectionID() (quic.ConnectionID, error) {
	var b [connectionIDLength]byte
	_, _ = rand.Read(b[2:]) // never fails
	binary.BigEndian.PutUint16(b[:], c.tag)
	return quic.ConnectionIDFromBytes(b[:]), nil
}

// ConnectionIDLen implements quic.ConnectionIDGenerator.
func (connectionIDs) ConnectionIDLen() int { return connectionIDLength }

// steering lets a process that starts beside another at the same UDP port take
// over from it: packets of the other's connections go on to that one, for as
// long as it lives, and new connections come here once it is told so. Without
// that the kernel would spread packets by their addresses, and a connection's
// would arrive where nobody knows it.
//
// It sees to two sockets of an address. Should there be a third, of a process
// that is older still, its connections break.
type steering struct {
	connectionIDs
	conn *net.UDPConn
	ours uint32 // the index of our socket; 0 for the only one
}

// newSteering leaves new connections to another process that there may be.
func newSteering(conn *net.UDPConn) (*steering, error) {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails
	n, err := sockets("udp", conn.LocalAddr().(*net.UDPAddr).AddrPort())
	if err != nil {
		return nil, err
	}
	s := &steering{connectionIDs{binary.BigEndian.Uint16(b[:])}, conn, uint32(max(n, 1) - 1)}
	return s, s.attach(0)
}

// takeOver makes new connections come here.
func (s *steering) takeOver() error { return s.attach(s.ours) }

func (s *steering) attach(newcomers uint32) error {
	if s.ours == 0 {
		return nil
	}
	return steer(s.conn, steeringProgram(s.tag, s.ours, newcomers))
}

// steer has a program choose among the sockets that share a port with conn, by
// their index: the order in which they were opened, but that the last takes the
// place of one that is closed.
func steer(conn syscall.Conn, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	filters := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filters[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	control, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var attachErr error
	err = control.Control(func(fd uintptr) {
		attachErr = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
			&unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]})
	})
	if err == nil && attachErr != nil {
		err = os.NewSyscallError("setsockopt SO_ATTACH_REUSEPORT_CBPF", attachErr)
	}
	return err
}

// to leads all packets to the socket of an index.
func to(index uint32) []bpf.Instruction { return []bpf.Instruction{bpf.RetConstant{Val: index}} }

// steeringProgram chooses among the sockets of a port by the first bytes of a
// packet (RFC 9000, 17.2 and 17.3). An index that is none any more, since
// another process has ended, leaves the choice to the kernel.
func steeringProgram(tag uint16, ours, newcomers uint32) []bpf.Instruction {
	const (
		longHeader = 0x80
		longType   = 0x30
		handshake  = 0x20
		shortID    = 1 // where the connection ID begins
		longID     = 6
	)
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: longHeader, SkipFalse: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: longType},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: handshake, SkipTrue: 6}, // a new connection
		bpf.LoadAbsolute{Off: longID, Size: 2},
		bpf.Jump{Skip: 1},
		bpf.LoadAbsolute{Off: shortID, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(tag), SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: ours},
		bpf.RetConstant{Val: newcomers},
	}
}
