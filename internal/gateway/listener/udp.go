package listener

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/gateway/proxyproto"
	"fairway.dev/fairway/internal/gateway/upstream"
)

const (
	// maxDatagram is the largest UDP payload.
	maxDatagram = 65535
	// answerTime is how long an answer is waited for at the end, as resolvers wait.
	answerTime = 5 * time.Second
	// maxSessions bounds the sessions of one port; each takes a socket.
	maxSessions = 16384
	// fullTime is how long no session begins after one for which there was no file.
	fullTime = 100 * time.Millisecond
)

// udpPort carries the sessions of one port.
type udpPort struct {
	streams *Streams
	sockets []packetSocket
	table   atomic.Pointer[table]

	mu       sync.Mutex
	sessions map[sessionKey]*session
	closed   bool
	full     time.Time // until when there are no files for further sessions
	told     time.Time // when the log said so
}

// sessionKey tells sessions apart: the client, and the address that it sent to.
type sessionKey struct {
	client netip.AddrPort
	local  netip.Addr
}

// session is a client's exchange with one endpoint.
type session struct {
	backend *upstream.Conn
	route   *Stream
	ticket  upstream.Ticket
	header  []byte // before each datagram to the endpoint
	client  netip.Addr
	asked   atomic.Int64 // when the client sent its last datagram; 0 once something came back
}

// packetSocket reads datagrams with the address that they were sent to, and
// answers from that address: clients drop answers from any other.
type packetSocket interface {
	read(b []byte) (n int, from netip.AddrPort, to netip.Addr, err error)
	write(b []byte, to netip.AddrPort, from netip.Addr) error
	LocalAddr() net.Addr
	SyscallConn() (syscall.RawConn, error)
	Close() error
}

func (s *Streams) openUDP(ctx context.Context, addr string, t *table) (port, error) {
	p := &udpPort{streams: s, sessions: map[sessionKey]*session{}}
	var firstErr error
	for _, network := range []string{"udp4", "udp6"} {
		sock, err := openPacket(ctx, network, addr)
		switch {
		case err == nil:
			p.sockets = append(p.sockets, sock)
		case errors.Is(err, syscall.EADDRINUSE):
			closeAll(p.sockets)
			return nil, describe(err)
		case firstErr == nil:
			firstErr = describe(err)
		}
	}
	// One family may be missing on the machine, or the address be of the other.
	if len(p.sockets) == 0 {
		return nil, firstErr
	}
	p.use(t)
	// What a process beside this one has under way stays there until it ends.
	p.handTo(0, func(sharing int) bool { return sharing == 2 })
	for _, sock := range p.sockets {
		go p.receive(sock)
	}
	return p, nil
}

