package echo

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// connSet holds open stream connections, so that the end of the server ends them.
type connSet struct {
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

// add reports false, and closes c, when the set was closed before.
func (s *connSet) add(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close()
		return false
	}
	if s.conns == nil {
		s.conns = map[net.Conn]struct{}{}
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *connSet) remove(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	_ = c.Close()
}

func (s *connSet) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
}

// accept serves each connection of l in a goroutine of its own until l closes.
func (s *Server) accept(l net.Listener, serve func(net.Conn)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// The process may be out of files for a moment.
			s.opts.Logger.Warn("accept failed", "address", l.Addr().String(), "error", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if !s.conns.add(c) {
			continue
		}
		wg.Go(func() {
			defer s.conns.remove(c)
			serve(c)
		})
	}
}

func (s *Server) serveTCP(l net.Listener) error {
	return s.accept(l, func(c net.Conn) {
		if s.opts.Banner {
			if _, err := fmt.Fprintln(c, s.opts.Identity.Name); err != nil {
				return
			}
		}
		// Copying ends when the client has sent its last byte; then everything
		// was sent back, and closing tells the client so.
		_, _ = io.Copy(c, c)
	})
}

func (s *Server) serveMySQL(l net.Listener) error {
	return s.accept(l, func(c net.Conn) {
		if err := s.mysql.Serve(c); err != nil {
			s.opts.Logger.Debug("mysql connection ended", "remote", c.RemoteAddr().String(), "error", err)
		}
	})
}

// maxDatagram is more than a UDP datagram can hold.
const maxDatagram = 64 << 10

func (s *Server) serveUDP(p net.PacketConn) error {
	conn, ok := p.(*net.UDPConn)
	if !ok {
		return fmt.Errorf("%T is not a UDP socket", p)
	}
	reply, err := newReplySource(conn)
	if err != nil {
		return fmt.Errorf("udp %s: %w", conn.LocalAddr(), err)
	}
	buf, oob := make([]byte, maxDatagram), make([]byte, 256)
	banner := []byte(nil)
	if s.opts.Banner {
		banner = []byte(s.opts.Identity.Name + "\n")
	}
	for {
		n, oobn, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// An ICMP error of an earlier answer, for example; the socket lives.
			s.opts.Logger.Debug("udp read failed", "error", err)
			continue
		}
		answer := buf[:n]
		if banner != nil {
			answer = append(append(make([]byte, 0, len(banner)+n), banner...), buf[:n]...)
		}
		if _, _, err := conn.WriteMsgUDPAddrPort(answer, reply(oob[:oobn]), from); err != nil {
			s.opts.Logger.Debug("udp answer failed", "remote", from.String(), "error", err)
		}
	}
}

// newReplySource returns a function from the control data of a received
// datagram to that of its answer. A socket for every address would otherwise
// answer from the address that the route back prefers, which a client with a
// connected socket, or NAT on the way, does not take for the answer.
func newReplySource(conn *net.UDPConn) (func([]byte) []byte, error) {
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok || !local.IP.IsUnspecified() {
		return func([]byte) []byte { return nil }, nil
	}
	level, option := unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	if local.IP.To4() != nil {
		level, option = unix.IPPROTO_IP, unix.IP_PKTINFO
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var sockErr error
	if err := raw.Control(func(fd uintptr) { sockErr = unix.SetsockoptInt(int(fd), level, option, 1) }); err != nil {
		return nil, err
	}
	return replySource, sockErr
}

// replySource keeps the address of a packet info and drops its interface, as
// the way back may be another one. A socket of both families gives and takes
// IPv4 addresses in their IPv6 form.
func replySource(oob []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16:
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(m.Data)})
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 8:
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[4:])})
		}
	}
	return nil
}