func openPacket(ctx context.Context, network, addr string) (packetSocket, error) {
	c, err := config().ListenPacket(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if network == "udp4" {
		sock := ipv4.NewPacketConn(c)
		if err := sock.SetControlMessage(ipv4.FlagDst, true); err != nil {
			return nil, errors.Join(fmt.Errorf("ask for destination addresses: %w", err), c.Close())
		}
		return socket4{sock, c.(*net.UDPConn)}, nil
	}
	sock := ipv6.NewPacketConn(c)
	if err := sock.SetControlMessage(ipv6.FlagDst, true); err != nil {
		return nil, errors.Join(fmt.Errorf("ask for destination addresses: %w", err), c.Close())
	}
	return socket6{sock, c.(*net.UDPConn)}, nil
}

type socket4 struct {
	*ipv4.PacketConn
	conn *net.UDPConn
}

// SyscallConn implements syscall.Conn.
func (s socket4) SyscallConn() (syscall.RawConn, error) { return s.conn.SyscallConn() }

func (s socket4) read(b []byte) (int, netip.AddrPort, netip.Addr, error) {
	n, cm, from, err := s.ReadFrom(b)
	if err != nil {
		return 0, netip.AddrPort{}, netip.Addr{}, err
	}
	var to netip.Addr
	if cm != nil {
		to, _ = netip.AddrFromSlice(cm.Dst.To4())
	}
	return n, from.(*net.UDPAddr).AddrPort(), to, nil
}

func (s socket4) write(b []byte, to netip.AddrPort, from netip.Addr) error {
	var cm *ipv4.ControlMessage
	if from.IsValid() {
		cm = &ipv4.ControlMessage{Src: from.AsSlice()}
	}
	_, err := s.WriteTo(b, cm, net.UDPAddrFromAddrPort(to))
	return err
}

type socket6 struct {
	*ipv6.PacketConn
	conn *net.UDPConn
}

// SyscallConn implements syscall.Conn.
func (s socket6) SyscallConn() (syscall.RawConn, error) { return s.conn.SyscallConn() }

func (s socket6) read(b []byte) (int, netip.AddrPort, netip.Addr, error) {
	n, cm, from, err := s.ReadFrom(b)
	if err != nil {
		return 0, netip.AddrPort{}, netip.Addr{}, err
	}
	var to netip.Addr
	if cm != nil {
		to, _ = netip.AddrFromSlice(cm.Dst)
	}
	return n, from.(*net.UDPAddr).AddrPort(), to, nil
}

func (s socket6) write(b []byte, to netip.AddrPort, from netip.Addr) error {
	var cm *ipv6.ControlMessage
	if from.IsValid() {
		cm = &ipv6.ControlMessage{Src: from.AsSlice()}
	}
	_, err := s.WriteTo(b, cm, net.UDPAddrFromAddrPort(to))
	return err
}

func (p *udpPort) use(t *table) { p.table.Store(t) }

// Close closes the port and ends its sessions: without the socket they could
// get no answers.
func (p *udpPort) Close() error {
	closeAll(p.sockets)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, s := range p.sessions {
		_ = s.backend.Close()
	}
	return nil
}

// handTo has all that comes go to one of the processes that share the port, the
// first (0) or the second, where there are as many as are wanted.
func (p *udpPort) handTo(index uint32, wanted func(sharing int) bool) {
	for _, sock := range p.sockets {
		n, err := sockets("udp", sock.LocalAddr().(*net.UDPAddr).AddrPort())
		if err == nil && wanted(n) {
			err = steer(sock, to(index))
		}
		if err != nil {
			p.streams.options.Logger.Warn("a UDP port cannot be handed over, sessions may break when one of two processes ends", "port", sock.LocalAddr().String(), "error", err)
		}
	}
}

// retire leaves the port to a process beside this one, waits for the answers to
// what has come, and closes it.
func (p *udpPort) retire() {
	p.handTo(1, func(sharing int) bool { return sharing > 1 })
	patience := min(answerTime, p.streams.options.DrainTimeout)
	for end := time.Now().Add(patience); ; {
		time.Sleep(20 * time.Millisecond)
		if now := time.Now(); now.After(end) || !p.awaits(now.Add(-patience)) {
			break
		}
	}
	_ = p.Close()
}

// awaits reports whether a datagram that came after since has not been answered,
// or waits to be read.
func (p *udpPort) awaits(since time.Time) bool {
	for _, sock := range p.sockets {
		waiting := 0
		if raw, err := sock.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { waiting, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
		}
		if waiting > 0 {
			return true
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sessions {
		if s.asked.Load() > since.UnixNano() {
			return true
		}
	}
	return false
}

func (p *udpPort) receive(sock packetSocket) {
	buf := make([]byte, maxDatagram)
	var whole []byte
	for {
		n, from, to, err := sock.read(buf)
		if err != nil {
			if isClosed(err) {
				return
			}
			p.streams.options.Logger.Warn("receive failed", "error", err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		s, err := p.session(sock, sessionKey{from, to})
		if err != nil {
			p.streams.options.Logger.Debug("no session for a datagram", "client", from.String(), "error", err)
			continue
		}
		datagram := buf[:n]
		if len(s.header) > 0 {
			whole = append(append(whole[:0], s.header...), datagram...)
			datagram = whole
		}
		s.asked.Store(time.Now().UnixNano())
		// An error here shows in the session's own read.
		_, _ = s.backend.Write(datagram)
	}
}

var (
	errTooManySessions = errors.New("too many sessions")
	errMemory          = errors.New("memory is short")
)

// session finds the session of a client, or begins one. A session whose
// endpoint or route has gone begins anew.
func (p *udpPort) session(sock packetSocket, key sessionKey) (*session, error) {
	route := p.table.Load().fallback
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.sessions[key]; s != nil {
		if !s.backend.Removed() && s.route.Pool == route.Pool {
			p.wait(s)
			return s, nil
		}
		_ = s.backend.Close()
		delete(p.sessions, key)
	}
	if p.closed {
		return nil, net.ErrClosed
	}
	if len(p.sessions) >= maxSessions {
		return nil, errTooManySessions
	}
	if time.Now().Before(p.full) {
		return nil, errFiles
	}
	if refuse := p.streams.options.Refuse; refuse != nil && refuse() {
		return nil, errMemory
	}
	client, ok := p.streams.options.Sessions.enter(key.client.Addr())
	if !ok {
		return nil, errTooManySessions
	}
	begun := false
	defer func() {
		if !begun {
			p.streams.options.Sessions.leave(client)
		}
	}()
	// Connecting a UDP socket sends nothing and so does not wait, except for
	// the name of an ExternalName Service.
	ctx, cancel := context.WithTimeout(p.streams.ctx, time.Second)
	defer cancel()
	ticket, err := route.Pool.EnterConnection(0)
	if err != nil {
		p.streams.options.OnConnection(&route.StreamRoute, err)
		return nil, err
	}
	backend, err := route.Pool.Dial(ctx, "udp")
	if err != nil {
		ticket.Leave()
		if errors.Is(err, syscall.EMFILE) {
			p.noFiles()
		}
		p.streams.options.OnConnection(&route.StreamRoute, err)
		return nil, err
	}
	if !sparesFiles(backend.Conn) {
		_ = backend.Close()
		ticket.Leave()
		p.noFiles()
		return nil, errFiles
	}
	s := &session{backend: backend, route: route, ticket: ticket, client: client}
	if route.Pool.Proxy() != 0 {
		s.header = proxyproto.AppendDatagram(nil, key.client, netip.AddrPortFrom(key.local, route.Port))
	}
	p.sessions[key], begun = s, true
	p.wait(s)
	go p.answer(sock, key, s)
	return s, nil
}

// sparesFiles reports whether a session's socket leaves files enough for backends.
func sparesFiles(c net.Conn) bool {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return false
	}
	most, at := mostFiles(), 0
	return raw.Control(func(fd uintptr) { at = int(fd) }) == nil && at < most
}

// noFiles has no further session begin for a while. The caller holds p.mu.
func (p *udpPort) noFiles() {
	now := time.Now()
	p.full = now.Add(fullTime)
	if now.Sub(p.told) > tellAgain {
		p.told = now
		p.streams.options.Logger.Warn("UDP sessions cannot begin now, their datagrams are left out", "port", p.sockets[0].LocalAddr().String(), "error", describe(errFiles))
	}
}

// wait has a session wait for its next datagram from now on.
func (p *udpPort) wait(s *session) {
	_ = s.backend.SetReadDeadline(time.Now().Add(cmp.Or(s.route.Pool.Idle(), p.streams.options.UDPIdle)))
}

// datagrams are buffers for one datagram each. A session has one only while it
// carries something: there may be thousands, and a stranger begins one with a byte.
var datagrams = sync.Pool{New: func() any { b := make([]byte, maxDatagram); return &b }}

// answer carries the endpoint's datagrams to the client until nothing was sent
// for the idle time, or the endpoint refuses.
func (p *udpPort) answer(sock packetSocket, key sessionKey, s *session) {
	raw, err := s.backend.Conn.(syscall.Conn).SyscallConn()
	for err == nil {
		var failed error
		err = raw.Read(func(fd uintptr) (done bool) {
			done, failed = p.answerReady(int(fd), sock, key, s)
			return done
		})
		err = cmp.Or(err, failed)
	}
	_ = s.backend.Close()
	s.ticket.Leave()
	p.streams.options.Sessions.leave(s.client)
	p.mu.Lock()
	if p.sessions[key] == s {
		delete(p.sessions, key)
	}
	p.mu.Unlock()
	p.streams.options.OnConnection(&s.route.StreamRoute, nil)
}

// answerReady carries one datagram if it is there; false if there is none yet.
func (p *udpPort) answerReady(fd int, sock packetSocket, key sessionKey, s *session) (bool, error) {
	buf := datagrams.Get().(*[]byte)
	defer datagrams.Put(buf)
	n, err := unix.Read(fd, *buf)
	switch err {
	case nil:
	case unix.EAGAIN:
		return false, nil
	case unix.EINTR:
		return true, nil
	default:
		return true, err
	}
	p.wait(s)
	if err := sock.write((*buf)[:n], key.client, key.local); err != nil {
		p.streams.options.Logger.Debug("answer failed", "client", key.client.String(), "error", err)
	}
	s.asked.Store(0)
	return true, nil
}
